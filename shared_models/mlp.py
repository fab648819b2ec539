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
        self,
        features: int,
        outputs: int,
        hidden: tuple[int, ...] = (64, 32),
        dropout: float = 0.0,
        each_step: bool = False,
    ) -> None:
        """Make the layers ``features -> hidden... -> outputs``, each with a bias.

        With ``each_step``, one output of the F features of each step of a series.
        """
        super().__init__()
        layers: list[nn.Module] = []
        width = features
        for wider in hidden:
            layers += [nn.Linear(width, wider), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = wider
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.each_step = each_step

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        """Return (B, outputs) logits of (B, ...) float32 records; (B, T) of a series by steps."""
        if self.each_step:
            steps: torch.Tensor = self.layers(records).squeeze(2)  # (B, T, F) -> (B, T, 1)
            return steps  # (B, T)
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


def build_step_mlp(section: sections.Mlp, spec: InputSpec, outputs: int) -> Mlp:
    """Build the network that answers each step of a series of ``spec`` from that step alone.

    Raises:
        StudyError: the records are no series.
        ValueError: ``outputs`` is not the number of steps.
    """
    if spec.kind != "series":
        raise StudyError(f"model.name: 'mlp' expected a series as input, found {spec.kind}")
    if outputs != spec.shape[0]:
        raise ValueError(f"expected an output a step ({spec.shape[0]}), got {outputs}")
    return Mlp(spec.shape[1], 1, section.hidden, section.dropout, each_step=True)
