"""The shape of a network's input, as the contract alone fixes it."""

from typing import Any

import pytest

from privacy.errors import StudyError
from shared_models.inputs import InputSpec, input_spec
from shared_models.label import label
from shared_models.study import Study, parse_study

Document = dict[str, Any]

ILL: Document = {"kind": "category", "values": ["no", "yes"]}
AGE: Document = {"kind": "number", "low": 0, "high": 100}
PAIN: Document = {"kind": "category", "values": ["none", "some", "much"]}
STAY: Document = {
    "kind": "series",
    "steps": 6,
    "variables": {"pulse": {"low": 0, "high": 300}, "oxygen": {"low": 0, "high": 100}},
}
SCAN: Document = {"kind": "image", "height": 28, "width": 20, "channels": 3}
GENE: Document = {"kind": "letters", "alphabet": "ACGT", "length": 60}
NOTE: Document = {"kind": "words", "buckets": 500, "length": 40}


def study(task: str, model: str = "mlp", target: Document = ILL, **columns: Document) -> Study:
    return parse_study(
        {
            "name": "s",
            "task": task,
            "rounds": 1,
            "data": {"target": "ill", "columns": {"ill": target, **columns}},
            "model": {"name": model},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
        }
    )


def test_a_table_has_a_feature_a_number_and_one_a_category() -> None:
    assert input_spec(study("tabular", age=AGE, pain=PAIN)) == InputSpec(
        "features", (4,), ("age", "pain=none", "pain=some", "pain=much")
    )


def test_an_indicator_adds_one_feature_behind_its_column() -> None:
    marked = {**AGE, "missing": "indicator"}, {**PAIN, "missing": "indicator"}
    assert input_spec(study("tabular", age=marked[0], pain=marked[1])).names == (
        "age",
        "age missing",
        "pain=none",
        "pain=some",
        "pain=much",
        "pain missing",
    )


def test_the_order_of_features_is_the_order_of_columns() -> None:
    assert input_spec(study("tabular", pain=PAIN, age=AGE)).names[-1] == "age"


def test_the_target_and_ids_are_no_input() -> None:
    spec = input_spec(study("tabular", age=AGE, who={"kind": "id"}))
    assert spec.names == ("age",)


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        ("forward", ("pulse", "oxygen")),
        ("forward_indicator", ("pulse", "oxygen", "pulse missing", "oxygen missing")),
        ("indicator", ("pulse", "oxygen", "pulse missing", "oxygen missing")),
    ],
)
def test_a_series_has_its_variables_then_its_indicators(
    missing: str, names: tuple[str, ...]
) -> None:
    spec = input_spec(study("series", "lstm", stay={**STAY, "missing": missing}))
    assert spec == InputSpec("series", (6, len(names)), names)


def test_scalars_beside_a_series_follow_its_features() -> None:
    spec = input_spec(study("series", "lstm", age=AGE, stay=STAY))
    assert spec == InputSpec("series", (6, 3), ("pulse", "oxygen", "age"))


def test_a_picture_is_channels_first() -> None:
    assert input_spec(study("image", "cnn", scan=SCAN)) == InputSpec("image", (3, 28, 20))


def test_letters_have_a_token_each_and_padding() -> None:
    assert input_spec(study("sequence", "lstm", gene=GENE)) == InputSpec(
        "tokens", (60,), vocabulary=5
    )


def test_words_have_a_token_a_bucket_and_padding() -> None:
    assert input_spec(study("sequence", "lstm", note=NOTE)) == InputSpec(
        "tokens", (40,), vocabulary=501
    )


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("tabular", {"who": {"kind": "id"}}),
        ("tabular", {"scan": SCAN}),
        ("series", {"age": AGE}),
        ("series", {"one": STAY, "two": STAY}),
        ("image", {"age": AGE}),
        ("image", {"one": SCAN, "two": SCAN}),
        ("sequence", {"age": AGE}),
        ("sequence", {"one": NOTE, "two": NOTE}),
    ],
)
def test_columns_that_a_task_cannot_use_are_refused(
    task: str, columns: dict[str, Document]
) -> None:
    with pytest.raises(StudyError, match=f"task '{task}' expected"):
        input_spec(study(task, "mlp", ILL, **columns))


@pytest.mark.parametrize(
    ("target", "kind", "count"),
    [(ILL, "binary", 1), (PAIN, "multiclass", 3), (AGE, "regression", 1)],
)
def test_the_target_fixes_loss_and_outputs(target: Document, kind: str, count: int) -> None:
    found = study("tabular", target=target, age=AGE)
    assert (label(found).kind, label(found).outputs) == (kind, count)


@pytest.mark.parametrize(("target", "count"), [(ILL, 2), (PAIN, 3), (AGE, 1)])
def test_two_outputs_are_for_two_classes_only(target: Document, count: int) -> None:
    document = study("tabular", target=target, age=AGE).document()
    document["model"]["outputs"] = 2
    assert label(parse_study(document)).outputs == count
