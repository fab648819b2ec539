"""A self-attention encoder over a series or tokens; a masked mean or a recurrent layer reads it.

Every parameter lies in a Linear, Embedding, LayerNorm or recurrent module, and every module is
called on a real batch: per-record gradients of private training are known for exactly those.
Source: Vaswani et al. 2017, arXiv:1706.03762; the norm before each part: arXiv:2002.04745.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch users know
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import PADDING, InputSpec
from shared_models.recurrent import CELLS, last_step


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself; padding is attended to by nobody."""

    def __init__(self, width: int, heads: int) -> None:
        """Make ``heads`` heads of ``width / heads`` each."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, attended: torch.Tensor | None) -> torch.Tensor:
        """Return (B, T, W) of (B, T, W); ``attended`` (B, 1, 1, T) bool, None: every step."""
        batch, steps, width = x.shape
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(self.key(x)),
            self._split(self.value(x)),
            attn_mask=attended,
        )  # (B, H, T, D) x (B, H, T, D) -> scores (B, H, T, T) -> (B, H, T, D)
        mixed = mixed.transpose(1, 2).reshape(batch, steps, width)  # (B, H, T, D) -> (B, T, W)
        result: torch.Tensor = self.out(mixed)
        return result

    def weights(self, x: torch.Tensor, attended: torch.Tensor | None) -> torch.Tensor:
        """Return (B, H, T, T), how much each step attends to each; the arguments of `forward`.

        It computes what `forward` never holds: there the kernel keeps no weights.
        """
        query, key = self._split(self.query(x)), self._split(self.key(x))
        scores = query @ key.mT / math.sqrt(query.shape[-1])  # (B, H, T, D) -> (B, H, T, T)
        if attended is not None:
            scores = scores.masked_fill(~attended, -math.inf)
        return scores.softmax(dim=-1)

    def _split(self, y: torch.Tensor) -> torch.Tensor:
        """Return (B, H, T, D) of (B, T, W)."""
        batch, steps, width = y.shape
        return y.view(batch, steps, self.heads, width // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Attention, then a feed-forward layer at each step; both are added to what came in."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        """Make one block; ``feedforward`` is the width of its hidden layer."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: torch.Tensor, attended: torch.Tensor | None) -> torch.Tensor:
        """Return (B, T, W) of (B, T, W)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), attended))
        added: torch.Tensor = self.dropout(self.feedforward(self.feedforward_norm(x)))
        return x + added  # (B, T, W) -> (B, T, feedforward) -> (B, T, W)


class Attention(nn.Module):
    """Embed, add learnt positions, run the blocks, read the sequence once, logits."""

    def __init__(
        self,
        outputs: int,
        length: int,
        features: int = 0,
        vocabulary: int = 0,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        feedforward: int = 128,
        recurrent: Literal["none", "lstm", "gru", "rnn"] = "none",
        dropout: float = 0.0,
    ) -> None:
        """Make the layers for sequences of at most ``length`` steps.

        Args:
            features: F of a series; unused with a vocabulary.
            vocabulary: number of token ids, padding included; 0 for a series.
            recurrent: what reads the encoded sequence; none: the mean over its present steps.
        """
        super().__init__()
        self.tokens = bool(vocabulary)
        self.embed = nn.Embedding(vocabulary, width) if vocabulary else nn.Linear(features, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, feedforward, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.recurrent = (
            None if recurrent == "none" else CELLS[recurrent](width, width, batch_first=True)
        )
        self.out = nn.Linear(width, outputs)
        # Small, as in GPT-2: splice junctions came to .96 in 10 passes; with N(0, 1), to .95.
        for embedding in (self.embed, self.positions):
            if isinstance(embedding, nn.Embedding):
                nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs) logits of (B, T, F) float32 series or (B, T) int64 tokens."""
        present = records != PADDING if self.tokens else None  # (B, T) bool
        attended = None
        if present is not None:
            # A record of padding alone attends to all of it: a softmax over nothing is NaN in some
            # of the kernels that torch chooses from.
            attended = (present | ~present.any(dim=1, keepdim=True))[:, None, None]  # (B, 1, 1, T)
        batch, steps = records.shape[:2]
        # Copied for every record, not expanded: per-record gradients need a real batch of ids.
        places = torch.arange(steps, device=records.device).repeat(batch, 1)  # (T,) -> (B, T)
        x = self.embed(records) + self.positions(places)  # (B, T) or (B, T, F) -> (B, T, W)
        for block in self.blocks:
            x = block(x, attended)  # (B, T, W)
        x = self.norm(x)
        if self.recurrent is not None:
            sequence, _ = self.recurrent(x)  # (B, T, W)
            read = last_step(sequence, present)  # (B, T, W) -> (B, W)
        else:
            read = mean_step(x, present)  # (B, T, W) -> (B, W)
        logits: torch.Tensor = self.out(read)  # (B, W) -> (B, outputs)
        return logits


def mean_step(sequence: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over each record's present steps: (B, T, W) -> (B, W); zero without any."""
    if present is None:
        return sequence.mean(dim=1)  # (B, T, W) -> (B, W)
    weights = present.to(sequence.dtype)[:, :, None]  # (B, T) -> (B, T, 1)
    return (sequence * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)  # -> (B, W)


def build_attention(section: sections.Attention, spec: InputSpec, outputs: int) -> Attention:
    """Build the network that ``section`` describes, for series or tokens of ``spec``.

    Raises:
        StudyError: the records are neither series nor tokens.
    """
    if spec.kind not in {"series", "tokens"}:
        raise StudyError(
            f"model.name: 'attention' expected a series or tokens as input, found {spec.kind}"
        )
    return Attention(
        outputs,
        length=spec.shape[0],
        features=spec.shape[1] if spec.kind == "series" else 0,
        vocabulary=spec.vocabulary,
        width=section.width,
        heads=section.heads,
        layers=section.layers,
        feedforward=section.feedforward,
        recurrent=section.recurrent,
        dropout=section.dropout,
    )
