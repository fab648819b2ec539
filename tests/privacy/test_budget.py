"""Ceilings: what a dataset may spend in all, and which debits are refused before they are made."""

import multiprocessing
from pathlib import Path

import pytest
from pydantic import ValidationError

from privacy.accounting import Event, epsilon
from privacy.budget import Ceiling, Planned, check_debit, spent
from privacy.errors import PrivacyError
from privacy.ledger import Ledger

RECORDS = Ceiling(unit="record", epsilon=2.0, delta=1e-5)
PATIENTS = Ceiling(unit="patient", epsilon=2.0, delta=1e-5)
CAPPED = Ceiling(unit="patient", epsilon=50.0, delta=1e-5, rows_per_patient=3)


def event(study: str = "a1", **changes: object) -> Event:
    values: dict[str, object] = {
        "study": study,
        "dataset": "ward",
        "unit": "record",
        "sampling_rate": 1.0,
        "noise_multiplier": 30.0,
        "clipping_norm": 1.0,
        "steps": 4,
        "denominator": 16.0,
        "mode": "local",
    }
    return Event.model_validate({**values, **changes})


def planned(one: Event, times: int = 10) -> tuple[Planned, ...]:
    return (Planned(one, times),)


# The ceiling


def test_a_study_within_the_ceiling_is_allowed() -> None:
    one = event()
    assert epsilon([one] * 10, 1e-5).epsilon < RECORDS.epsilon
    for made in range(1, 11):
        check_debit([one] * made, planned(one), RECORDS)


def test_a_study_that_would_exceed_the_ceiling_is_refused_before_its_first_round() -> None:
    one = event(noise_multiplier=10.0)  # one round costs .8, ten cost 2.9
    assert epsilon([one], 1e-5).epsilon < RECORDS.epsilon < epsilon([one] * 10, 1e-5).epsilon
    with pytest.raises(PrivacyError, match=r"at most epsilon 2 for each record .* nothing was"):
        check_debit([one], planned(one), RECORDS)
    check_debit([one], planned(one, 1), RECORDS)


def test_what_other_studies_spent_counts_over_all_years() -> None:
    one = event("new")
    past = [event(f"of {year}", noise_multiplier=9.0) for year in range(2000, 2005)]
    check_debit([one], planned(one), RECORDS)
    with pytest.raises(PrivacyError, match="without"):
        check_debit([*past, one], planned(one), RECORDS)


def test_another_dataset_has_a_budget_of_its_own() -> None:
    one = event("new")
    past = [event("old", dataset="clinic", noise_multiplier=1.0)]
    check_debit([*past, one], planned(one), RECORDS)


def test_rounds_that_were_made_are_not_charged_twice() -> None:
    """Nine of ten debits are made: the study still costs ten, not nineteen."""
    one = event(noise_multiplier=15.0)
    costs = [epsilon([one] * count, 1e-5).epsilon for count in (10, 19)]
    assert costs[0] < RECORDS.epsilon < costs[1]
    check_debit([one] * 9, planned(one), RECORDS)


def test_of_one_study_the_larger_of_both_phases_is_charged() -> None:
    train, evaluate = event(), event(phase="evaluate", noise_multiplier=50.0)
    plan = (Planned(train, 10), Planned(evaluate, 10))
    least = epsilon([train] * 10, 1e-5).epsilon
    check_debit([train, evaluate], plan, RECORDS.model_copy(update={"epsilon": least}))


def test_where_there_is_no_ceiling_nothing_is_added_up() -> None:
    one = event(noise_multiplier=0.01)
    check_debit([one], planned(one), None)


def test_a_ceiling_that_is_no_number_allows_nothing() -> None:
    one = event()
    with pytest.raises(PrivacyError):
        check_debit([one], planned(one), RECORDS.model_copy(update={"epsilon": float("nan")}))


# The plan


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"clipping_norm": 2.0}, "clipping norm"),
        ({"noise_multiplier": 29.0}, "noise multiplier"),
        ({"sampling_rate": 0.5}, "sampling rate"),
        ({"steps": 5}, "steps"),
        ({"denominator": 8.0}, "denominator"),
        ({"unit": "patient"}, "unit"),
        ({"mode": "distributed"}, "mode"),
        ({"dataset": "clinic"}, "dataset"),
    ],
)
def test_a_mechanism_that_changed_in_a_running_study_is_refused(
    changed: dict[str, object], name: str
) -> None:
    now = event(**changed)
    with pytest.raises(PrivacyError, match=f"^{name}: expected .* nothing was debited"):
        check_debit([event(), now], planned(now), None)


def test_a_new_version_of_a_library_is_no_change_of_the_mechanism() -> None:
    now = event(versions={"torch": "3"})
    check_debit([event(versions={"torch": "2"}), now], planned(now), RECORDS)


def test_both_phases_have_mechanisms_of_their_own() -> None:
    train, evaluate = event(), event(phase="evaluate", noise_multiplier=50.0)
    check_debit([train, evaluate], (Planned(train, 2), Planned(evaluate, 1)), None)
    with pytest.raises(PrivacyError, match="no debit of this study to evaluate"):
        check_debit([train, evaluate], planned(train), None)


def test_more_debits_than_planned_are_refused() -> None:
    train, evaluate = event(), event(phase="evaluate", noise_multiplier=50.0)
    plan = (Planned(train, 2), Planned(evaluate, 1))
    check_debit([train, evaluate, train], plan, None)
    with pytest.raises(PrivacyError, match="at most 2 debits of this study to train"):
        check_debit([train, evaluate, train, train], plan, None)
    with pytest.raises(PrivacyError, match="at most 1 debits of this study to evaluate"):
        check_debit([train, evaluate, evaluate], plan, None)


def test_the_debits_of_another_study_do_not_count_as_its_own() -> None:
    one = event("new")
    check_debit([event("old", clipping_norm=9.0)] * 5 + [one], planned(one, 1), None)


# Units


def test_a_study_of_patients_is_refused_where_records_are_counted() -> None:
    one = event(unit="patient")
    with pytest.raises(PrivacyError, match=r"privacy\.unit: expected record, .* got patient"):
        check_debit([one], planned(one), RECORDS)


def test_a_study_of_records_is_refused_where_patients_are_counted() -> None:
    one = event()
    with pytest.raises(PrivacyError, match=r"privacy\.unit: expected patient, .* got record") as no:
        check_debit([one], planned(one), PATIENTS)
    assert "rows_per_patient" in no.value.hint


def test_with_a_cap_a_study_of_records_is_charged_for_patients() -> None:
    one = event()
    check_debit([one], planned(one), CAPPED)
    found = spent([one] * 10, CAPPED)
    assert found == epsilon([event(noise_multiplier=10.0, unit="patient")] * 10, 1e-5)
    with pytest.raises(PrivacyError, match="for each patient"):
        check_debit([one], planned(one), CAPPED.model_copy(update={"epsilon": 1.0}))


def test_units_that_were_mixed_before_are_found() -> None:
    with pytest.raises(PrivacyError, match="unit"):
        spent([event(), event("b2", unit="patient")], RECORDS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": float("inf")},
        {"delta": 0.0},
        {"delta": 1.0},
        {"unit": "row"},
        {"unit": "record", "rows_per_patient": 3},
        {"rows_per_patient": 0},
        {"epsilom": 3.0},
    ],
)
def test_a_ceiling_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Ceiling.model_validate({"unit": "patient", "epsilon": 1.0, "delta": 1e-5, **wrong})


# In the ledger's transaction


def test_a_refused_debit_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    one, large = event("a1"), event("b2", noise_multiplier=1.0)
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.debit(one, "1", allow=lambda history: check_debit(history, planned(one), RECORDS))
        before = ledger.head()
        with pytest.raises(PrivacyError, match="at most epsilon"):
            ledger.debit(
                large, "2", allow=lambda history: check_debit(history, planned(large), RECORDS)
            )
        assert (ledger.head(), ledger.events()) == (before, [one])


def _take(path: Path, name: str) -> None:
    for number in range(3):
        one = event(f"{name} {number}")
        with Ledger(path) as ledger:
            try:
                ledger.debit(
                    one, one.study, allow=lambda past, e=one: check_debit(past, planned(e, 1), LAST)
                )
            except PrivacyError as error:
                if "at most epsilon" not in str(error):
                    raise


LAST = RECORDS.model_copy(update={"epsilon": 0.6})


def test_processes_share_the_last_of_a_ceiling_exactly(tmp_path: Path) -> None:
    """Twelve studies ask for room at once; as many get it as would one after the other."""
    path = tmp_path / "ledger.db"
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_take, args=(path, str(n))) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    with Ledger(path) as ledger:
        made = ledger.events()
        assert ledger.verify().rows == len(made)
    assert 3 < len(made) < 12
    assert epsilon(made, LAST.delta).epsilon <= LAST.epsilon
    assert epsilon([*made, event("one more")], LAST.delta).epsilon > LAST.epsilon
