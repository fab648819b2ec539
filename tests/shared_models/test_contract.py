"""The data contract: which columns may stand in a study, and what follows from them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared_models.contract import (
    CategoryColumn,
    Data,
    ImageColumn,
    LettersColumn,
    NumberColumn,
    SeriesColumn,
    Variable,
    number_of,
)

Document = dict[str, Any]

COLUMNS: Document = {
    "age": {"kind": "number", "low": 0, "high": 100},
    "pain": {"kind": "category", "values": ("none", "some", "much")},
    "weight": {"kind": "number", "low": 0, "high": 200, "input": False},
    "who": {"kind": "id"},
    "ill": {"kind": "category", "values": ("no", "maybe", "yes")},
}


def contract(**keys: object) -> Data:
    return Data.model_validate({"target": "ill", "columns": COLUMNS, **keys})


# Numbers in text


@pytest.mark.parametrize("text", ["1", "1.0", "1e0", "+1", "01", "10e-1", "1."])
def test_texts_of_one_number_are_one_value(text: str) -> None:
    assert number_of(text) == 1.0


@pytest.mark.parametrize("text", ["nan", "inf", "0x10", "1_000", "١", "", ".", "1e", "--1", " 1"])
def test_what_only_looks_like_a_number_stays_a_text(text: str) -> None:
    assert number_of(text) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read_back(value: float) -> None:
    assert number_of(repr(value)) == value


# Columns


@pytest.mark.parametrize("kind", [NumberColumn, Variable, ImageColumn])
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_a_range_that_is_empty_is_refused(kind: Any, low: float, high: float) -> None:
    others: dict[Any, Document] = {
        NumberColumn: {"kind": "number"},
        ImageColumn: {"kind": "image", "height": 8, "width": 8},
    }
    with pytest.raises(ValidationError, match="expected low < high"):
        kind(low=low, high=high, **others.get(kind, {}))


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf])
def test_a_range_without_end_is_refused(bound: float) -> None:
    with pytest.raises(ValidationError):
        NumberColumn(kind="number", low=bound, high=bound)


@pytest.mark.parametrize("fill", [-1.0, 101.0])
def test_a_fill_outside_the_range_is_refused(fill: float) -> None:
    with pytest.raises(ValidationError, match="fill between low and high"):
        NumberColumn(kind="number", low=0, high=100, fill=fill)


@pytest.mark.parametrize("values", [("a", "a"), ("1", "1.0"), ("", "a"), (" a", "b"), ()])
def test_values_that_cannot_be_told_apart_are_refused(values: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        CategoryColumn(kind="category", values=values)


def test_an_alphabet_with_a_letter_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="without repetition"):
        LettersColumn(kind="letters", alphabet="ACGTA", length=60)


def test_a_series_without_variables_is_refused() -> None:
    with pytest.raises(ValidationError):
        SeriesColumn(kind="series", steps=4, variables={})


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        contract(columns={**COLUMNS, "smell": {"kind": "smell"}})


# The whole contract


@pytest.mark.parametrize("target", ["who", "nobody"])
def test_a_target_is_a_column_that_says_something(target: str) -> None:
    with pytest.raises(ValidationError, match=f"target: expected a column, found '{target}'"):
        contract(target=target)


@pytest.mark.parametrize("target", [(), ("age", "age")])
def test_several_targets_are_different_columns(target: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="target: expected a column, or several, each once"):
        contract(target=target)


@pytest.mark.parametrize("positive", [("ill",), ("no", "maybe", "yes"), ("no", "other")])
def test_positive_values_are_some_of_the_target(positive: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="some, not all"):
        contract(positive=positive)


def test_a_number_target_has_no_positive_values() -> None:
    with pytest.raises(ValidationError, match="positive: expected a category target"):
        contract(target="age", positive=("1",))


@pytest.mark.parametrize("patient", ["age", "nobody"])
def test_a_patient_column_is_an_id(patient: str) -> None:
    with pytest.raises(ValidationError, match="patient: expected a column of kind id"):
        contract(patient=patient)


def test_parts_leave_no_room_for_a_column_of_that_name() -> None:
    with pytest.raises(ValidationError, match="no column named 'part'"):
        contract(columns={**COLUMNS, "part": {"kind": "id"}}, parts=("train", "test"))


def test_classes_are_the_values_of_the_target_in_their_order() -> None:
    assert contract().classes == ("no", "maybe", "yes")


def test_positive_values_make_the_target_binary() -> None:
    assert contract(positive=("maybe", "yes")).classes == ("no", "yes")


def test_a_number_target_has_no_classes() -> None:
    assert contract(target="age").classes == ()


def test_inputs_leave_out_target_ids_and_what_is_no_input() -> None:
    assert list(contract().inputs) == ["age", "pain"]
