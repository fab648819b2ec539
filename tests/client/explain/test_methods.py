"""Attributions of networks whose answers are known, and beside those of another library."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.explain.explanation import METHODS
from client.explain.layout import layout_of
from client.explain.methods import (
    GAP,
    Subject,
    attention_weights,
    integrated_gradients,
    rank_correlation,
)
from shared_models.inputs import input_spec
from shared_models.label import label
from shared_models.study import Study
from shared_models.target import log_odds
from tests.client.explain.models import (
    ANSWER,
    LINEAR,
    letter_finder,
    random_weights,
    splice_study,
    study_of,
    table_study,
    weights,
)

PICTURE = {"kind": "image", "height": 14, "width": 10, "channels": 3}
STAY = {
    "kind": "series",
    "steps": 12,
    "missing": "indicator",
    "variables": {"hr": {"low": 0, "high": 200}, "temp": {"low": 30, "high": 45}},
}
LETTERS = {"kind": "letters", "alphabet": "ACGT", "length": 8}
THREE = {"kind": "category", "values": ["a", "b", "c"]}
ATTENTION = {"name": "attention", "width": 8, "heads": 2, "layers": 2, "feedforward": 8}
CASES: dict[str, Study] = {
    "table": table_study((6,)),
    "two logits": study_of(
        "tabular",
        {"a": {"kind": "number", "low": 0, "high": 1}, "b": THREE},
        {"name": "mlp", "hidden": [6], "outputs": 2},
    ),
    "picture": study_of(
        "image", {"p": PICTURE, "y": THREE}, {"name": "cnn", "channels": [4], "hidden": 8}
    ),
    "lstm": study_of("series", {"s": STAY, "b": THREE}, {"name": "lstm", "hidden": [6]}),
    "attention": study_of("series", {"s": STAY}, ATTENTION),
    "letters cnn": study_of(
        "sequence", {"s": LETTERS}, {"name": "cnn", "channels": [4], "hidden": 4}
    ),
    "letters gru": study_of("sequence", {"s": LETTERS}, {"name": "gru", "hidden": [6]}),
    "letters attention": study_of("sequence", {"s": LETTERS, "y": THREE}, ATTENTION),
    "number": study_of(
        "tabular",
        {"a": ANSWER, "b": THREE, "y": {"kind": "number", "low": 0, "high": 300}},
        {"name": "mlp", "hidden": [6]},
    ),
}


def subject_of(study: Study, network: torch.nn.Module, inputs: Any = None) -> Subject:
    spec, count = input_spec(study), 4
    draw = np.random.default_rng(3)
    if inputs is None and spec.kind == "tokens":
        inputs = draw.integers(1, spec.vocabulary, (count, *spec.shape))
        inputs[0, -3:] = 0  # padding
    elif inputs is None:
        inputs = draw.random((count, *spec.shape), dtype=np.float32)
    classes = np.arange(len(inputs)) % max(2, len(study.data.classes))
    return Subject(
        network,
        torch.as_tensor(inputs),
        torch.as_tensor(classes),
        label(study),
        layout_of(study),
    )


@pytest.mark.parametrize("study", CASES.values(), ids=CASES)
def test_integrated_gradients_add_up_to_the_difference_of_scores(study: Study) -> None:
    subject = subject_of(study, random_weights(study))
    found = integrated_gradients(subject.score, subject.points(), subject.baselines())
    rows, axes = torch.arange(len(subject.inputs)), tuple(range(1, found.dim()))
    with torch.no_grad():
        whole = subject.score(subject.points(), rows) - subject.score(subject.baselines(), rows)
    # The rule by which steps are added; beside it the rounding of float32.
    assert ((found.sum(axes) - whole).abs() <= GAP * found.abs().sum(axes) + 1e-5).all()
    cells = METHODS["integrated_gradients"](subject)
    assert cells is not None
    assert cells.shape == (4, subject.layout.regions.shape[1])
    np.testing.assert_allclose(cells.sum(axis=1), found.sum(axes), atol=1e-5)


@pytest.mark.parametrize("study", CASES.values(), ids=CASES)
def test_a_score_of_the_points_themselves_is_that_of_the_records(study: Study) -> None:
    subject = subject_of(study, random_weights(study))
    with torch.no_grad():
        rows = torch.arange(len(subject.inputs))
        found = subject.score(subject.points(), rows)
        outputs = subject.network(subject.inputs)
    torch.testing.assert_close(found, subject.target.scores(outputs, subject.asked))


def test_of_a_linear_model_they_are_weight_times_value() -> None:
    network = weights(
        random_weights(table_study()), layers__0__weight=np.arange(8) - 3.0, layers__0__bias=[0.7]
    )
    values = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    subject = subject_of(table_study(), network, values)
    yes = replace(subject, asked=torch.ones(2, dtype=torch.int64))
    for method in ("integrated_gradients", "occlusion"):
        found = METHODS[method](yes)
        assert found is not None
        np.testing.assert_allclose(found, (np.arange(8) - 3) * values, atol=1e-6)


def test_the_way_of_a_large_record_is_summed_in_fewer_steps() -> None:
    """A kink makes the sum never fit, so that as many steps are taken as there may be."""

    def steps(numbers: int) -> int:
        taken = []

        def score(points: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            taken.append(len(rows) * points.requires_grad)
            return torch.where(points[:, 0] > 0.7, 1e3, 0.0) + points.sum(dim=1)

        integrated_gradients(score, torch.ones(1, numbers), torch.zeros(1, numbers))
        return sum(taken)

    assert steps(8) == 64 + 128 + 256 + 512
    assert steps(96 * 96 * 3) == 64 + 128


def test_of_several_parts_each_says_nothing_and_those_that_are_there_still_are() -> None:
    number = {"kind": "number", "low": 0, "high": 1}
    study = study_of(
        "fusion", {"a": number, "p": {**PICTURE, "missing": "constant"}}, {"name": "fusion"}
    )
    pixels = 3 * 14 * 10
    records = torch.rand(2, 1 + pixels + 2)
    records[:, -2:] = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    subject = Subject(
        random_weights(study), records, torch.ones(2).long(), label(study), layout_of(study)
    )
    found = subject.baselines()
    assert (found[:, 0] == 0).all()
    pictures = records[:, 1:-2].reshape(2, 3, -1)
    flat = pictures.mean(dim=2, keepdim=True).expand_as(pictures)
    torch.testing.assert_close(found[:, 1:-2].reshape(2, 3, -1), flat)
    assert (found[:, -2:] == records[:, -2:]).all()


def test_of_a_number_they_are_in_its_unit() -> None:
    columns = {"a": {"kind": "number", "low": 0, "high": 1}}
    study = study_of("tabular", {**columns, "y": {"kind": "number", "low": 0, "high": 300}}, LINEAR)
    network = weights(random_weights(study), layers__0__weight=[0.5])
    found = METHODS["integrated_gradients"](
        subject_of(study, network, np.array([[1.0]], dtype=np.float32))
    )
    assert found is not None
    assert found[0, 0] == pytest.approx(75)  # 0.5 of the half-range of 150


def test_the_log_odds_of_a_class_are_those_of_its_probability() -> None:
    outputs = torch.randn(5, 4, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 3, 1])
    chance = outputs.softmax(dim=1).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(log_odds(outputs, classes), (chance / (1 - chance)).log())
    binary = label(table_study())
    assert binary.scores(torch.tensor([[2.0]]), torch.tensor([1])).item() == 2
    assert binary.scores(torch.tensor([[2.0]]), torch.tensor([0])).item() == -2


def planted(study: Study, network: torch.nn.Module, inputs: Any, method: str) -> tuple[int, ...]:
    """Where in the layout's shape a method says the most of the only record."""
    subject = subject_of(study, network, inputs)
    found = METHODS[method](subject)
    assert found is not None
    return tuple(map(int, np.unravel_index(abs(found[0]).argmax(), subject.layout.shape)))


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_planted_pixel_is_found(method: str) -> None:
    study = study_of("image", {"p": {**PICTURE, "channels": 1}}, LINEAR)
    plan = np.zeros((14, 10))
    plan[9, 4] = 3
    network = weights(random_weights(study), layers__0__weight=plan)
    picture = np.full((1, 1, 14, 10), 0.2, dtype=np.float32)
    picture[0, 0, 9, 4] = 1
    row, column = planted(study, network, picture, method)
    # A picture of 14 x 10 is hidden in patches of 2 x 1: the pixel's own, or the row beside it.
    assert column == 4
    assert row in ({9} if method == "integrated_gradients" else {8, 9, 10})


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_planted_letter_is_found(method: str) -> None:
    ids = np.array([[1, 2, 4, 2, 1, 3, 4, 0]])
    found = planted(splice_study(), letter_finder(3, 5), ids, method)
    assert found == (5,)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_planted_hour_of_a_variable_is_found(method: str) -> None:
    study = study_of("series", {"s": STAY}, LINEAR)
    plan = np.zeros((12, 4))  # hr, temp, hr missing, temp missing
    plan[7, 1] = 2
    network = weights(random_weights(study), layers__0__weight=plan)
    stay = np.full((1, 12, 4), 0.5, dtype=np.float32)
    assert planted(study, network, stay, method) == (7, 1)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_mark_of_a_missing_value_counts_for_its_variable(method: str) -> None:
    study = study_of("series", {"s": STAY, "b": THREE}, LINEAR)
    plan = np.zeros((12, 7))  # hr, temp, hr missing, temp missing, b one of three
    plan[3, 3] = 2
    network = weights(random_weights(study), layers__0__weight=plan)
    stay = np.full((1, 12, 7), 0.5, dtype=np.float32)
    assert planted(study, network, stay, method) == (3, 1)
    assert layout_of(study).names == ("hr", "temp", "b")


def test_attention_is_where_the_network_looks_and_nowhere_else() -> None:
    study = CASES["letters attention"]
    subject = subject_of(study, random_weights(study))
    found = attention_weights(subject.network, subject.inputs)
    assert found is not None
    assert found.shape == (4, 8)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert (found[0, -3:] == 0).all()  # padding
    assert attention_weights(random_weights(table_study()), torch.zeros(1, 8)) is None


def test_steps_that_are_looked_at_alike_count_the_same() -> None:
    study = CASES["attention"]
    network = weights(random_weights(study))  # all weights zero: every step looks at all alike
    found = attention_weights(network, torch.ones(2, 12, 4))
    np.testing.assert_allclose(found, np.full((2, 12), 1 / 12), atol=1e-6)


def test_rank_correlation_is_undefined_where_there_are_no_ranks() -> None:
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None
    assert rank_correlation(np.arange(4.0), np.arange(4.0) ** 3) == pytest.approx(1)


@pytest.mark.parametrize("study", CASES.values(), ids=CASES)
def test_captum_says_the_same(study: Study) -> None:
    attr: Any = pytest.importorskip("captum.attr", reason="captum (the extra explain) is not here")
    subject = subject_of(study, random_weights(study))
    points, baselines = subject.points().double(), subject.baselines().double()
    subject.network.double()
    rows = torch.arange(len(points))
    ours = integrated_gradients(subject.score, points, baselines)

    def score(inside: torch.Tensor) -> torch.Tensor:
        return subject.score(inside, rows.repeat(len(inside) // len(rows)))

    theirs = attr.IntegratedGradients(score).attribute(
        points, baselines, n_steps=512, method="gausslegendre"
    )
    # Ours stops at 1 % of the whole; theirs takes 512 steps whatever comes of it.
    scale = float(abs(theirs).max())
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=0.03 * scale)


def test_captum_hides_the_same() -> None:
    attr: Any = pytest.importorskip("captum.attr", reason="captum (the extra explain) is not here")
    study = CASES["table"]
    subject = subject_of(study, random_weights(study))
    rows = torch.arange(4)
    theirs = attr.FeatureAblation(lambda x: subject.score(x, rows)).attribute(
        subject.points(), subject.baselines()
    )
    np.testing.assert_allclose(METHODS["occlusion"](subject), theirs.detach().numpy(), atol=1e-6)
