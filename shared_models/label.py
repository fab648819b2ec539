"""Targets that are one class of a few, or one number: losses, predictions and figures of them.

It counts nothing itself: cells, noised_cells and metrics do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_models import cells, metrics, noised_cells
from shared_models.cells import Cells, Kind, Range
from shared_models.contract import Data, NumberColumn
from shared_models.metrics import Figure
from shared_models.target import Words, log_odds, percent

if TYPE_CHECKING:
    import torch

    from privacy.cell_noise import CellNoise
    from shared_models.study import Study

Array = npt.NDArray[Any]
Answers = npt.NDArray[np.float64]
UNSCALED = (-1.0, 1.0)  # the range that a network's output has by itself


@dataclass(frozen=True)
class Label:
    """A class or a number.

    Attributes:
        kind: binary, multiclass or regression.
        classes: names in the order of the outputs; () for a number.
        outputs: one a class, or one for two classes or a number.
        bounds: public range of a number; of no meaning for classes.
        unit: of a number, where it has one.
    """

    kind: Kind
    classes: tuple[str, ...]
    outputs: int
    bounds: Range = UNSCALED
    unit: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures."""
        return metrics.METRICS[self.kind]

    @property
    def headline(self) -> str:
        """The figure that a report leads with."""
        return metrics.HEADLINE[self.kind]

    def told(self, *, exact: bool) -> tuple[str, ...]:
        """Return the names of the figures that an evaluation tells."""
        if exact or self.kind != "multiclass":
            return self.metrics
        return tuple(name for name in self.metrics if name not in {"auc", "pr_auc"})

    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return (B, C) logs of the classes' chances, up to a constant a record."""
        import torch

        if outputs.shape[1] > 1:
            return outputs
        return torch.cat([torch.zeros_like(outputs), outputs], dim=1)  # (B, 1) -> (B, 2)

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return each record's own loss; no record's loss depends on another record.

        Binary with one logit: binary cross entropy. Two or more logits: cross entropy. Number:
        squared error, with the target's public range scaled to [-1, 1], so that a step means the
        same for grams and for years.

        Args:
            outputs: (B, K) float32, as the network returned them.
            targets: (B,) int64 class index, or float32 in the units of the target.

        Returns:
            (B,) float32 losses, in nats or squared half-ranges.
        """
        import torch.nn.functional as F  # noqa: N812 - the name that torch users know

        if self.kind == "regression":
            low, high = self.bounds
            scaled = 2 * (targets - low) / (high - low) - 1
            return (outputs[:, 0] - scaled).square()  # (B, 1) -> (B,)
        if outputs.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(
                outputs[:, 0], targets.to(outputs.dtype), reduction="none"
            )  # (B, 1) -> (B,)
        return F.cross_entropy(outputs, targets, reduction="none")  # (B, K) -> (B,)

    def predictions(self, outputs: torch.Tensor) -> Answers:
        """Return what the outputs mean to a person.

        Args:
            outputs: (B, K) float32, as the network returned them.

        Returns:
            (B, C) float64 probabilities of the classes, C = 2 for a binary target however many
            logits; or (B,) float64 numbers in the units of the target.
        """
        import torch

        logits = outputs.detach().to("cpu", torch.float64)  # float32 would round 1 - 1e-9 to 1
        if self.kind == "regression":
            low, high = self.bounds
            numbers: Answers = (low + (logits[:, 0] + 1) / 2 * (high - low)).numpy()
            return numbers  # (B, 1) -> (B,)
        probabilities: Answers = self.logits(logits).softmax(dim=1).numpy()  # (B, C)
        return probabilities

    def cell_names(self) -> tuple[str, ...]:
        """Return the lanes of an exact evaluation."""
        return cells.cell_names(self.kind, self.classes)

    def count_cells(self, targets: Array, predictions: Answers) -> Cells:
        """Count the held-out records of one site; errors as `cells.count_cells`."""
        return cells.count_cells(self.kind, self.classes, targets, predictions, bounds=self.bounds)

    def figures_from_cells(self, counts: Cells) -> dict[str, Figure]:
        """Return the metrics of a sum of cells; errors as `metrics.metrics_from_cells`."""
        return metrics.metrics_from_cells(self.kind, self.classes, counts, bounds=self.bounds)

    def noised_cell_names(self) -> tuple[str, ...]:
        """Return the lanes of a noised evaluation."""
        return noised_cells.noised_cell_names(self.kind, self.classes)

    @property
    def cell_sensitivity(self) -> float:
        """The largest L2 norm of one unit's cells in counts."""
        return noised_cells.cell_sensitivity(self.kind)

    def count_noised_cells(
        self, targets: Array, predictions: Answers, units: npt.NDArray[np.int64] | None, step: int
    ) -> Cells:
        """Count the held-out units of one site, before noise."""
        return noised_cells.count_noised_cells(
            self.kind, self.classes, targets, predictions, units, step, bounds=self.bounds
        )

    def figures_from_noised_cells(
        self, counts: Cells, noise: CellNoise, shares: int
    ) -> dict[str, Figure]:
        """Return the metrics of a noisy sum."""
        return noised_cells.metrics_from_noised_cells(
            self.kind, self.classes, counts, noise, shares, bounds=self.bounds
        )

    def exact_figures(self, targets: Array, predictions: Answers) -> dict[str, Figure]:
        """Return the metrics of the predictions themselves; errors as `metrics.exact_metrics`."""
        return metrics.exact_metrics(self.kind, self.classes, targets, predictions)

    def curves(self, targets: Array, predictions: Answers) -> dict[str, Any]:
        """Return what the report draws; errors as `curves.curves`."""
        from shared_models.curves import curves  # for reports only

        return curves(self.kind, self.classes, targets, predictions, bounds=self.bounds)

    def linear(self, inputs: Any, targets: Array, unseen: Any) -> Answers:
        """Return what logistic (or ridge) regression on (N, F) inputs answers for (M, F) others."""
        from scipy.sparse import issparse
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MaxAbsScaler, StandardScaler

        # Counts stay sparse: shifting them to a mean of 0 would fill every cell.
        scaler = MaxAbsScaler() if issparse(inputs) else StandardScaler()
        if self.kind == "regression":
            numbers: Answers = (
                make_pipeline(scaler, Ridge(1.0)).fit(inputs, targets).predict(unseen)
            )
            return numbers
        present = np.unique(targets)
        scores = np.zeros((unseen.shape[0], len(self.classes)))
        if len(present) < 2:
            scores[:, present] = 1.0
            return scores
        strength = 1.0 if issparse(inputs) else 0.1  # counts in [0, 1] want less shrinking
        model = make_pipeline(scaler, LogisticRegression(C=strength, max_iter=500))
        scores[:, present] = model.fit(inputs, targets).predict_proba(unseen)
        return scores

    @property
    def score_unit(self) -> str:
        """Unit of what an explanation adds up to."""
        return self.unit or "the target" if self.kind == "regression" else "log-odds"

    def asked(self, predictions: Answers) -> Cells:
        """Return (N,): of two classes the second, of more the one that is predicted."""
        if self.kind == "multiclass":
            likeliest: Cells = predictions.argmax(axis=1)
            return likeliest
        return np.full(len(predictions), int(self.kind == "binary"), dtype=np.int64)

    def scores(self, outputs: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Return (B,) log-odds of each record's class, or numbers in the target's unit."""
        if self.kind == "regression":
            low, high = self.bounds
            return low + (outputs[:, 0] + 1) / 2 * (high - low)  # (B, 1) -> (B,)
        return log_odds(self.logits(outputs), asked)

    def words(self, asked: int, prediction: Answers, answer: Array | None) -> Words:
        """Return the number, or the likeliest class and its chance."""
        if self.kind == "regression":
            said = f"{float(prediction):.4g} {self.unit}".strip()
            return Words(
                "", said, "" if answer is None else f"{float(answer):g} {self.unit}".strip()
            )
        said = f"{self.classes[prediction.argmax()]} ({percent(float(prediction.max()))})"
        own = "" if answer is None else self.classes[int(answer)]
        return Words(self.classes[asked], said, own)


def label(study: Study) -> Label:
    """Return the target of a study whose target column is a category or a number."""
    data = study.data
    count = len(data.classes)
    if count == 0:
        unit = getattr(data.columns[data.targets[0]], "unit", None) or ""
        return Label("regression", (), 1, target_range(data), unit)
    if count == 2:
        outputs = getattr(study.model, "outputs", 1)  # an autoencoder's: refused by the registry
        return Label("binary", data.classes, outputs)
    return Label("multiclass", data.classes, count)


def target_range(data: Data) -> Range:
    """Return the public range of a number target; (-1, 1), which changes nothing, for classes."""
    target = data.columns[data.targets[0]]
    return (target.low, target.high) if isinstance(target, NumberColumn) else UNSCALED
