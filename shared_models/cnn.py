"""A convolutional network for pictures: blocks of 3x3 convolution and pooling, one hidden layer.

BatchNorm is not offered: it mixes the records of a batch, which no per-record guarantee survives.
28x28x1 pictures of 10 classes make the well-known network of 421,642 parameters.
"""

import math

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import InputSpec

GROUPS_MAX = 8  # GroupNorm: at least four channels a group at the default widths of 32 and 64


class Cnn(nn.Module):
    """Convolve and halve once for each of ``channels``, flatten, one hidden layer, logits."""

    def __init__(
        self,
        image: tuple[int, int, int],
        outputs: int,
        channels: tuple[int, ...] = (32, 64),
        hidden: int = 128,
        group_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Make the layers for ``image`` = (C, H, W), whose H and W halve once a block."""
        super().__init__()
        depth, height, width = image
        blocks: list[nn.Module] = []
        for deeper in channels:
            blocks.append(nn.Conv2d(depth, deeper, kernel_size=3, padding=1))
            if group_norm:
                blocks.append(nn.GroupNorm(math.gcd(GROUPS_MAX, deeper), deeper))
            blocks += [nn.ReLU(), nn.MaxPool2d(2)]
            depth, height, width = deeper, height // 2, width // 2
        if not min(height, width) >= 1:
            raise ValueError(f"expected a picture that can be halved {len(channels)} times")
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(depth * height * width, hidden)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.out = nn.Linear(hidden, outputs)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs) logits of (B, C, H, W) float32 pictures."""
        maps = self.blocks(pictures)  # (B, C, H, W) -> (B, 32, H/2, W/2) -> (B, 64, H/4, W/4)
        flat = maps.flatten(1)  # (B, 64, H/4, W/4) -> (B, 64*H/4*W/4)
        hidden = self.dropout(self.hidden(flat).relu())  # (B, 64*H/4*W/4) -> (B, hidden)
        logits: torch.Tensor = self.out(hidden)  # (B, hidden) -> (B, outputs)
        return logits


def build_cnn(section: sections.Cnn, spec: InputSpec, outputs: int) -> Cnn:
    """Build the network that ``section`` describes, for pictures of ``spec``.

    Raises:
        StudyError: the records are no pictures, or too small for the poolings.
    """
    if spec.kind != "image":
        raise StudyError(f"model.name: 'cnn' expected pictures as input, found {spec.kind}")
    depth, height, width = spec.shape
    blocks = len(section.channels)
    if min(height, width) < 2**blocks:
        raise StudyError(
            f"model.channels: expected pictures of at least {2**blocks}x{2**blocks} pixels for "
            f"{blocks} poolings, found {height}x{width}",
            "write fewer channels: each halves the picture once",
        )
    return Cnn(
        (depth, height, width),
        outputs,
        section.channels,
        section.hidden,
        group_norm=section.norm == "group",
        dropout=section.dropout,
    )
