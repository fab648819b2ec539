"""An autoencoder: Linear and ReLU down to a short code and back, which ends in its own error.

It does not scale its inputs (the data contract did). What it answers for a record is how far its
copy is from it, so that nothing but the records' inputs is learnt from.
"""

import math

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import InputSpec


class Autoencoder(nn.Module):
    """Fully connected layers, F -> hidden... -> code -> ...hidden -> F."""

    def __init__(self, features: int, hidden: tuple[int, ...], code: int) -> None:
        """Make the layers, each with a bias; the code itself and the copy are linear."""
        super().__init__()
        self.down = _layers((features, *hidden, code))
        self.up = _layers((code, *reversed(hidden), features))

    def reconstruct(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, F) copies of (B, ...) float32 records."""
        copies: torch.Tensor = self.up(self.down(records.flatten(1)))  # (B, F) -> (B, C) -> (B, F)
        return copies

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, 1) mean squared errors of the copies."""
        gaps = self.reconstruct(records) - records.flatten(1)
        return gaps.square().mean(dim=1, keepdim=True)  # (B, F) -> (B, 1)


def build_autoencoder(section: sections.Autoencoder, spec: InputSpec, outputs: int) -> Autoencoder:
    """Build the network that ``section`` describes, for records of ``spec``.

    Raises:
        StudyError: the records are tokens, whose ids are names and not quantities.
    """
    if spec.kind == "tokens" or outputs != 1:
        raise StudyError("model.name: 'autoencoder' expected numbers as input, found tokens")
    return Autoencoder(math.prod(spec.shape), section.hidden, section.code)


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, wider in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(width, wider), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
