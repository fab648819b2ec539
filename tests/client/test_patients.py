"""Several records a patient: what one patient moves, what it costs, and for whom that is printed.

Every patient's records are written five times, as a hospital's system does with repeated visits.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.budget import document, read_budget
from client.policy import adopt, load_policy
from client.site import Site, Split
from client.training import Tensors, Trainer
from privacy.accounting import Event, epsilon
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.encoding import Encoding
from privacy.errors import PrivacyError
from privacy.ledger import Ledger
from privacy.stream import Stream
from shared_models.debits import planned_mechanism
from shared_models.registry import build_network
from shared_models.strategies import first_state
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of

COPIES, PATIENTS, FEATURES = 5, 12, 3
BOUND = 0.5
POLICY = """
dataset = "ward"
[ceilings.ward]
unit = "patient"
epsilon = 30.0
delta = 1e-5
"""


def ward(copies: int, left_out: int | None = None) -> Tensors:
    """Each patient's record ``copies`` times; one patient may be left out."""
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn((PATIENTS, FEATURES), generator=draw) * 4  # gradients far above the bound
    targets = (inputs.sum(dim=1) > 0).to(torch.int64)
    there = torch.tensor([p for p in range(PATIENTS) if p != left_out]).repeat(copies)
    return Tensors(inputs[there], targets[there], there.numpy().astype(np.int64))


def private_sum(records: Tensors, unit: str) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, 2)
    mechanism = Mechanism(BOUND, 0.0, 1.0, 8.0, unit)  # type: ignore[arg-type]
    loss = nn.CrossEntropyLoss(reduction="none")
    units = records.patients if unit == "patient" else None
    step = PrivateStep(model, loss, mechanism)
    return step.clipped_sum(records.inputs, records.targets, units, Stream(bytes(32)))


def moved(copies: int, unit: str) -> list[float]:
    """How far each patient's removal moves the sum, all else the same."""
    whole = private_sum(ward(copies), unit)
    return [
        float(torch.linalg.vector_norm(whole - private_sum(ward(copies, left_out=p), unit)))
        for p in range(PATIENTS)
    ]


def study(unit: str) -> Study:
    columns: dict[str, Any] = {
        f"x{k}": {"kind": "number", "low": -99, "high": 99} for k in range(FEATURES)
    }
    columns |= {"who": {"kind": "id"}, "ill": {"kind": "category", "values": ["no", "yes"]}}
    return parse_study(
        {
            "name": "visits",
            "task": "tabular",
            "rounds": 4,
            "data": {"target": "ill", "patient": "who", "columns": columns},
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1, "local_steps": 2},
            "privacy": {
                "mode": "local",
                "unit": unit,
                "noise_multiplier": 6.0,
                "delta": 1e-5,
                "clipping_norm": BOUND,
                "sampling_rate": 0.5,
                "expected_batch": 6,
            },
        }
    )


def debit(folder: Path, unit: str, copies: int, policy: str = POLICY) -> list[Event]:
    folder.mkdir()
    (folder / "policy.toml").write_text(policy)
    given, limits = study(unit), load_policy(folder / "policy.toml")
    with Ledger(folder / "ledger.db") as ledger:
        adopt(limits, ledger)
    trainer = Trainer(given, planned_mechanism(given))
    records = ward(copies)
    if unit == "record":
        records = Tensors(records.inputs, records.targets)
    site = Site(
        "ash", given, Encoding(32, 3, 9.0), trainer, lambda: Split(records, records), folder, limits
    )
    state = first_state(given.aggregation, vector_of(build_network(given, 4)))
    for number in range(1, 5):
        site.contribute("train", state, number, 0)
    with Ledger(folder / "ledger.db") as ledger:
        return ledger.events()


def test_one_patient_moves_the_sum_by_the_clipping_norm_at_most_whatever_its_rows() -> None:
    for copies in (1, COPIES):
        # 2^-19 of the bound is left out for float32 norms: no patient may pass the bound itself
        assert max(moved(copies, "patient")) <= BOUND
        assert max(moved(copies, "patient")) == pytest.approx(BOUND, rel=1e-4)


def test_where_a_record_is_the_unit_a_patient_moves_it_five_times_as_far() -> None:
    assert max(moved(COPIES, "record")) == pytest.approx(COPIES * BOUND, rel=1e-4)


def test_five_copies_of_every_patient_change_neither_event_nor_figure(tmp_path: Path) -> None:
    once = debit(tmp_path / "once", "patient", 1)
    assert once == debit(tmp_path / "five", "patient", COPIES)
    budgets = [document(read_budget(tmp_path / name)) for name in ("once", "five")]
    assert budgets[0] == budgets[1]
    (account,) = budgets[1]["datasets"]  # type: ignore[misc]
    assert account["unit"] == "patient"
    assert account["spent"] == epsilon(once, 1e-5).epsilon


def test_patients_are_sampled_whole() -> None:
    """A patient is in a batch with all its rows or with none: q is a patient's, not a row's."""
    given = study("patient")
    trainer = Trainer(given, planned_mechanism(given))
    batches: list[np.ndarray[Any, Any]] = []
    private = trainer._private
    assert private is not None
    true = private.gradient

    def seen(x: torch.Tensor, y: torch.Tensor, units: Any, *rest: Any, **named: Any) -> Any:
        batches.append(units)
        return true(x, y, units, *rest, **named)

    private.gradient = seen  # type: ignore[assignment,method-assign]
    state = first_state(given.aggregation, vector_of(build_network(given, 4)))
    for number in range(20):
        trainer.train(state, ward(COPIES), lambda p, s, n=number: bytes([n, s, len(p)]) + bytes(29))  # type: ignore[misc]
    counts = [count for units in batches for count in np.unique(units, return_counts=True)[1]]
    assert set(counts) == {COPIES}
    drawn = len(counts) / (len(batches) * PATIENTS)
    assert drawn == pytest.approx(0.5, abs=0.09)  # 480 draws: four standard deviations


def test_a_study_of_records_costs_such_a_patient_more_or_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.unit: expected patient"):
        debit(tmp_path / "refused", "record", COPIES)
    capped = POLICY + f"rows_per_patient = {COPIES}\n"
    events = debit(tmp_path / "charged", "record", COPIES, capped)
    (account,) = document(read_budget(tmp_path / "charged"))["datasets"]  # type: ignore[misc]
    assert (account["unit"], account["rows_per_patient"]) == ("patient", COPIES)
    assert account["spent"] == epsilon(events, 1e-5, rows=COPIES).epsilon
    assert account["spent"] > 3 * epsilon(events, 1e-5).epsilon
