"""One network of several kinds of input: static values, a series, a picture; any may be missing.

Each part has a network of its own that makes a few numbers of it; a linear layer decides from all
of them. A part that a record lacks gives zeros, whatever fills its place, and a mark tells the last
layer so: nothing is learnt about it from that record. It reads no file: inputs says in which order
the parts lie in a record's one vector.

Late fusion with masks, as in Ngiam et al. 2011 (ICML, section 4), where a modality that is absent
is set to zero.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.cnn import Cnn
from shared_models.inputs import InputSpec, PartName, PartSpec
from shared_models.mlp import Mlp
from shared_models.recurrent import Recurrent


class Fusion(nn.Module):
    """A network a part, and one linear layer over what they make of it."""

    def __init__(
        self,
        parts: tuple[PartSpec, ...],
        used: tuple[PartName, ...],
        networks: Mapping[PartName, nn.Module],
        width: int,
        outputs: int,
    ) -> None:
        """Put the networks together.

        Args:
            parts: of a record, in their order; marks of what is there follow them.
            used: those that are read.
            networks: of each that is, from (B, *shape) to (B, width).
            width: numbers that a part becomes.
            outputs: K.
        """
        super().__init__()
        self.parts = parts
        self.used = used
        self.networks = nn.ModuleDict({name: networks[name] for name in used})
        self.out = nn.Linear(len(used) * (width + 1), outputs)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, K) of (B, F): the parts, flat, then one mark a part, 1 where it is there."""
        sizes = [math.prod(part.shape) for part in self.parts]
        *pieces, marks = torch.split(records, [*sizes, len(self.parts)], dim=1)
        found = []
        for place, (part, piece) in enumerate(zip(self.parts, pieces, strict=True)):
            if part.name not in self.used:
                continue
            there = marks[:, place : place + 1]  # (B, 1)
            # Bounded, so that no part drowns another; a ReLU would leave some numbers dead.
            made = self.networks[part.name](piece.reshape(-1, *part.shape)).tanh()  # -> (B, W)
            found += [made * there, there]
        logits: torch.Tensor = self.out(torch.cat(found, dim=1))  # (B, parts x (W + 1)) -> (B, K)
        return logits


def build_fusion(section: sections.Fusion, spec: InputSpec, outputs: int) -> Fusion:
    """Build the network that ``section`` describes, for records of several parts.

    Raises:
        StudyError: the records have no parts, or not those that the section names; a picture is too
            small for the poolings.
    """
    names = tuple(part.name for part in spec.parts)
    unknown = [name for name in section.parts if name not in names]
    if not names or unknown:
        raise StudyError(
            f"model.parts: expected some of {', '.join(names) or 'none, the records have no parts'}"
            f", found {', '.join(unknown) or 'fusion'}"
        )
    used = tuple(name for name in names if name in section.parts or not section.parts)
    networks = {part.name: _network(section, part) for part in spec.parts if part.name in used}
    return Fusion(spec.parts, used, networks, section.width, outputs)


def _network(section: sections.Fusion, part: PartSpec) -> nn.Module:
    width, dropout = section.width, section.dropout
    if part.name == "static":
        return Mlp(part.shape[0], width, section.hidden, dropout)
    if part.name == "series":
        hidden = section.recurrent
        if not hidden:
            return Mlp(math.prod(part.shape), width, ())
        return Recurrent(section.cell, width, part.shape[1], hidden=hidden, dropout=dropout)
    if min(part.shape[1:]) < 2 ** len(section.channels):
        raise StudyError(
            f"model.channels: expected at least {2 ** len(section.channels)} pixels a side for "
            f"{len(section.channels)} poolings, found {'x'.join(map(str, part.shape[1:]))}",
            "write fewer channels: each halves the picture once",
        )
    return Cnn(part.shape, width, channels=section.channels, hidden=width, dropout=dropout)
