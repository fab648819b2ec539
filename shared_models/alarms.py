"""Targets that warn: at every hour the risk of an event, from what was measured up to then alone.

A record's loss is the mean over the hours before its event, of which it has 24 or 48 or fewer: no
record counts more for having been watched longer. A risk at or above a threshold is an alarm. The
threshold is the lowest at which no more than the study's share of the records without the event
alarm at all; what it finds is told with what it costs. Cells, in order:

    exact    for each judged hour: no (B), yes (B)   risks of the records still at risk
             no (B), yes (B)                         highest risk of a record
             rises (B - 1), hours                    alarms that begin, by threshold; hours watched
             lead (B - 1, L)                         from first alarm to event, by threshold
             records; loss, loss^2                   fixed point
    noised   no (b), yes (b)                         risks at the main hour
             no (b), yes (b)                         highest risk of a record

It knows no network: one that reads a series forward gives an output an hour (recurrent), or one
that reads an hour alone (mlp), which is enough where values are carried forward.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_models.cells import CLASS_SCALE, LOSS_MAX, check_finite
from shared_models.contract import CategoryColumn, NumberColumn, SeriesColumn
from shared_models.intervals import mean_limits, proportion_limits
from shared_models.metrics import Figure
from shared_models.noised_cells import EDGES as FEW
from shared_models.noised_cells import redrawn, unit_weights, whole_counts
from shared_models.screening import Blocks, auc, ranked
from shared_models.target import Words, percent

if TYPE_CHECKING:
    import torch

    from privacy.cell_noise import CellNoise
    from shared_models.study import Study

Array = npt.NDArray[Any]
Answers = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Thresholds: 256 bins of equal log-odds, since the risks of most patients are small.
EDGES: Answers = 1 / (1 + np.exp(-np.linspace(-8, 8, 255)))
# Edges of lead times in hours, to twelve weeks: a day's quarters, then days, then weeks.
LEADS: Answers = np.array(
    [*range(6, 48, 6), *range(48, 168, 24), *range(168, 672, 84), *range(672, 2017, 336)], float
)
HOURS = {"hours": 1.0, "days": 24.0}  # in a unit of the event's time
_Z = 1.959964  # 95 %


@dataclass(frozen=True)
class Alarms:
    """Warnings of an event.

    Attributes:
        steps: T hours of the series; the answer of each is from what came up to its end.
        hours: those whose ranking is judged, 1 to T.
        at: the hour of the main figure, one of them.
        false_alarms: share of the records without the event that may alarm.
        scale: hours in a unit of the event's time, which counts from the start of the series.
    """

    steps: int
    hours: tuple[int, ...]
    at: int
    false_alarms: float
    scale: float

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the answers' columns."""
        return tuple(f"risk at hour {hour}" for hour in range(1, self.steps + 1))

    @property
    def outputs(self) -> int:
        """One log-odds an hour."""
        return self.steps

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures: auc_24 is that of what was known after 24 hours."""
        areas = (f"auc_{hour}" for hour in self.hours)
        return (*areas, "sensitivity", "false_alarms", "alarms_a_day", "lead_hours", "loss")

    @property
    def headline(self) -> str:
        """The figure that a report leads with."""
        return f"auc_{self.at}"

    def told(self, *, exact: bool) -> tuple[str, ...]:
        """Return the names of the figures that an evaluation tells."""
        return self.metrics if exact else (self.headline, "sensitivity", "false_alarms")

    def losses(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) mean binary cross entropies, in nats; 0 of a record without an hour at risk.

        Args:
            outputs: (B, T) logits.
            targets: (B, 2) float32, 1 where the event happened, and its time.
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        happened = targets[:, :1]
        hours = torch.arange(1, self.steps + 1, device=outputs.device)  # (T,)
        # A time that is missing is NaN, which no hour is beyond: all of them count.
        gone = (happened == 1) & (hours > targets[:, 1:] * self.scale)
        watched = (~gone).to(outputs.dtype)  # (B, T)
        truth = happened.expand_as(outputs)
        each = binary_cross_entropy_with_logits(outputs, truth, reduction="none")  # (B, T)
        return (each * watched).sum(1) / watched.sum(1).clamp(min=1.0)

    def predictions(self, outputs: "torch.Tensor") -> Answers:
        """Return (B, T) risks."""
        import torch

        risks: Answers = outputs.detach().to("cpu", torch.float64).sigmoid().numpy()
        return risks

    def cell_names(self) -> tuple[str, ...]:
        """Return the lanes of an exact evaluation."""
        bins, thresholds = len(EDGES) + 1, len(EDGES)
        names = [f"hour {hour}" for hour in self.hours]
        return (
            *_score_names([*names, "highest"], bins),
            *(f"rises {k}" for k in range(thresholds)),
            "hours",
            *(f"lead {k} {b}" for k in range(thresholds) for b in range(len(LEADS) + 1)),
            "records",
            "loss",
            "loss squared",
        )

    def count_cells(self, targets: Array, predictions: Answers) -> Cells:
        """Count one site's held-out records.

        Raises:
            DataError: a prediction is not finite.
            ValueError: shapes or answers are not those of the target.
        """
        self._check(targets, predictions)
        happened, watched = self._watched(targets)
        bins = _bins(predictions, watched, EDGES)
        scores = [_histogram(happened, bins[:, hour - 1], len(EDGES) + 1) for hour in self.hours]
        scores.append(_histogram(happened, bins.max(axis=1, initial=-1), len(EDGES) + 1))
        loss = _losses(happened, predictions, watched)
        sums = np.rint(np.stack((loss, loss**2)) * CLASS_SCALE).astype(np.int64).sum(axis=1)
        rises, leads = _rises(bins), self._leads(targets, bins)
        return np.concatenate(
            (*scores, rises, [watched.sum()], leads.ravel(), [len(loss)], sums), dtype=np.int64
        )

    def figures_from_cells(self, cells: Cells) -> dict[str, Figure]:
        """Return the metrics of a sum of cells.

        Raises:
            ValueError: ``cells`` is no such vector.
        """
        bins, thresholds = len(EDGES) + 1, len(EDGES)
        sizes = (2 * bins * (len(self.hours) + 1), thresholds, 1, thresholds * (len(LEADS) + 1), 3)
        if cells.shape != (sum(sizes),) or cells.min() < 0:
            raise ValueError(f"expected {sum(sizes)} cells >= 0")
        parts = np.split(cells, np.cumsum(sizes)[:-1])
        scores, rises, hours, leads, sums = parts
        blocks = _blocks(scores, bins)
        place = self._threshold(blocks[-1])
        areas = [auc(one) for one in blocks[:-1]]
        count = int(sums[0])
        loss = Figure(None, None, None, count)
        if count:
            mean, square = (float(one) / CLASS_SCALE / count for one in sums[1:])
            loss = Figure(mean, *mean_limits(mean, square, count), count)
        return {
            **self._policy(areas, blocks[-1], place),
            "alarms_a_day": _rate(int(rises[place]), int(hours[0]), int(blocks[-1].sum())),
            "lead_hours": _median(leads.reshape(thresholds, -1)[place]),
            "loss": loss,
        }

    def noised_cell_names(self) -> tuple[str, ...]:
        """Return the lanes of a noised evaluation."""
        return _score_names([f"hour {self.at}", "highest"], len(FEW) + 1)

    @property
    def cell_sensitivity(self) -> float:
        """One unit is one count in one cell of either histogram."""
        return math.sqrt(2)

    def count_noised_cells(
        self, targets: Array, predictions: Answers, units: npt.NDArray[np.int64] | None, step: int
    ) -> Cells:
        """Count one site's held-out units before noise, each of a unit's rows in a part of a count.

        A prediction that is not finite counts nowhere, in silence.
        """
        weights = unit_weights(units, len(targets), step)
        sound = np.isfinite(predictions).all(axis=1)
        targets, predictions, weights = targets[sound], predictions[sound], weights[sound]
        self._check(targets, predictions)
        happened, watched = self._watched(targets)
        bins = _bins(predictions, watched, FEW)
        at, highest = bins[:, self.at - 1], bins.max(axis=1, initial=-1)
        return np.concatenate(
            [_histogram(happened, one, len(FEW) + 1, weights) for one in (at, highest)]
        )

    def figures_from_noised_cells(
        self, cells: Cells, noise: "CellNoise", shares: int
    ) -> dict[str, Figure]:
        """Return the main AUC and what is found; alarms a day, lead and loss are not told."""

        def project(noisy: Answers) -> Cells:
            return np.concatenate([whole_counts(part) for part in np.split(noisy, 2)])

        def metrics(whole: Cells) -> dict[str, Figure]:
            first, peaks = _blocks(whole, len(FEW) + 1)
            nothing = Figure(None, None, None, int(peaks.sum()))
            found = dict.fromkeys(self.metrics, nothing)
            areas = [auc(first) if hour == self.at else nothing for hour in self.hours]
            return found | self._policy(areas, peaks, self._threshold(peaks))

        return redrawn(cells, noise, shares, project, metrics)

    def exact_figures(self, targets: Array, predictions: Answers) -> dict[str, Figure]:
        """Return the metrics of the predictions themselves; errors as `count_cells`.

        Thresholds are those of the cells: public ones, which a ward can be given.
        """
        found = self.figures_from_cells(self.count_cells(targets, predictions))
        happened, watched = self._watched(targets)
        for hour in self.hours:
            seen = watched[:, hour - 1]
            found[f"auc_{hour}"] = auc(ranked(happened[seen], predictions[seen, hour - 1]))
        return found

    def curves(self, targets: Array, predictions: Answers) -> dict[str, Any]:
        """Return ROC curves of the judged hours and the AUC of every hour; errors as above."""
        from shared_models.curves import roc  # for reports only

        self._check(targets, predictions)
        happened, watched = self._watched(targets)
        rocs, areas = [], []
        for hour in range(1, self.steps + 1):
            seen = watched[:, hour - 1]
            own, risks = happened[seen], predictions[seen, hour - 1]
            if not 0 < own.sum() < len(own):
                continue
            areas.append([hour, round(auc(ranked(own, risks)).value or 0.0, 6)])
            if hour in self.hours:
                rocs.append(roc(f"after {hour} h", own, risks))
        return {"kind": "warning", "classes": [], "roc": rocs, "hours": areas}

    def linear(self, inputs: Any, targets: Array, unseen: Any) -> Answers:
        """Return what a logistic regression for each judged hour says, until the next one.

        Args:
            inputs: (N, H F) what was known by the judged hours, one after the other.
            targets: (N, 2).
            unseen: (M, H F).

        Returns:
            (M, T) risks; before the first judged hour, the share of the event.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        happened, watched = self._watched(targets)
        share = float(happened.mean()) if len(happened) else 0.0
        risks = np.full((unseen.shape[0], self.steps), share)
        parts = (np.split(one, len(self.hours), axis=1) for one in (inputs, unseen))
        for hour, own, other in zip(self.hours, *parts, strict=True):
            seen = watched[:, hour - 1]
            truth = happened[seen]
            if not 0 < truth.sum() < len(truth):
                continue
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
            fitted = model.fit(own[seen], truth)
            risks[:, hour - 1 :] = fitted.predict_proba(other)[:, 1:]  # (M, 1)
        return risks

    @property
    def score_unit(self) -> str:
        """Unit of what an explanation adds up to."""
        return "log-odds"

    def asked(self, predictions: Answers) -> Cells:
        """Return (N,): the last hour, before which everything was measured."""
        return np.full(len(predictions), self.steps - 1, dtype=np.int64)

    def scores(self, outputs: "torch.Tensor", asked: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) log-odds of the event at the hour that is asked about."""
        return outputs.gather(1, asked[:, None])[:, 0]  # (B, T) -> (B, 1) -> (B,)

    def words(self, asked: int, prediction: Answers, answer: Array | None) -> Words:
        """Return the risk at the last hour, and whether the event came."""
        name = self.classes[asked]
        own = ""
        if answer is not None:
            own = "the event" if int(answer[0]) == 1 else "no event"
        return Words(name, f"{name}: {percent(float(prediction[asked]))}", own)

    def _check(self, targets: Array, predictions: Answers) -> None:
        if targets.shape[1:] != (2,) or predictions.shape != (len(targets), self.steps):
            raise ValueError(
                f"expected (N, 2) targets and (N, {self.steps}) predictions, "
                f"got {targets.shape} and {predictions.shape}"
            )
        if not np.isin(targets[:, 0], (0, 1)).all():
            raise ValueError("expected 1 where the event happened, else 0")
        check_finite(predictions)

    def _watched(self, targets: Array) -> tuple[Mask, Mask]:
        """Return (N,) whether the event happened, and (N, T) the hours before it."""
        happened = targets[:, 0] == 1
        hours = np.arange(1, self.steps + 1)
        gone = happened[:, None] & (hours > targets[:, 1:].astype(np.float64) * self.scale)
        return happened, ~gone

    def _leads(self, targets: Array, bins: Cells) -> Cells:
        """Return (B - 1, L) records with the event by lead time, for every threshold.

        A record alarms first at an hour for the thresholds that its risk had not reached before.
        """
        changes = np.zeros((len(EDGES) + 1, len(LEADS) + 1), dtype=np.int64)
        known = (targets[:, 0] == 1) & np.isfinite(targets[:, 1])
        reached = np.maximum.accumulate(np.maximum(bins[known], 0), axis=1)  # (E, T)
        before = np.pad(reached, ((0, 0), (1, 0)))[:, :-1]
        rows, hours = np.nonzero(reached > before)
        left = targets[known, 1].astype(np.float64)[rows] * self.scale - (hours + 1)
        lead = np.searchsorted(LEADS, left, side="right")
        np.add.at(changes, (before[rows, hours], lead), 1)
        np.add.at(changes, (reached[rows, hours], lead), -1)
        return changes.cumsum(axis=0)[:-1]

    def _threshold(self, peaks: Blocks) -> int:
        """Return the place of the lowest threshold that alarms few enough without the event.

        Args:
            peaks: (2, B) records by their highest risk, the highest bin first.
        """
        alarmed = np.cumsum(peaks[0])[:-1][::-1]  # (B - 1,) at or above each threshold
        fits = np.flatnonzero(alarmed <= self.false_alarms * peaks[0].sum())
        return int(fits[0]) if len(fits) else len(alarmed) - 1

    def _policy(self, areas: list[Figure], peaks: Blocks, place: int) -> dict[str, Figure]:
        """Return the rankings' figures and what alarms at a threshold find and cost."""
        totals = peaks.sum(axis=1)  # without and with the event
        alarmed = peaks[:, : peaks.shape[1] - 1 - place].sum(axis=1)
        shares = [
            Figure(None, None, None, 0)
            if not total
            else Figure(found / total, *proportion_limits(found / total, total), total)
            for found, total in zip(alarmed.tolist(), totals.tolist(), strict=True)
        ]
        names = (f"auc_{hour}" for hour in self.hours)
        return {
            **dict(zip(names, areas, strict=True)),
            "sensitivity": shares[1],
            "false_alarms": shares[0],
        }


def alarms(study: "Study") -> Alarms:
    """Return the target of a study of task warning."""
    warning = study.warning
    if warning is None:
        raise ValueError("expected a study that warns")
    series = next(one for one in study.data.inputs.values() if isinstance(one, SeriesColumn))
    time = study.data.columns[study.data.targets[1]]
    unit = time.unit if isinstance(time, NumberColumn) else None
    return Alarms(
        series.steps, warning.hours, warning.at, warning.false_alarms, HOURS[unit or "hours"]
    )


def alarms_fit(study: "Study") -> None:
    """Check the two columns of the target, and that the judged hours are within the series.

    Raises:
        ValueError: they do not fit.
    """
    names, columns, warning = study.data.targets, study.data.columns, study.warning
    event, time = (columns[name] for name in names[:2]) if len(names) > 1 else (0, 0)
    if (
        len(names) != 2
        or not (isinstance(event, CategoryColumn) and event.missing == "refuse")
        or len(event.values) != 2
        or not (isinstance(time, NumberColumn) and time.unit in HOURS)
    ):
        raise ValueError(
            "data.target: expected two columns with task = 'warning', whether the event "
            "happened (category: no, then yes) and when, from the start of the series "
            f"(number, unit hours or days), found {study.data.target!r}"
        )
    series = [one for one in study.data.inputs.values() if isinstance(one, SeriesColumn)]
    if warning is None or any(warning.hours[-1] > one.steps for one in series):
        raise ValueError(
            f"warning.hours: expected at most {series[0].steps if series else 0}, the steps of "
            f"the series, found {warning.hours[-1] if warning else 'none'}"
        )


def _score_names(groups: list[str], bins: int) -> tuple[str, ...]:
    return tuple(
        f"{name} {answer} risk {b}"
        for name in groups
        for answer in ("no", "yes")
        for b in range(bins)
    )


def _bins(predictions: Answers, watched: Mask, edges: Answers) -> Cells:
    """Return (N, T) thresholds that each risk reaches, 0 to B - 1; -1 after the event."""
    reached = np.searchsorted(edges, predictions, side="right").astype(np.int64)
    return np.where(watched, reached, -1)


def _histogram(happened: Mask, bins: Cells, count: int, weights: Cells | None = None) -> Cells:
    """Return (2 x B,) counts of the records that have a bin."""
    counts = np.zeros((2, count), dtype=np.int64)
    there = bins >= 0
    added = 1 if weights is None else weights[there]
    np.add.at(counts, (happened[there].astype(np.int64), bins[there]), added)
    return counts.ravel()


def _rises(bins: Cells) -> Cells:
    """Return (B - 1,) alarms that begin, by threshold: a risk that reached it, and had not."""
    changes = np.zeros(len(EDGES) + 1, dtype=np.int64)
    reached = np.maximum(bins, 0)
    before = np.pad(reached, ((0, 0), (1, 0)))[:, :-1]
    up = reached > before
    np.add.at(changes, before[up], 1)
    np.add.at(changes, reached[up], -1)
    return changes.cumsum()[:-1]


def _losses(happened: Mask, predictions: Answers, watched: Mask) -> Answers:
    """Return the losses of the records that were watched, each hour's at most LOSS_MAX."""
    chance = np.where(happened[:, None], predictions, 1 - predictions)
    each = -np.log(np.maximum(chance, math.exp(-LOSS_MAX)))
    counts = watched.sum(axis=1)
    means: Answers = (each * watched).sum(axis=1)[counts > 0] / counts[counts > 0]
    return means


def _blocks(scores: Cells, bins: int) -> list[Blocks]:
    """Return each histogram as a ranking: its bins from the highest on."""
    return list(scores.reshape(-1, 2, bins)[:, :, ::-1])


def _rate(count: int, hours: int, records: int) -> Figure:
    """Return alarms a day of one record, with the limits of a Poisson count's square root."""
    if not hours:
        return Figure(None, None, None, records)
    days = hours / 24
    root, reach = math.sqrt(count), _Z / 2  # the root of a count varies by one half
    low, high = max(0.0, root - reach) ** 2, (root + reach) ** 2
    return Figure(count / days, low / days, high / days, records)


def _median(leads: Cells) -> Figure:
    """Return the median lead in hours of (L,) counts, and its limits by ranks.

    Within a bin leads are spread evenly; in the last, which has no end, they are its beginning.
    """
    count = int(leads.sum())
    if not count:
        return Figure(None, None, None, 0)
    edges = np.array([0.0, *LEADS, LEADS[-1]])
    below = np.concatenate(([0], np.cumsum(leads)))
    reach = _Z * math.sqrt(count) / 2  # of the rank: a binomial of one half

    def at(rank: float) -> float:
        rank = min(max(rank, 0.0), float(count))
        place = min(int(np.searchsorted(below[1:], rank, side="left")), len(leads) - 1)
        inside = (rank - below[place]) / leads[place] if leads[place] else 0.0
        return float(edges[place] + inside * (edges[place + 1] - edges[place]))

    return Figure(at(count / 2), at(count / 2 - reach), at(count / 2 + reach), count)
