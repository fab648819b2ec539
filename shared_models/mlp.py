"""A multi-layer perceptron: flatten, then Linear and ReLU for each hidden width, then one Linear.

It does not scale its inputs (the data contract did) and ends in logits, not in probabilities.
"""

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import InputSpec


class Mlp(nn.Module):
    """Fully connected layers; no hidden width at all makes it logistic or linear regression."""

    def __init__(
        self, features: int, outputs: int, hidden: tuple[int, ...] = (64, 32), dropout: float = 0.0
    ) -> None:
        """Make the layers ``features -> hidden... -> outputs``, each with a bias."""
        super().__init__()
        layers: list[nn.Module] = []
        width = features
        for wider in hidden:
            layers += [nn.Linear(width, wider), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = wider
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs) logits of (B, ...) float32 records."""
        flat = records.flatten(1)  # (B, F) stays; (B, T, F) -> (B, T*F); (B, C, H, W) -> (B, C*H*W)
        logits: torch.Tensor = self.layers(flat)  # (B, F) -> (B, hidden)... -> (B, outputs)
        return logits


def build_mlp(section: sections.Mlp, spec: InputSpec, outputs: int) -> Mlp:
    """Build the network that ``section`` describes, for records of ``spec``.

    Raises:
        StudyError: the records are tokens, whose ids are names and not quantities.
    """
    if spec.kind == "tokens":
        raise StudyError("model.name: 'mlp' expected numbers as input, found tokens")
    features = 1
    for size in spec.shape:
        features *= size
    return Mlp(features, outputs, section.hidden, section.dropout)
