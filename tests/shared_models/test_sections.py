"""The sections of a study: what each refuses by itself, and what each leaves to its default."""

import pytest
from pydantic import TypeAdapter, ValidationError

from shared_models.sections import (
    Aggregation,
    Attention,
    Cnn,
    DistributedPrivacy,
    Evaluation,
    LocalPrivacy,
    Mlp,
    NoPrivacy,
    Privacy,
    Simulation,
    Training,
)

PRIVATE = {
    "mode": "local",
    "epsilon": 1.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.1,
    "expected_batch": 16,
}


def test_a_batch_norm_is_refused_with_its_reason() -> None:
    with pytest.raises(ValidationError, match="BatchNorm mixes records"):
        Cnn(name="cnn", norm="batch")  # type: ignore[arg-type]


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="divisible by heads, found 10, 4"):
        Attention(name="attention", width=10, heads=4)


def test_no_hidden_layer_is_a_regression() -> None:
    assert Mlp(name="mlp", hidden=()).hidden == ()


@pytest.mark.parametrize("width", [0, -1, 65_537])
def test_a_hidden_width_out_of_range_is_refused(width: int) -> None:
    with pytest.raises(ValidationError):
        Mlp(name="mlp", hidden=(width,))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_probability_below_one_is_refused(dropout: float) -> None:
    with pytest.raises(ValidationError):
        Mlp(name="mlp", dropout=dropout)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(ValidationError):
        Training(learning_rate=0.1, momentum=momentum)


@pytest.mark.parametrize("given", [{}, {"epsilon": 1.0, "noise_multiplier": 1.0}])
def test_privacy_wants_either_epsilon_or_a_noise_multiplier(given: dict[str, float]) -> None:
    document = {k: v for k, v in PRIVATE.items() if k != "epsilon"}
    with pytest.raises(ValidationError, match="one of the two"):
        LocalPrivacy.model_validate({**document, **given})


def test_the_mode_chooses_the_section() -> None:
    read = TypeAdapter(Privacy).validate_python
    shares = {**PRIVATE, "mode": "distributed", "records_max": 100}
    found = [type(read(document)) for document in ({"mode": "none"}, PRIVATE, shares)]
    assert found == [NoPrivacy, LocalPrivacy, DistributedPrivacy]


def test_every_privacy_key_of_the_other_modes_is_ignored_by_mode_none() -> None:
    keys = set(LocalPrivacy.model_fields) | set(DistributedPrivacy.model_fields)
    assert NoPrivacy.model_validate({**dict.fromkeys(keys, 1), "mode": "none"}).model_dump() == {
        "mode": "none"
    }


def test_a_cohort_above_100_is_refused_under_masks_only() -> None:
    with pytest.raises(ValidationError, match="<= 100 under masks"):
        Aggregation(cohort=101)
    assert Aggregation(cohort=101, masking="none").cohort == 101


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_public_weight_is_positive(weight: float) -> None:
    with pytest.raises(ValidationError):
        Aggregation(weighting="public", weights={"a": weight})


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_a_decay_of_moments_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(ValidationError):
        Aggregation(beta1=beta)
    with pytest.raises(ValidationError):
        Aggregation(beta2=beta)


def test_a_hold_out_column_and_its_values_come_together() -> None:
    with pytest.raises(ValidationError, match="together"):
        Evaluation(holdout_column="fold")
    with pytest.raises(ValidationError, match="together"):
        Evaluation(holdout_values=("1",))
    assert Evaluation(holdout_column="fold", holdout_values=("1",)).holdout_column == "fold"


def test_folds_and_a_hold_out_column_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="not both"):
        Evaluation(holdout_column="fold", holdout_values=("1",), folds=5)


@pytest.mark.parametrize(
    "partition", ["iid", "files", "column:ward", "dirichlet:0.5", "quantity:1", "column:a:b"]
)
def test_a_known_partition_is_accepted(partition: str) -> None:
    assert Simulation(partition=partition).partition == partition


@pytest.mark.parametrize(
    "partition",
    [
        *("", "iid:1", "files:x", "column", "column:", "dirichlet", "dirichlet:", "dirichlet:x"),
        *("dirichlet:0", "dirichlet:-1", "quantity:nan", "quantity:inf", "IID", "random"),
    ],
)
def test_any_other_partition_is_refused(partition: str) -> None:
    with pytest.raises(ValidationError, match="expected iid, dirichlet:ALPHA"):
        Simulation(partition=partition)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_that_is_no_63_bits_is_refused(seed: int) -> None:
    with pytest.raises(ValidationError):
        Simulation(seed=seed)
