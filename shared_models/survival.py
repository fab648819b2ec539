"""Targets that are a time until an event, which may not have been seen: hazards by interval, Cox.

Discrete-time hazards are a sum over a record's own intervals, and so can be trained privately:
Gensheimer and Narasimhan 2019, PeerJ 7:e6257. Cox's partial likelihood compares records, all of one
site with each other (stratified by site): the study allows it without privacy only, one step a
round. It estimates no curve and no c itself: lifetimes does.

A record's risk is what the network predicts of the event by the last horizon; under Cox, which
predicts an order alone, r / (1 + r) of its relative risk r. Cells, in order:

    exact    seen (J + 1, R), event (J + 1, R)   interval of the end, by risk
             risk by each horizon; loss, loss^2  fixed point
    noised   seen (H + 1, B), event (H + 1, B)   the horizons cut the time, by risk in few bins

The c of the cells is that of the pairs that ended in different intervals, where pairs of one bin of
risk count one half.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared_models.cells import CLASS_SCALE, LOSS_MAX, check_finite
from shared_models.contract import CategoryColumn, NumberColumn
from shared_models.intervals import mean_limits
from shared_models.lifetimes import (
    Concordance,
    Curve,
    concordance,
    kaplan_meier,
    life_table,
    share_limits,
)
from shared_models.metrics import Figure
from shared_models.noised_cells import redrawn, unit_weights, whole_counts
from shared_models.target import Words, percent

if TYPE_CHECKING:
    import torch

    from privacy.cell_noise import CellNoise
    from shared_models.study import Study

Array = npt.NDArray[Any]
Answers = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int64]

# Edges of risk bins in log-odds: equal ones would leave the small risks of most patients together.
RISKS: Answers = 1 / (1 + np.exp(-np.linspace(-7.75, 7.75, 63)))  # 64 bins, each of 1.3-fold odds
FEW: Answers = 1 / (1 + np.exp(-np.array([-3.0, -2.0, -1.0, 0.0, 1.0])))
FEW_MIDDLES: Answers = 1 / (1 + np.exp(-np.array([-3.5, -2.5, -1.5, -0.5, 0.5, 1.5])))
GROUPS = 3  # of records by predicted risk, in a report


@dataclass(frozen=True)
class Lifetime:
    """A time until an event.

    Attributes:
        low: where time begins.
        edges: (J,) public ends of the intervals (edge before, edge]; an event later counts as not
            seen by the last edge.
        horizons: times, among the edges, at which risks are compared with what happened.
        cox: partial likelihood in place of hazards.
    """

    low: float
    edges: tuple[float, ...]
    horizons: tuple[float, ...]
    cox: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the answers' columns."""
        return ("risk",) if self.cox else tuple(f"none by {edge:g}" for edge in self.edges)

    @property
    def outputs(self) -> int:
        """One log-odds of the hazard an interval, or one log of the relative risk."""
        return 1 if self.cox else len(self.edges)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures: calibration_730 is at the horizon of 730."""
        return ("c_index", *(f"calibration_{time:g}" for time in self.horizons), "loss")

    @property
    def headline(self) -> str:
        """The figure that a report leads with."""
        return "c_index"

    def told(self, *, exact: bool) -> tuple[str, ...]:
        """Return the names of the figures that an evaluation tells."""
        if self.cox:
            return ("c_index",)
        return self.metrics if exact else ("c_index", f"calibration_{self.horizons[-1]:g}")

    def losses(self, outputs: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) losses in nats: under Cox of each event among the records of the batch.

        Hazards: minus the log of the chance to survive each interval that the record did, and of
        the event in the one where it happened. A record cut short survived the intervals whose
        middle it was seen in (equation 6 and its remark).

        Args:
            outputs: (B, J), or (B, 1) under Cox.
            targets: (B, 2) float32 time, and 1 where the event happened.
        """
        if self.cox:
            return _partial_likelihood(outputs[:, 0], targets)
        from torch.nn.functional import softplus

        lower, middle, upper = (outputs.new_tensor(ends) for ends in self._intervals())
        time, event = targets[:, :1], targets[:, 1:]  # (B, 1)
        died = event * ((lower < time) & (time <= upper))  # (B, J)
        lived = event * (upper < time) + (1 - event) * (middle <= time)
        return (died * softplus(-outputs) + lived * softplus(outputs)).sum(1)  # (B, J) -> (B,)

    def predictions(self, outputs: "torch.Tensor") -> Answers:
        """Return (B, J) chances of no event by each edge; (B, 1) risks under Cox."""
        import torch
        from torch.nn.functional import logsigmoid

        logits = outputs.detach().to("cpu", torch.float64)
        if self.cox:
            risks: Answers = logits.sigmoid().numpy()
            return risks
        shares: Answers = logsigmoid(-logits).cumsum(1).exp().numpy()  # (B, J): of 1 - hazard
        return shares

    def cell_names(self) -> tuple[str, ...]:
        """Return the lanes of an exact evaluation."""
        ends = [f"by {edge:g}" for edge in self.edges] + ["later"]
        counts = _count_names(ends, len(RISKS) + 1)
        risks = [f"risk by {time:g}" for time in self.horizons]
        return (*counts, *risks, "loss", "loss squared")

    def count_cells(self, targets: Array, predictions: Answers) -> Cells:
        """Count one site's held-out records.

        Raises:
            DataError: a prediction is not finite.
            ValueError: shapes are not those of the target.
        """
        times, events = self._checked(targets, predictions)
        bins = np.searchsorted(RISKS, self._risks(predictions), side="right")
        counts = _histogram(times, events, bins, self.edges, len(RISKS) + 1)
        loss = self._losses(times, events, predictions)
        sums = np.concatenate(
            [self._by_horizon(predictions), np.stack((loss, loss**2), axis=1)], axis=1
        )  # (N, H + 2)
        fixed = np.rint(sums * CLASS_SCALE).astype(np.int64).sum(axis=0)
        return np.concatenate((counts, fixed))

    def figures_from_cells(self, cells: Cells) -> dict[str, Figure]:
        """Return the metrics of a sum of cells.

        Raises:
            ValueError: ``cells`` is no such vector.
        """
        size = 2 * (len(self.edges) + 1) * (len(RISKS) + 1)
        if cells.shape != (size + len(self.horizons) + 2,) or cells.min() < 0:
            raise ValueError(f"expected {size + len(self.horizons) + 2} cells >= 0")
        counts = cells[:size].reshape(2, len(self.edges) + 1, -1)
        total = int(counts.sum())
        means = cells[size:] / CLASS_SCALE / max(total, 1)
        curve = _table(counts, self.edges)
        return self._figures(_binned(counts), curve, total, means[:-2], means[-2:])

    def noised_cell_names(self) -> tuple[str, ...]:
        """Return the lanes of a noised evaluation."""
        ends = [f"by {time:g}" for time in self.horizons] + ["later"]
        return _count_names(ends, len(FEW) + 1)

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
        times, events = self._checked(targets[sound], predictions[sound])
        bins = np.searchsorted(FEW, self._risks(predictions[sound]), side="right")
        return _histogram(times, events, bins, self.horizons, len(FEW) + 1, weights[sound])

    def figures_from_noised_cells(
        self, cells: Cells, noise: "CellNoise", shares: int
    ) -> dict[str, Figure]:
        """Return c, and the calibration at the last horizon; the others are not told."""

        def metrics(whole: Cells) -> dict[str, Figure]:
            counts = whole.reshape(2, len(self.horizons) + 1, -1)
            total = int(counts.sum())
            risks = np.full(len(self.horizons), np.nan)
            if total and not self.cox:
                risks[-1] = counts.sum(axis=(0, 1)) @ FEW_MIDDLES / total
            curve = _table(counts, self.horizons)
            return self._figures(_binned(counts), curve, total, risks, np.full(2, np.nan))

        return redrawn(cells, noise, shares, whole_counts, metrics)

    def exact_figures(self, targets: Array, predictions: Answers) -> dict[str, Figure]:
        """Return the metrics of the predictions themselves; errors as `count_cells`."""
        times, events = self._checked(targets, predictions)
        found = concordance(times, events, self._risks(predictions), np.ones(len(times)))
        loss = self._losses(times, events, predictions)
        losses = np.stack((loss, loss**2), axis=1)
        count = max(len(times), 1)
        risks, means = self._by_horizon(predictions).sum(axis=0) / count, losses.sum(axis=0) / count
        return self._figures(found, kaplan_meier(times, events), len(times), risks, means)

    def curves(self, targets: Array, predictions: Answers) -> dict[str, Any]:
        """Return survival by thirds of predicted risk, and calibration at the horizons.

        Returns:
            kind, classes (none); groups: of rising risk, {group, n, events, times, shares};
            calibration: of the last horizon, {score, rate, low, high, n} of each group; none
            under Cox. Errors as `count_cells`.
        """
        times, events = self._checked(targets, predictions)
        risks, by_horizon = self._risks(predictions), self._by_horizon(predictions)
        places = np.array_split(np.argsort(risks, kind="stable"), GROUPS)
        groups, bins = [], []
        for name, rows in zip(("low", "middle", "high"), places, strict=True):
            curve = kaplan_meier(times[rows], events[rows])
            groups.append(
                {
                    "group": name,
                    "n": len(rows),
                    "events": int(events[rows].sum()),
                    **_steps(curve, self.edges),
                }
            )
            known = curve.at(self.horizons[-1])
            if known is not None and not self.cox:
                low, high = share_limits(1 - known[0], known[1], len(rows))
                row = {
                    "score": float(by_horizon[rows, -1].mean()),
                    "rate": 1 - known[0],
                    "low": low,
                    "high": high,
                }
                bins.append({k: round(v, 6) for k, v in row.items() if v is not None})
                bins[-1]["n"] = len(rows)
        return {"kind": "survival", "classes": [], "groups": groups, "calibration": bins}

    def linear(self, inputs: Any, targets: Array, unseen: Any) -> Answers:
        """Return what a logistic regression of the hazards, a level an interval, answers.

        Each record is one row for every interval that it was seen in (pooled logistic regression:
        D'Agostino et al. 1990), which is Cox's model with interval-censored times.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(inputs)
        times, events = targets[:, 0].astype(np.float64), targets[:, 1] > 0
        died, lived = self._lived(times, events)  # (N, J)
        rows, places = np.nonzero(died | lived)
        happened = died[rows, places]
        size, count = len(self.edges), unseen.shape[0]
        hazards = np.full((count, size), float(happened.mean()) if len(rows) else 0.0)
        if 0 < happened.sum() < len(happened):
            levels = np.eye(size)
            seen = np.concatenate((scaler.transform(inputs)[rows], levels[places]), axis=1)
            model = LogisticRegression(C=0.1, max_iter=500).fit(seen, happened)
            x = scaler.transform(unseen)
            for place in range(size):
                level = np.repeat(levels[place : place + 1], count, axis=0)
                rates = model.predict_proba(np.concatenate((x, level), axis=1))
                hazards[:, place] = rates[:, 1]
        shares: Answers = np.cumprod(1 - hazards, axis=1)
        return 1 - shares[:, -1:] if self.cox else shares

    @property
    def score_unit(self) -> str:
        """Unit of what an explanation adds up to."""
        return "log of the relative risk" if self.cox else "log-odds"

    def asked(self, predictions: Answers) -> Cells:
        """Return (N,): the interval that the last horizon ends; under Cox there is one risk."""
        last = 0 if self.cox else self.edges.index(self.horizons[-1])
        return np.full(len(predictions), last, dtype=np.int64)

    def scores(self, outputs: "torch.Tensor", asked: "torch.Tensor") -> "torch.Tensor":
        """Return (B,) log-odds of the event by the last horizon; under Cox logs of risks."""
        import torch
        from torch.nn.functional import logsigmoid

        logs = outputs if self.cox else logsigmoid(-outputs).cumsum(1)  # (B, J): of no event
        lived = logs.gather(1, asked[:, None])[:, 0]  # (B, J) -> (B,)
        if self.cox:
            return lived
        lived = lived.clamp(max=-torch.finfo(lived.dtype).tiny)  # no chance at all has no log
        return torch.log(-torch.expm1(lived)) - lived

    def words(self, asked: int, prediction: Answers, answer: Array | None) -> Words:
        """Return the risk by the last horizon, and when the event was, or that none was seen."""
        own = ""
        if answer is not None:
            time, happened = float(answer[0]), bool(answer[1] > 0)
            own = f"the event at {time:g}" if happened else f"none seen by {time:g}"
        if self.cox:
            risk = float(prediction[asked])
            return Words("", f"a relative risk of {risk / max(1 - risk, 1e-12):.3g}", own)
        by = f"the event by {self.edges[asked]:g}"
        return Words(by, f"{by} ({percent(1 - float(prediction[asked]))})", own)

    def _intervals(self) -> tuple[list[float], list[float], list[float]]:
        """Return lower ends (the first: minus infinity), middles and upper ends, (J,) each."""
        upper = list(self.edges)
        begins = [self.low, *upper[:-1]]
        middle = [(a + b) / 2 for a, b in zip(begins, upper, strict=True)]
        return [-math.inf, *upper[:-1]], middle, upper

    def _lived(
        self, times: Answers, events: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return (N, J): did the event happen in the interval, did the record survive it."""
        lower, middle, upper = (np.array(ends) for ends in self._intervals())
        time, event = times[:, None], events[:, None]
        died = event & (lower < time) & (time <= upper)
        return died, np.where(event, upper < time, middle <= time)

    def _checked(
        self, targets: Array, predictions: Answers
    ) -> tuple[Answers, npt.NDArray[np.bool_]]:
        """Return (N,) times and (N,) events."""
        if targets.shape[1:] != (2,) or predictions.shape != (len(targets), self.outputs):
            raise ValueError(
                f"expected (N, 2) targets and (N, {self.outputs}) predictions, "
                f"got {targets.shape} and {predictions.shape}"
            )
        check_finite(predictions)
        return targets[:, 0].astype(np.float64), targets[:, 1] > 0

    def _risks(self, predictions: Answers) -> Answers:
        risks: Answers = predictions[:, 0] if self.cox else self._by_horizon(predictions)[:, -1]
        return risks

    def _by_horizon(self, predictions: Answers) -> Answers:
        """Return the (N, H) chances of an event by each horizon; 0 under Cox, which knows none."""
        if self.cox:
            return np.zeros((len(predictions), len(self.horizons)))
        return 1 - predictions[:, [self.edges.index(time) for time in self.horizons]]

    def _losses(
        self, times: Answers, events: npt.NDArray[np.bool_], predictions: Answers
    ) -> Answers:
        """Return the (N,) losses of hazards, at most LOSS_MAX; 0 under Cox: none is a record's."""
        if self.cox:
            return np.zeros(len(times))
        died, lived = self._lived(times, events)
        left = np.concatenate((np.ones((len(times), 1)), predictions), axis=1)  # (N, J + 1)
        chance = (died * (left[:, :-1] - left[:, 1:])).sum(axis=1)
        last = np.where(died.any(axis=1), chance, left[np.arange(len(left)), lived.sum(axis=1)])
        losses: Answers = -np.log(np.maximum(last, math.exp(-LOSS_MAX)))
        return losses

    def _figures(
        self, found: Concordance, curve: Curve, total: int, risks: Answers, loss: Answers
    ) -> dict[str, Figure]:
        """Return the figures from c, the curve of all, mean (H,) risks and (2,) loss moments."""
        figures = {"c_index": Figure(found.value, found.low, found.high, total)}
        nothing = Figure(None, None, None, total)
        for time, risk in zip(self.horizons, risks, strict=True):
            known = curve.at(time) if total else None
            figures[f"calibration_{time:g}"] = nothing
            if known is not None and not self.cox and not math.isnan(risk):
                gap = abs(float(risk) - (1 - known[0]))
                limits = share_limits(gap, known[1], total)
                figures[f"calibration_{time:g}"] = Figure(gap, *limits, total)
        told = total > 0 and not self.cox and not math.isnan(loss[0])
        limits = mean_limits(float(loss[0]), float(loss[1]), total) if told else (None, None)
        figures["loss"] = Figure(float(loss[0]) if told else None, *limits, total)
        return figures


def survival(study: "Study") -> Lifetime:
    """Return the target of a study of task survival."""
    column, section = study.data.columns[study.data.targets[0]], study.survival
    if section is None or not isinstance(column, NumberColumn):
        raise ValueError("expected a study of task survival")
    # As float32, which records' times are: an edge is an edge in losses and in figures.
    edges, horizons = (
        tuple(float(np.float32(time)) for time in times)
        for times in (section.edges, section.horizons)
    )
    return Lifetime(float(np.float32(column.low)), edges, horizons, section.loss == "cox")


def survival_fits(study: "Study") -> None:
    """Check the two columns of the target, and what `survival` says of them.

    Raises:
        ValueError: they do not fit.
    """
    names, columns, section = study.data.targets, study.data.columns, study.survival
    time, event = (columns[name] for name in names[:2]) if len(names) > 1 else (0, 0)
    if (
        len(names) != 2
        or not (isinstance(time, NumberColumn) and time.missing == "refuse")
        or not (isinstance(event, CategoryColumn) and event.missing == "refuse")
        or len(event.values) != 2
    ):
        raise ValueError(
            "data.target: expected two columns without missing values with task = 'survival', "
            "a time (number) and whether the event happened (category: no, then yes), "
            f"found {study.data.target!r}"
        )
    if section is None:
        raise ValueError("survival: expected with task = 'survival'")
    if not time.low < section.edges[0] or not section.edges[-1] <= time.high:
        raise ValueError(
            f"survival.edges: expected times above {time.low:g}, up to {time.high:g}, the "
            f"range of {names[0]!r}"
        )
    if section.loss == "cox" and study.privacy.mode != "none":
        raise ValueError(
            "survival.loss: 'cox' compares records with each other, so that no record has a "
            f"loss of its own: expected 'hazards' with privacy.mode = {study.privacy.mode!r}"
        )
    for key in ("local_epochs", "local_steps", "batch_size"):
        if section.loss == "cox" and getattr(study.training, key) is not None:
            raise ValueError(
                f"training.{key}: expected none with survival.loss = 'cox', which compares each "
                "event with all records of its site that are at risk: a batch would leave some out"
            )


def _partial_likelihood(risk: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Return (B,) minus the log of each event's chance to be the next among those at risk.

    Cox 1972, with Breslow's rule for ties: those at risk are all who ended then or later.
    """
    time, event = targets[:, 0], targets[:, 1]
    at_risk = time[None, :] >= time[:, None]  # (B, B): of each row's time
    everyone = risk[None, :].expand(len(risk), -1).masked_fill(~at_risk, -math.inf)
    return event * (everyone.logsumexp(1) - risk)


def _count_names(ends: list[str], bins: int) -> tuple[str, ...]:
    return tuple(
        f"{what} {end}, risk {b}" for what in ("seen", "event") for end in ends for b in range(bins)
    )


def _histogram(
    times: Answers,
    events: npt.NDArray[np.bool_],
    bins: npt.NDArray[np.int64],
    edges: tuple[float, ...],
    width: int,
    weights: Cells | None = None,
) -> Cells:
    """Return (2 x (J + 1) x width,) counts by event, interval of the end, and bin."""
    place = np.searchsorted(np.array(edges), times, side="left")  # (before, edge]; J: later
    happened = (events & (place < len(edges))).astype(np.int64)  # later than the study looks: seen
    counts = np.zeros((2, len(edges) + 1, width), dtype=np.int64)
    np.add.at(counts, (happened, place, bins), 1 if weights is None else weights)
    return counts.ravel()


def _binned(counts: Cells) -> Concordance:
    """Return c of a (2, J + 1, R) histogram: pairs within one interval have no known order."""
    event, place, risk = np.nonzero(counts)
    times = place - 0.25 * (event == 0)  # cut short in an interval is not known to outlast it
    weights = counts[event, place, risk].astype(np.float64)
    return concordance(times, event == 1, risk.astype(np.float64), weights)


def _table(counts: Cells, edges: tuple[float, ...]) -> Curve:
    cut, happened = counts.sum(axis=2).astype(np.float64)  # (2, J + 1)
    return life_table(np.array(edges), happened[:-1], cut[:-1], float(cut[-1]))


def _steps(curve: Curve, edges: tuple[float, ...]) -> dict[str, list[float]]:
    """Return the curve at the public edges: steps at single records' times would tell them."""
    known = [(edge, found[0]) for edge in edges if (found := curve.at(edge)) is not None]
    return {
        "times": [edge for edge, _ in known],
        "shares": [round(share, 6) for _, share in known],
    }
