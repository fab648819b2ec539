"""One hospital's round: what is checked and written down before a record is read, what it sends."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import client.site
from client.hours import DAYS
from client.policy import Policy, adopt
from client.site import Contribution, Site, Split, system_entropy
from client.training import Tensors, Trainer
from privacy.accounting import epsilon
from privacy.budget import Ceiling
from privacy.encoding import Encoding
from privacy.errors import PrivacyError, ProtocolError
from privacy.heads import Head
from privacy.ledger import Ledger
from privacy.stream import Stream
from shared_models.cells import count_cells
from shared_models.debits import planned_mechanism, study_events
from shared_models.lanes import evaluate_lanes
from shared_models.noised_cells import count_noised_cells
from shared_models.registry import build_network
from shared_models.release import cell_noise, planned_evaluations
from shared_models.strategies import State, first_state
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of

FEATURES = 4
OPEN = Policy(allow_no_privacy=True)
PRIVATE: dict[str, object] = {
    "mode": "local",
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.5,
    "expected_batch": 8,
}


def study(
    privacy: dict[str, object] | None = None,
    evaluation: dict[str, object] | None = None,
    **aggregation: object,
) -> Study:
    columns: dict[str, Any] = {
        f"x{k}": {"kind": "number", "low": -9, "high": 9} for k in range(FEATURES)
    }
    columns["ill"] = {"kind": "category", "values": ["no", "yes"]}
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 3,
            "data": {"target": "ill", "columns": columns},
            "model": {"name": "mlp", "hidden": [3]},
            "training": {"learning_rate": 0.1, "local_steps": 2},
            "privacy": privacy or {"mode": "none"},
            "aggregation": aggregation,
            "evaluation": evaluation or {},
        }
    )


def tensors(count: int) -> Tensors:
    inputs = torch.randn((count, FEATURES), generator=torch.Generator().manual_seed(1))
    return Tensors(inputs, (inputs.sum(dim=1) > 0).to(torch.int64))


def seeded(purpose: str, number: int, step: int) -> bytes:
    return sha256(f"{purpose} {number} {step}".encode()).digest()


def begin(given: Study) -> State:
    return first_state(given.aggregation, vector_of(build_network(given, 4)))


class Readings:
    """Records that know how often they were read, and can look around when they are."""

    def __init__(self, count: int = 20, then: Callable[[], None] = lambda: None) -> None:
        self.count, self.reads, self.then = count, 0, then

    def __call__(self) -> Split:
        self.then()
        self.reads += 1
        return Split(tensors(self.count), tensors(self.count // 2))


def site(
    given: Study,
    records: Callable[[], Split],
    folder: Path | None,
    policy: Policy = OPEN,
    entropy: client.site.Entropy = seeded,
    name: str = "ash",
) -> Site:
    return Site(
        name=name,
        study=given,
        encoding=Encoding(32, 5, given.aggregation.value_bound),
        trainer=Trainer(given, planned_mechanism(given)),
        records=records,
        folder=folder,
        policy=policy,
        entropy=entropy,
    )


def debits(folder: Path) -> int:
    if not (folder / "ledger.db").exists():
        return 0
    with Ledger(folder / "ledger.db") as ledger:
        return len(ledger.rows())


# Before a record is read


def test_setting_up_a_site_reads_nothing(tmp_path: Path) -> None:
    records = Readings()
    site(study(PRIVATE), records, tmp_path)
    assert (records.reads, debits(tmp_path)) == (0, 0)


def test_the_debit_is_on_disk_when_the_records_are_read(tmp_path: Path) -> None:
    given, seen = study(PRIVATE), list[int]()
    records = Readings(then=lambda: seen.append(debits(tmp_path / "ash")))
    asked = site(given, records, tmp_path / "ash")
    asked.contribute("train", begin(given), 1, 0)
    asked.contribute("train", begin(given), 2, 0)
    assert seen == [1, 2]


def test_a_site_whose_records_fail_has_paid_already(tmp_path: Path) -> None:
    given = study(PRIVATE)

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        site(given, Readings(then=fail), tmp_path).contribute("train", begin(given), 1, 0)
    assert debits(tmp_path) == 1


def test_a_ledger_that_refuses_leaves_the_records_unread(tmp_path: Path) -> None:
    given, records = study(PRIVATE), Readings()
    (tmp_path / "ledger.db").write_bytes(b"no ledger at all" * 100)
    with pytest.raises(PrivacyError):
        site(given, records, tmp_path).contribute("train", begin(given), 1, 0)
    assert records.reads == 0


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("privacy", "policy"),
    [(None, Policy()), (PRIVATE, Policy(min_sites=4)), (PRIVATE, Policy(epsilon_per_study=1.0))],
    ids=["no privacy", "few sites", "no epsilon"],
)
def test_a_refusing_policy_reads_and_debits_nothing(
    tmp_path: Path, kind: Any, privacy: dict[str, object] | None, policy: Policy
) -> None:
    given, records = study(privacy), Readings()
    with pytest.raises(PrivacyError):
        site(given, records, tmp_path, policy).contribute(kind, begin(given), 1, 0)
    assert (records.reads, debits(tmp_path)) == (0, 0)


@pytest.mark.parametrize(("late", "reads"), [(0, 1), (3, 0)])
def test_outside_of_its_hours_a_site_reads_and_debits_nothing(
    tmp_path: Path, late: int, reads: int
) -> None:
    days = [DAYS[(datetime.now().weekday() + late + step) % 7] for step in (0, 1)]
    policy = Policy(hours=(f"{','.join(days)} 00:00-24:00",))
    given, records = study(PRIVATE), Readings()
    asked = site(given, records, tmp_path, policy)
    if reads:
        asked.contribute("train", begin(given), 1, 0)
    else:
        with pytest.raises(PrivacyError, match="hours: expected"):
            asked.contribute("train", begin(given), 1, 0)
    assert (records.reads, debits(tmp_path)) == (reads, reads)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("number", [-1, 0, 4])
def test_a_round_that_the_study_does_not_have_reads_and_debits_nothing(
    tmp_path: Path, kind: Any, number: int
) -> None:
    given, records = study(PRIVATE), Readings()
    with pytest.raises(ProtocolError, match="expected a round from 1 to 3"):
        site(given, records, tmp_path).contribute(kind, begin(given), number, 0)
    assert (records.reads, debits(tmp_path)) == (0, 0)


def test_a_private_site_without_a_folder_reads_nothing() -> None:
    given, records = study(PRIVATE), Readings()
    with pytest.raises(ValueError, match="folder for the ledger"):
        site(given, records, None).contribute("train", begin(given), 1, 0)
    assert records.reads == 0


# What is debited


def test_the_same_attempt_asked_again_is_debited_once(tmp_path: Path) -> None:
    given = study(PRIVATE)
    asked = site(given, Readings(), tmp_path)
    for _ in range(3):
        asked.contribute("train", begin(given), 1, 0)
    assert debits(tmp_path) == 1


def test_the_same_attempt_after_a_restart_is_debited_once(tmp_path: Path) -> None:
    given = study(PRIVATE)
    for _ in range(2):
        site(given, Readings(), tmp_path).contribute("train", begin(given), 1, 0)
    assert debits(tmp_path) == 1


def test_fresh_noise_is_never_drawn_under_an_old_debit(tmp_path: Path) -> None:
    given, records = study(PRIVATE), Readings()
    site(given, records, tmp_path, entropy=system_entropy).contribute("train", begin(given), 1, 0)
    read = records.reads
    for again in range(2):  # asked again, and after a restart
        asked = site(given, records, tmp_path, entropy=system_entropy)
        with pytest.raises(PrivacyError, match="not debited before"):
            asked.contribute("train", begin(given), 1, 0)
        assert records.reads == read, again
    assert debits(tmp_path) == 1


def test_a_site_pays_for_no_more_attempts_than_the_noise_is_calibrated_for(
    tmp_path: Path,
) -> None:
    given, records = study(PRIVATE), Readings()
    asked = site(given, records, tmp_path, entropy=system_entropy)
    planned = given.rounds + given.spare_attempts
    for attempt in range(planned):
        asked.contribute("train", begin(given), 1, attempt)
    with pytest.raises(PrivacyError, match=f"at most {planned} debits"):
        asked.contribute("train", begin(given), 1, planned)
    assert (debits(tmp_path), records.reads) == (planned, planned)


def test_every_other_attempt_and_round_is_debited(tmp_path: Path) -> None:
    given = study(PRIVATE)
    asked = site(given, Readings(), tmp_path)
    for number, attempt in ((1, 0), (1, 2), (2, 2), (3, 2)):
        asked.contribute("train", begin(given), number, attempt)
    assert debits(tmp_path) == 4


def test_another_study_is_debited_by_itself(tmp_path: Path) -> None:
    for given in (study(PRIVATE), study({**PRIVATE, "sampling_rate": 0.25})):
        site(given, Readings(), tmp_path).contribute("train", begin(given), 1, 0)
    assert debits(tmp_path) == 2


def test_a_debit_says_what_was_done(tmp_path: Path) -> None:
    given = study(PRIVATE)
    policy = Policy(dataset="cardiology")
    site(given, Readings(), tmp_path, policy).contribute("train", begin(given), 1, 0)
    with Ledger(tmp_path / "ledger.db") as ledger:
        (row,) = ledger.rows()
    assert row.key == f"{given.digest()}/train/1/0"
    event = row.entry
    assert (event.study, event.dataset, event.unit) == (given.digest(), "cardiology", "record")
    assert (event.sampling_rate, event.noise_multiplier, event.steps) == (0.5, 1.0, 2)
    assert (event.clipping_norm, event.denominator, event.mode) == (1.0, 8.0, "local")
    assert set(event.versions) == {"fedward", "torch", "opacus"}


def test_mode_none_debits_nothing(tmp_path: Path) -> None:
    given = study()
    site(given, Readings(), tmp_path).contribute("train", begin(given), 1, 0)
    site(given, Readings(), tmp_path).contribute("evaluate", begin(given), 3, 0)
    assert study_events(given, None, "records", Encoding(32, 5, 1.0)) == {}
    assert list(tmp_path.iterdir()) == []


# What the site's ceiling allows

CEILING = Ceiling(unit="record", epsilon=9.4, delta=1e-5)  # the study costs 9.342 in all
LIMITED = Policy(dataset="ward", ceilings={"ward": CEILING})


def limited(folder: Path, records: Readings, given: Study, policy: Policy = LIMITED) -> Site:
    folder.mkdir(exist_ok=True)
    with Ledger(folder / "ledger.db") as ledger:
        adopt(policy, ledger)
    return site(given, records, folder, policy, entropy=system_entropy)


def untouched(folder: Path, records: Readings, head: Head) -> bool:
    with Ledger(folder / "ledger.db") as ledger:
        return ledger.head() == head and records.reads == 0


def test_a_study_within_the_ceiling_runs_to_its_end(tmp_path: Path) -> None:
    given, records = study(PRIVATE), Readings()
    asked = limited(tmp_path, records, given)
    for number in (1, 2, 3):
        asked.contribute("train", begin(given), number, 0)
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert len(ledger.events(dataset="ward")) == records.reads == 3
        planned = [ledger.events()[0]] * (given.rounds + given.spare_attempts)
        assert epsilon(planned, 1e-5).epsilon < CEILING.epsilon


def test_a_study_whose_epsilon_is_above_the_ceiling_is_refused_before_its_first_round(
    tmp_path: Path,
) -> None:
    """One round costs 4.85: it is the whole study, spare attempts included, that has no room."""
    given, records = study(PRIVATE), Readings()
    policy = LIMITED.model_copy(
        update={"ceilings": {"ward": CEILING.model_copy(update={"epsilon": 9.3})}}
    )
    asked = limited(tmp_path, records, given, policy)
    with Ledger(tmp_path / "ledger.db") as ledger:
        head = ledger.head()
    with pytest.raises(PrivacyError, match=r"at most epsilon 9.3 .* nothing was debited"):
        asked.contribute("train", begin(given), 1, 0)
    assert untouched(tmp_path, records, head)


def test_a_budget_that_another_study_used_up_is_refused_before_the_round(tmp_path: Path) -> None:
    first, second = study(PRIVATE), study({**PRIVATE, "sampling_rate": 0.25})
    for number in (1, 2, 3):
        limited(tmp_path, Readings(), first).contribute("train", begin(first), number, 0)
    records = Readings()
    asked = limited(tmp_path, records, second)
    with Ledger(tmp_path / "ledger.db") as ledger:
        head = ledger.head()
    with pytest.raises(PrivacyError, match=r"over all studies, got .* without"):
        asked.contribute("train", begin(second), 1, 0)
    assert untouched(tmp_path, records, head)


@pytest.mark.parametrize(
    ("changed", "name"),
    [({"clipping_norm": 2.0}, "clipping norm"), ({"noise_multiplier": 1.5}, "noise multiplier")],
)
def test_clipping_or_noise_that_changed_in_a_running_study_is_refused(
    changed: dict[str, float], name: str, tmp_path: Path
) -> None:
    """The same digest, another mechanism: what a changed calibration or a patched site would do."""
    given, records = study(PRIVATE), Readings()
    limited(tmp_path, Readings(), given).contribute("train", begin(given), 1, 0)
    mechanism = planned_mechanism(given)
    assert mechanism is not None
    asked = Site(
        "ash", given, Encoding(32, 5, 1.0), Trainer(given, replace(mechanism, **changed)),
        records, tmp_path, LIMITED,
    )  # fmt: skip
    with Ledger(tmp_path / "ledger.db") as ledger:
        head = ledger.head()
    with pytest.raises(PrivacyError, match=f"^{name}: expected .* nothing was debited"):
        asked.contribute("train", begin(given), 2, 0)
    assert untouched(tmp_path, records, head)


def test_a_study_of_records_is_refused_where_patients_are_counted(tmp_path: Path) -> None:
    given, records = study(PRIVATE), Readings()
    patients = Ceiling(unit="patient", epsilon=20.0, delta=1e-5)
    asked = limited(tmp_path, records, given, Policy(dataset="ward", ceilings={"ward": patients}))
    with pytest.raises(PrivacyError, match=r"privacy\.unit: expected patient"):
        asked.contribute("train", begin(given), 1, 0)
    assert records.reads == 0


def test_a_policy_that_was_edited_and_not_written_down_pays_for_nothing(tmp_path: Path) -> None:
    given, records = study(PRIVATE), Readings()
    limited(tmp_path, records, given)
    generous = CEILING.model_copy(update={"epsilon": 99.0})
    edited = Policy(dataset="ward", ceilings={"ward": generous})
    with pytest.raises(PrivacyError, match="a policy that the ledger has a row of"):
        site(given, records, tmp_path, edited, system_entropy).contribute(
            "train", begin(given), 1, 0
        )
    assert records.reads == 0


def test_a_running_study_cannot_move_to_another_dataset(tmp_path: Path) -> None:
    given = study(PRIVATE)
    limited(tmp_path, Readings(), given).contribute("train", begin(given), 1, 0)
    moved = Policy(dataset="new", ceilings={"ward": CEILING, "new": CEILING})
    with pytest.raises(PrivacyError, match="dataset: expected 'ward' in every round"):
        limited(tmp_path, Readings(), given, moved).contribute("train", begin(given), 2, 0)


# What peers see of the ledger


def test_a_site_shows_the_head_of_its_ledger(tmp_path: Path) -> None:
    given = study(PRIVATE)
    asked = site(given, Readings(), tmp_path)
    assert asked.ledger_head() == bytes(32)
    asked.contribute("train", begin(given), 1, 0)
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert asked.ledger_head() == ledger.head().wire() != bytes(32)
    assert site(study(), Readings(), None).ledger_head() == bytes(32)


# What is sent


def test_a_private_contribution_has_no_lanes(tmp_path: Path) -> None:
    given = study(PRIVATE)
    found = site(given, Readings(), tmp_path).contribute("train", begin(given), 1, 0)
    assert found.lanes.shape == (0,)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_private_contribution_has_one_shape_whatever_the_records(
    tmp_path: Path, count: int
) -> None:
    given = study(PRIVATE)
    found = site(given, Readings(count), tmp_path).contribute("train", begin(given), 1, 0)
    assert found.values.shape == begin(given).model.shape
    assert np.count_nonzero(found.values) == found.values.size


def expected_values(given: Study, count: int, factor: float = 1.0) -> Any:
    trainer = Trainer(given, planned_mechanism(given))
    update = trainer.train(begin(given), tensors(count), lambda p, s: seeded(p, 1, s))
    stream = Stream(seeded("rounding", 1, 0))
    encoding = Encoding(32, 5, given.aggregation.value_bound)
    return encoding.quantise(update.change * np.float32(factor), stream)[0], update


@pytest.mark.parametrize("privacy", [None, PRIVATE], ids=["plain", "private"])
def test_the_values_are_the_quantised_update(
    tmp_path: Path, privacy: dict[str, object] | None
) -> None:
    given = study(privacy)
    found = site(given, Readings(20), tmp_path).contribute("train", begin(given), 1, 0)
    assert found.values.tolist() == expected_values(given, 20)[0].tolist()


def test_the_values_carry_the_weight_of_the_site(tmp_path: Path) -> None:
    weights = {"ash": 1.0, "elm": 4.0}
    given = study(PRIVATE, weighting="public", weights=weights)
    found = site(given, Readings(20), tmp_path).contribute("train", begin(given), 1, 0)
    assert found.values.tolist() == expected_values(given, 20, 0.25)[0].tolist()


def test_a_plain_contribution_has_weight_records_and_loss(tmp_path: Path) -> None:
    given = study()
    found = site(given, Readings(20), tmp_path).contribute("train", begin(given), 1, 0)
    update = expected_values(given, 20)[1]
    assert found.lanes.tolist() == [1 << 16, update.records, round(update.loss * (1 << 20))]


def test_a_plain_site_without_records_has_no_weight(tmp_path: Path) -> None:
    given = study()
    found = site(given, Readings(0), tmp_path).contribute("train", begin(given), 1, 0)
    assert found.lanes.tolist() == [0, 0, 0]
    assert not found.values.any()


def test_an_evaluation_is_the_cells_of_the_held_out_records(tmp_path: Path) -> None:
    given = study()
    found = site(given, Readings(20), tmp_path).contribute("evaluate", begin(given), 1, 0)
    held = tensors(10)
    predicted = Trainer(given, None).predict(begin(given), held.inputs)
    expected = count_cells("binary", ("no", "yes"), held.targets.numpy(), predicted)
    assert found.values.size == 0
    assert found.lanes.tolist() == expected.tolist()
    assert len(found.lanes) == len(evaluate_lanes(given))


def test_an_evaluation_of_no_record_is_all_zero(tmp_path: Path) -> None:
    given = study()
    found = site(given, Readings(0), tmp_path).contribute("evaluate", begin(given), 1, 0)
    assert not found.lanes.any()


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_record_without_a_finite_prediction_counts_nowhere_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: float
) -> None:
    """A refusal would tell the server that its record is there."""
    predict = Trainer.predict

    def overflows(self: Trainer, state: State, inputs: torch.Tensor) -> Any:
        found = predict(self, state, inputs)
        found[3] = odd
        return found

    given, held = study(), tensors(10)
    expected = count_cells(
        "binary",
        ("no", "yes"),
        np.delete(held.targets.numpy(), 3),
        np.delete(Trainer(given, None).predict(begin(given), held.inputs), 3, axis=0),
    )
    monkeypatch.setattr(Trainer, "predict", overflows)
    found = site(given, Readings(20), tmp_path).contribute("evaluate", begin(given), 1, 0)
    assert found.lanes.tolist() == expected.tolist()


# Evaluation under privacy


def test_a_noised_evaluation_is_the_noised_cells_of_the_held_out_records(tmp_path: Path) -> None:
    given = study(PRIVATE)
    noise = cell_noise(given, 5)
    assert noise is not None
    asked = site(given, Readings(20), tmp_path)
    found = asked.contribute("evaluate", begin(given), 1, 0).lanes
    held = tensors(10)
    predicted = Trainer(given, planned_mechanism(given)).predict(begin(given), held.inputs)
    plain = count_noised_cells(
        "binary", ("no", "yes"), held.targets.numpy(), predicted, None, noise.step
    )
    assert len(found) == len(plain) == len(evaluate_lanes(given))
    moved = (found - plain) / math.sqrt(noise.variance)
    assert np.all(np.abs(moved) < 6)
    assert np.std(moved) > 0.4  # of 20 standard normals: less with a chance of 1e-6


def test_a_noised_evaluation_is_debited_before_records_are_read(tmp_path: Path) -> None:
    given, records = study(PRIVATE), Readings()
    asked = site(given, records, tmp_path, entropy=system_entropy)
    asked.contribute("evaluate", begin(given), 1, 0)
    with Ledger(tmp_path / "ledger.db") as ledger:
        (row,) = ledger.rows()
    assert row.key == f"{given.digest()}/evaluate/1/0"
    assert (row.entry.phase, row.entry.sampling_rate, row.entry.steps) == ("evaluate", 1.0, 1)
    with pytest.raises(PrivacyError, match="not debited before, got round 1 to evaluate"):
        asked.contribute("evaluate", begin(given), 1, 0)
    assert records.reads == 1


def test_all_planned_evaluations_cost_what_the_study_says(tmp_path: Path) -> None:
    given, records = study(PRIVATE), Readings()
    asked = site(given, records, tmp_path, entropy=system_entropy)
    planned = planned_evaluations(given)
    for attempt in range(planned):
        asked.contribute("evaluate", begin(given), 1, attempt)
    with pytest.raises(PrivacyError, match=f"at most {planned} debits of this study to evaluate"):
        asked.contribute("evaluate", begin(given), 1, planned)
    assert records.reads == planned
    with Ledger(tmp_path / "ledger.db") as ledger:
        cost = epsilon(ledger.events(), 1e-5).epsilon
    assert 0.99 * given.evaluation.epsilon < cost <= given.evaluation.epsilon


def test_two_attempts_at_an_evaluation_share_no_noise(tmp_path: Path) -> None:
    given = study(PRIVATE)
    asked = site(given, Readings(), tmp_path, entropy=system_entropy)
    one, two = (asked.contribute("evaluate", begin(given), 1, k).lanes for k in (0, 1))
    assert np.count_nonzero(one == two) <= 3


def test_an_exact_evaluation_wants_the_sites_leave_and_is_no_debit(tmp_path: Path) -> None:
    given, records = study(PRIVATE, evaluation={"release": "exact"}), Readings(20)
    with pytest.raises(PrivacyError, match=r"evaluation.release: expected noised by this site"):
        site(given, records, tmp_path, Policy()).contribute("evaluate", begin(given), 1, 0)
    assert records.reads == 0
    policy = Policy(allow_exact_release=True)
    found = site(given, records, tmp_path, policy).contribute("evaluate", begin(given), 1, 0)
    plain = study()
    told = site(plain, Readings(20), tmp_path).contribute("evaluate", begin(plain), 1, 0)
    assert found.lanes.tolist() == told.lanes.tolist()
    assert not (tmp_path / "ledger.db").exists()


# Keys


def test_every_key_is_asked_for_once_a_round(tmp_path: Path) -> None:
    asked: list[tuple[str, int, int]] = []

    def entropy(purpose: str, number: int, step: int) -> bytes:
        asked.append((purpose, number, step))
        return seeded(purpose, number, step)

    given = study(PRIVATE)
    site(given, Readings(), tmp_path, entropy=entropy).contribute("train", begin(given), 2, 0)
    assert len(asked) == len(set(asked))
    assert set(asked) == {
        ("sample", 2, 0),
        ("noise", 2, 0),
        ("sample", 2, 1),
        ("noise", 2, 1),
        ("rounding", 2, 0),
    }


def contribution(
    given: Study, folder: Path, number: int, attempt: int, **keys: Any
) -> Contribution:
    return site(given, Readings(), folder, **keys).contribute(
        "train", begin(given), number, attempt
    )


def test_seeded_keys_give_the_same_integers_in_every_attempt(tmp_path: Path) -> None:
    given = study(PRIVATE)
    one, two = (contribution(given, tmp_path, 1, attempt) for attempt in (0, 2))
    assert one.values.tobytes() == two.values.tobytes()


def test_another_round_has_other_noise(tmp_path: Path) -> None:
    given = study(PRIVATE)
    one, two = (contribution(given, tmp_path, number, 0) for number in (1, 2))
    assert one.values.tobytes() != two.values.tobytes()


def test_the_keys_of_a_deployment_are_fresh(tmp_path: Path) -> None:
    given = study(PRIVATE)
    one, two = (contribution(given, tmp_path, 1, a, entropy=system_entropy) for a in (0, 2))
    assert one.values.tobytes() != two.values.tobytes()


def test_the_entropy_of_the_system_is_never_the_same() -> None:
    drawn = {system_entropy("noise", 1, 0) for _ in range(100)}
    assert len(drawn) == 100
    assert {len(key) for key in drawn} == {32}


def test_a_site_uses_the_entropy_of_the_system_when_it_is_given_none(tmp_path: Path) -> None:
    given = study(PRIVATE)
    made = Site(
        "ash",
        given,
        Encoding(32, 5, 1.0),
        Trainer(given, planned_mechanism(given)),
        Readings(),
        tmp_path,
        OPEN,
    )
    one, two = (made.contribute("train", begin(given), 1, attempt) for attempt in (0, 2))
    assert one.values.tobytes() != two.values.tobytes()


# SCAFFOLD


def test_a_control_variate_is_carried_from_round_to_round(tmp_path: Path) -> None:
    given = study(strategy="scaffold", value_bound=10.0)
    size = begin(given).model.size
    asked = site(given, Readings(), tmp_path)
    first = asked.contribute("train", begin(given), 1, 0)
    assert first.values.size == 2 * size
    with_memory = asked.contribute("train", begin(given), 2, 0)
    without = site(given, Readings(), tmp_path / "new").contribute("train", begin(given), 2, 0)
    assert with_memory.values.tobytes() != without.values.tobytes()


def test_a_round_of_scaffold_that_is_run_again_gives_the_same_integers(tmp_path: Path) -> None:
    given = study(strategy="scaffold", value_bound=10.0)
    asked = site(given, Readings(), tmp_path)
    asked.contribute("train", begin(given), 1, 0)
    one = asked.contribute("train", begin(given), 2, 0)
    two = asked.contribute("train", begin(given), 2, 2)
    assert one.values.tobytes() == two.values.tobytes()
