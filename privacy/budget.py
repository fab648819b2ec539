"""A site's ceilings: what a patient population may spend in all, whoever asks and for how long.

It reads no ledger and no file: a ledger calls the check inside the transaction that would debit. A
ceiling is the steward's; a study can only be refused by it, never raise it.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from privacy.accounting import Event, Positive, Spent, Unit, epsilon
from privacy.errors import PrivacyError

ROWS_MAX = 1000  # of one patient: with more, a study of records costs more than any ceiling
# What one debit of a study and phase has in common with the next: all but the tools' versions.
_FIXED = tuple(name for name in Event.model_fields if name not in {"study", "phase", "versions"})


class Ceiling(BaseModel):
    """What the records of one patient population may cost one unit, over all studies and years.

    Attributes:
        unit: what is counted, a record or a patient.
        epsilon: the most that all events together may cost.
        delta: at which they are added up.
        rows_per_patient: the most records that one patient has: public, and vouched for by the
            steward. With it a study that counts records is charged as what it costs a patient with
            that many; without it such a study is refused where patients are counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    unit: Unit
    epsilon: Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    rows_per_patient: Annotated[int, Field(ge=1, le=ROWS_MAX)] | None = None

    @model_validator(mode="after")
    def _rows_of_patients(self) -> Self:
        if self.rows_per_patient is not None and self.unit == "record":
            raise ValueError("rows_per_patient: expected only with unit = 'patient'")
        return self


class Planned(NamedTuple):
    """Debits that a study may make in all, each of ``event``."""

    event: Event
    times: int


def spent(events: Iterable[Event], ceiling: Ceiling) -> Spent:
    """Return what ``events``, all of one dataset, have cost a unit of the ceiling.

    Raises:
        PrivacyError: an event counts another unit, and no public cap says what it costs this one.
    """
    kept = list(events)
    for event in kept:
        check_unit(event.unit, ceiling)
    return epsilon(kept, ceiling.delta, ceiling.rows_per_patient)


def check_unit(unit: Unit, ceiling: Ceiling) -> None:
    """Refuse to count ``unit`` under a ceiling of another.

    A patient's clipped sum may move by twice the clipping norm when one record of it changes, and
    a patient may have any number of records: neither unit bounds the other by itself.

    Raises:
        PrivacyError: it is another unit, and there is no cap on the records of a patient.
    """
    if unit == ceiling.unit or (unit == "record" and ceiling.rows_per_patient is not None):
        return
    hint = ""
    if unit == "record":
        hint = "a public cap, rows_per_patient, lets such a study be charged for patients"
    raise PrivacyError(
        f"privacy.unit: expected {ceiling.unit}, which this site's ceiling counts, got {unit}; "
        "nothing was debited",
        hint,
    )


def check_debit(history: Sequence[Event], plan: Sequence[Planned], ceiling: Ceiling | None) -> None:
    """Refuse a debit that its study did not plan, or that its dataset cannot pay for.

    The study is charged as a whole, with every debit it may still make, so that it is refused
    before its first round and not in the midst; what others have spent is charged as it stands.

    Args:
        history: all events of the ledger, and the new one last.
        plan: every debit of the new event's study, train and evaluate.
        ceiling: of the new event's dataset; None where a site keeps none.

    Raises:
        PrivacyError: the study's mechanism or dataset changed, it makes more debits than planned,
            or the ceiling would be exceeded. Nothing was debited.
    """
    new = history[-1]
    own = [event for event in history if event.study == new.study]
    for event in own:
        _check_planned(event, plan)
    for planned in plan:
        made = sum(event.phase == planned.event.phase for event in own)
        if made > planned.times:
            raise PrivacyError(
                f"expected at most {planned.times} debits of this study to {planned.event.phase}, "
                "which its noise is calibrated for, got one more; nothing was debited"
            )
    if ceiling is None:
        return
    others = [e for e in history if e.dataset == new.dataset and e.study != new.study]
    whole = [event for event, times in plan for _ in range(times)]
    cost = spent([*others, *whole], ceiling)
    if not cost.epsilon <= ceiling.epsilon:
        before = spent(others, ceiling).epsilon
        raise PrivacyError(
            f"expected at most epsilon {ceiling.epsilon:g} for each {ceiling.unit} of dataset "
            f"{new.dataset!r} over all studies, got {cost.epsilon:.4g} with the whole of this one "
            f"({before:.4g} without); nothing was debited",
            "`fedward-site budget` shows what was spent",
        )


def _check_planned(event: Event, plan: Sequence[Planned]) -> None:
    """Raise PrivacyError unless the plan has this event's mechanism for its phase and dataset."""
    planned = next((p.event for p in plan if p.event.phase == event.phase), None)
    if planned is None:
        raise PrivacyError(
            f"expected no debit of this study to {event.phase}, got one; nothing was debited"
        )
    for name in _FIXED:
        was, now = getattr(event, name), getattr(planned, name)
        if was != now:
            raise PrivacyError(
                f"{name.replace('_', ' ')}: expected {was!r} in every round of a study, as its "
                f"debits say, got {now!r}; nothing was debited",
                "what a study does to records stays as it began: begin another study",
            )
