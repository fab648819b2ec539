"""Columns become tensors by the study alone: known answers, and a naive loop over cells beside."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import ceiling, encode
from client.data.encode import encode as encoded
from client.data.encode import patient_indices, row_identities
from client.data.records import Records
from client.data.table import Table
from privacy.errors import DataError, StudyError
from shared_models.inputs import input_spec
from shared_models.study import Study, parse_study

MODELS = {"tabular": "mlp", "image": "cnn", "series": "lstm", "sequence": "attention"}
Y = {"kind": "category", "values": ["no", "yes", "perhaps"]}


def study_of(task: str = "tabular", data: dict[str, Any] | None = None, **columns: Any) -> Study:
    return parse_study(
        {
            "name": "ward",
            "task": task,
            "rounds": 1,
            "data": {"target": "y", "columns": {"y": Y, **columns}, **(data or {})},
            "model": {"name": MODELS[task]},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
        }
    )


def number(**keys: Any) -> dict[str, Any]:
    return {"kind": "number", "low": 0, "high": 10, **keys}


def cells(values: Sequence[Any]) -> Any:
    if isinstance(values, np.ndarray):
        return values
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def records_of(study: Study, length: int | None = None, **columns: Any) -> Records:
    arrays = {name: cells(values) for name, values in columns.items()}
    length = len(next(iter(arrays.values()))) if length is None else length
    arrays.setdefault("y", cells(["no"] * length))
    return encoded(study, Table(length, arrays, lambda row: f"ward.csv: row {row + 2}"))


def refusal(study: Study, **columns: Any) -> str:
    with pytest.raises(DataError) as caught:
        records_of(study, **columns)
    message = str(caught.value)
    assert message.startswith("ward.csv: row ")
    assert "no record was used" in message
    return message


# Numbers


def test_a_linear_range_becomes_minus_one_to_one() -> None:
    records = records_of(study_of(x=number()), x=["0", "10", "5.0", "2.5e0", "+10"])
    assert records.inputs.ravel().tolist() == [-1, 1, 0, -0.5, 1]
    assert records.inputs.dtype == np.float32


def test_a_log_range_becomes_minus_one_to_one() -> None:
    study = study_of(x=number(low=2, high=101, scale="log"))
    found = records_of(study, x=["2", "101", "11"]).inputs.ravel()
    np.testing.assert_allclose(found, [-1, 1, math.log(10) / math.log(100) * 2 - 1], rtol=1e-6)


@pytest.mark.parametrize(("fill", "expected"), [(None, 0.0), (2.5, -0.5)])
@pytest.mark.parametrize("missing", ["constant", "indicator"])
def test_a_missing_number_is_its_fill(missing: str, fill: float | None, expected: float) -> None:
    column = number(missing=missing) | ({} if fill is None else {"fill": fill})
    inputs = records_of(study_of(x=column), x=[None, "10"]).inputs
    assert inputs[:, 0].tolist() == [expected, 1]
    assert inputs[:, 1:].ravel().tolist() == ([1, 0] if missing == "indicator" else [])


def test_a_missing_number_on_a_log_scale_is_the_middle() -> None:
    study = study_of(x=number(missing="constant", scale="log"))
    assert records_of(study, x=[None]).inputs.tolist() == [[0]]


def test_values_outside_are_clamped_when_the_study_says_so() -> None:
    study = study_of(x=number(outside="clamp"))
    assert records_of(study, x=["-77", "77"]).inputs.ravel().tolist() == [-1, 1]


@pytest.mark.parametrize("value", ["-0.1", "10.001", "1e300"])
def test_values_outside_are_refused_by_default(value: str) -> None:
    message = refusal(study_of(x=number()), x=["5", value])
    assert "row 3, column 'x': expected a number from 0 to 10, found a number outside" in message
    assert value not in message


@pytest.mark.parametrize("outside", ["refuse", "clamp"])
@pytest.mark.parametrize(
    "text", ["seven", "", "7,5", "0x7", "7_7", "nan", "inf", "-inf", "1e999", "7 7", "true", "٧"]
)
def test_a_text_in_a_number_column_is_refused(text: str, outside: str) -> None:
    message = refusal(study_of(x=number(outside=outside)), x=["1", "2", text])
    assert "row 4, column 'x': expected a number, found a text" in message
    assert not text or text not in message


def test_a_missing_number_is_refused_by_default() -> None:
    message = refusal(study_of(x=number()), x=["1", None])
    assert "row 3, column 'x': expected a value" in message


def test_numbers_that_are_no_inputs_keep_the_contract_too() -> None:
    study = study_of(x=number(), dose=number(input=False))
    assert records_of(study, x=["1"], dose=["2"]).inputs.shape == (1, 1)
    assert "column 'dose'" in refusal(study, x=["1"], dose=["77"])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?"])
def test_arrays_of_every_number_type_are_numbers(dtype: str) -> None:
    assert records_of(study_of(x=number()), x=np.ones(1, dtype)).inputs.tolist() == [
        [-np.float32(0.8)]
    ]


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_the_end_of_a_range_is_inside_in_any_precision(dtype: str) -> None:
    study = study_of(x=number(low=0.1, high=0.3))
    inputs = records_of(study, x=np.array([0.1, 0.3], dtype)).inputs
    assert inputs.ravel().tolist() == pytest.approx([-1, 1], abs=2e-3)  # half precision
    assert np.abs(inputs).max() <= 1


def test_infinity_is_refused_even_where_values_are_clamped() -> None:
    study = study_of(x=number(outside="clamp"))
    assert "row 3" in refusal(study, x=np.array([1, np.inf]))


TEXTS = st.one_of(st.none(), st.floats(-20, 20).map(repr), st.integers(-20, 20).map(str))


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=20),
    low=st.floats(-5, 0),
    width=st.floats(0.1, 20),
    log=st.booleans(),
)
def test_numbers_equal_a_loop_over_cells(
    texts: list[str | None], low: float, width: float, log: bool
) -> None:
    high = low + width
    column = number(low=low, high=high, outside="clamp", missing="indicator")
    study = study_of(x=column | {"scale": "log" if log else "linear"})
    expected = []
    for text in texts:
        if text is None:
            expected.append((0.0, 1.0))
            continue
        above = min(max(float(text), low), high) - low
        share = math.log1p(above) / math.log1p(high - low) if log else above / (high - low)
        expected.append((2 * share - 1, 0.0))
    # float32 has 24 bits, and the two logarithms may differ in the last bit of a double.
    np.testing.assert_allclose(records_of(study, x=texts).inputs, expected, rtol=1e-6, atol=1e-7)


# Categories


def test_a_category_is_one_hot_in_the_order_of_the_study() -> None:
    study = study_of(x={"kind": "category", "values": ["b", "a"]})
    assert records_of(study, x=["a", "b"]).inputs.tolist() == [[0, 1], [1, 0]]


def test_equal_numbers_are_equal_categories() -> None:
    study = study_of(x={"kind": "category", "values": ["1", "2.0", "none"]})
    records = records_of(study, x=["1.0", "2", "+1e0", "none"])
    assert records.public["x"].tolist() == ["1", "2.0", "1", "none"]
    assert records.inputs.argmax(axis=1).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("dtype", ["f2", "f4", "i8", "u1", "?"])
def test_arrays_of_numbers_are_categories(dtype: str) -> None:
    study = study_of(x={"kind": "category", "values": ["1", "0"]})
    assert records_of(study, x=np.array([0, 1], dtype)).public["x"].tolist() == ["0", "1"]


@pytest.mark.parametrize("x", [[None, "a"], np.array([np.nan, 1])])
def test_a_missing_category_is_zeros_or_a_feature_more(x: Any) -> None:
    column = {"kind": "category", "values": ["a", "1"] if isinstance(x, list) else ["1", "2"]}
    constant = records_of(study_of(x=column | {"missing": "constant"}), x=x)
    assert constant.inputs.tolist() == [[0, 0], [1, 0]]
    assert constant.public["x"][0] == ""
    indicator = records_of(study_of(x=column | {"missing": "indicator"}), x=x)
    assert indicator.inputs.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_an_unknown_category_is_refused() -> None:
    study = study_of(x={"kind": "category", "values": ["a", "b"]})
    message = refusal(study, x=["a", "secret"])
    assert "row 3, column 'x': expected one of 'a', 'b', found another value" in message
    assert "secret" not in message


def test_a_missing_category_is_refused_by_default() -> None:
    study = study_of(x={"kind": "category", "values": ["a", "b"]})
    assert "row 2, column 'x'" in refusal(study, x=[None])


# Order of features


def test_features_come_in_the_order_of_the_input_spec() -> None:
    study = study_of(
        age=number(missing="indicator"),
        sex={"kind": "category", "values": ["f", "m"], "missing": "indicator"},
        name={"kind": "id"},
        ward={"kind": "category", "values": ["a", "b"], "input": False},
        dose=number(),
    )
    columns = {"age": ["10"], "sex": ["m"], "name": ["x"], "ward": ["a"], "dose": ["0"]}
    inputs = records_of(study, **columns).inputs[0].tolist()
    names = input_spec(study).names
    assert dict(zip(names, inputs, strict=True)) == {
        "age": 1, "age missing": 0, "sex=f": 0, "sex=m": 1, "sex missing": 0, "dose": -1,
    }  # fmt: skip


def test_series_features_come_in_the_order_of_the_input_spec() -> None:
    variables = {"hr": {"low": 0, "high": 100}, "bp": {"low": 0, "high": 10}}
    x = {"kind": "series", "steps": 2, "variables": variables, "missing": "indicator"}
    study = study_of("series", age=number(missing="indicator"), x=x)
    values = np.array([[[100, np.nan], [0, 10]]])
    inputs = records_of(study, x=values, age=["0"]).inputs[0]  # (T, F)
    rows = [dict(zip(input_spec(study).names, row.tolist(), strict=True)) for row in inputs]
    scalars = {"age": -1, "age missing": 0}
    assert rows == [
        {"hr": 1, "bp": 0, "hr missing": 0, "bp missing": 1} | scalars,
        {"hr": -1, "bp": 1, "hr missing": 0, "bp missing": 0} | scalars,
    ]


# Series


def series_study(missing: str, **keys: Any) -> Study:
    variables = {"hr": {"low": 0, "high": 10}, "bp": {"low": 0, "high": 10, "scale": "log"}}
    x = {"kind": "series", "steps": 4, "variables": variables, "missing": missing, **keys}
    return study_of("series", x=x)


@pytest.mark.parametrize("missing", ["constant", "indicator", "forward", "forward_indicator"])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_series_equal_a_loop_over_cells(
    missing: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHUNK_VALUES", chunk)
    generator = np.random.Generator(np.random.PCG64(1))
    values = generator.uniform(0, 10, (7, 4, 2))
    values[generator.random((7, 4, 2)) < 0.5] = np.nan
    study = series_study(missing)
    expected = np.zeros((7, 4, len(input_spec(study).names)))
    for n, t, f in np.ndindex(7, 4, 2):
        value = values[n, t, f]
        for earlier in range(t, -1, -1):
            if missing.startswith("forward") and math.isnan(value):
                value = values[n, earlier, f]
        if not math.isnan(value):
            share = value / 10 if f == 0 else math.log1p(value) / math.log1p(10)
            expected[n, t, f] = 2 * share - 1
        if missing.endswith("indicator"):
            expected[n, t, 2 + f] = math.isnan(values[n, t, f])
    found = records_of(study, x=values).inputs
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)  # float32


@pytest.mark.parametrize(
    ("value", "expected"),
    [(77, "a number from 0 to 10"), (np.nan, "a value"), (np.inf, "a finite number")],
)
def test_a_broken_series_names_row_step_and_variable(value: float, expected: str) -> None:
    values = np.ones((3, 4, 2))
    values[1, 2, 1] = value
    message = refusal(series_study("refuse"), x=values)
    assert f"row 3, column 'x, step 3, bp': expected {expected}" in message
    assert "77" not in message


def test_a_series_of_another_shape_is_refused() -> None:
    assert "shape (4, 2)" in refusal(series_study("refuse"), x=np.ones((3, 5, 2)))


# Pictures


def image_study(channels: int) -> Study:
    x = {"kind": "image", "height": 2, "width": 3, "channels": channels, "low": 5, "high": 10}
    return study_of("image", x=x)


def test_pictures_have_channels_first_and_values_from_zero_to_one() -> None:
    values = np.random.Generator(np.random.PCG64(2)).integers(5, 11, (4, 2, 3, 3))
    found = records_of(image_study(3), x=values).inputs
    expected = (np.transpose(values, (0, 3, 1, 2)) - 5) / 5
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_grey_pictures_need_no_axis_for_channels() -> None:
    values = np.full((1, 2, 3), 10, dtype=np.uint8)
    assert records_of(image_study(1), x=values).inputs.tolist() == np.ones((1, 1, 2, 3)).tolist()


@pytest.mark.parametrize("value", [4.0, 77.0, np.nan, np.inf])
def test_pixels_outside_the_range_are_refused(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHUNK_VALUES", 12)
    values = np.full((5, 2, 3), 6.0)
    values[3, 1, 1] = value
    message = refusal(image_study(1), x=values)
    assert "row 5, column 'x': expected values from 5 to 10" in message
    assert "77" not in message


@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 2, 3, 3), (1, 2)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    assert "shape (2, 3, 1)" in refusal(image_study(1), x=np.full(shape, 6.0))


# Tokens


def test_letters_are_places_in_the_alphabet_then_padding() -> None:
    study = study_of("sequence", x={"kind": "letters", "alphabet": "ACG", "length": 4})
    records = records_of(study, x=["GAC", "CCCC"])
    assert records.inputs.tolist() == [[3, 1, 2, 0], [2, 2, 2, 2]]
    assert records.inputs.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "expected"), [("CACAC", "at most 4 letters"), ("CAx", "letters of 'ACG'")]
)
def test_long_or_unknown_letters_are_refused(text: str, expected: str) -> None:
    study = study_of("sequence", x={"kind": "letters", "alphabet": "ACG", "length": 4})
    message = refusal(study, x=["A", text])
    assert f"row 3, column 'x': expected {expected}" in message
    assert text not in message


def test_words_are_hashed_into_public_buckets() -> None:
    study = study_of("sequence", x={"kind": "words", "buckets": 100, "length": 3})

    def word_id(word: str) -> int:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        return 1 + int.from_bytes(digest, "little") % 100

    records = records_of(study, x=["Was ist Ödem?", "a-b a c", "..."])
    assert records.inputs.tolist() == [
        [word_id("was"), word_id("ist"), word_id("ödem")],
        [word_id("a"), word_id("b"), word_id("a")],
        [0, 0, 0],
    ]


def test_the_bucket_of_a_word_never_changes() -> None:
    study = study_of("sequence", x={"kind": "words", "buckets": 8192, "length": 1})
    assert records_of(study, x=["asthma"]).inputs.tolist() == [[7041]]


@pytest.mark.parametrize("kind", [{"kind": "letters", "alphabet": "A"}, {"kind": "words"}])
def test_a_missing_text_is_refused(kind: dict[str, Any]) -> None:
    study = study_of("sequence", x={"length": 3, **kind})
    assert "row 3, column 'x': expected a value" in refusal(study, x=["A", None])


@given(st.lists(st.text("ACGT", max_size=9), min_size=1, max_size=5))
def test_letters_can_be_read_back(texts: list[str]) -> None:
    study = study_of("sequence", x={"kind": "letters", "alphabet": "TGCA", "length": 9})
    inputs = records_of(study, x=texts).inputs
    assert ["".join("?TGCA"[i] for i in row if i) for row in inputs] == texts


# Targets


def test_a_class_is_its_place_in_the_study() -> None:
    records = records_of(study_of(x=number()), x=["1"] * 3, y=["perhaps", "no", "yes"])
    assert records.targets.tolist() == [2, 0, 1]
    assert records.targets.dtype == np.int64
    assert records.public["y"].tolist() == ["perhaps", "no", "yes"]


def test_positive_values_are_class_one() -> None:
    study = study_of(data={"positive": ["yes", "perhaps"]}, x=number())
    assert records_of(study, x=["1"] * 3, y=["perhaps", "no", "yes"]).targets.tolist() == [1, 0, 1]


def test_a_number_target_stays_in_its_units() -> None:
    study = study_of(y=number(missing="constant", outside="clamp"), x=number())
    records = records_of(study, x=["1", "1"], y=["7.5", "77"])
    assert records.targets.tolist() == [7.5, 10]
    assert records.targets.dtype == np.float32
    assert "column 'y'" in refusal(study, x=["1"], y=[None])


@pytest.mark.parametrize("y", ["secret", None])
def test_an_unknown_or_missing_class_is_refused(y: str | None) -> None:
    study = study_of(y=Y | {"missing": "constant"}, x=number())
    message = refusal(study, x=["1"], y=[y])
    assert "row 2, column 'y'" in message
    assert "secret" not in message


# Identities


def test_equal_inputs_have_equal_identities_whatever_their_labels() -> None:
    records = records_of(study_of(x=number()), x=["1", "1.0", "2"], y=["no", "yes", "no"])
    first, second, third = records.identities
    assert first == second != third
    assert first == hashlib.sha256(np.float32(-0.8).tobytes()).digest()


def test_identities_do_not_depend_on_byte_order_or_layout() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert row_identities(rows) == row_identities(rows.astype(">f4"))
    assert row_identities(rows) == row_identities(np.asfortranarray(rows))


def test_zero_has_no_sign() -> None:
    study = study_of("image", x={"kind": "image", "height": 1, "width": 1})
    records = records_of(study, x=np.array([[[0.0]], [[-0.0]]]))
    assert len(set(records.identities)) == 1


@pytest.mark.parametrize(
    "who", [[" 07", "é", " 07"], np.array([7.0, 8.0, 7.0]), np.array([7, 8, 7])]
)
def test_patients_are_named_by_their_id(who: Any) -> None:
    study = study_of(data={"patient": "who"}, x=number(), who={"kind": "id"})
    records = records_of(study, x=["1", "2", "3"], who=who)
    assert records.patients is not None
    assert records.patients.tolist() == [0, 1, 0]
    assert records.identities[0] == (b" 07" if isinstance(who, list) else b"7")


def test_a_missing_patient_is_refused() -> None:
    study = study_of(data={"patient": "who"}, x=number(), who={"kind": "id"})
    assert "row 3, column 'who'" in refusal(study, x=["1", "2"], who=["a", None])


@given(st.lists(st.binary(max_size=2), max_size=20))
def test_patient_indices_are_dense_and_faithful(names: list[bytes]) -> None:
    indices = patient_indices(tuple(names)).tolist()
    assert set(indices) == set(range(len(set(names))))
    assert len(set(zip(indices, names, strict=True))) == len(set(names))


# No records, too many, wrong columns


@pytest.mark.parametrize("task", MODELS)
def test_no_records_are_records(task: str) -> None:
    series = {"kind": "series", "steps": 2, "variables": {"hr": {"low": 0, "high": 1}}}
    x = {
        "tabular": number(missing="indicator"),
        "image": {"kind": "image", "height": 2, "width": 2},
        "series": series,
        "sequence": {"kind": "words", "length": 3},
    }[task]
    study = study_of(task, data={"patient": "who"}, x=x, who={"kind": "id"})
    empty = {"image": np.empty((0, 2, 2)), "series": np.empty((0, 2, 1))}
    records = records_of(study, length=0, x=empty.get(task, []), who=[])
    assert records.inputs.shape == (0, *input_spec(study).shape)
    assert (len(records), records.identities) == (0, ())


def test_records_above_the_ceiling_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "BYTES_MAX", 11)
    study = study_of(x=number())
    assert len(records_of(study, x=["1"] * 2)) == 2
    with pytest.raises(DataError, match="at most 11 bytes, found 12"):
        records_of(study, x=["1"] * 3)


def test_columns_that_the_task_cannot_take_are_a_fault_of_the_study() -> None:
    with pytest.raises(StudyError):
        records_of(study_of("image", x=number()), x=["1"])


def test_equal_numbers_are_refused_as_two_categories() -> None:
    with pytest.raises(StudyError, match="repetition"):
        study_of(x={"kind": "category", "values": ["1", "1.0"]})


def test_an_alphabet_with_a_letter_twice_is_refused() -> None:
    with pytest.raises(StudyError, match="alphabet"):
        study_of("sequence", x={"kind": "letters", "alphabet": "ACA", "length": 3})


def test_a_long_list_of_values_is_cut() -> None:
    study = study_of(x={"kind": "category", "values": [str(i) for i in range(900)]})
    assert "'11' and 888 more, found" in refusal(study, x=["x"])
