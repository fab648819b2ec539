"""A convolutional network for pictures or tokens: convolution and pooling blocks, a hidden layer.

BatchNorm is not offered: it mixes the records of a batch, which no per-record guarantee survives.
28x28x1 pictures of 10 classes make the well-known network of 421,642 parameters.
"""

import math

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import PADDING, InputSpec

GROUPS_MAX = 8  # GroupNorm: at least four channels a group at the default widths of 32 and 64


class Cnn(nn.Module):
    """Convolve and halve once for each of ``channels``, flatten, one hidden layer, logits."""

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        vocabulary: int = 0,
        channels: tuple[int, ...] = (32, 64),
        hidden: int = 128,
        group_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Make the layers for pictures (C, H, W), or with a ``vocabulary`` for (C, L) embeddings.

        H and W, or L, halve once a block; an odd last row or column is dropped.
        """
        super().__init__()
        depth, *sizes = shape
        # Rows of a picture and their columns, or letters of a sequence: the same network.
        convolution, pooling = (
            (nn.Conv1d, nn.MaxPool1d) if vocabulary else (nn.Conv2d, nn.MaxPool2d)
        )
        self.embedding = nn.Embedding(vocabulary, depth) if vocabulary else None
        blocks: list[nn.Module] = []
        for deeper in channels:
            blocks.append(convolution(depth, deeper, kernel_size=3, padding=1))
            if group_norm:
                blocks.append(nn.GroupNorm(math.gcd(GROUPS_MAX, deeper), deeper))
            blocks += [nn.ReLU(), pooling(2)]
            depth, sizes = deeper, [size // 2 for size in sizes]
        if not min(sizes) >= 1:
            raise ValueError(f"expected records that can be halved {len(channels)} times")
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(depth * math.prod(sizes), hidden)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.out = nn.Linear(hidden, outputs)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs) logits of (B, C, H, W) float32 pictures or (B, L) int64 tokens."""
        maps = records
        if self.embedding is not None:
            maps = self.embedding(records).mT  # (B, L) -> (B, L, C) -> (B, C, L)
            # Zero, as beyond the ends of the sequence: a convolution sees nothing in padding.
            maps = maps * (records != PADDING)[:, None]  # (B, L) -> (B, 1, L)
        maps = self.blocks(maps)  # (B, C, H, W) -> (B, 32, H/2, W/2) -> (B, 64, H/4, W/4)
        flat = maps.flatten(1)  # (B, 64, H/4, W/4) -> (B, 64*H/4*W/4)
        hidden = self.dropout(self.hidden(flat).relu())  # (B, 64*H/4*W/4) -> (B, hidden)
        logits: torch.Tensor = self.out(hidden)  # (B, hidden) -> (B, outputs)
        return logits


def build_cnn(section: sections.Cnn, spec: InputSpec, outputs: int) -> Cnn:
    """Build the network that ``section`` describes, for pictures or tokens of ``spec``.

    Raises:
        StudyError: the records are neither, or too small for the poolings.
    """
    if spec.kind not in {"image", "tokens"}:
        raise StudyError(
            f"model.name: 'cnn' expected pictures or tokens as input, found {spec.kind}"
        )
    shape = spec.shape if spec.kind == "image" else (section.embedding, *spec.shape)
    blocks = len(section.channels)
    if min(shape[1:]) < 2**blocks:
        raise StudyError(
            f"model.channels: expected at least {2**blocks} pixels or letters a side for {blocks} "
            f"poolings, found {'x'.join(map(str, shape[1:]))}",
            "write fewer channels: each halves the record once",
        )
    return Cnn(
        shape,
        outputs,
        spec.vocabulary,
        section.channels,
        section.hidden,
        group_norm=section.norm == "group",
        dropout=section.dropout,
    )
