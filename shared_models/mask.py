"""Targets that say where a structure is: a class for each point of a picture or volume.

Every record has a loss of its own, the mean cross-entropy of its points and one minus its soft
Dice: none of another record enters. A point's classes exclude each other; the background's logit is
0, so that one structure is one map. Cells, in order:

    exact    for each structure: records that have it or are said to; shared, found, true points
             Dice, IoU, distance, and their squares     fixed point, sums over those records
             records; loss, loss^2                      fixed point
    noised   for each structure: records, Dice, IoU

A record without the structure, of which none is found either, has no Dice: it is left out of its
figures, and not counted as 1. A distance is the mean one between the two outlines (Heimann et al.
2009, IEEE TMI 28:1251, average symmetric surface distance); where one of them is missing it is the
diagonal of the record, the worst there is.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_models.cells import CLASS_SCALE, LOSS_MAX, check_finite
from shared_models.contract import ImageColumn, MaskColumn
from shared_models.intervals import mean_limits, proportion_limits
from shared_models.metrics import Figure
from shared_models.noised_cells import unit_weights, widened
from shared_models.screening import mean_of
from shared_models.target import Words, percent

if TYPE_CHECKING:
    import torch

    from privacy.cell_noise import CellNoise
    from shared_models.study import Study

Array = npt.NDArray[Any]
Answers = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

COUNTS = ("records", "shared points", "found points", "true points")
MEASURES = ("dice", "iou", "distance")
_PARTS = len(COUNTS) + 2 * len(MEASURES)
SMOOTH = 1.0  # points: the soft Dice of a record without the structure is defined, and 1 at best
BINS = 20  # of a report's histogram of Dice
_Z = 1.959964  # 95 %
_POINTS_MAX = 200_000  # that the linear model is fitted to


@dataclass(frozen=True)
class Mask:
    """Which structure each point is of.

    Attributes:
        names: of the structures, without the background; the number k in a mask is names[k - 1].
        sizes: of a record, (H, W) or (D, H, W).
        spacing: of its points along each axis.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    spacing: tuple[float, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The structures: each has one map, the chance that a point is of it."""
        return self.names

    @property
    def outputs(self) -> int:
        """Maps of logits."""
        return len(self.names)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Means over records and structures, and of several structures the Dice of each."""
        alone = () if len(self.names) == 1 else tuple(f"dice_{name}" for name in self.names)
        return ("dice", "iou", "dice_points", "iou_points", "surface_distance", "loss", *alone)

    @property
    def headline(self) -> str:
        """The figure that a report leads with."""
        return "dice"

    def told(self, *, exact: bool) -> tuple[str, ...]:
        """Return the names of the figures that an evaluation tells."""
        if exact:
            return self.metrics
        alone = self.metrics[self.metrics.index("loss") + 1 :]
        return ("dice", "iou", *alone)

    @property
    def diagonal(self) -> float:
        """The longest distance inside a record, in the unit of the spacing."""
        sides = (size * step for size, step in zip(self.sizes, self.spacing, strict=True))
        return math.hypot(*sides)

    def losses(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) losses: mean cross-entropy of the points, and 1 - mean soft Dice.

        Args:
            outputs: (B, C, *sizes) logits.
            targets: (B, *sizes) whole numbers, 0 for the background.
        """
        import torch

        truth = targets.long()[:, None]  # (B, 1, *sizes)
        logits = torch.cat((torch.zeros_like(outputs[:, :1]), outputs), dim=1)  # (B, C + 1, ...)
        shares = logits.log_softmax(dim=1)
        entropy = -shares.gather(1, truth).flatten(1).mean(1)  # (B,)
        chance = shares[:, 1:].exp().flatten(2)  # (B, C, points)
        numbers = torch.arange(1, len(self.names) + 1, device=targets.device)
        own = truth.flatten(2) == numbers[:, None]  # (B, 1, points) == (C, 1) -> (B, C, points)
        # Milletari et al. 2016, arXiv:1606.04797, equation 2, without its squares.
        shared = (chance * own).sum(2)  # (B, C)
        dice = (2 * shared + SMOOTH) / (chance.sum(2) + own.sum(2) + SMOOTH)
        return entropy + 1 - dice.mean(1)

    def predictions(self, outputs: "torch.Tensor") -> Answers:
        """Return (B, C, *sizes) chances of each structure."""
        import torch

        logits = outputs.detach().to("cpu", torch.float64)
        whole = torch.cat((torch.zeros_like(logits[:, :1]), logits), dim=1)
        chances: Answers = whole.softmax(dim=1)[:, 1:].numpy()
        return chances

    def cell_names(self) -> tuple[str, ...]:
        """Return the lanes of an exact evaluation."""
        squares = (name + square for name in MEASURES for square in ("", " squared"))
        own = (*COUNTS, *squares)
        lanes = (f"{name} {what}" for name in self.names for what in own)
        return (*lanes, "records", "loss", "loss squared")

    def count_cells(self, targets: Array, predictions: Answers) -> Cells:
        """Count one site's held-out records.

        Raises:
            DataError: a prediction is not finite.
            ValueError: shapes or numbers are not those of the target.
        """
        parts, losses = self._measured(targets, predictions)  # (N, C, 10), (N, 2)
        parts[:, :, len(COUNTS) :] *= CLASS_SCALE
        own = np.rint(parts).astype(np.int64).sum(axis=0).ravel()
        sums = np.rint(losses * CLASS_SCALE).astype(np.int64).sum(axis=0)
        return np.concatenate((own, [len(targets)], sums))

    def figures_from_cells(self, cells: Cells) -> dict[str, Figure]:
        """Return the metrics of a sum of cells.

        Raises:
            ValueError: ``cells`` is no such vector.
        """
        size = len(self.names) * _PARTS
        if cells.shape != (size + 3,) or cells.min() < 0:
            raise ValueError(f"expected {size + 3} cells >= 0")
        own = cells[:size].reshape(len(self.names), _PARTS).astype(np.float64)
        own[:, len(COUNTS) :] /= CLASS_SCALE
        return self._figures(own, int(cells[size]), cells[size + 1 :] / CLASS_SCALE)

    def noised_cell_names(self) -> tuple[str, ...]:
        """Return the lanes of a noised evaluation."""
        return tuple(f"{name} {what}" for name in self.names for what in ("records", "dice", "iou"))

    @property
    def cell_sensitivity(self) -> float:
        """One unit is one record, a Dice and an IoU of at most 1, for every structure."""
        return math.sqrt(3 * len(self.names))

    def count_noised_cells(
        self, targets: Array, predictions: Answers, units: npt.NDArray[np.int64] | None, step: int
    ) -> Cells:
        """Count one site's held-out units before noise, each of a unit's rows in a part of a count.

        A prediction that is not finite counts nowhere, in silence.
        """
        weights = unit_weights(units, len(targets), step)
        sound = np.isfinite(predictions).all(axis=tuple(range(1, predictions.ndim)))
        targets, predictions = targets[sound], predictions[sound]
        self._check(targets, predictions)
        found = self.decided(predictions)
        parts = np.stack([_overlap(found == k, targets == k) for k in self._numbers], axis=1)
        told = parts[:, :, [0, 4, 6]] * weights[sound][:, None, None]  # (N, C, 3)
        # Toward zero, so that a unit's norm does not grow.
        counts: Cells = np.floor(told).astype(np.int64).sum(axis=0).ravel()
        return counts

    def figures_from_noised_cells(
        self, cells: Cells, noise: "CellNoise", shares: int
    ) -> dict[str, Figure]:
        """Return Dice and IoU; outlines, points and the loss are not told.

        By the delta method, Var(A / R) = Var(A) (1 + (A / R)^2) / R^2 to first order; the spread of
        the records is the largest that their mean allows. A structure has no figures when its
        records are within three deviations of their noise.
        """
        counts = (cells / noise.step).reshape(len(self.names), 3)
        deviation = noise.deviation(shares)
        total = max(0, round(float(counts[:, 0].max())))
        nothing = Figure(None, None, None, total)
        figures = dict.fromkeys(self.metrics, nothing)
        for place, name in ((1, "dice"), (2, "iou")):
            each = [_noised(row[place], row[0], deviation) for row in counts]
            figures[name] = mean_of(each, total)
            if name == "dice" and len(each) > 1:
                figures |= {f"dice_{n}": one for n, one in zip(self.names, each, strict=True)}
        return figures

    def exact_figures(self, targets: Array, predictions: Answers) -> dict[str, Figure]:
        """Return the metrics of the predictions themselves; errors as `count_cells`."""
        parts, losses = self._measured(targets, predictions)
        return self._figures(parts.sum(axis=0), len(targets), losses.sum(axis=0))

    def curves(self, targets: Array, predictions: Answers) -> dict[str, Any]:
        """Return how many records have which Dice, a histogram a structure; errors as above."""
        self._check(targets, predictions)
        found, edges = self.decided(predictions), np.linspace(0, 1, BINS + 1)
        rows = []
        for k, name in zip(self._numbers, self.names, strict=True):
            parts = _overlap(found == k, targets == k)
            counts = np.histogram(parts[parts[:, 0] > 0, 4], edges)[0]
            rows.append({"structure": name, "counts": counts.tolist()})
        return {"kind": "mask", "classes": [], "dice": {"edges": edges.tolist(), "rows": rows}}

    def linear(self, inputs: Any, targets: Array, unseen: Any) -> Answers:
        """Return what a logistic regression says of each point, from its own channels alone.

        A point is its values, and how far they are from their record's mean, in deviations and
        squared: dark structures on bright grounds are as far from it as bright ones on dark.
        """
        from sklearn.linear_model import LogisticRegression

        points = targets.ravel()
        rows = np.arange(len(points))
        if len(rows) > _POINTS_MAX:
            rows = np.random.default_rng(0).choice(len(points), _POINTS_MAX, replace=False)
        seen = np.unique(points[rows])
        chances = np.zeros((len(unseen), len(self.names), *self.sizes))
        if len(seen) < 2:
            for k in seen[seen > 0]:
                chances[:, k - 1] = 1
            return chances
        model = LogisticRegression(max_iter=500).fit(self._points(inputs)[rows], points[rows])
        told = model.predict_proba(self._points(unseen))
        for place, k in enumerate(model.classes_):
            if k:
                chances[:, k - 1] = told[:, place].reshape(len(unseen), *self.sizes)
        return chances

    @property
    def score_unit(self) -> str:
        """Unit of what an explanation adds up to."""
        return "share of the points"

    def asked(self, predictions: Answers) -> Cells:
        """Return (N,): the structure that has most of a record's points."""
        shares = predictions.reshape(*predictions.shape[:2], -1).mean(axis=2)  # (N, C)
        largest: Cells = shares.argmax(axis=1)
        return largest

    def scores(self, outputs: "torch.Tensor", asked: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) the mean chance of a point to be of the structure that is asked about."""
        import torch

        whole = torch.cat((torch.zeros_like(outputs[:, :1]), outputs), dim=1)
        shares = whole.softmax(dim=1)[:, 1:].flatten(2).mean(2)  # (B, C, *sizes) -> (B, C)
        return shares.gather(1, asked[:, None])[:, 0]

    def words(self, asked: int, prediction: Answers, answer: Array | None) -> Words:
        """Return the structure's share of the points, and that in the record's own mask."""
        name = self.names[asked]
        said = f"{name}, {percent(float(prediction[asked].mean()))} of the points"
        own = "" if answer is None else percent(float((answer == asked + 1).mean()))
        return Words(name, said, own)

    @property
    def _numbers(self) -> range:
        return range(1, len(self.names) + 1)

    def _points(self, inputs: Answers) -> Answers:
        """Return (N points, 3 C) features of the points of (N, C points) records."""
        values = inputs.reshape(len(inputs), -1, math.prod(self.sizes))  # (N, C, points)
        spread = values.std(axis=2, keepdims=True) + 1e-6
        away = (values - values.mean(axis=2, keepdims=True)) / spread
        features: Answers = np.concatenate((values, away, away**2), axis=1)  # (N, 3 C, points)
        return np.moveaxis(features, 1, 2).reshape(-1, features.shape[1])

    def _check(self, targets: Array, predictions: Answers) -> None:
        shape = (len(targets), len(self.names), *self.sizes)
        if targets.shape[1:] != self.sizes or predictions.shape != shape:
            raise ValueError(
                f"expected (N, {', '.join(map(str, self.sizes))}) targets and predictions of "
                f"{len(self.names)} maps, got {targets.shape} and {predictions.shape}"
            )
        if targets.size and not 0 <= targets.min() <= targets.max() <= len(self.names):
            raise ValueError(f"expected numbers from 0 to {len(self.names)} as targets")
        check_finite(predictions)

    def decided(self, predictions: Answers) -> npt.NDArray[np.int64]:
        """Return the (N, *sizes) likeliest numbers; the background on a tie."""
        rest = 1 - predictions.sum(axis=1, keepdims=True)
        whole: Answers = np.concatenate((rest, predictions), axis=1)
        decided: npt.NDArray[np.int64] = whole.argmax(axis=1)
        return decided

    def _measured(self, targets: Array, predictions: Answers) -> tuple[Answers, Answers]:
        """Return (N, C, 10) counts and measures with their squares, and (N, 2) loss and its square.

        Distances are in diagonals.
        """
        self._check(targets, predictions)
        found = self.decided(predictions)
        parts = np.zeros((len(targets), len(self.names), _PARTS))
        for place, k in enumerate(self._numbers):
            one, other = found == k, targets == k
            parts[:, place, :8] = _overlap(one, other)
            for row in np.flatnonzero(parts[:, place, 0]):
                away = surface_distance(one[row], other[row], self.spacing)
                share = 1.0 if away is None else away / self.diagonal
                parts[row, place, 8:] = share, share**2
        loss = self._losses(targets, predictions)
        return parts, np.stack((loss, loss**2), axis=1)

    def _losses(self, targets: Array, predictions: Answers) -> Answers:
        """Return the (N,) losses, each point's entropy at most LOSS_MAX."""
        maps = np.concatenate((1 - predictions.sum(axis=1, keepdims=True), predictions), axis=1)
        own = np.take_along_axis(maps, targets[:, None].astype(np.int64), axis=1)
        axes = tuple(range(1, own.ndim))
        entropy = -np.log(np.maximum(own, math.exp(-LOSS_MAX))).mean(axis=axes)
        dice = np.zeros((len(targets), len(self.names)))
        for place, k in enumerate(self._numbers):
            chance, true = predictions[:, place], targets == k
            shared = (chance * true).sum(axis=axes[:-1])
            sizes = chance.sum(axis=axes[:-1]) + true.sum(axis=axes[:-1])
            dice[:, place] = (2 * shared + SMOOTH) / (sizes + SMOOTH)
        losses: Answers = entropy + 1 - dice.mean(axis=1)
        return losses

    def _figures(self, own: Answers, count: int, loss: Answers) -> dict[str, Figure]:
        """Return the figures from (C, 10) sums, the number of records, and (2,) sums of losses."""
        dices = [_mean(row[0], row[4], row[5], 1.0) for row in own]
        total = max(one.n for one in dices)
        figures = {
            "dice": mean_of(dices, total),
            "iou": mean_of([_mean(row[0], row[6], row[7], 1.0) for row in own], total),
            # Points of one record are not independent: limits would promise too much.
            "dice_points": mean_of([_share(2 * r[1], r[2] + r[3]) for r in own], total),
            "iou_points": mean_of([_share(r[1], r[2] + r[3] - r[1]) for r in own], total),
            "surface_distance": mean_of([self._distance(row) for row in own], total),
            "loss": _mean(count, loss[0], loss[1], math.inf),
        }
        if len(dices) > 1:
            figures |= {f"dice_{name}": one for name, one in zip(self.names, dices, strict=True)}
        return figures

    def _distance(self, row: Answers) -> Figure:
        share = _mean(row[0], row[8], row[9], 1.0)
        value, low, high = (
            None if x is None else x * self.diagonal for x in (share.value, share.low, share.high)
        )
        return Figure(value, low, high, share.n)


def mask(study: "Study") -> Mask:
    """Return the target of a study of task segmentation."""
    column, sizes = study.data.columns[study.data.targets[0]], study.data.image.sizes
    if not isinstance(column, MaskColumn):
        raise ValueError("expected a study of task segmentation")
    return Mask(column.values[1:], sizes, column.spacing or (1.0,) * len(sizes))


def mask_fits(study: "Study") -> None:
    """Check that one picture is shown, and its mask is the target.

    Raises:
        ValueError: there is another input, another target, or the mask's spacing has other axes.
    """
    columns, inputs = study.data.columns, study.data.inputs
    masks = [name for name, one in columns.items() if isinstance(one, MaskColumn)]
    images = [one for one in inputs.values() if isinstance(one, ImageColumn)]
    if masks != [*study.data.targets] or len(images) != 1 or len(inputs) != 1:
        raise ValueError(
            "data.columns: expected one image, and one mask as the target, with task = "
            "'segmentation'; other columns with input = false"
        )
    column, axes = columns[masks[0]], len(images[0].sizes)
    if isinstance(column, MaskColumn) and len(column.spacing) not in {0, axes}:
        raise ValueError(f"data.columns.{masks[0]}.spacing: expected {axes} numbers")


def surface_distance(one: Bools, other: Bools, spacing: tuple[float, ...]) -> float | None:
    """Return the mean distance between the outlines of two structures, in the spacing's unit.

    Args:
        one: (*sizes) True inside; an outline is its points with a neighbour outside, or at the
            edge of the record.
        other: (*sizes).
        spacing: of the points along each axis.

    Returns:
        The mean, over the points of both outlines, of the way to the other; None without one.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not (one.any() and other.any()):
        return None
    outlines = [inside & ~binary_erosion(inside) for inside in (one, other)]
    ways = [distance_transform_edt(~outline, sampling=spacing) for outline in outlines]
    total = ways[1][outlines[0]].sum() + ways[0][outlines[1]].sum()
    return float(total / (outlines[0].sum() + outlines[1].sum()))


def _overlap(found: Bools, true: Bools) -> Answers:
    """Return (N, 8): the four counts, then Dice, its square, IoU, its square, of (N, *sizes)."""
    axes = tuple(range(1, found.ndim))
    shared, one, other = ((part).sum(axis=axes) for part in (found & true, found, true))
    there = one + other > 0
    dice = np.divide(2 * shared, one + other, out=np.zeros(len(there)), where=there)
    iou = np.divide(shared, one + other - shared, out=np.zeros(len(there)), where=there)
    columns = (there, shared, one, other, dice, dice**2, iou, iou**2)
    return np.stack([column.astype(np.float64) for column in columns], axis=1)


def _mean(count: float, total: float, squares: float, ceiling: float) -> Figure:
    """Return a mean over records, from the sums of the values and of their squares."""
    records = int(count)
    if not records:
        return Figure(None, None, None, 0)
    value = float(total) / records
    return Figure(value, *mean_limits(value, float(squares) / records, records, ceiling), records)


def _share(part: float, whole: float) -> Figure:
    return Figure(float(part / whole) if whole else None, None, None, 0)


def _noised(total: float, records: float, deviation: float) -> Figure:
    """Return a mean of noisy sums, each of the same deviation."""
    count = max(0, round(float(records)))
    if not records > 3 * deviation:
        return Figure(None, None, None, count)
    value = min(max(float(total / records), 0.0), 1.0)
    plain = Figure(value, *proportion_limits(value, float(records)), count)
    return widened(plain, _Z * deviation * math.hypot(1.0, value) / float(records), 1.0)
