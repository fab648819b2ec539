"""One site's training: the plain path against torch.optim, the private one by what it hides."""

import math
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from client.traced import traced_gradient
from client.training import BATCH_SIZE, Keys, Tensors, Trainer, Update
from privacy.accounting import noise_multiplier
from privacy.dpsgd import Mechanism
from shared_models.debits import planned_mechanism
from shared_models.label import Label
from shared_models.registry import build_network
from shared_models.strategies import State, first_state
from shared_models.study import Study, parse_study
from shared_models.weights import load_vector, vector_of

FEATURES = 4
BINARY = Label("binary", ("no", "yes"), 1)
PRIVATE: dict[str, object] = {
    "mode": "local",
    "noise_multiplier": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.5,
    "expected_batch": 8,
}
# Noise that is there and moves nothing: with it the private path shows what it does to records.
SILENT = {**PRIVATE, "noise_multiplier": 1e-9, "sampling_rate": 1.0}


def study(
    training: dict[str, object] | None = None,
    privacy: dict[str, object] | None = None,
    aggregation: dict[str, object] | None = None,
    model: dict[str, object] | None = None,
    patient: bool = False,
) -> Study:
    columns: dict[str, Any] = {
        f"x{k}": {"kind": "number", "low": -9, "high": 9} for k in range(FEATURES)
    }
    columns["ill"] = {"kind": "category", "values": ["no", "yes"]}
    columns["who"] = {"kind": "id"}
    data: dict[str, object] = {"target": "ill", "columns": columns}
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 3,
            "data": {**data, "patient": "who"} if patient else data,
            "model": model or {"name": "mlp", "hidden": [3]},
            "training": training or {"learning_rate": 0.1, "local_steps": 3},
            "privacy": privacy or {"mode": "none"},
            "aggregation": {"masking": "none", **(aggregation or {})},
        }
    )


def records(count: int, seed: int = 1) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn((count, FEATURES), generator=generator)
    return Tensors(inputs, (inputs.sum(dim=1) > 0).to(torch.int64))


def keys(seed: str = "a") -> Keys:
    return lambda purpose, step: sha256(f"{seed} {purpose} {step}".encode()).digest()


def begin(given: Study) -> State:
    return first_state(given.aggregation, vector_of(build_network(given, 4)))


def trainer(given: Study) -> Trainer:
    return Trainer(given, planned_mechanism(given))


def train(given: Study, found: Tensors, seed: str = "a", control: Any = None) -> Update:
    return trainer(given).train(begin(given), found, keys(seed), control)


def bare_loop(
    given: Study,
    found: Tensors,
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
    batches: list[list[int]],
    extra: Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor] | None = None,
) -> npt.NDArray[np.float32]:
    """The change of the weights after a loop over ``batches`` as torch's tutorials write it."""
    network = build_network(given)
    load_vector(network, begin(given).model.astype(np.float32))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    start, steps = vector_of(network), optimizer(network)
    for rows in batches:
        steps.zero_grad()
        loss = BINARY.losses(network(found.inputs[rows]), found.targets[rows]).mean()
        if extra is not None:
            loss = loss + extra(network, before)
        loss.backward()  # type: ignore[no-untyped-call]
        steps.step()
    return vector_of(network) - start


class Watched(torch.Tensor):
    """Inputs that note which rows were taken from them."""

    taken: list[list[int]]

    def __getitem__(self, rows: Any) -> Any:
        self.taken.append([int(row) for row in rows])
        return self.as_subclass(torch.Tensor)[rows]


def watched(found: Tensors) -> tuple[Tensors, list[list[int]]]:
    inputs = found.inputs.as_subclass(Watched)
    inputs.taken = []
    return Tensors(inputs, found.targets, found.patients), inputs.taken


# The plain path is torch.optim on the same batches

OPTIMIZERS: dict[str, tuple[dict[str, object], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "decay": ({"weight_decay": 0.05}, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.05)),
    "momentum and decay": (
        {"momentum": 0.5, "weight_decay": 0.05},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.05),
    ),
    "adam": ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, lr=0.1)),
    "adam and decay": (
        {"optimizer": "adam", "weight_decay": 0.05},
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.05),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("count", [40, 7])
def test_the_plain_path_is_the_bare_loop(name: str, count: int) -> None:
    extra, make = OPTIMIZERS[name]
    given = study({"learning_rate": 0.1, "local_epochs": 3, "batch_size": 16, **extra})
    found, batches = watched(records(count))
    update = train(given, found)
    expected = bare_loop(given, records(count), lambda n: make(n.parameters()), batches)
    # float32: the traced step sums in another order; Adam divides small numbers by small ones.
    np.testing.assert_allclose(update.change, expected, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_l1_adds_its_share_of_the_absolute_weights_to_the_loss(optimizer: str) -> None:
    given = study(
        {"optimizer": optimizer, "learning_rate": 0.1, "local_epochs": 3, "batch_size": 16}
        | {"l1": 0.03, "weight_decay": 0.02}
    )
    found, batches = watched(records(40))

    def size(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> torch.Tensor:
        del before
        return 0.03 * torch.stack([p.abs().sum() for p in network.parameters()]).sum()

    def make(network: torch.nn.Module) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
        return kind(network.parameters(), lr=0.1, weight_decay=0.02)

    update = train(given, found)
    expected = bare_loop(given, records(40), make, batches, size)
    np.testing.assert_allclose(update.change, expected, rtol=1e-3, atol=2e-6)


def test_without_records_and_noise_l1_moves_every_weight_by_its_share_alone() -> None:
    """In mode local: it acts on the model, and no record, clipping or denominator is in it."""
    given = study({"learning_rate": 0.1, "local_steps": 1, "l1": 0.03}, privacy=SILENT)
    before = begin(given).model
    update = train(given, records(0))
    np.testing.assert_allclose(update.change, -0.003 * np.sign(before), rtol=1e-3, atol=1e-7)


def test_fedprox_pulls_towards_the_global_model() -> None:
    given = study(
        {"learning_rate": 0.1, "local_epochs": 3, "batch_size": 8},
        aggregation={"strategy": "fedprox", "proximal": 0.5},
    )
    found, batches = watched(records(20))

    def pull(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> torch.Tensor:
        squares = [((p - before[name]) ** 2).sum() for name, p in network.named_parameters()]
        return 0.5 / 2 * torch.stack(squares).sum()  # mu / 2 ||w - w_global||^2

    update = train(given, found)
    expected = bare_loop(
        given, records(20), lambda n: torch.optim.SGD(n.parameters(), lr=0.1), batches, pull
    )
    np.testing.assert_allclose(update.change, expected, rtol=1e-3, atol=1e-6)


def test_fedprox_without_a_pull_is_fedavg() -> None:
    training: dict[str, object] = {"learning_rate": 0.1, "local_steps": 4, "batch_size": 8}
    pulled = study(training, aggregation={"strategy": "fedprox", "proximal": 0.0})
    one, two = train(pulled, records(20)), train(study(training), records(20))
    assert one.change.tobytes() == two.change.tobytes()


def test_a_stronger_pull_ends_nearer_to_the_global_model() -> None:
    def distance(proximal: float) -> float:
        given = study(
            {"learning_rate": 0.1, "local_steps": 20, "batch_size": 8},
            aggregation={"strategy": "fedprox", "proximal": proximal},
        )
        return float(np.linalg.norm(train(given, records(20)).change))

    assert distance(0.0) > distance(0.5) > distance(2.0)


def test_the_loss_is_summed_over_the_records_that_were_seen() -> None:
    given = study({"learning_rate": 1e-9, "local_epochs": 2, "batch_size": 8})
    network, found = build_network(given), records(20)
    load_vector(network, begin(given).model.astype(np.float32))
    each = BINARY.losses(network(found.inputs), found.targets).sum().detach()
    update = train(given, found)
    assert update.records == 40
    assert update.loss == pytest.approx(2 * float(each), rel=1e-5)  # 40 float32 sums


# Batches


@pytest.mark.parametrize(
    ("count", "size", "epochs"), [(20, 8, 1), (16, 8, 3), (5, 8, 2), (1, 1, 2)]
)
def test_every_record_is_read_exactly_once_an_epoch(count: int, size: int, epochs: int) -> None:
    found, batches = watched(records(count))
    train(study({"learning_rate": 0.1, "local_epochs": epochs, "batch_size": size}), found)
    a_round = math.ceil(count / size)
    assert len(batches) == epochs * a_round
    for epoch in range(epochs):
        rows = [row for batch in batches[epoch * a_round : (epoch + 1) * a_round] for row in batch]
        assert sorted(rows) == list(range(count))


def test_epochs_come_in_different_orders() -> None:
    found, batches = watched(records(16))
    train(study({"learning_rate": 0.1, "local_epochs": 2, "batch_size": 16}), found)
    assert batches[0] != batches[1]


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_local_steps_are_that_many_batches(steps: int) -> None:
    found, batches = watched(records(20))
    train(study({"learning_rate": 0.1, "local_steps": steps, "batch_size": 8}), found)
    assert len(batches) == steps


def test_local_steps_go_through_all_records_before_one_comes_again() -> None:
    found, batches = watched(records(20))
    train(study({"learning_rate": 0.1, "local_steps": 6, "batch_size": 8}), found)
    seen = Counter(row for batch in batches for row in batch)
    assert set(seen.values()) == {2}


def test_a_batch_has_the_usual_size_when_the_study_names_none() -> None:
    found, batches = watched(records(100))
    train(study({"learning_rate": 0.1, "local_steps": 3}), found)
    assert {len(batch) for batch in batches} == {BATCH_SIZE}


def test_an_empty_site_changes_nothing_and_says_so() -> None:
    update = train(study(), records(0))
    assert update.change.tolist() == [0.0] * len(update.change)
    assert (update.loss, update.records) == (0.0, 0)


# Which gradient


@pytest.mark.parametrize(
    ("given", "count", "traced"),
    [
        (study(), 2 * BATCH_SIZE, 1),
        (study({"learning_rate": 0.1, "local_epochs": 2, "batch_size": 8}), 20, 1),
        (study(), BATCH_SIZE - 1, 0),  # no full batch
        (study(model={"name": "mlp", "hidden": [3], "dropout": 0.5}), 2 * BATCH_SIZE, 0),
        (study(privacy=PRIVATE), 2 * BATCH_SIZE, 0),
    ],
    ids=["full batches", "a rest", "no full batch", "dropout", "private"],
)
def test_a_network_is_traced_once_and_for_full_plain_batches_without_dropout(
    monkeypatch: pytest.MonkeyPatch, given: Study, count: int, traced: int
) -> None:
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[2]))
        return traced_gradient(*arguments)

    monkeypatch.setattr("client.training.traced_gradient", counted)
    shared, state = trainer(given), begin(given)
    for seed in "ab":
        shared.train(state, records(count), keys(seed))
    assert calls == [given.training.batch_size or BATCH_SIZE] * traced


def test_a_network_that_cannot_be_traced_is_trained_by_autograd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = study({"learning_rate": 0.1, "local_epochs": 2, "batch_size": 8})
    expected = train(given, records(24)).change
    monkeypatch.setattr("client.training.traced_gradient", lambda *arguments: None)
    # float32 sums in another order
    np.testing.assert_allclose(train(given, records(24)).change, expected, rtol=1e-3, atol=1e-6)


# Keys and bits


@pytest.mark.parametrize("privacy", [None, PRIVATE], ids=["plain", "private"])
def test_the_same_keys_give_the_same_bytes(privacy: dict[str, object] | None) -> None:
    given = study(privacy=privacy)
    assert train(given, records(30)).change.tobytes() == train(given, records(30)).change.tobytes()


@pytest.mark.parametrize("privacy", [None, PRIVATE], ids=["plain", "private"])
def test_other_keys_give_other_bytes(privacy: dict[str, object] | None) -> None:
    given = study({"learning_rate": 0.1, "local_steps": 2}, privacy)
    one, two = train(given, records(50)), train(given, records(50), seed="b")
    assert one.change.tobytes() != two.change.tobytes()


@pytest.mark.parametrize("privacy", [None, PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_site_leaves_nothing_in_the_trainer_for_the_next(
    privacy: dict[str, object] | None, optimizer: str
) -> None:
    given = study({"learning_rate": 0.1, "local_steps": 3, **OPTIMIZERS[optimizer][0]}, privacy)
    shared, state = trainer(given), begin(given)
    shared.train(state, records(40, seed=9), keys("other"))
    after = shared.train(state, records(30), keys())
    assert after.change.tobytes() == train(given, records(30)).change.tobytes()


def test_an_update_stays_as_it_was_when_the_next_site_trains() -> None:
    given = study()
    shared, state = trainer(given), begin(given)
    update = shared.train(state, records(30), keys())
    before = update.change.tobytes()
    shared.train(state, records(40, seed=9), keys("other"))
    assert update.change.tobytes() == before


def test_training_changes_no_record_and_no_state() -> None:
    given, found = study(), records(30)
    state = begin(given)
    before = found.inputs.clone(), state.model.copy()
    trainer(given).train(state, found, keys())
    assert torch.equal(found.inputs, before[0])
    assert state.model.tolist() == before[1].tolist()


def test_dropout_follows_the_keys() -> None:
    given = study(model={"name": "mlp", "hidden": [16], "dropout": 0.5})
    one, again, other = (train(given, records(32), seed).change.tobytes() for seed in "aab")
    assert one == again != other


def test_dropout_is_off_when_the_model_predicts() -> None:
    given = study(model={"name": "mlp", "hidden": [16], "dropout": 0.5})
    shared, state, found = trainer(given), begin(given), records(9)
    first = shared.predict(state, found.inputs)
    assert shared.predict(state, found.inputs).tolist() == first.tolist()


# Predictions


def test_predictions_are_those_of_the_released_model() -> None:
    given, found = study(), records(9)
    state = begin(given)
    mean = State(1, np.full_like(state.model, 9.0), {"mean": state.model})
    shared = trainer(given)
    assert (
        shared.predict(mean, found.inputs).tolist() == shared.predict(state, found.inputs).tolist()
    )


def test_no_record_gives_no_prediction() -> None:
    given = study()
    assert trainer(given).predict(begin(given), records(0).inputs).shape == (0, 2)


def test_many_records_are_predicted_as_few_are() -> None:
    given, found = study(), records(3000)
    shared, state = trainer(given), begin(given)
    whole = shared.predict(state, found.inputs)
    # float64 of float32 logits: products of batches of other sizes differ in the last bits
    np.testing.assert_allclose(
        whole[1500:1600], shared.predict(state, found.inputs[1500:1600]), rtol=1e-5
    )


def test_training_goes_on_after_a_prediction_as_if_there_was_none() -> None:
    given = study(model={"name": "mlp", "hidden": [16], "dropout": 0.5})
    shared, state = trainer(given), begin(given)
    shared.predict(state, records(9).inputs)
    after = shared.train(state, records(32), keys())
    assert after.change.tobytes() == train(given, records(32)).change.tobytes()


# SCAFFOLD


def scaffold(steps: int = 5) -> Study:
    return study(
        {"learning_rate": 0.1, "local_steps": steps, "batch_size": 8},
        aggregation={"strategy": "scaffold"},
    )


def test_scaffold_is_algorithm_1_with_option_two() -> None:
    given = scaffold()
    size = len(begin(given).model)
    generator = np.random.Generator(np.random.PCG64(2))
    server = generator.normal(size=size).astype(np.float32)
    mine = generator.normal(size=size).astype(np.float32)
    state = State(1, begin(given).model, {"control": server.astype(np.float64)})
    found, batches = watched(records(20))
    update = trainer(given).train(state, found, keys(), mine)
    assert len(batches) == 5

    # y <- y - lr (g(y) - c_i + c), line 10, one coordinate list at a time.
    network = build_network(given)
    load_vector(network, state.model.astype(np.float32))
    plain = records(20)
    for rows in batches:
        loss = BINARY.losses(network(plain.inputs[rows]), plain.targets[rows]).mean()
        parts = torch.autograd.grad(loss, list(network.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts]).numpy()
        load_vector(network, vector_of(network) - np.float32(0.1) * (gradient - mine + server))
    change = vector_of(network) - state.model.astype(np.float32)
    control = mine - server - change / (5 * 0.1)  # c_i+ = c_i - c + (x - y) / (K lr), line 12
    # float32 over five steps
    np.testing.assert_allclose(update.change[:size], change, rtol=1e-3, atol=1e-5)
    assert update.control is not None
    np.testing.assert_allclose(update.control, control, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(update.change[size:], control - mine, rtol=1e-3, atol=1e-4)


def test_scaffold_with_equal_controls_is_fedavg_on_the_model() -> None:
    given = scaffold()
    size = len(begin(given).model)
    control = np.full(size, 0.3, dtype=np.float32)
    state = State(1, begin(given).model, {"control": control.astype(np.float64)})
    update = trainer(given).train(state, records(20), keys(), control)
    plain = train(study({"learning_rate": 0.1, "local_steps": 5, "batch_size": 8}), records(20))
    np.testing.assert_allclose(update.change[:size], plain.change, rtol=1e-4, atol=1e-7)


def test_an_empty_site_keeps_its_control() -> None:
    given = scaffold()
    size = len(begin(given).model)
    mine = np.full(size, 0.25, dtype=np.float32)
    state = State(1, begin(given).model, {"control": np.full(size, 0.5)})
    update = trainer(given).train(state, records(0), keys(), mine)
    assert update.control is not None
    assert update.control.tolist() == mine.tolist()
    assert update.change.tolist() == [0.0] * (2 * size)


# The private path


def test_a_mechanism_comes_with_privacy_and_only_then() -> None:
    with pytest.raises(ValueError, match="mechanism exactly when"):
        Trainer(study(), planned_mechanism(study(privacy=PRIVATE)))
    with pytest.raises(ValueError, match="mechanism exactly when"):
        Trainer(study(privacy=PRIVATE), None)


def test_mode_none_plans_no_mechanism() -> None:
    assert planned_mechanism(study()) is None


def test_a_noise_multiplier_is_taken_as_written() -> None:
    assert planned_mechanism(study(privacy=PRIVATE)) == Mechanism(1.0, 1.0, 0.5, 8, "record")


def test_epsilon_is_calibrated_over_all_rounds_steps_and_spare_attempts() -> None:
    privacy = {k: v for k, v in PRIVATE.items() if k != "noise_multiplier"} | {"epsilon": 3.0}
    given = study({"learning_rate": 0.1, "local_steps": 2}, privacy, {"spare_attempts": 4})
    found = planned_mechanism(given)
    assert found is not None
    assert found.noise_multiplier == noise_multiplier(3.0, 1e-5, 0.5, (3 + 4) * 2)


def one_step(**privacy: object) -> Study:
    return study({"learning_rate": 0.5, "local_steps": 1}, {**SILENT, **privacy})


def naive_private_step(given: Study, found: Tensors, bound: float, denominator: float) -> Any:
    """Minus the learning rate times the clipped sum over the public denominator, by a loop."""
    network = build_network(given)
    load_vector(network, begin(given).model.astype(np.float32))
    total = np.zeros(len(begin(given).model))
    for row in range(len(found)):
        one = slice(row, row + 1)
        loss = BINARY.losses(network(found.inputs[one]), found.targets[one])
        parts = torch.autograd.grad(loss.sum(), list(network.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts]).double().numpy()
        total += gradient * min(1.0, bound / float(np.linalg.norm(gradient)))
    return -0.5 * total / denominator


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("bound", [0.1, 100.0])
def test_a_private_step_is_the_clipped_sum_over_the_public_denominator(
    count: int, bound: float
) -> None:
    given = one_step(clipping_norm=bound)
    update = train(given, records(count))
    expected = naive_private_step(given, records(count), bound, 8)
    # float32 weights, and noise of 1e-9 times the bound
    np.testing.assert_allclose(update.change, expected, rtol=1e-3, atol=1e-6)


def test_the_denominator_is_the_public_one_whatever_the_batch() -> None:
    found = records(40)
    one, two = (train(one_step(expected_batch=size), found).change for size in (8, 16))
    np.testing.assert_allclose(one, 2 * two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bound", [0.05, 1.0])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_one_record_more_moves_the_update_by_a_bounded_amount(count: int, bound: float) -> None:
    given = one_step(clipping_norm=bound)
    more = records(count + 1)
    fewer = Tensors(more.inputs[:count], more.targets[:count])
    moved = np.linalg.norm(train(given, more).change - train(given, fewer).change)
    assert 0 < moved <= 0.5 * bound / 8 * (1 + 1e-4) + 1e-7  # lr C / denominator, float32


def test_one_extreme_record_moves_the_update_by_a_bounded_amount() -> None:
    given = one_step(clipping_norm=0.5)
    found = records(12)
    inputs = torch.cat([found.inputs, torch.full((1, FEATURES), 1e6)])
    extreme = Tensors(inputs, torch.cat([found.targets, torch.zeros(1, dtype=torch.int64)]))
    moved = np.linalg.norm(train(given, extreme).change - train(given, found).change)
    assert moved <= 0.5 * 0.5 / 8 * (1 + 1e-4) + 1e-7


def test_all_records_of_one_patient_move_the_update_by_a_bounded_amount() -> None:
    privacy = {**SILENT, "unit": "patient", "clipping_norm": 0.1}
    given = study({"learning_rate": 0.5, "local_steps": 1}, privacy, patient=True)
    found = records(20)
    owners = np.repeat(np.arange(5, dtype=np.int64), 4)  # four records each
    more = Tensors(found.inputs, found.targets, owners)
    fewer = Tensors(found.inputs[:16], found.targets[:16], owners[:16])
    moved = np.linalg.norm(train(given, more).change - train(given, fewer).change)
    assert 0 < moved <= 0.5 * 0.1 / 8 * (1 + 1e-4) + 1e-7


def test_at_sampling_rate_1_every_record_is_read_in_every_step() -> None:
    found, batches = watched(records(9))
    train(study({"learning_rate": 0.1, "local_steps": 3}, SILENT), found)
    assert batches == [list(range(9))] * 3


def test_samples_are_poisson_and_fresh_in_every_step() -> None:
    found, batches = watched(records(400))
    train(study({"learning_rate": 0.1, "local_steps": 4}, PRIVATE), found)
    assert len({tuple(batch) for batch in batches}) == 4
    # Binomial(400, .5): standard deviation 10; sizes are drawn, not fixed
    assert all(140 < len(batch) < 260 for batch in batches)
    assert len({len(batch) for batch in batches}) > 1


def test_a_sampled_patient_comes_with_all_records() -> None:
    found = records(300)
    owners = np.arange(300, dtype=np.int64) % 100
    privacy = {**PRIVATE, "unit": "patient"}
    given = study({"learning_rate": 0.1, "local_steps": 2}, privacy, patient=True)
    shown, batches = watched(Tensors(found.inputs, found.targets, owners))
    train(given, shown)
    for batch in batches:
        assert set(Counter(int(owners[row]) for row in batch).values()) == {3}


def test_the_noise_has_the_deviation_that_was_planned() -> None:
    given = study(
        {"learning_rate": 0.5, "local_steps": 1},
        {**PRIVATE, "noise_multiplier": 3.0, "clipping_norm": 2.0},
        model={"name": "mlp", "hidden": [512]},
    )
    change = train(given, records(0)).change  # no record: noise alone
    expected = 0.5 * 3.0 * 2.0 / 8  # lr sigma C / denominator
    assert len(change) > 3000
    # five standard errors of a deviation from 3,073 draws
    assert change.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * len(change)))
    assert abs(change.mean()) < 5 * expected / math.sqrt(len(change))


def test_the_noise_of_a_site_does_not_depend_on_its_records() -> None:
    loud, quiet = ({**SILENT, "noise_multiplier": sigma} for sigma in (1.0, 1e-9))
    step: dict[str, object] = {"learning_rate": 0.5, "local_steps": 1}

    def noise(count: int) -> npt.NDArray[np.float32]:
        found = records(count)
        return train(study(step, loud), found).change - train(study(step, quiet), found).change

    np.testing.assert_allclose(noise(0), noise(30), rtol=1e-3, atol=1e-6)


def test_the_noise_of_two_steps_is_independent() -> None:
    def noise(steps: int) -> npt.NDArray[np.float32]:
        given = study(
            {"learning_rate": 0.5, "local_steps": steps},
            PRIVATE,
            model={"name": "mlp", "hidden": [512]},
        )
        return train(given, records(0)).change

    first = noise(1)
    second = noise(2) - first
    # five standard errors of a correlation from 3,073 pairs
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first))


def test_a_private_update_tells_neither_loss_nor_count() -> None:
    update = train(study(privacy=PRIVATE), records(30))
    assert (update.loss, update.records, update.control) == (0.0, 0, None)


def test_an_empty_private_site_sends_noise() -> None:
    change = train(study(privacy=PRIVATE), records(0)).change
    assert np.count_nonzero(change) == len(change)


def test_momentum_and_decay_work_on_the_private_gradient() -> None:
    given = study(
        {"learning_rate": 0.5, "local_steps": 1, "momentum": 0.9, "weight_decay": 0.1}, SILENT
    )
    expected = naive_private_step(given, records(10), 1.0, 8) - 0.5 * 0.1 * begin(given).model
    np.testing.assert_allclose(train(given, records(10)).change, expected, rtol=1e-3, atol=1e-6)
