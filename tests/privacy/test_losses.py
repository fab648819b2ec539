"""What histories cost: the larger of two sides, groups of records, against naive integration."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from privacy import losses
from privacy.accounting import Event, epsilon
from privacy.losses import Either, History, Kind, Paid, pld_epsilon, rdp_epsilon

DELTA = 1e-5
GRID = 1e-3  # ten times the reported one: every figure here is compared on the same grid
TRAIN: list[History] = [
    ((Kind(0.05, 1.2), 100),),
    ((Kind(0.1, 2.0), 60),),
    ((Kind(0.02, 0.9), 200),),
]
EVALUATE: list[History] = [((Kind(1.0, 2.5), 1),), ((Kind(1.0, 1.4), 1),), ((Kind(1.0, 2.0), 1),)]


def cost(*histories: History, either: tuple[Either, ...] = ()) -> float:
    always = tuple(itertools.chain(*histories))
    return pld_epsilon(Paid(always, either), DELTA, GRID)


# One of two sides


@pytest.mark.parametrize("study", range(3))
def test_of_one_study_the_larger_side_counts(study: int) -> None:
    sides = Either(TRAIN[study], EVALUATE[study], 1)
    larger = max(cost(TRAIN[study]), cost(EVALUATE[study]))
    # 1e-9: the curve goes through the distribution once more, in float64
    assert cost(either=(sides,)) == pytest.approx(larger, abs=1e-9)


def test_over_studies_no_pattern_of_sides_costs_more_than_the_bound() -> None:
    """All 2^3 ways in which a unit may have been trained on or held out, each composed exactly."""
    bound = cost(either=tuple(Either(t, e, 1) for t, e in zip(TRAIN, EVALUATE, strict=True)))
    pairs = zip(TRAIN, EVALUATE, strict=True)
    patterns = [cost(*pattern) for pattern in itertools.product(*pairs)]
    assert max(patterns) <= bound
    assert bound <= max(patterns) * 1.02  # 4.566 against 4.528: tight, where both sides would be
    assert bound < cost(*TRAIN, *EVALUATE) * 0.9  # 5.797


def test_equal_studies_compose() -> None:
    once = Either(TRAIN[0], EVALUATE[0], 1)
    other = Either(TRAIN[0], ((Kind(1.0, 2.5000001), 1),), 1)  # not merged
    thrice = Either(TRAIN[0], EVALUATE[0], 3)
    # 1e-5: tails of 1e-15 are cut at each composition
    assert cost(either=(thrice,)) == pytest.approx(cost(either=(once, other, once)), abs=1e-5)


def test_what_everybody_pays_comes_on_top() -> None:
    sides = (Either(TRAIN[0], EVALUATE[0], 1),)
    assert cost(EVALUATE[1], either=sides) >= max(
        cost(EVALUATE[1], TRAIN[0]), cost(EVALUATE[1], EVALUATE[0])
    )


def test_each_order_of_rdp_takes_the_larger_side() -> None:
    sides = (Either(TRAIN[0], EVALUATE[0], 2),)
    bound = rdp_epsilon(Paid((), sides), DELTA)
    patterns = itertools.product((TRAIN[0], EVALUATE[0]), repeat=2)
    alone = [rdp_epsilon(Paid(a + b), DELTA) for a, b in patterns]
    assert max(alone) <= bound * (1 + 1e-12) < rdp_epsilon(Paid(2 * (TRAIN[0] + EVALUATE[0])), 1e-5)


def test_the_curve_is_the_librarys() -> None:
    """It reads private names of dp-accounting: a new version that moved them must fail here."""
    for history in (TRAIN[0], EVALUATE[0]):
        whole = losses._compose(history, GRID)
        for pmf in (whole._pmf_remove, whole._pmf_add):
            dense = pmf.to_dense_pmf()
            low, size = dense._lower_loss, dense.size
            ours = losses._curve(7, dense._probs, dense._infinity_mass, size + 12, GRID)
            points = np.arange(low - 7, low + size + 5) * GRID
            # 1e-12: sums of 1e5 terms in another order
            assert ours == pytest.approx(dense.get_delta_for_epsilon(points), abs=1e-12)


# Several rows a unit


def group_delta(rows: int, rate: float, noise: float, eps: float) -> float:
    """The larger hockey-stick divergence of one step, by adding up densities on a fine grid."""
    step = 1e-3
    x = np.arange(-12 * noise, rows + 12 * noise, step)
    plain = norm.pdf(x, scale=noise)
    weights = binom.pmf(range(rows + 1), rows, rate)
    mixed = sum(w * norm.pdf(x, loc=j, scale=noise) for j, w in enumerate(weights))
    factor = math.exp(eps)
    one, other = mixed - factor * plain, plain - factor * mixed
    return float(max(one.clip(0).sum(), other.clip(0).sum()) * step)


@pytest.mark.parametrize(
    ("rows", "rate", "noise"), [(1, 0.2, 1.0), (2, 0.1, 1.5), (5, 0.05, 2.0), (20, 0.3, 20.0)]
)
def test_a_group_costs_what_its_two_output_distributions_say(
    rows: int, rate: float, noise: float
) -> None:
    eps = cost(((Kind(rate, noise, rows), 1),))
    assert group_delta(rows, rate, noise, eps) <= DELTA * (1 + 1e-6)
    assert group_delta(rows, rate, noise, eps - 3e-3) > DELTA  # and it is tight, on this grid


def test_a_group_that_is_always_there_is_one_record_under_less_noise() -> None:
    assert cost(((Kind(1.0, 20.0, 5), 10),)) == cost(((Kind(1.0, 4.0), 10),))


def test_more_rows_cost_more() -> None:
    costs = [cost(((Kind(0.05, 2.0, rows), 20),)) for rows in (1, 2, 3, 5)]
    assert costs == sorted(set(costs))


@pytest.mark.parametrize("kind", [Kind(0.05, 1.2), Kind(0.3, 0.7), Kind(0.001, 3.0)])
def test_the_quadrature_finds_the_divergence_of_one_row_as_dp_accounting_does(kind: Kind) -> None:
    orders = np.asarray(losses._orders())
    whole = (orders == orders.round()) & (orders <= losses._GROUP_ORDER)
    # Between integers the library interpolates from above. 1e-8: of 1e-6, at the smallest order
    ours, theirs = losses._rdp_group(kind)[whole], losses._rdp_step(kind)[whole]
    assert ours == pytest.approx(theirs, rel=1e-8)
    assert (losses._rdp_group(kind) <= losses._rdp_step(kind) * (1 + 1e-8))[orders <= 64].all()


@pytest.mark.parametrize("kind", [Kind(0.05, 2.0, 5), Kind(0.2, 6.0, 3), Kind(0.01, 20.0, 50)])
def test_rdp_of_a_group_is_above_its_pld(kind: Kind) -> None:
    for steps in (1, 100):
        paid = Paid(((kind, steps),))
        assert pld_epsilon(paid, DELTA, GRID) <= rdp_epsilon(paid, DELTA) < math.inf


# Through events


def event(study: str, phase: str, kind: Kind, steps: int, unit: str = "record") -> Event:
    return Event.model_validate(
        {
            "study": study,
            "dataset": "ward",
            "unit": unit,
            "sampling_rate": kind.rate,
            "noise_multiplier": kind.noise,
            "clipping_norm": 1.0,
            "steps": steps,
            "denominator": 16.0,
            "mode": "local",
            "phase": phase,
        }
    )


def both(study: str, unit: str = "record") -> list[Event]:
    return [
        event(study, "train", Kind(0.05, 1.2), 100, unit),
        event(study, "evaluate", Kind(1.0, 2.5), 1, unit),
    ]


def test_trained_on_and_held_out_in_one_study_cost_the_larger() -> None:
    train, evaluate = both("a")
    larger = max(epsilon([train], DELTA).epsilon, epsilon([evaluate], DELTA).epsilon)
    assert epsilon([train, evaluate], DELTA).epsilon == pytest.approx(larger, abs=1e-9)


def test_trained_on_in_one_study_and_held_out_in_another_cost_both() -> None:
    train, _ = both("a")
    _, evaluate = both("b")
    apart = epsilon([train, evaluate], DELTA).epsilon
    assert apart > epsilon(both("a"), DELTA).epsilon + 0.1


def test_two_gaussians_are_compared_exactly() -> None:
    train = event("a", "train", Kind(1.0, 30.0), 100)  # as one of 3
    evaluate = event("a", "evaluate", Kind(1.0, 4.0), 1)
    assert epsilon([train, evaluate], DELTA) == epsilon([train], DELTA)


def test_a_patient_whose_records_are_charged_may_have_been_on_both_sides() -> None:
    events = both("a")
    apart = [events[0], events[1].model_copy(update={"study": "b"})]
    assert epsilon(events, DELTA, rows=3) == epsilon(apart, DELTA, rows=3)


def test_records_charged_to_patients_stand_beside_events_of_patients() -> None:
    spent = epsilon([*both("a"), *both("b", unit="patient")], DELTA, rows=2)
    assert spent.unit == "patient"
    assert spent.epsilon > epsilon(both("b", unit="patient"), DELTA).epsilon


def test_one_record_a_patient_costs_a_patient_what_it_costs_a_record() -> None:
    records, patients = epsilon(both("a"), DELTA), epsilon(both("a"), DELTA, rows=1)
    assert (records.epsilon, records.unit) == (patients.epsilon, "record")
    assert patients.unit == "patient"


def test_a_patient_without_a_row_is_no_patient() -> None:
    with pytest.raises(ValueError, match="rows"):
        epsilon(both("a"), DELTA, rows=0)


def test_rdp_between_the_sides_and_their_sum_is_no_disagreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the curves cross, what dominates both may cost more than RDP's larger side."""
    from privacy import accounting

    true = accounting.rdp_epsilon
    monkeypatch.setattr(
        accounting, "rdp_epsilon", lambda paid, delta: 0.5 if paid.either else true(paid, delta)
    )
    spent = epsilon(both("checked by the sum"), 1.1e-5)
    assert spent.epsilon <= spent.rdp_epsilon
    merged = [event("one", e.phase, Kind(e.sampling_rate, e.noise_multiplier), e.steps)
              for e in both("one")]  # fmt: skip
    assert spent.rdp_epsilon == pytest.approx(
        true(accounting._both(accounting._merge(merged, 1)), 1.1e-5)
    )
