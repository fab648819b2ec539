"""The rounds of a study: order, sum, step, checkpoint, again. One function; it imports no Flower.

It never holds one site's vector, metrics or record count: what it is given is a sum.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from privacy.encoding import Integers
from privacy.errors import AbsentError, FedwardError, ProtocolError
from server.checkpoint import Checkpoint, Row
from shared_models.lanes import training_loss
from shared_models.metrics import LOWER_IS_BETTER, Figure
from shared_models.release import released_figures
from shared_models.sections import NoPrivacy
from shared_models.steps import after_sum, evaluation_due
from shared_models.strategies import state_bytes, state_hash
from shared_models.study import Study, is_trusting, stopping_figure

_LOG = logging.getLogger("fedward.server")

# exchange(kind, {site: message}, deadline in seconds) yields (site, answer) as answers arrive.
Exchange = Callable[[str, Mapping[str, bytes], float], Iterator[tuple[str, bytes]]]


@dataclass(frozen=True)
class Order:
    """What the sites of one attempt are asked for.

    Attributes:
        kind: train or evaluate.
        round: counts from 1.
        attempt: within the round only ever larger, over both kinds.
        sites: who is asked.
        state: the model and strategy state, as bytes.
    """

    kind: Literal["train", "evaluate"]
    round: int
    attempt: int
    sites: tuple[str, ...]
    state: bytes


@dataclass(frozen=True)
class Opened:
    """A sum over ``sites``: (d,) values in the integers of the encoding, and (L,) lanes.

    The values are as wide as the ring, and read-only where they are the sum that sites are shown.
    """

    values: Integers
    lanes: npt.NDArray[np.int64]
    sites: tuple[str, ...]


class UnvouchedError(ProtocolError):
    """Too few sites computed the order's state: the study goes on from the one before.

    Attributes:
        model: hash of the state before the last sum.
        kind: what that sum was for.
    """

    def __init__(self, message: str, model: bytes, kind: Literal["train", "evaluate"]) -> None:
        super().__init__(message)
        self.model, self.kind = model, kind


class Summation(Protocol):
    """Opens sums: masked, or in a simulation plain."""

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        """Send the order and return the sum, or raise ProtocolError or AbsentError.

        UnvouchedError, a ProtocolError, asks for the sum before to be taken back.
        """

    def finish(self, exchange: Exchange, sites: tuple[str, ...], state: bytes) -> None:
        """Tell the sites the last sum and the state it led to; no order follows.

        Raises ProtocolError or AbsentError when too few sites believe it; UnvouchedError asks for
        it to be taken back.
        """


Cohorts = Callable[[int], Sequence[str]]  # the sites that are asked in a round


def run_rounds(
    study: Study,
    start: Checkpoint,
    exchange: Exchange,
    summation: Summation,
    cohorts: Cohorts,
    sites: int,
    keep: Callable[[Checkpoint], None],
) -> Iterator[Checkpoint]:
    """Run the rounds that are left and yield each round's checkpoint once it is kept.

    Args:
        study: what is learnt and how.
        start: where to go on; round 0 for a new study.
        exchange: carries messages to sites and answers back, within a deadline.
        summation: opens one sum (masked; or, in a simulation, plain).
        cohorts: who is asked in which round.
        sites: how many sites the study has.
        keep: makes a checkpoint durable.

    Raises:
        ProtocolError: attempts failed more often than the study can spare; the last checkpoint
            stands.
        AbsentError: the same, because sites were not there in time.
    """
    now = start
    if now.spent_attempts > study.spare_attempts and not isinstance(study.privacy, NoPrivacy):
        raise ProtocolError(
            f"expected at most {study.spare_attempts} failed attempts, which the noise is "
            f"calibrated for, got {now.spent_attempts}; the last checkpoint stands"
        )
    of = study.aggregation.cohort or sites  # the plan's n, whoever is asked
    while True:
        if not now.stopped and awaits_evaluation(study, now):
            asked = tuple(cohorts(now.state.round))
            opened, now = _open(study, now, "evaluate", asked, exchange, summation, keep)
            if opened is None:
                if _is_left_out(now):
                    yield now
                continue
            before = replace(now, before=None)
            row: Row = {**now.history[-1], **_released(study, opened, of)}
            now = replace(now, history=(*now.history[:-1], row))
            now = replace(now, stopped=_stalled(study, now.history), before=before)
        elif not now.stopped and now.state.round < study.rounds:
            asked = tuple(cohorts(now.state.round + 1))
            opened, now = _open(study, now, "train", asked, exchange, summation, keep)
            if opened is None:
                continue
            before = replace(now, before=None)
            state = after_sum(
                study, now.state, opened.values, opened.lanes, opened.sites, of, sites
            )
            row = {"round": state.round, "sites": len(opened.sites), **_loss(opened)}
            now = replace(now, state=state, history=(*now.history, row), before=before)
            del opened  # a vector: let go of it before the next sum
        else:
            try:
                summation.finish(exchange, tuple(cohorts(study.rounds)), state_bytes(now.state))
                return
            except (ProtocolError, AbsentError) as error:
                now = _after_failure(study, now, error, keep)
                continue
        # Also between a round's two sums: the sites go on from the first, and cannot go back.
        keep(now)
        if not awaits_evaluation(study, now):
            yield now


def awaits_evaluation(study: Study, now: Checkpoint) -> bool:
    """Say whether the study was cut between the two sums of a round."""
    number = now.state.round
    return number > 0 and evaluation_due(study, number) and "released" not in now.history[-1]


def _open(
    study: Study,
    now: Checkpoint,
    kind: Literal["train", "evaluate"],
    asked: tuple[str, ...],
    exchange: Exchange,
    summation: Summation,
    keep: Callable[[Checkpoint], None],
) -> tuple[Opened | None, Checkpoint]:
    """Try until a sum opens or the spare attempts are spent: sections 6 and 7 of the protocol.

    Without a sum, the checkpoint is the one before the last sum, which was taken back; or that of a
    round whose exact evaluation is left out, since its sites must not open it a second time.
    """
    state = state_bytes(now.state)
    number = now.state.round + (kind == "train")  # an evaluation looks at the round's own model
    while True:
        attempt = 2 * now.spent_attempts + (kind == "evaluate")
        order = Order(kind, number, attempt, asked, state)
        try:
            return summation(exchange, order), now
        except (ProtocolError, AbsentError) as error:
            went_on = _after_failure(study, now, error, keep)
            if went_on.state is not now.state or went_on.history is not now.history:
                return None, went_on
            now = went_on
            if kind == "evaluate" and is_trusting(study):
                _LOG.warning("the evaluation after round %d is left out: %s", number, error)
                row = {**now.history[-1], "released": {}}
                now = replace(now, history=(*now.history[:-1], row))
                keep(now)
                return None, now


def _after_failure(
    study: Study, now: Checkpoint, error: FedwardError, keep: Callable[[Checkpoint], None]
) -> Checkpoint:
    """Return where the study goes on after a failed attempt; raise when no more can be spared."""
    spent = now.spent_attempts + 1
    before = now.before
    if before is not None and isinstance(error, UnvouchedError) and _is_before(study, now, error):
        _LOG.warning("the sum after round %d is taken back: %s", before.state.round, error)
        now = before
    now = replace(now, spent_attempts=spent)
    keep(now)
    if spent > study.spare_attempts:
        raise error
    return now


def _is_before(study: Study, now: Checkpoint, lost: UnvouchedError) -> bool:
    """Say whether the checkpoint before the last sum is the one that the sites can go on from."""
    before = now.before
    if before is None or state_hash(state_bytes(before.state)) != lost.model:
        return False
    return awaits_evaluation(study, before) == (lost.kind == "evaluate")


def _loss(opened: Opened) -> Row:
    loss = training_loss(opened.lanes)
    return {} if loss is None else {"train_loss": loss}


def _is_left_out(now: Checkpoint) -> bool:
    return bool(now.history) and now.history[-1].get("released") == {}


def _released(study: Study, opened: Opened, sites: int) -> Row:
    try:
        told = released_figures(study, opened.lanes, len(opened.sites), sites)
    except ValueError as error:  # no sum of cells: the sites will not believe it either
        _LOG.warning("the evaluation's sum is spoilt: %s", error)
        return {"released": {}}
    row: dict[str, object] = {"released": _plain(told.figures)}
    if told.subgroups:
        row["subgroups"] = {name: one and _plain(one) for name, one in told.subgroups.items()}
    return row


def _plain(figures: Mapping[str, Figure]) -> dict[str, object]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _stalled(study: Study, history: Sequence[Row]) -> bool:
    """Early stopping: no released figure better than the best for ``patience`` evaluations."""
    patience, name = study.evaluation.patience, stopping_figure(study)
    if patience is None or name is None:
        return False
    told = [row["released"] for row in history if "released" in row]
    found: list[float | None] = [
        figures[name]["value"] if isinstance(figures, dict) and figures else None
        for figures in told
    ]
    if found[-1] is None:
        _LOG.warning("the evaluation tells no %s: early stopping does not count it", name)
    sign = 1 if name in LOWER_IS_BETTER else -1
    values = [sign * value for value in found if value is not None]
    return len(values) > patience and min(values[-patience:]) >= min(values[:-patience])
