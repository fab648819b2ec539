"""The private step against a naive loop over single records; noise, edges and planted faults."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from privacy.bookkeeping import BookkeepingCopy, clear
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import PrivacyError
from privacy.sampling import poisson_sample
from privacy.stream import Stream
from tests.privacy.networks import (
    KEY,
    NETWORKS,
    assert_close,
    clipped,
    example,
    key,
    median_norm,
    naive_sum,
    squared_error,
)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_clipped_sum_is_the_naive_loops(name: str, rows: int) -> None:
    model, x, y = example(name, rows)
    for bound in (median_norm(model, x, y), 1e-3, math.inf):
        assert_close(clipped(model, x, y, bound), naive_sum(model, x, y, bound))


@pytest.mark.parametrize("name", ["conv2d", "lstm", "attention"])
def test_physical_batches_do_not_change_the_sum(name: str) -> None:
    model, x, y = example(name, 7)
    whole = clipped(model, x, y, 1.0)
    for rows in (1, 2, 3):
        assert_close(clipped(model, x, y, 1.0, rows), whole)


@settings(max_examples=25, deadline=None)
@given(units=st.lists(st.integers(-2, 3), min_size=1, max_size=9), rows=st.integers(1, 9))
def test_patients_are_clipped_as_one_however_rows_are_cut(units: list[int], rows: int) -> None:
    model, x, y = example("linear", len(units))
    owners = np.array(units, dtype=np.int64)
    step = PrivateStep(
        model, squared_error, Mechanism(2.0, 0.0, 0.5, 1.0, "patient"), max_physical_batch=rows
    )
    assert_close(step.clipped_sum(x, y, owners, Stream(KEY)), naive_sum(model, x, y, 2.0, owners))


def test_infinite_bound_without_noise_is_the_plain_mean() -> None:
    model, x, y = example("conv2d", 7)
    got = PrivateStep(model, squared_error, Mechanism(math.inf, 0.0, 1.0, 7.0)).gradient(
        x, y, None, KEY
    )
    squared_error(model(x), y).mean().backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    # float32 sums in another order; 1e-6 is sixteen of its steps
    assert float((got - plain).norm()) <= 1e-6 * float(plain.norm())


def test_no_record_moves_the_sum_by_more_than_the_bound() -> None:
    model, x, y = example("conv2d", 7)
    for bound in (1e-3, 0.7, 30.0):
        step = PrivateStep(model, squared_error, Mechanism(bound, 0.0, 0.5, 1.0))
        for row in range(7):
            alone = step.clipped_sum(x[row : row + 1], y[row : row + 1], None, Stream(KEY))
            assert float(alone.norm()) <= bound


def test_weights_changed_between_calls_are_seen() -> None:
    model, x, y = example("lstm", 4)
    step = PrivateStep(model, squared_error, Mechanism(1.0, 0.0, 0.5, 1.0))
    before = step.clipped_sum(x, y, None, Stream(KEY))
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for p in model.parameters():  # parameters become views of one vector, which the caller moves
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    flat.mul_(-0.5)
    after = step.clipped_sum(x, y, None, Stream(KEY))
    assert_close(after, naive_sum(model, x, y, 1.0))
    assert float((after - before).norm()) > 0.1


def test_buffers_changed_between_calls_are_seen() -> None:
    model, x, y = example("attention", 4)
    step = PrivateStep(model, squared_error, Mechanism(1.0, 0.0, 0.5, 1.0))
    dict(model.named_buffers())["1.mask"].zero_()
    assert_close(step.clipped_sum(x, y, None, Stream(KEY)), naive_sum(model, x, y, 1.0))


def test_the_callers_network_is_left_as_it_was() -> None:
    model, x, y = example("lstm", 4)
    before = copy.deepcopy(model.state_dict())
    PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0)).gradient(x, y, None, KEY)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert isinstance(model[0].layer, nn.LSTM)


def test_the_result_is_written_where_it_is_wanted() -> None:
    model, x, y = example("conv2d", 4)
    step = PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 2.0))
    out = torch.full((step.size,), math.nan)
    assert step.gradient(x, y, None, KEY, out) is out
    assert torch.equal(out, step.gradient(x, y, None, KEY))


def test_a_large_batch_is_cut_by_what_its_rows_take(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = example("conv2d", 40)
    whole = clipped(model, x, y, 1.0)
    sizes: list[int] = []
    network_class = type(model)
    forward = network_class.forward
    monkeypatch.setattr(
        network_class, "forward", lambda self, x: (sizes.append(len(x)), forward(self, x))[1]
    )
    monkeypatch.setattr("privacy.batches._BATCH_BYTES", 1 << 16)
    assert_close(clipped(model, x, y, 1.0), whole)
    assert sizes[:3] == [2, 3, 3]  # the trial
    assert sum(sizes[3:]) == 40
    assert 1 < max(sizes[3:]) < 20


def test_a_record_has_the_same_gradient_in_any_company() -> None:
    """The float32 result of a row does not depend on what stands in the other rows."""
    for name in NETWORKS:
        model, x, y = example(name, 6)
        copy_ = BookkeepingCopy(model)
        before = [
            gradient[2].clone()
            for layer in copy_.run(x, lambda outputs, y=y: squared_error(outputs, y).sum())
            for gradient in layer.rule.per_sample(slice(None))
        ]
        clear(copy_.layers)
        others = [0, 1, 3, 4, 5]
        x[others], y[others] = x[others].flip(0), -3 * y[others]
        after = [
            gradient[2]
            for layer in copy_.run(x, lambda outputs, y=y: squared_error(outputs, y).sum())
            for gradient in layer.rule.per_sample(slice(None))
        ]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), name


# Layers without a rule


def test_a_covered_network_has_no_fallback_and_imports_no_opacus() -> None:
    code = (
        "import sys, torch; from torch import nn;"
        "from privacy.dpsgd import Mechanism, PrivateStep;"
        "step = PrivateStep(nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(),"
        " nn.Linear(32, 2)), lambda out, y: (out - y).square().sum(1), Mechanism(1, 1, 1, 1));"
        "step.gradient(torch.randn(2, 1, 4, 4), torch.randn(2, 2), None, bytes(32));"
        "assert step.fallback == '' and 'opacus' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_parameter_that_meets_records_as_no_rule_knows_falls_back() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,ij->bj", x, self.weight)

    torch.manual_seed(0)
    model, x, y = Own(), torch.randn(7, 6), torch.randn(7, 2)
    step = PrivateStep(model, squared_error, Mechanism(0.5, 0.0, 0.5, 1.0))
    assert_close(step.clipped_sum(x, y, None, Stream(KEY)), naive_sum(model, x, y, 0.5))
    assert "Own 'model'.weight" in step.fallback
    assert "\n" not in step.fallback


def test_a_layer_without_a_rule_falls_back_in_one_line() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.PReLU(5), nn.Linear(5, 2))
    x, y = torch.randn(7, 6), torch.randn(7, 2)
    step = PrivateStep(model, squared_error, Mechanism(0.5, 0.0, 0.5, 1.0))
    assert "PReLU '1' has no rule" in step.fallback
    assert "\n" not in step.fallback
    assert_close(step.clipped_sum(x, y, None, Stream(KEY)), naive_sum(model, x, y, 0.5))


# Records that are broken


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "lstm", "gru", "layer_norm", "parameter_of_no_layer"]
)
def test_a_record_without_a_finite_gradient_counts_as_zero(name: str, poison: float) -> None:
    model, x, y = example(name, 5)
    y[2] = poison
    others = [0, 1, 3, 4]
    assert_close(clipped(model, x, y, 1.0), naive_sum(model, x[others], y[others], 1.0))


def test_a_patient_with_one_broken_row_counts_as_zero_in_any_cut() -> None:
    model, x, y = example("linear", 6)
    y[1] = math.nan
    owners = np.array([7, 7, 7, 8, 8, 8])
    for rows in (1, 2, 6):
        step = PrivateStep(
            model, squared_error, Mechanism(1.0, 0.0, 0.5, 1.0, "patient"), max_physical_batch=rows
        )
        got = step.clipped_sum(x, y, owners, Stream(KEY))
        assert_close(got, naive_sum(model, x[3:], y[3:], 1.0, owners[3:]))


def test_a_zero_gradient_adds_nothing() -> None:
    model, x, _ = example("linear", 3)
    y = model(x).detach()
    assert not clipped(model, x, y, 1.0).any()


def test_an_empty_batch_is_pure_noise() -> None:
    model, x, y = example("linear", 3)
    step = PrivateStep(model, squared_error, Mechanism(2.0, 3.0, 0.5, 4.0))
    empty = step.gradient(x[:0], y[:0], None, KEY)
    full = step.gradient(x, y, None, KEY)
    signal = step.clipped_sum(x, y, None, Stream(KEY)) / 4.0
    assert float(empty.norm()) > 0
    # float32 results near 1.5 keep 1e-7; the same key gives the same noise
    assert float((full - empty - signal).abs().max()) < 1e-6


# The noise


def wide() -> tuple[nn.Module, Tensor, Tensor]:
    """30,000 parameters, a million noise values over 34 steps."""
    torch.manual_seed(1)
    return nn.Linear(300, 100, bias=False), torch.randn(2, 300), torch.randn(2, 100)


def test_noise_has_deviation_sigma_c_over_the_expected_batch() -> None:
    model, x, y = wide()
    step = PrivateStep(model, squared_error, Mechanism(0.5, 3.0, 0.5, 8.0))
    noise = torch.cat([step.gradient(x[:0], y[:0], None, key(i)) for i in range(34)]).double()
    ratio = float(noise.std()) / (3.0 * 0.5 / 8.0)
    # the deviation of n normals is known to 1/sqrt(2n) = 7e-4; five of them fail once in 2 million
    assert abs(ratio - 1) < 5 / math.sqrt(2 * noise.numel())
    assert stats.kstest(noise[:200_000].numpy() / (3.0 * 0.5 / 8.0), "norm").pvalue > 1e-6


def test_noise_is_fresh_for_each_key_and_the_same_for_one() -> None:
    model, x, y = wide()
    step = PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0))
    draws = [step.gradient(x[:0], y[:0], None, key(i)) for i in range(6)]
    assert torch.equal(draws[0], step.gradient(x[:0], y[:0], None, key(0)))
    for one, other in pairwise(draws):
        # the correlation of 30,000 independent pairs has deviation 1/sqrt(30,000) = .0058
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.03


def test_noise_is_added_once_for_many_physical_batches() -> None:
    model, x, y = wide()
    draws = [
        PrivateStep(
            model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0), max_physical_batch=rows
        ).gradient(x, y, None, KEY)
        for rows in (1, 2)
    ]
    assert float((draws[0] - draws[1]).norm()) < 1e-4 * float(draws[0].norm())


def test_the_denominator_is_the_expected_batch_whatever_came() -> None:
    model, x, y = example("linear", 7)
    step = PrivateStep(model, squared_error, Mechanism(1.0, 0.0, 0.5, 64.0))
    for rows in (1, 3, 7):
        got = step.gradient(x[:rows], y[:rows], None, KEY)
        assert_close(got.double() * 64.0, naive_sum(model, x[:rows], y[:rows], 1.0))


def test_dropout_is_drawn_from_the_key_alone() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    x, y = torch.randn(4, 6), torch.randn(4, 1)
    step = PrivateStep(model, squared_error, Mechanism(math.inf, 0.0, 0.5, 1.0))
    state = torch.get_rng_state()
    first = step.gradient(x, y, None, KEY)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(first, step.gradient(x, y, None, KEY))
    assert not torch.equal(first, step.gradient(x, y, None, key(5)))


class Shifted(nn.Module):
    """An augmentation inside the network: each record is rolled by a draw of its own."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.tell = tell

    def forward(self, x: Tensor) -> Tensor:
        places = torch.randint(0, x.shape[1], (x.shape[0], 1)) + torch.arange(x.shape[1])
        rolled = x.gather(1, places % x.shape[1])
        self.tell(rolled)
        return rolled


def test_augmentation_is_drawn_from_the_key_and_clipped_after_it() -> None:
    torch.manual_seed(3)
    seen: list[Tensor] = []
    linear = nn.Linear(6, 1)
    network = nn.Sequential(Shifted(lambda rolled: seen.append(rolled)), linear)
    x, y = torch.randn(5, 6), torch.randn(5, 1)
    step = PrivateStep(network, squared_error, Mechanism(1.0, 0.0, 0.5, 1.0))
    first = step.clipped_sum(x, y, None, Stream(KEY))
    assert not torch.equal(seen[-1], x)
    assert_close(first, naive_sum(linear, seen[-1], y, 1.0))
    assert torch.equal(first, step.clipped_sum(x, y, None, Stream(KEY)))
    assert not torch.equal(first, step.clipped_sum(x, y, None, Stream(key(5))))


def test_augmented_copies_count_as_one_unit() -> None:
    """Several views of a record are several rows of one unit (De et al. 2022, arXiv:2204.13650)."""
    model, x, y = example("conv2d", 3)
    views, targets = torch.cat([x, x.flip(2), x.flip(3)]), torch.cat([y, y, y])
    owners = np.tile(np.arange(3), 3)
    step = PrivateStep(model, squared_error, Mechanism(0.5, 0.0, 0.5, 1.0, "patient"))
    got = step.clipped_sum(views, targets, owners, Stream(KEY))
    assert_close(got, naive_sum(model, views, targets, 0.5, owners))
    assert float(got.norm()) <= 3 * 0.5


# The whole step with its sampler


def test_every_record_is_expected_to_count_q_over_the_denominator() -> None:
    """Unclipped gradients of 1, q = .3: the step has mean 1 and variance (1 - q) / (q N)."""
    model = nn.Linear(1, 1, bias=False)
    x, y = torch.ones(200, 1), torch.zeros(200, 1)
    step = PrivateStep(model, lambda out, _: out[:, 0], Mechanism(2.0, 0.0, 0.3, 60.0))
    means = []
    for i in range(300):
        batch = torch.from_numpy(poisson_sample(200, 0.3, Stream(key(i))))
        means.append(float(step.gradient(x[batch], y[batch], None, key(1000 + i))[0]))
    deviation = math.sqrt(0.7 / 60)  # of one step; a denominator from the batch would have 0
    assert abs(np.mean(means) - 1) < 5 * deviation / math.sqrt(300)
    assert 0.8 < np.std(means) / deviation < 1.2  # 300 draws know it to .04


# Refusals


class OwnNorm(nn.BatchNorm1d):
    """A class that Opacus' validators do not know."""


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.BatchNorm1d(6), "BatchNorm1d '1'"),
        (nn.BatchNorm1d(6, affine=False), "BatchNorm1d '1'"),
        (OwnNorm(6), "OwnNorm '1'"),
        (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), "InstanceNorm1d '1'"),
        (nn.MultiheadAttention(6, 2), "MultiheadAttention '1'"),
        (nn.LSTM(6, 4, proj_size=2), "LSTM '1'"),
        (nn.Embedding(6, 4, max_norm=1.0), "Embedding '1'"),
        (nn.Embedding(6, 4, scale_grad_by_freq=True), "Embedding '1'"),
    ],
)
def test_a_layer_that_mixes_records_is_refused_by_name(layer: nn.Module, named: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), layer)
    with pytest.raises(PrivacyError, match=named):
        PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0))


def test_a_padding_that_the_fallback_gets_wrong_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.PReLU())
    with pytest.raises(PrivacyError, match=r"Conv2d '0' \(its padding"):
        PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0))


def test_a_layer_that_folds_time_into_the_batch_is_refused() -> None:
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.reshape(-1, 6)).reshape(len(x), -1)

    step = PrivateStep(Folding(), squared_error, Mechanism(1.0, 1.0, 0.5, 1.0))
    with pytest.raises(PrivacyError, match="regroups the rows"):
        step.gradient(torch.randn(3, 5, 6), torch.randn(3, 10), None, KEY)


class Packed(nn.Module):
    """A recurrent layer over packed sequences of given lengths."""

    def __init__(self, sort: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.layer = nn.LSTM(6, 4, batch_first=True)
        self.sort = sort

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x[:, :, 0] > -50).sum(1)
        packed = pack_padded_sequence(
            self.inner(x), lengths, batch_first=True, enforce_sorted=self.sort
        )
        return pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=5)[0].sum(
            1
        )


def test_packed_sequences_out_of_order_match_the_naive_loop() -> None:
    torch.manual_seed(4)
    model, x, y = Packed(sort=False), torch.randn(3, 5, 6), torch.randn(3, 4)
    x[0, 2:] = -100.0
    assert_close(clipped(model, x, y, 1.0), naive_sum(model, x, y, 1.0))


def test_packed_sequences_in_order_match_the_naive_loop() -> None:
    torch.manual_seed(4)
    model, x, y = Packed(sort=True), torch.randn(3, 5, 6), torch.randn(3, 4)
    x[1, 4:] = -100.0
    x[2, 2:] = -100.0
    assert_close(clipped(model, x, y, 1.0), naive_sum(model, x, y, 1.0))


def test_a_loss_that_averages_over_records_is_refused_and_the_step_lives_on() -> None:
    model, x, y = example("linear", 3)
    wrong = [True]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = squared_error(outputs, targets)
        return losses.mean() if wrong[0] else losses

    step = PrivateStep(model, loss, Mechanism(1.0, 0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="one a row"):
        step.gradient(x, y, None, KEY)
    wrong[0] = False
    assert_close(step.clipped_sum(x, y, None, Stream(KEY)), naive_sum(model, x, y, 1.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clipping_norm", 0.0),
        ("clipping_norm", math.nan),
        ("clipping_norm", math.inf),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.nan),
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.5),
        ("expected_batch", 0.0),
        ("expected_batch", math.nan),
        ("unit", "row"),
    ],
)
def test_a_mechanism_that_guarantees_nothing_is_refused(name: str, value: float | str) -> None:
    good: dict[str, float | str] = {
        "clipping_norm": 1.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.5,
        "expected_batch": 1.0,
        "unit": "record",
    }
    Mechanism(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected"):
        Mechanism(**{**good, name: value})  # type: ignore[arg-type]


def test_patient_ids_and_unit_must_agree() -> None:
    model, x, y = example("linear", 3)
    record = PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0))
    patient = PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0, "patient"))
    with pytest.raises(ValueError, match="patient ids"):
        record.gradient(x, y, np.arange(3), KEY)
    with pytest.raises(ValueError, match="patient ids"):
        patient.gradient(x, y, None, KEY)
    with pytest.raises(ValueError, match="patient ids"):
        patient.gradient(x, y, np.arange(2), KEY)


def test_a_frozen_parameter_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="all require gradients"):
        PrivateStep(model, squared_error, Mechanism(1.0, 1.0, 0.5, 1.0))
