"""Targets that tell what is not normal: learnt from normal records alone, scored by their copies.

The column says, publicly, which values are not normal (data.positive). A record that has one adds
no loss, so that nothing is learnt from it; held out, it shows what the score is worth. Cells:

    exact    normal (B), other (B)    errors, in bins
             error, error^2           of the normal records, fixed point
    noised   normal (b), other (b)    few bins

Bins are equal in the logarithm of the error.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_models.cells import CLASS_SCALE, check_finite
from shared_models.contract import ImageColumn
from shared_models.intervals import mean_limits, proportion_limits
from shared_models.metrics import Figure
from shared_models.noised_cells import redrawn, unit_weights, whole_counts
from shared_models.screening import Blocks, auc, ranked
from shared_models.sections import Autoencoder
from shared_models.target import Words

if TYPE_CHECKING:
    import torch

    from privacy.cell_noise import CellNoise
    from shared_models.study import Study

Array = npt.NDArray[Any]
Answers = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]

# Scaled inputs are within 2 of any sensible copy: a mean squared error is 4 at most, and copies of
# eight bits are no nearer than 1e-5. One bin is a step of 1 % (exact), or a factor of 1.5 (noised).
EDGES: Answers = np.geomspace(1e-5, 4, 1023)
FEW: Answers = np.geomspace(1e-3, 1, 18)
ERROR_MAX = 16.0  # what one record adds to the sum of errors at most
LEAST = 1e-4  # variance of a picture: a blank one stays blank
ALARMS = 0.05  # of normal records, at which sensitivity is told


@dataclass(frozen=True)
class Anomaly:
    """How far a record is from what normal ones look like.

    Attributes:
        code: numbers that an autoencoder describes a record by; as many components has its
            linear counterpart.
        level: records are pictures, whose brightness and contrast are taken off first.
    """

    code: int
    level: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of the one column of the answers."""
        return ("reconstruction error",)

    @property
    def outputs(self) -> int:
        """The error."""
        return 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures: sensitivity_95 is that at a specificity of .95 or more."""
        return ("auc", "sensitivity_95", "loss")

    @property
    def headline(self) -> str:
        """The figure that a report leads with."""
        return "auc"

    def told(self, *, exact: bool) -> tuple[str, ...]:
        """Return the names of the figures that an evaluation tells."""
        return self.metrics if exact else ("auc", "sensitivity_95")

    def losses(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) errors of the normal records, and 0 for the others.

        Args:
            outputs: (B, 1) mean squared errors.
            targets: (B,) int64, 0 where normal.
        """
        return outputs[:, 0] * (targets == 0)

    def predictions(self, outputs: "torch.Tensor") -> Answers:
        """Return (B, 1) errors."""
        import torch

        errors: Answers = outputs.detach().to("cpu", torch.float64).numpy()
        return errors

    def cell_names(self) -> tuple[str, ...]:
        """Return the lanes of an exact evaluation."""
        return (*_score_names(len(EDGES) + 1), "error", "error squared")

    def count_cells(self, targets: Array, predictions: Answers) -> Cells:
        """Count one site's held-out records.

        Raises:
            DataError: a prediction is not finite.
            ValueError: shapes are not those of the target.
        """
        _check(targets, predictions)
        errors = np.minimum(predictions[targets == 0, 0], ERROR_MAX)
        sums = np.rint(np.stack((errors, errors**2)) * CLASS_SCALE).astype(np.int64).sum(axis=1)
        return np.concatenate((_histogram(targets, predictions, EDGES), sums))

    def figures_from_cells(self, cells: Cells) -> dict[str, Figure]:
        """Return the metrics of a sum of cells.

        Raises:
            ValueError: ``cells`` is no such vector.
        """
        size = 2 * (len(EDGES) + 1)
        if cells.shape != (size + 2,) or cells.min() < 0:
            raise ValueError(f"expected {size + 2} cells >= 0")
        blocks = _blocks(cells[:size])
        return _figures(blocks, cells[size:] / CLASS_SCALE / max(int(blocks[0].sum()), 1))

    def noised_cell_names(self) -> tuple[str, ...]:
        """Return the lanes of a noised evaluation."""
        return _score_names(len(FEW) + 1)

    @property
    def cell_sensitivity(self) -> float:
        """One unit is one count in one cell."""
        return 1.0

    def count_noised_cells(
        self, targets: Array, predictions: Answers, units: npt.NDArray[np.int64] | None, step: int
    ) -> Cells:
        """Count one site's held-out units before noise, each of a unit's rows in a part of a count.

        A prediction that is not finite counts nowhere, in silence.
        """
        weights = unit_weights(units, len(targets), step)
        sound = np.isfinite(predictions).all(axis=1)
        _check(targets[sound], predictions[sound])
        return _histogram(targets[sound], predictions[sound], FEW, weights[sound])

    def figures_from_noised_cells(
        self, cells: Cells, noise: "CellNoise", shares: int
    ) -> dict[str, Figure]:
        """Return AUC and sensitivity; the mean error is not told."""
        unknown = np.full(2, np.nan)
        return redrawn(
            cells, noise, shares, whole_counts, lambda whole: _figures(_blocks(whole), unknown)
        )

    def exact_figures(self, targets: Array, predictions: Answers) -> dict[str, Figure]:
        """Return the metrics of the predictions themselves; errors as `count_cells`."""
        _check(targets, predictions)
        errors = np.minimum(predictions[targets == 0, 0], ERROR_MAX)
        moments = np.array([errors.sum(), (errors**2).sum()]) / max(len(errors), 1)
        return _figures(ranked(targets != 0, predictions[:, 0]), moments)

    def curves(self, targets: Array, predictions: Answers) -> dict[str, Any]:
        """Return the ROC curve of the error; errors as `count_cells`."""
        from shared_models.curves import roc  # for reports only

        _check(targets, predictions)
        other = targets != 0
        found = []
        if 0 < other.sum() < len(other):
            found.append(roc("not normal", other, predictions[:, 0]))
        return {"kind": "anomaly", "classes": [], "roc": found}

    def linear(self, inputs: Any, targets: Array, unseen: Any) -> Answers:
        """Return the errors of a linear autoencoder: principal components of normal records."""
        from sklearn.decomposition import PCA

        if self.level:
            inputs, unseen = _level(inputs), _level(unseen)
        normal = inputs[targets == 0]
        if not len(normal):
            return np.zeros((unseen.shape[0], 1))
        model = PCA(min(self.code, *normal.shape), svd_solver="full").fit(normal)
        gaps = model.inverse_transform(model.transform(unseen)) - unseen
        errors: Answers = (gaps**2).mean(axis=1, keepdims=True)
        return errors

    @property
    def score_unit(self) -> str:
        """Unit of what an explanation adds up to."""
        return "mean squared error"

    def asked(self, predictions: Answers) -> Cells:
        """Return (N,) zeros: there is one answer."""
        return np.zeros(len(predictions), dtype=np.int64)

    def scores(self, outputs: "torch.Tensor", asked: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) errors."""
        return outputs.gather(1, asked[:, None])[:, 0]  # (B, 1) -> (B,)

    def words(self, asked: int, prediction: Answers, answer: Array | None) -> Words:
        """Return the error, and whether the record is normal."""
        own = "" if answer is None else "normal" if int(answer) == 0 else "not normal"
        return Words("", f"reconstruction error {float(prediction[asked]):.3g}", own)


def anomaly(study: "Study") -> Anomaly:
    """Return the target of a study of task anomaly."""
    code = study.model.code if isinstance(study.model, Autoencoder) else 1
    level = any(isinstance(column, ImageColumn) for column in study.data.inputs.values())
    return Anomaly(code, level)


def anomaly_fits(study: "Study") -> None:
    """Check that the study says what is not normal.

    Raises:
        ValueError: it does not.
    """
    targets = study.data.targets
    if len(targets) > 1 or not study.data.positive:  # which only one category has
        raise ValueError(
            "data.positive: missing, expected with task = 'anomaly': the values of the target "
            "that are not normal, which nothing is learnt from"
        )


def _level(pictures: Answers) -> Answers:
    """Return (N, F) pictures, each of mean 0 and deviation 1, as the network sees them."""
    spread = np.sqrt(pictures.var(axis=1, keepdims=True) + LEAST)
    levelled: Answers = (pictures - pictures.mean(axis=1, keepdims=True)) / spread
    return levelled


def _score_names(bins: int) -> tuple[str, ...]:
    return tuple(f"{name} error {b}" for name in ("normal", "other") for b in range(bins))


def _check(targets: Array, predictions: Answers) -> None:
    if targets.ndim != 1 or predictions.shape != (len(targets), 1):
        raise ValueError(
            f"expected (N,) targets and (N, 1) predictions, got {targets.shape} and "
            f"{predictions.shape}"
        )
    check_finite(predictions)


def _histogram(
    targets: Array, predictions: Answers, edges: Answers, weights: Cells | None = None
) -> Cells:
    """Return (2 x B,) counts of errors by class."""
    counts = np.zeros((2, len(edges) + 1), dtype=np.int64)
    bins = np.searchsorted(edges, predictions[:, 0], side="right")
    np.add.at(counts, ((targets != 0).astype(np.int64), bins), 1 if weights is None else weights)
    return counts.ravel()


def _blocks(counts: Cells) -> Blocks:
    """Return the ranking of a histogram: its bins from the highest on."""
    return counts.reshape(2, -1)[:, ::-1]


def _figures(blocks: Blocks, loss: Answers) -> dict[str, Figure]:
    """Return the figures from the ranking and the (2,) moments of the normal records' errors."""
    normal, other = (int(count) for count in blocks.sum(axis=1))
    told = normal > 0 and not math.isnan(loss[0])
    limits = mean_limits(float(loss[0]), float(loss[1]), normal) if told else (None, None)
    return {
        "auc": auc(blocks),
        "sensitivity_95": _sensitivity(blocks, normal, other),
        "loss": Figure(float(loss[0]) if told else None, *limits, normal),
    }


def _sensitivity(blocks: Blocks, normal: int, other: int) -> Figure:
    """Return the share found by the lowest threshold that alarms at most 5 % of normal records."""
    if not normal or not other:
        return Figure(None, None, None, other)
    alarmed = np.cumsum(blocks, axis=1)  # (2, M)
    fits = np.flatnonzero(alarmed[0] <= ALARMS * normal)
    share = float(alarmed[1, fits[-1]]) / other if len(fits) else 0.0
    return Figure(share, *proportion_limits(share, other), other)
