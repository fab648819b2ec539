"""Targets that are several yes-or-no answers of one record, any of which may be missing.

A record's loss is the mean over the answers that it has, so that no record counts more for having
more of them. It ranks nothing itself: screening does. Cells, in order:

    exact    for each answer: no (B), yes (B)      scores of the records that have it
             records; loss, loss^2                 fixed point
    noised   for each answer: no (b), yes (b)      few bins
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_models.cells import CLASS_SCALE, LOSS_MAX, check_finite
from shared_models.intervals import mean_limits
from shared_models.metrics import Figure
from shared_models.noised_cells import EDGES as FEW
from shared_models.noised_cells import redrawn, unit_weights, whole_counts
from shared_models.screening import Blocks, auc, bedroc, enrichment, mean_of, ranked
from shared_models.target import Words, percent

if TYPE_CHECKING:
    import torch

    from privacy.cell_noise import CellNoise
    from shared_models.study import Study

Array = npt.NDArray[Any]
Answers = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]

# 256 bins of equal log-odds: the first 1 % of a rare effect have small scores, and must differ.
EDGES: Answers = 1 / (1 + np.exp(-np.linspace(-8, 8, 255)))


@dataclass(frozen=True)
class Panel:
    """Several yes-or-no answers.

    Attributes:
        names: of the answers, in the order of the outputs.
    """

    names: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The answers' names: each has one column, the probability of yes."""
        return self.names

    @property
    def outputs(self) -> int:
        """One logit an answer."""
        return len(self.names)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Means over the answers, then the AUC of each."""
        return ("auc", "ef1", "bedroc", "loss", *(f"auc_{name}" for name in self.names))

    @property
    def headline(self) -> str:
        """The figure that a report leads with."""
        return "auc"

    def told(self, *, exact: bool) -> tuple[str, ...]:
        """Return the names of the figures that an evaluation tells."""
        return self.metrics if exact else ("auc", *(f"auc_{name}" for name in self.names))

    def losses(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) mean binary cross entropies, in nats; 0 of a record without any answer.

        Args:
            outputs: (B, C) logits.
            targets: (B, C) int64: 0, 1, or -1 where missing.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        known = (targets >= 0).to(outputs.dtype)
        truth = targets.clamp(min=0).to(outputs.dtype)
        each = binary_cross_entropy_with_logits(outputs, truth, reduction="none")  # (B, C)
        return (each * known).sum(1) / known.sum(1).clamp(min=1.0)

    def predictions(self, outputs: "torch.Tensor") -> Answers:
        """Return (B, C) probabilities of yes."""
        import torch

        chances: Answers = outputs.detach().to("cpu", torch.float64).sigmoid().numpy()
        return chances

    def cell_names(self) -> tuple[str, ...]:
        """Return the lanes of an exact evaluation."""
        return (*self._score_names(len(EDGES) + 1), "records", "loss", "loss squared")

    def count_cells(self, targets: Array, predictions: Answers) -> Cells:
        """Count one site's held-out records.

        Raises:
            DataError: a prediction is not finite.
            ValueError: shapes or answers are not those of the target.
        """
        self._check(targets, predictions)
        loss = _losses(targets, predictions)
        sums = np.rint(np.stack((loss, loss**2)) * CLASS_SCALE).astype(np.int64).sum(axis=1)
        scores = _histogram(targets, predictions, EDGES)
        return np.concatenate((scores, [len(loss)], sums))

    def figures_from_cells(self, cells: Cells) -> dict[str, Figure]:
        """Return the metrics of a sum of cells.

        Raises:
            ValueError: ``cells`` is no such vector.
        """
        size = len(self.names) * 2 * (len(EDGES) + 1)
        if cells.shape != (size + 3,) or cells.min() < 0:
            raise ValueError(f"expected {size + 3} cells >= 0")
        count = int(cells[size])
        moments = cells[size + 1 :] / CLASS_SCALE / max(count, 1)
        return self._figures(self._blocks(cells[:size]), count, moments)

    def noised_cell_names(self) -> tuple[str, ...]:
        """Return the lanes of a noised evaluation."""
        return self._score_names(len(FEW) + 1)

    @property
    def cell_sensitivity(self) -> float:
        """One unit is one count in one cell of every answer."""
        return math.sqrt(len(self.names))

    def count_noised_cells(
        self, targets: Array, predictions: Answers, units: npt.NDArray[np.int64] | None, step: int
    ) -> Cells:
        """Count one site's held-out units before noise, each of a unit's rows in a part of a count.

        A prediction that is not finite counts nowhere, in silence.
        """
        weights = unit_weights(units, len(targets), step)
        sound = np.isfinite(predictions).all(axis=1)
        self._check(targets[sound], predictions[sound])
        return _histogram(targets[sound], predictions[sound], FEW, weights[sound])

    def figures_from_noised_cells(
        self, cells: Cells, noise: "CellNoise", shares: int
    ) -> dict[str, Figure]:
        """Return AUCs; few bins cannot tell who comes first, nor the loss of a record.

        An answer has none when its rarer side, as counted, is within three deviations of its noise:
        limits would then promise more than they keep. The mean is of the others.
        """
        size = 2 * (len(FEW) + 1)
        sides = (cells / noise.step).reshape(len(self.names), 2, -1).sum(axis=2)  # (C, 2)
        told = sides.min(axis=1) > 3 * noise.deviation(shares) * math.sqrt(len(FEW) + 1)

        def project(noisy: Answers) -> Cells:
            return np.concatenate([whole_counts(part) for part in noisy.reshape(-1, size)])

        def metrics(whole: Cells) -> dict[str, Figure]:
            blocks = self._blocks(whole)
            total = max(int(one.sum()) for one in blocks)
            blocks = [one * kept for one, kept in zip(blocks, told, strict=True)]
            nothing = Figure(None, None, None, total)
            figures = self._figures(blocks, total, np.full(2, np.nan))
            return figures | {"ef1": nothing, "bedroc": nothing}

        found = redrawn(cells, noise, shares, project, metrics)
        # What the noise's bias is guessed at errs alike in all answers: their limits are averaged.
        areas = [found[f"auc_{name}"] for name in self.names]
        return found | {"auc": mean_of(areas, found["auc"].n)}

    def exact_figures(self, targets: Array, predictions: Answers) -> dict[str, Figure]:
        """Return the metrics of the predictions themselves; errors as `count_cells`."""
        self._check(targets, predictions)
        blocks = [
            ranked(truth[truth >= 0] == 1, scores[truth >= 0])
            for truth, scores in zip(targets.T, predictions.T, strict=True)
        ]
        loss = _losses(targets, predictions)
        moments = np.array([loss.sum(), (loss**2).sum()]) / max(len(loss), 1)
        return self._figures(blocks, len(loss), moments)

    def curves(self, targets: Array, predictions: Answers) -> dict[str, Any]:
        """Return the ROC curve of every answer; errors as `count_cells`."""
        from shared_models.curves import roc  # for reports only

        self._check(targets, predictions)
        found = []
        for name, truth, scores in zip(self.names, targets.T, predictions.T, strict=True):
            positive, known = truth == 1, truth >= 0
            if 0 < positive.sum() < known.sum():
                found.append(roc(name, positive[known], scores[known]))
        return {"kind": "panel", "classes": [], "roc": found}

    def linear(self, inputs: Any, targets: Array, unseen: Any) -> Answers:
        """Return what a logistic regression an answer says, fitted to the records that have it."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MaxAbsScaler

        chances = np.zeros((unseen.shape[0], len(self.names)))
        for place, truth in enumerate(targets.T):
            known = truth >= 0
            if not 0 < (truth[known] == 1).sum() < known.sum():
                chances[:, place] = float((truth[known] == 1).any())
                continue
            # Counts, most of them 0, keep their zeros; liblinear is fast on many thin features.
            logistic = LogisticRegression(C=0.3, solver="liblinear")
            model = make_pipeline(MaxAbsScaler(), logistic).fit(inputs[known], truth[known])
            chances[:, place] = model.predict_proba(unseen)[:, 1]
        return chances

    @property
    def score_unit(self) -> str:
        """Unit of what an explanation adds up to."""
        return "log-odds"

    def asked(self, predictions: Answers) -> Cells:
        """Return (N,): of each record the answer that is likeliest yes."""
        likeliest: Cells = predictions.argmax(axis=1)
        return likeliest

    def scores(self, outputs: "torch.Tensor", asked: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) log-odds of yes to the answer that is asked about."""
        return outputs.gather(1, asked[:, None])[:, 0]  # (B, C) -> (B, 1) -> (B,)

    def words(self, asked: int, prediction: Answers, answer: Array | None) -> Words:
        """Return the likeliest yes of all answers, and what the record has there."""
        name = self.names[asked]
        of = f"the highest of {len(self.names)}"
        said = f"{name} ({percent(float(prediction[asked]))}, {of})"
        own = "" if answer is None else ("missing", "no", "yes")[int(answer[asked]) + 1]
        return Words(name, said, own)

    def _score_names(self, bins: int) -> tuple[str, ...]:
        return tuple(
            f"{name} {answer} score {b}"
            for name in self.names
            for answer in ("no", "yes")
            for b in range(bins)
        )

    def _blocks(self, scores: Cells) -> list[Blocks]:
        """Return each answer's ranking: its bins from the highest on."""
        return list(scores.reshape(len(self.names), 2, -1)[:, :, ::-1])

    def _check(self, targets: Array, predictions: Answers) -> None:
        shape = (len(targets), len(self.names))
        if targets.shape != shape or predictions.shape != shape:
            raise ValueError(
                f"expected (N, {shape[1]}) targets and predictions, "
                f"got {targets.shape} and {predictions.shape}"
            )
        if not np.isin(targets, (-1, 0, 1)).all():
            raise ValueError("expected answers 0 and 1, and -1 where missing")
        check_finite(predictions)

    def _figures(self, blocks: Sequence[Blocks], total: int, loss: Answers) -> dict[str, Figure]:
        """Return the figures from each answer's ranking and the (2,) moments of the loss."""
        areas = [auc(one) for one in blocks]
        told = total > 0 and not math.isnan(loss[0])
        limits = mean_limits(float(loss[0]), float(loss[1]), total) if told else (None, None)
        return {
            "auc": mean_of(areas, total),
            "ef1": mean_of([enrichment(one) for one in blocks], total),
            "bedroc": mean_of([bedroc(one) for one in blocks], total),
            "loss": Figure(float(loss[0]) if told else None, *limits, total),
            **{f"auc_{name}": area for name, area in zip(self.names, areas, strict=True)},
        }


def panel(study: "Study") -> Panel:
    """Return the target of a study with several answers."""
    return Panel(study.data.targets)


def _losses(targets: Array, predictions: Answers) -> Answers:
    """Return the losses of the records that have an answer, each answer's at most LOSS_MAX."""
    known = targets >= 0
    chance = np.where(targets == 1, predictions, 1 - predictions)
    each = -np.log(np.maximum(chance, math.exp(-LOSS_MAX)))
    counts = known.sum(axis=1)
    means: Answers = (each * known).sum(axis=1)[counts > 0] / counts[counts > 0]
    return means


def _histogram(
    targets: Array, predictions: Answers, edges: Answers, weights: Cells | None = None
) -> Cells:
    """Return (C x 2 x B,) counts of scores by answer and truth."""
    rows, answers = np.nonzero(targets >= 0)
    bins = np.searchsorted(edges, predictions[rows, answers], side="right")
    counts = np.zeros((targets.shape[1], 2, len(edges) + 1), dtype=np.int64)
    added = 1 if weights is None else weights[rows]
    np.add.at(counts, (answers, targets[rows, answers], bins), added)
    return counts.ravel()
