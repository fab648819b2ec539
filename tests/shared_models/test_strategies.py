"""The strategies: against the papers' formulas one coordinate at a time, and as bytes."""

import json
import math
import struct
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import ProtocolError
from shared_models.sections import Aggregation
from shared_models.strategies import (
    STEPS,
    State,
    first_state,
    next_state,
    read_state,
    state_bytes,
    state_hash,
)

Name = Literal["fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold"]
NAMES: tuple[Name, ...] = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold")
P = 3
NUMBER = st.floats(-10, 10)
VECTOR = st.lists(NUMBER, min_size=P, max_size=P)
RATE = st.floats(1e-3, 2)


def start(aggregation: Aggregation, model: list[float] | None = None) -> State:
    return first_state(aggregation, np.array(model or [0.5, -1.0, 2.0], dtype=np.float32))


def width(name: str) -> int:
    return 2 * P if name == "scaffold" else P


def updates(seed: int, count: int, name: str) -> list[npt.NDArray[np.float64]]:
    generator = np.random.Generator(np.random.PCG64(seed))
    return [generator.normal(size=width(name)) for _ in range(count)]


def run(aggregation: Aggregation, rounds: int, seed: int = 1) -> list[State]:
    states = [start(aggregation)]
    for update in updates(seed, rounds, aggregation.strategy):
        states.append(next_state(aggregation, rounds, states[-1], update, 0.5))
    return states


# Against the papers


@settings(max_examples=60, deadline=None)
@given(VECTOR, VECTOR, RATE, st.sampled_from(["fedavg", "fedprox"]))
def test_averaging_adds_the_mean_update_times_the_server_rate(
    model: list[float], update: list[float], rate: float, name: Name
) -> None:
    aggregation = Aggregation(strategy=name, server_learning_rate=rate)
    state = start(aggregation, model)
    after = next_state(aggregation, 9, state, np.array(update))
    assert after.model.tolist() == [
        float(np.float32(x)) + rate * u for x, u in zip(model, update, strict=True)
    ]
    assert after.moments == {}


def adaptive(
    name: str, x: float, deltas: list[float], rate: float, beta1: float, beta2: float, tau: float
) -> float:
    """One coordinate of Reddi et al. 2021, Algorithm 2, as printed there."""
    m, v = 0.0, tau**2
    for delta in deltas:
        m = beta1 * m + (1 - beta1) * delta
        if name == "fedadagrad":
            v = v + delta**2
        elif name == "fedyogi":
            sign = math.copysign(1.0, v - delta**2) if v != delta**2 else 0.0
            v = v - (1 - beta2) * delta**2 * sign
        else:
            v = beta2 * v + (1 - beta2) * delta**2
        x = x + rate * m / (math.sqrt(v) + tau)
    return x


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["fedadam", "fedyogi", "fedadagrad"]),
    st.lists(VECTOR, min_size=1, max_size=5),
    RATE,
    st.floats(0, 0.999),
    st.floats(0, 0.999),
    st.floats(1e-4, 1),
)
def test_adaptive_strategies_follow_the_paper_coordinate_by_coordinate(
    name: Name, deltas: list[list[float]], rate: float, beta1: float, beta2: float, tau: float
) -> None:
    aggregation = Aggregation(
        strategy=name, server_learning_rate=rate, beta1=beta1, beta2=beta2, adaptivity=tau
    )
    state = start(aggregation)
    first = state.model.tolist()
    for delta in deltas:
        state = next_state(aggregation, len(deltas), state, np.array(delta))
    expected = [
        adaptive(name, first[k], [delta[k] for delta in deltas], rate, beta1, beta2, tau)
        for k in range(P)
    ]
    # rtol 1e-9, not 0: rate * (m / d) is not rate * m / d in the last bit, and sums may cancel.
    np.testing.assert_allclose(state.model, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(VECTOR, VECTOR, VECTOR, RATE, st.floats(0.01, 1))
def test_scaffold_moves_model_and_control_as_lines_16_and_17(
    model: list[float], change: list[float], moved: list[float], rate: float, share: float
) -> None:
    aggregation = Aggregation(strategy="scaffold", server_learning_rate=rate)
    state = start(aggregation, model)
    state = next_state(aggregation, 9, state, np.array([*change, *moved]), share)
    for k in range(P):
        assert state.model[k] == float(np.float32(model[k])) + rate * change[k]
        assert state.moments["control"][k] == share * moved[k]


def test_the_control_of_scaffold_adds_up_over_rounds() -> None:
    aggregation = Aggregation(strategy="scaffold")
    given = updates(5, 4, "scaffold")
    state = start(aggregation)
    for update in given:
        state = next_state(aggregation, 4, state, update, 0.25)
    expected = sum((0.25 * update[P:] for update in given), np.zeros(P))
    np.testing.assert_allclose(state.moments["control"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_second_moments_start_at_the_square_of_the_adaptivity(name: Name) -> None:
    state = start(Aggregation(strategy=name, adaptivity=0.1))
    assert state.moments["m"].tolist() == [0.0] * P
    assert state.moments["v"].tolist() == [0.1**2] * P


def test_every_strategy_of_a_study_has_a_step() -> None:
    assert set(STEPS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_update_leaves_a_new_model(name: Name) -> None:
    aggregation = Aggregation(strategy=name)
    state = start(aggregation)
    assert (
        next_state(aggregation, 3, state, np.zeros(width(name))).model.tolist()
        == state.model.tolist()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_step_changes_no_input(name: Name) -> None:
    aggregation = Aggregation(strategy=name, average_last=1.0)
    first, second = updates(2, 2, name)
    state = next_state(aggregation, 3, start(aggregation), first)
    before = state_bytes(state), second.tobytes()
    next_state(aggregation, 3, state, second)
    assert (state_bytes(state), second.tobytes()) == before


@pytest.mark.parametrize("name", NAMES)
def test_rounds_are_counted(name: Name) -> None:
    assert [state.round for state in run(Aggregation(strategy=name), 3)] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_updates_give_the_same_bits(name: Name) -> None:
    aggregation = Aggregation(strategy=name, average_last=0.5)
    assert [state_bytes(s) for s in run(aggregation, 6)] == [
        state_bytes(s) for s in run(aggregation, 6)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_coordinate_has_the_same_bits_wherever_it_stands(name: Name) -> None:
    # A vectorised loop and its remainder, or a fused one, would round differently.
    aggregation = Aggregation(strategy=name)
    count = 1003
    generator = np.random.Generator(np.random.PCG64(3))
    model = generator.normal(size=count).astype(np.float32)
    parts = generator.normal(size=(2 if name == "scaffold" else 1, count))
    whole = next_state(aggregation, 5, first_state(aggregation, model), parts.reshape(-1), 0.3)
    for k in (0, 1, 7, 500, 1001, 1002):
        alone = next_state(
            aggregation, 5, first_state(aggregation, model[k : k + 1]), parts[:, k].copy(), 0.3
        )
        assert alone.model[0].hex() == whole.model[k].hex()


# The mean of the last models


@pytest.mark.parametrize(
    ("share", "counted"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.3, 2), (0.125, 1)]
)
@pytest.mark.parametrize("name", ["fedavg", "fedadam", "scaffold"])
def test_the_released_model_is_the_mean_of_the_last_share(
    name: Name, share: float, counted: int
) -> None:
    states = run(Aggregation(strategy=name, average_last=share), 8)
    expected = np.mean([state.model for state in states[-counted:]], axis=0)
    # rtol 1e-12: a running mean of eight float64 against one sum.
    np.testing.assert_allclose(states[-1].released(), expected, rtol=1e-12, atol=1e-14)


def test_the_released_model_is_the_last_one_without_a_share() -> None:
    states = run(Aggregation(average_last=0.0), 4)
    assert states[-1].released() is states[-1].model


def test_before_the_last_share_begins_nothing_is_averaged() -> None:
    states = run(Aggregation(average_last=0.5), 4)
    assert ["mean" in state.moments for state in states] == [False, False, False, True, True]


def test_averaging_does_not_change_the_training() -> None:
    plain, averaged = run(Aggregation(), 6), run(Aggregation(average_last=1.0), 6)
    assert [s.model.tobytes() for s in plain] == [s.model.tobytes() for s in averaged]


@pytest.mark.parametrize(("share", "rounds", "counted"), [(0.29, 100, 29), (0.57, 100, 57)])
def test_a_share_that_binary_numbers_miss_is_the_share_as_written(
    share: float, rounds: int, counted: int
) -> None:
    states = run(Aggregation(average_last=share), rounds)
    assert sum("mean" in state.moments for state in states) == counted


# As bytes


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9),
    st.sets(st.sampled_from(["m", "v", "control", "mean"])),
)
def test_a_state_is_read_back_bit_for_bit(
    round_: int, values: list[float], names: set[str]
) -> None:
    vector = np.array(values)
    state = State(round_, vector, dict.fromkeys(names, vector * 0.5))
    blob = state_bytes(state)
    again = read_state(blob, len(values))
    assert again.round == round_
    assert again.model.tobytes() == vector.tobytes()
    assert set(again.moments) == names
    assert state_bytes(again) == blob


def test_the_order_of_moments_leaves_the_bytes() -> None:
    one, two = np.ones(P), np.zeros(P)
    turned = State(1, one, {"v": two, "m": one})
    assert state_bytes(State(1, one, {"m": one, "v": two})) == state_bytes(turned)


def test_the_hash_of_a_state_covers_round_model_and_moments() -> None:
    one, two = np.ones(P), np.zeros(P)
    states = [
        State(1, one, {"m": two}),
        State(2, one, {"m": two}),
        State(1, two, {"m": two}),
        State(1, one, {"m": one}),
        State(1, one, {"v": two}),
        State(1, one, {}),
    ]
    hashes = {state_hash(state_bytes(state)) for state in states}
    assert len(hashes) == len(states)
    assert {len(value) for value in hashes} == {32}


def packed(**tensors: npt.NDArray[np.generic]) -> bytes:
    return safetensors.numpy.save(dict(tensors), {"round": "1"})


GOOD = state_bytes(State(1, np.ones(P), {"m": np.ones(P)}))


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "safetensors"),
        (b"\x80\x04K*.", "safetensors"),
        (b"{}", "safetensors"),
        (bytes(64), "safetensors"),
        (GOOD[:-1], "safetensors"),
        (GOOD + b"\0", "safetensors"),
        (struct.pack("<Q", 2**63) + GOOD[8:], "safetensors"),
        (safetensors.numpy.save({"model": np.ones(P)}), "safetensors"),
        (safetensors.numpy.save({"model": np.ones(P)}, {"round": "one"}), "safetensors"),
        (safetensors.numpy.save({"model": np.ones(P)}, {"rounds": "1"}), "safetensors"),
        (packed(model=np.ones(P + 1)), "3 float64"),
        (packed(model=np.ones((P, 1))), "3 float64"),
        (packed(model=np.ones(P, dtype=np.float32)), "3 float64"),
        (packed(model=np.ones(P, dtype=np.int64)), "3 float64"),
        (packed(model=np.ones(P), **{"moment.m": np.ones(P - 1)}), "3 float64"),
        (packed(model=np.array([1.0, math.nan, 0.0])), "finite"),
        (packed(model=np.array([1.0, math.inf, 0.0])), "finite"),
        (packed(model=np.ones(P), **{"moment.m": np.full(P, -math.inf)}), "finite"),
        (packed(**{"moment.m": np.ones(P)}), "a model"),
    ],
)
def test_other_bytes_are_no_state(blob: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_state(blob, P)


def test_a_state_of_an_unknown_number_format_is_refused() -> None:
    header = {
        "__metadata__": {"round": "1"},
        "model": {"dtype": "BF16", "shape": [P], "data_offsets": [0, 2 * P]},
    }
    text = json.dumps(header).encode()
    with pytest.raises(ProtocolError):
        read_state(struct.pack("<Q", len(text)) + text + bytes(2 * P), P)


def test_a_round_below_zero_is_refused() -> None:
    with pytest.raises(ProtocolError):
        read_state(safetensors.numpy.save({"model": np.ones(P)}, {"round": "-1"}), P)


def test_a_state_above_the_ceiling_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ProtocolError, match=r"got \d+ bytes"):
        read_state(bytes(4 * 8 * P + 4097), P)


def test_the_largest_state_of_a_study_is_below_the_ceiling() -> None:
    ones = np.ones(1000)
    state = State(999_999, ones, {"m": ones, "v": ones, "mean": ones})
    assert read_state(state_bytes(state), 1000).round == 999_999


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_flipped_byte_gives_a_state_or_a_protocol_error(place: int, flip: int) -> None:
    blob = bytearray(GOOD)
    blob[place] ^= flip
    try:
        state = read_state(bytes(blob), P)
    except ProtocolError:
        return
    assert state.model.shape == (P,)
    assert np.isfinite(state.model).all()
