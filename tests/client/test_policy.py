"""A site's policy: what it refuses, that it can only tighten a study, its file and its log."""

import json
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from client.policy import (
    POLICY_BYTES_MAX,
    Policy,
    adopt,
    check,
    check_delta,
    check_hours,
    limit_threads,
    load_policy,
)
from privacy.accounting import Event
from privacy.budget import Ceiling
from privacy.chain import Adopted
from privacy.errors import DataError, PrivacyError
from privacy.ledger import Ledger
from shared_models.study import Study, parse_study

PRIVATE: dict[str, object] = {
    "mode": "local",
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.1,
    "expected_batch": 8,
}


def study(privacy: dict[str, object] = PRIVATE, min_sites: int = 3, masking: str = "fsa1") -> Study:
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 3,
            "data": {
                "target": "ill",
                "columns": {
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                    "age": {"kind": "number", "low": 0, "high": 1},
                },
            },
            "model": {"name": "mlp"},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": privacy,
            "aggregation": {"min_sites": min_sites, "masking": masking},
        }
    )


def test_a_study_without_privacy_is_refused_by_default() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.mode: expected .*, got none; no record was"):
        check(Policy(), study({"mode": "none"}))


def test_a_study_without_privacy_runs_where_it_is_allowed() -> None:
    check(Policy(allow_no_privacy=True), study({"mode": "none"}))


def test_allowing_no_privacy_loosens_nothing_else() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon"):
        check(Policy(allow_no_privacy=True, epsilon_per_study=1.0), study())


def test_a_private_study_is_allowed_by_default() -> None:
    check(Policy(), study())


def test_updates_that_are_not_masked_leave_no_site_with_a_policy() -> None:
    open_sums = study(masking="none")
    check(Policy(), open_sums)  # a simulation
    ceiling = Ceiling(unit="record", epsilon=8.0, delta=1e-5)
    with pytest.raises(PrivacyError, match=r"aggregation\.masking: expected fsa1, got none"):
        check(Policy(ceilings={"records": ceiling}), open_sums)


@pytest.mark.parametrize("asked", [3, 4, 5])
def test_a_study_with_enough_sites_is_allowed(asked: int) -> None:
    check(Policy(min_sites=3), study(min_sites=asked))


def test_a_study_with_fewer_sites_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"min_sites: expected >= 5 .*, got 4; no record was"):
        check(Policy(min_sites=5), study(min_sites=4))


@pytest.mark.parametrize("limit", [4.0, 5.0])
def test_an_epsilon_up_to_the_limit_is_allowed(limit: float) -> None:
    check(Policy(epsilon_per_study=limit), study())


def test_an_epsilon_above_the_limit_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon: expected <= 3.9 .*, got 4.0; no"):
        check(Policy(epsilon_per_study=3.9), study())


def test_a_study_that_names_no_epsilon_is_refused_where_there_is_a_limit() -> None:
    privacy = {k: v for k, v in PRIVATE.items() if k != "epsilon"} | {"noise_multiplier": 9.0}
    check(Policy(), study(privacy))
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon"):
        check(Policy(epsilon_per_study=1.0), study(privacy))


def test_a_distributed_study_is_under_the_same_limits() -> None:
    distributed = study({**PRIVATE, "mode": "distributed", "records_max": 100})
    check(Policy(), distributed)
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon"):
        check(Policy(epsilon_per_study=1.0), distributed)


def test_a_policy_with_an_unknown_limit_is_refused() -> None:
    # A limit that is not understood must not be a limit that is not kept.
    with pytest.raises(ValidationError):
        Policy.model_validate({"epsilon_per_studi": 1.0})


def test_a_task_that_is_not_allowed_is_refused() -> None:
    check(Policy(tasks=("image", "tabular")), study())
    with pytest.raises(PrivacyError, match=r"^task: expected image or series .*, got tabular; no"):
        check(Policy(tasks=("image", "series")), study())


def test_a_mode_that_is_not_allowed_is_refused() -> None:
    check(Policy(modes=("local",)), study())
    with pytest.raises(
        PrivacyError, match=r"privacy\.mode: expected distributed .*, got local; no"
    ):
        check(Policy(modes=("distributed",)), study())


def test_naming_modes_does_not_allow_a_study_without_any() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.mode: .*, got none"):
        check(Policy(modes=("local", "distributed")), study({"mode": "none"}))


# Hours and threads


def test_outside_of_the_hours_of_work_nothing_begins() -> None:
    policy = Policy(hours=("mon-fri 20:00-06:00", "sat,sun 00:00-24:00"))
    check_hours(policy, datetime(2026, 3, 2, 20, 0))  # a Monday
    with pytest.raises(PrivacyError, match=r"^hours: expected mon-fri .*, got mon 19:59; no") as no:
        check_hours(policy, datetime(2026, 3, 2, 19, 59, 59))
    assert no.value.hint == "the site works again from mon 20:00"


def test_without_hours_a_site_works_at_any_time() -> None:
    check_hours(Policy(), datetime(2026, 3, 2, 12, 0))


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("allowed", "used"), [(None, 1), (1, 1), (2, 2), (3, 3), (8, 3)])
def test_as_many_threads_train_as_the_policy_says_and_one_without_it(
    allowed: int | None, used: int
) -> None:
    limit_threads(Policy(cpu_threads=allowed))
    assert torch.get_num_threads() == used


# Units and delta

PATIENTS = Ceiling(unit="patient", epsilon=8.0, delta=1e-6)


def test_a_study_of_another_unit_than_the_ceiling_counts_is_refused() -> None:
    policy = Policy(dataset="ward", ceilings={"ward": PATIENTS})
    with pytest.raises(PrivacyError, match=r"privacy\.unit: expected patient, .* got record"):
        check(policy, study())
    capped = PATIENTS.model_copy(update={"rows_per_patient": 4})
    check(Policy(dataset="ward", ceilings={"ward": capped}), study())


@pytest.mark.parametrize(("units", "enrolled"), [(99_999, True), (100_000, False), (10**6, False)])
def test_a_delta_of_one_in_the_sites_records_is_refused(units: int, enrolled: bool) -> None:
    if enrolled:
        check_delta(Policy(), study(), units)
        return
    with pytest.raises(PrivacyError, match=r"privacy\.delta: .* nothing was sent"):
        check_delta(Policy(), study(), units)


def test_the_delta_of_the_ceiling_is_asked_too() -> None:
    loose = PATIENTS.model_copy(update={"delta": 1e-3})
    policy = Policy(dataset="ward", ceilings={"ward": loose})
    check_delta(policy, study(), 999)
    with pytest.raises(PrivacyError, match=r"ceilings\.ward\.delta"):
        check_delta(policy, study(), 1000)


def test_without_privacy_there_is_no_delta() -> None:
    check_delta(Policy(), study({"mode": "none"}), 10**9)


# The file

POLICY = """
dataset = "ward"
min_sites = 4
epsilon_per_study = 3.0

[ceilings.ward]
unit = "patient"
epsilon = 8.0
delta = 1e-6
rows_per_patient = 4

[ceilings.clinic]
unit = "record"
epsilon = 2.0
delta = 1e-5
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_a_policy_comes_out_of_its_file(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path, POLICY))
    assert (policy.dataset, policy.min_sites, policy.epsilon_per_study) == ("ward", 4, 3.0)
    assert policy.ceiling == Ceiling(unit="patient", epsilon=8.0, delta=1e-6, rows_per_patient=4)
    assert policy.ceilings["clinic"].unit == "record"
    assert not policy.allow_no_privacy


def test_a_policys_digest_is_of_its_meaning(tmp_path: Path) -> None:
    policy = load_policy(written(tmp_path, POLICY))
    lines = POLICY.replace("min_sites = 4", "").replace("3.0", "3.00") + "# a remark\n"
    same = load_policy(written(tmp_path, "min_sites = 4\n" + lines))
    raised = load_policy(written(tmp_path, POLICY.replace("8.0", "8.5")))
    assert policy.digest() == same.digest() == Adopted(policy=policy.canonical()).digest
    assert policy.digest() != raised.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ceilings: expected one"),
        ('dataset = "ward"', "ceilings: expected one"),
        (POLICY.replace('dataset = "ward"', ""), r"ceilings\.records: missing"),
        (POLICY.replace("min_sites", "minsites"), "minsites: Extra"),
        (POLICY.replace("epsilon = 8.0", 'epsilon = "8"'), r"ceilings\.ward\.epsilon: .* number"),
        (POLICY.replace("epsilon = 8.0", "epsilon = inf"), r"ceilings\.ward\.epsilon"),
        (POLICY.replace("delta = 1e-6", ""), r"ceilings\.ward\.delta: Field required"),
        ("allow_no_privacy = true" + POLICY, "allow_no_privacy: expected false"),
        ('tasks = ["x-ray"]' + POLICY, r"tasks\.0: .* 'tabular', 'image', .* or 'segmentation'"),
        ("tasks = []" + POLICY, "tasks: .* at least 1"),
        ('modes = ["none"]' + POLICY, r"modes\.0: .* 'local' or 'distributed'"),
        ('hours = "20:00-06:00"' + POLICY, "hours: should be a valid array"),
        ('hours = ["8-17"]' + POLICY, "hours: expected hours as .*, found '8-17'"),
        ('hours = ["mo 20:00-06:00"]' + POLICY, "hours: expected days of mon, .*"),
        ("cpu_threads = 0" + POLICY, "cpu_threads: .* greater than or equal to 1"),
        ("unconfirmed_max = -1" + POLICY, "unconfirmed_max: .* greater than or equal to 0"),
        ("dataset = ", "expected TOML"),
        ("#" * (POLICY_BYTES_MAX + 1), "at most 64 KiB"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_by_name(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        load_policy(written(tmp_path, text))
    assert "policy.toml" in str(refused.value)
    assert refused.value.hint


def test_a_missing_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_policy(tmp_path / "policy.toml")


def test_the_documented_policy_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text()
    lines = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    example = "\n".join(line for line in lines if not line.startswith("fedward-site"))
    policy = load_policy(written(tmp_path, example))
    assert policy.ceiling is not None
    assert policy.ceiling.rows_per_patient == 5
    unsaid = set(Policy.model_fields) - {"allow_no_privacy"} - policy.model_fields_set
    assert not unsaid, "the page shows every key"


# The log


def event(dataset: str = "ward", unit: str = "record") -> Event:
    return Event.model_validate(
        {
            "study": "a1",
            "dataset": dataset,
            "unit": unit,
            "sampling_rate": 1.0,
            "noise_multiplier": 9.0,
            "clipping_norm": 1.0,
            "steps": 1,
            "denominator": 16.0,
            "mode": "local",
        }
    )


def policy_of(text: str) -> Policy:
    return Policy.model_validate_json(json.dumps(tomllib.loads(text)))


def test_every_policy_that_was_in_force_is_in_the_ledger(tmp_path: Path) -> None:
    first, second = policy_of(POLICY), policy_of(POLICY.replace("8.0", "9.0"))
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert adopt(first, ledger) is not None
        assert adopt(first, ledger) is None
        ledger.debit(event(), "1", under=first.digest())
        assert adopt(second, ledger) is not None
        found = [r.entry.policy for r in ledger.rows() if isinstance(r.entry, Adopted)]
    assert found == [first.canonical(), second.canonical()]
    assert '"epsilon":9.0' in found[1]


def test_a_new_dataset_id_wants_a_policy_edit_and_a_log_entry(tmp_path: Path) -> None:
    old, new = policy_of(POLICY), policy_of(POLICY.replace("ward", "ward-2026"))
    with Ledger(tmp_path / "ledger.db") as ledger:
        adopt(old, ledger)
        with pytest.raises(PrivacyError, match="a policy that the ledger has a row of"):
            ledger.debit(event("ward-2026"), "1", under=new.digest())
        adopt(new, ledger)
        ledger.debit(event("ward-2026"), "1", under=new.digest())


def test_a_dataset_that_was_debited_keeps_a_ceiling(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        adopt(policy_of(POLICY), ledger)
        ledger.debit(event(), "1")
        before = ledger.head()
        with pytest.raises(PrivacyError, match=r"ceilings\.ward: .* policy before stays in force"):
            adopt(policy_of(POLICY.replace("ward", "other")), ledger)
        assert ledger.head() == before


def test_a_ceiling_cannot_change_to_a_unit_that_its_debits_do_not_have(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        adopt(policy_of(POLICY), ledger)
        ledger.debit(event(unit="patient"), "1")
        with pytest.raises(PrivacyError, match="expected record"):
            adopt(policy_of(POLICY.replace('unit = "patient"', 'unit = "record"')
                            .replace("rows_per_patient = 4", "")), ledger)  # fmt: skip
