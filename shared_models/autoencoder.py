"""An autoencoder: Linear and ReLU down to a short code and back, which ends in its own error.

What it answers for a record is how far its copy is from it, so that nothing but the records' inputs
is learnt from. It does not scale its inputs (the data contract did), but for pictures, whose
brightness and contrast are the exposure's: each is brought to mean 0 and deviation 1 by itself.
"""

import math
from itertools import pairwise

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.anomaly import LEAST
from shared_models.inputs import InputSpec


class Autoencoder(nn.Module):
    """Fully connected layers, F -> hidden... -> code -> ...hidden -> F."""

    def __init__(
        self, features: int, hidden: tuple[int, ...], code: int, *, level: bool = False
    ) -> None:
        """Make the layers, each with a bias; ``level``: take off brightness and contrast first."""
        super().__init__()
        self.level = level
        self.down = _layers((features, *hidden, code))
        self.up = _layers((code, *reversed(hidden), features))

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, 1) mean squared errors of the copies of (B, ...) float32 records."""
        flat = records.flatten(1)  # (B, ...) -> (B, F)
        if self.level:
            variance, mean = torch.var_mean(flat, dim=1, correction=0, keepdim=True)
            flat = (flat - mean) / (variance + LEAST).sqrt()
        copies = self.up(self.down(flat))  # (B, F) -> (B, code) -> (B, F)
        errors: torch.Tensor = (copies - flat).square().mean(dim=1, keepdim=True)  # -> (B, 1)
        return errors


def build_autoencoder(section: sections.Autoencoder, spec: InputSpec, outputs: int) -> Autoencoder:
    """Build the network that ``section`` describes, for records of ``spec``.

    Raises:
        StudyError: the records are tokens, whose ids are names and not quantities.
    """
    if spec.kind == "tokens" or outputs != 1:
        raise StudyError("model.name: 'autoencoder' expected numbers as input, found tokens")
    level = spec.kind in {"image", "volume"}
    return Autoencoder(math.prod(spec.shape), section.hidden, section.code, level=level)


def _layers(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, wider in pairwise(widths):
        layers += [nn.Linear(width, wider), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
