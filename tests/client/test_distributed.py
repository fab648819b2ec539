"""A site in mode distributed: exact sums, its share of fresh noise, a debit for every attempt."""

import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from client.policy import Policy
from client.site import Entropy, Site, Split, system_entropy
from client.training import Tensors, Trainer
from privacy.encoding import Encoding
from privacy.errors import PrivacyError
from privacy.ledger import Ledger
from privacy.ring import GRID_BITS, Ring
from privacy.ring_noise import ring_noise
from privacy.stream import Stream
from shared_models.debits import planned_mechanism
from shared_models.registry import build_network
from shared_models.ring import ring_of
from shared_models.steps import after_sum
from shared_models.strategies import State, first_state
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of

FEATURES, SITES = 400, 5
NAMES = ("ash", "elm", "fir", "oak", "yew")
PRIVACY: dict[str, object] = {
    "mode": "distributed",
    "noise_multiplier": 2.0,
    "delta": 1e-5,
    "clipping_norm": 0.5,
    "expected_batch": 8,
    "records_max": 60,
}
Integers = npt.NDArray[np.int64]


def study(aggregation: dict[str, object] | None = None, **privacy: object) -> Study:
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
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"learning_rate": 0.1},
            "privacy": {**PRIVACY, **privacy},
            "aggregation": aggregation or {},
        }
    )


def tensors(count: int, seed: int = 1) -> Tensors:
    inputs = torch.randn((count, FEATURES), generator=torch.Generator().manual_seed(seed))
    return Tensors(inputs, (inputs[:, :4].sum(dim=1) > 0).to(torch.int64))


def seeded(name: str) -> Entropy:
    return lambda purpose, number, step: sha256(
        f"{name} {purpose} {number} {step}".encode()
    ).digest()


def begin(given: Study) -> State:
    return first_state(given.aggregation, vector_of(build_network(given, 4)))


def ring(given: Study) -> Ring:
    return ring_of(given, SITES, begin(given).model.size)


def site(
    given: Study,
    folder: Path,
    count: int = 20,
    name: str = "ash",
    entropy: Entropy | None = None,
    encoding: Encoding | Ring | None = None,
) -> Site:
    return Site(
        name=name,
        study=given,
        encoding=encoding or ring(given),
        trainer=Trainer(given, planned_mechanism(given)),
        records=lambda: Split(tensors(count), tensors(1)),
        folder=folder,
        policy=Policy(dataset="cardiology"),
        entropy=entropy or seeded(name),
    )


def values(made: Site, given: Study, number: int = 1, attempt: int = 0) -> Integers:
    sent = made.contribute("train", begin(given), number, attempt)
    assert sent.lanes.size == 0
    return sent.values.astype(np.int64)


def ledger(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.db")


def within(noise: Integers, variance: float) -> bool:
    """Whether the noise has that variance, to six deviations of a variance of n normals."""
    return abs(noise.var() / variance - 1) < 6 * math.sqrt(2 / noise.size)


# What is sent


def test_what_is_sent_is_the_exact_sum_rounded_once_with_the_sites_noise(tmp_path: Path) -> None:
    given = study()
    own = ring(given)
    keys = seeded("ash")
    trainer = Trainer(given, planned_mechanism(given))
    total = trainer.fixed_point_sum(
        begin(given), tensors(20), lambda purpose, step: keys(purpose, 1, step), 0, own.grid
    )
    noise = ring_noise(own.variance).sample(total.size, Stream(keys("noise", 1, 0)))
    left = values(site(given, tmp_path), given) - noise
    assert (np.abs(left - total / 2.0**GRID_BITS) < 1).all()
    assert np.abs(left).max() > 100  # there is something in it


def test_the_exact_sum_is_the_clipped_gradients_of_a_naive_loop() -> None:
    given = study()
    own, records = ring(given), tensors(7)
    trainer = Trainer(given, planned_mechanism(given))
    total = trainer.fixed_point_sum(begin(given), records, lambda *_: bytes(32), 0, own.grid)
    network = build_network(given, 4)
    naive = torch.zeros(total.size, dtype=torch.float64)
    for row in range(7):
        network.zero_grad()
        logit = network(records.inputs[row : row + 1]).reshape(())
        target = records.targets[row].to(torch.float32)
        torch.nn.functional.binary_cross_entropy_with_logits(logit, target).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in network.parameters()]).double()  # type: ignore[union-attr]
        naive += gradient * min(1.0, 0.5 / float(gradient.norm()))
    # float32 gradients of either kind: 1e-5 of the clipping norm
    assert np.abs(total / own.grid - naive.numpy()).max() < 5e-6


def test_one_record_more_changes_the_exact_sum_by_what_it_adds_itself() -> None:
    given = study()
    trainer, grid = Trainer(given, planned_mechanism(given)), ring(given).grid

    def exact(records: Tensors) -> Integers:
        return trainer.fixed_point_sum(begin(given), records, lambda *_: bytes(32), 0, grid)

    all_of_them, one = tensors(9), Tensors(tensors(9).inputs[4:5], tensors(9).targets[4:5])
    rows = [0, 1, 2, 3, 5, 6, 7, 8]
    rest = Tensors(all_of_them.inputs[rows], all_of_them.targets[rows])
    change = exact(all_of_them) - exact(rest)
    # but for the last bits of float32, which may hang on the shape of the batch: the margin, .1 %
    assert np.abs(change - exact(one)).max() <= 1e-3 * 0.5 * grid / math.sqrt(change.size)
    norm = math.sqrt(float((change.astype(np.float64) ** 2).sum()))
    assert norm <= 1.001 * 0.5 * grid


@pytest.mark.parametrize("count", [0, 1, 59])
def test_a_contribution_has_one_shape_and_all_its_noise_whatever_the_records(
    tmp_path: Path, count: int
) -> None:
    given = study()
    sent = values(site(given, tmp_path, count), given)
    assert sent.size == begin(given).model.size
    assert sent.std() > 0.9 * math.sqrt(ring(given).variance)


def test_a_contribution_carries_the_whole_share_of_the_noise(tmp_path: Path) -> None:
    """Noise that is halved, or sized for another number of sites, is found here."""
    given = study()
    own = ring(given)
    noise = values(site(given, tmp_path, count=0), given)
    assert own.shares.carriers == 3  # t_n = 4 of five sites, one colluder
    assert within(noise, (2.0 * own.sensitivity) ** 2 / 3)
    assert abs(noise.mean()) < 6 * noise.std() / math.sqrt(noise.size)


@pytest.mark.parametrize(("sites", "carriers"), [(3, 3), (5, 3), (10, 4)])
def test_the_fewest_honest_sites_together_carry_what_is_accounted(
    tmp_path: Path, sites: int, carriers: int
) -> None:
    given = study()
    own = ring_of(given, sites, begin(given).model.size)
    total = sum(
        values(site(given, tmp_path / f"{k}", 0, f"site-{k}", encoding=own), given)
        for k in range(carriers)
    )
    assert isinstance(total, np.ndarray)
    assert within(total, (own.noise_multiplier * own.sensitivity) ** 2)
    assert own.noise_multiplier >= 2.0


def test_two_sites_share_no_noise(tmp_path: Path) -> None:
    given = study()
    one, two = (values(site(given, tmp_path / n, 0, n), given) for n in NAMES[:2])
    assert within(one - two, 2 * ring(given).variance)


def test_a_public_weight_scales_the_gradients_and_not_the_noise(tmp_path: Path) -> None:
    weights: dict[str, object] = {"weighting": "public", "weights": {"ash": 1.0, "elm": 4.0}}
    light, heavy = study(weights), study({**weights, "weights": {"ash": 4.0, "elm": 4.0}})
    noise = values(site(light, tmp_path / "none", 0), light)
    quarter = values(site(light, tmp_path / "light"), light) - noise
    whole = values(site(heavy, tmp_path / "heavy"), heavy) - noise
    assert (np.abs(4 * quarter - whole) <= 4).all()  # four roundings
    assert np.abs(whole).max() > 100


# Fresh draws


def test_the_noise_of_an_attempt_is_never_that_of_another(tmp_path: Path) -> None:
    """Noise that is used again, in another attempt or another round, is found here."""
    given = study()
    made = site(given, tmp_path, count=0)
    draws = [values(made, given, *place) for place in ((1, 0), (1, 2), (2, 0), (2, 2))]
    for index, one in enumerate(draws):
        for other in draws[:index]:
            assert within(one - other, 2 * ring(given).variance)


def test_the_sample_of_an_attempt_is_drawn_afresh(tmp_path: Path) -> None:
    given = study(sampling_rate=0.5)
    own = ring(given)
    sums = []
    for attempt in (0, 2):
        keys = seeded("ash")
        noise = ring_noise(own.variance).sample(
            begin(given).model.size, Stream(keys("noise", 1, attempt))
        )
        sums.append(values(site(given, tmp_path), given, 1, attempt) - noise)
    assert np.abs(sums[0] - sums[1]).max() > 100


def test_samples_are_poisson_and_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of fixed size, or one that is cut at the expected batch, is found here."""
    given = study(sampling_rate=0.2)
    trainer, state, records = Trainer(given, planned_mechanism(given)), begin(given), tensors(40)
    sizes: list[int] = []

    def count(x: torch.Tensor, *rest: object) -> Integers:
        sizes.append(len(x))
        return np.zeros(state.model.size, dtype=np.int64)

    monkeypatch.setattr(trainer._private, "fixed_point_sum", count)
    keys = seeded("ash")
    for attempt in range(1_000):
        trainer.fixed_point_sum(
            state, records, lambda purpose, step: keys(purpose, 1, step), attempt, 1.0
        )
    # binomial(40, .2): mean 8, which is also the expected batch, variance 6.4; five deviations
    assert abs(np.mean(sizes) - 8) < 5 * math.sqrt(6.4 / 1_000)
    assert abs(np.var(sizes) / 6.4 - 1) < 5 * math.sqrt(2 / 1_000)
    assert max(sizes) > 14


def test_every_key_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[tuple[str, int, int]] = []

    def entropy(purpose: str, number: int, step: int) -> bytes:
        asked.append((purpose, number, step))
        return seeded("ash")(purpose, number, step)

    given = study()
    made = site(given, tmp_path, entropy=entropy)
    values(made, given, 2, 4)
    assert sorted(asked) == [(p, 2, 4) for p in ("dropout", "noise", "rounding", "sample")]


# Debits


def test_every_attempt_is_a_debit_of_what_the_sum_costs(tmp_path: Path) -> None:
    given = study()
    made, own = site(given, tmp_path), ring(given)
    for place in ((1, 0), (1, 2), (2, 2)):
        values(made, given, *place)
    with ledger(tmp_path) as kept:
        events = kept.events(study=given.digest())
    assert len(events) == 3
    for event in events:
        assert (event.mode, event.steps, event.sampling_rate) == ("distributed", 1, 1.0)
        assert event.noise_multiplier == own.noise_multiplier
        assert event.slack == own.slack > 0
        assert (event.denominator, event.clipping_norm, event.unit) == (8.0, 0.5, "record")
        assert event.dataset == "cardiology"


def test_the_debit_is_on_disk_before_records_are_read(tmp_path: Path) -> None:
    given, seen = study(), list[int]()

    def records() -> Split:
        with ledger(tmp_path) as kept:
            seen.append(len(kept.rows()))
        return Split(tensors(2), tensors(1))

    made = site(given, tmp_path)
    made._records = records
    values(made, given, 1, 0)
    values(made, given, 1, 2)
    assert seen == [1, 2]


def test_a_deployment_pays_no_attempt_beyond_the_calibration(tmp_path: Path) -> None:
    given = study({"spare_attempts": 1})
    made = site(given, tmp_path, entropy=system_entropy)
    for number, attempt in ((1, 0), (1, 2), (2, 2), (3, 2)):  # three rounds, one spare attempt
        values(made, given, number, attempt)
    with pytest.raises(PrivacyError, match="expected at most 4 debits of this study"):
        values(made, given, 3, 4)


def test_a_deployment_makes_no_attempt_twice(tmp_path: Path) -> None:
    given = study()
    made = site(given, tmp_path, entropy=system_entropy)
    values(made, given, 1, 0)
    with pytest.raises(PrivacyError, match="not debited before"):
        values(made, given, 1, 0)


# The step


def test_all_sites_together_take_the_step_of_pooled_descent(tmp_path: Path) -> None:
    given = study(noise_multiplier=1.0)
    own, count = ring(given), {"ash": 3, "elm": 30, "fir": 59, "oak": 0, "yew": 12}
    state = begin(given)
    total = np.zeros(state.model.size, dtype=np.int64)
    exact = np.zeros(state.model.size)
    for name in NAMES:
        total += values(site(given, tmp_path / name, count[name], name), given)
        trainer = Trainer(given, planned_mechanism(given))
        records = tensors(count[name])
        exact += trainer.fixed_point_sum(state, records, lambda *_: bytes(32), 0, own.grid)
    after = after_sum(given, state, total, np.empty(0, np.int64), NAMES, SITES, SITES)
    # -.1 x sum of clipped gradients / (5 sites x expected batch 8): never by the 104 records
    step = -0.1 * exact / own.grid / (5 * 8)
    spread = 0.1 * math.sqrt(5 * own.variance) / own.scale / 40
    left = after.model - state.model - step
    assert within(np.rint(left * 1e12).astype(np.int64), (spread * 1e12) ** 2)


def test_a_ring_is_for_mode_distributed_alone(tmp_path: Path) -> None:
    given = study()
    with pytest.raises(ValueError, match="a ring exactly in mode distributed"):
        site(given, tmp_path, encoding=Encoding(32, SITES, 1.0))
