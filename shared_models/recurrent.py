"""Recurrent networks (LSTM, GRU, plain RNN) over a series or tokens; the last output decides.

Or every output answers for its own step, from what came before: layers read forward alone.

Nothing but nn.LSTM, nn.GRU or nn.RNN of one layer each, batch first, of which only the output
sequence is read: per-record gradients of private training are known for exactly those.
"""

import itertools
from typing import Literal

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import PADDING, InputSpec

Cell = Literal["lstm", "gru", "rnn"]
CELLS: dict[Cell, type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
}


class Recurrent(nn.Module):
    """Recurrent layers one after the other; all but the last hand on their whole sequence."""

    def __init__(
        self,
        cell: Cell,
        outputs: int,
        features: int,
        vocabulary: int = 0,
        hidden: tuple[int, ...] = (128, 64),
        dropout: float = 0.0,
        each_step: bool = False,
    ) -> None:
        """Make the layers.

        Args:
            cell: of every layer.
            outputs: K, of the last step; of a network that answers each step, one.
            features: F of a series; with a ``vocabulary``, of the embedding.
            vocabulary: number of token ids, padding included; 0 for a series.
            hidden: width of each layer.
            dropout: after each layer.
            each_step: answer every step of a series.
        """
        super().__init__()
        # No padding_idx: row 0 gets gradients of its own like any other, in every training mode.
        self.embedding = nn.Embedding(vocabulary, features) if vocabulary else None
        widths = (features, *hidden)
        self.layers = nn.ModuleList(
            CELLS[cell](before, after, batch_first=True)
            for before, after in itertools.pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.out = nn.Linear(widths[-1], outputs)
        self.each_step = each_step

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs) logits of (B, T, F) float32 series or (B, T) int64 tokens.

        (B, T) where each step is answered.
        """
        present = None  # a series has a value at every step: its missing ones were filled
        sequence = records
        if self.embedding is not None:
            present = records != PADDING  # (B, T) bool
            sequence = self.embedding(records)  # (B, T) -> (B, T, F)
        for layer in self.layers:
            sequence, _ = layer(sequence)  # (B, T, F) -> (B, T, 128) -> (B, T, 64)
            sequence = self.dropout(sequence)
        if self.each_step:
            steps: torch.Tensor = self.out(sequence).squeeze(2)  # (B, T, 64) -> (B, T, 1) -> (B, T)
            return steps
        logits: torch.Tensor = self.out(last_step(sequence, present))  # (B, 64) -> (B, outputs)
        return logits


def last_step(sequence: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Return the outputs at each record's last present step: (B, T, H) -> (B, H).

    The last, not the mean: it is what "returning sequences, then the last output" means elsewhere,
    and since a recurrent layer reads forward, padding after it cannot change it.

    Args:
        sequence: (B, T, H) outputs of a recurrent layer.
        present: (B, T) bool; None: every step is. A record without any gives its first step.
    """
    if present is None:
        return sequence[:, -1]  # (B, T, H) -> (B, H)
    steps = torch.arange(present.shape[1], device=present.device)  # (T,)
    last = (present * steps).amax(dim=1)  # (B, T) -> (B,)
    index = last[:, None, None].expand(-1, 1, sequence.shape[2])  # (B,) -> (B, 1, H)
    return sequence.gather(1, index).squeeze(1)  # (B, T, H) -> (B, 1, H) -> (B, H)


def build_recurrent(section: sections.Recurrent, spec: InputSpec, outputs: int) -> Recurrent:
    """Build the network that ``section`` describes, for series or tokens of ``spec``.

    Raises:
        StudyError: the records are neither series nor tokens.
    """
    if spec.kind not in {"series", "tokens"}:
        raise StudyError(
            f"model.name: {section.name!r} expected a series or tokens as input, found {spec.kind}"
        )
    features = spec.shape[1] if spec.kind == "series" else section.embedding
    return Recurrent(
        section.name, outputs, features, spec.vocabulary, section.hidden, section.dropout
    )


def build_prefixes(section: sections.Recurrent, spec: InputSpec, outputs: int) -> Recurrent:
    """Build the network that answers each step of a series of ``spec`` from those up to it.

    Raises:
        StudyError: the records are no series.
        ValueError: ``outputs`` is not the number of steps.
    """
    if spec.kind != "series":
        raise StudyError(
            f"model.name: {section.name!r} expected a series as input, found {spec.kind}"
        )
    if outputs != spec.shape[0]:
        raise ValueError(f"expected an output a step ({spec.shape[0]}), got {outputs}")
    return Recurrent(
        section.name,
        1,
        spec.shape[1],
        hidden=section.hidden,
        dropout=section.dropout,
        each_step=True,
    )
