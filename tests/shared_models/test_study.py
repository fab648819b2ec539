"""The study file: what loads, what is refused in one line, and what the digest covers."""

import copy
import hashlib
import json
import math
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import StudyError
from shared_models.study import STUDY_BYTES_MAX, Study, load_study, parse_study, read_canonical

ROOT = Path(__file__).resolve().parents[2]
Document = dict[str, Any]

# The documented example, mode local.
EXAMPLE = """
name = "heart-2026"
task = "tabular"
rounds = 40
[data]
target = "disease"
patient = "patient_id"
[data.columns]
age = { kind = "number", low = 18, high = 100, unit = "years" }
chest_pain = { kind = "category", values = ["typical", "atypical", "non-anginal", "none"] }
patient_id = { kind = "id" }
disease = { kind = "category", values = ["absent", "present"] }
[model]
name = "mlp"
hidden = [64, 64]
[training]
optimizer = "sgd"
learning_rate = 0.1
local_steps = 10
[privacy]
mode = "local"
unit = "record"
epsilon = 4.0
delta = 1e-5
clipping_norm = 1.0
clipping = "flat"
sampling_rate = 0.05
expected_batch = 16
[aggregation]
strategy = "fedavg"
server_learning_rate = 1.0
beta1 = 0.9
beta2 = 0.99
average_last = 0.5
min_sites = 3
masking = "fsa1"
cohort = 0
ring_bits = 32
value_bound = 1.0
weighting = "equal"
deadline_s = 600
spare_attempts = 4
[evaluation]
holdout = 0.2
every = 5
release = "noised"
epsilon = 1.0
[simulation]
sites = 5
partition = "iid"
seed = 7
"""


def example() -> Document:
    return tomllib.loads(EXAMPLE)


def distributed() -> Document:
    document = example()
    del document["training"]["local_steps"], document["aggregation"]["value_bound"]
    document["privacy"] |= {
        "mode": "distributed",
        "sampling_rate": 1.0,
        "records_max": 5000,
        "colluders": 1,
        "noise_answers": 4,
    }
    return document


def plain() -> Document:
    document = example()
    document["training"] |= {"batch_size": 16, "local_epochs": 2}
    del document["training"]["local_steps"]
    document["privacy"] = {"mode": "none"}
    return document


MODES: dict[str, Callable[[], Document]] = {
    "local": example,
    "distributed": distributed,
    "none": plain,
}


def changed(document: Document, key: str, value: object) -> Document:
    """The document with one key set; None deletes it."""
    document = copy.deepcopy(document)
    *parents, last = key.split(".")
    table = document
    for parent in parents:
        table = table.setdefault(parent, {})
    if value is None:
        del table[last]
    else:
        table[last] = value
    return document


def refusal(document: Document) -> str:
    """The one line that a document is refused with."""
    with pytest.raises(StudyError) as caught:
        parse_study(document, "s.toml")
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.hint
    assert text.startswith("s.toml: ")
    return text.removeprefix("s.toml: ")


# What loads


@pytest.mark.parametrize("mode", MODES)
def test_the_documented_example_loads_and_keeps_every_key(mode: str) -> None:
    document = MODES[mode]()
    assert parse_study(document).document() == document


def test_a_file_loads_as_the_document_does(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE)
    assert load_study(path) == parse_study(example())


def test_sampling_rate_of_distributed_mode_is_1_by_default() -> None:
    study = parse_study(changed(distributed(), "privacy.sampling_rate", None))
    assert study.privacy.mode == "distributed"
    assert study.privacy.sampling_rate == 1.0


def test_spare_attempts_are_a_tenth_of_the_rounds_rounded_up() -> None:
    found = {}
    for rounds in (1, 10, 11, 40):
        document = changed(example(), "aggregation.spare_attempts", None)
        found[rounds] = parse_study(changed(document, "rounds", rounds)).spare_attempts
    assert found == {1: 1, 10: 1, 11: 2, 40: 4}


def test_spare_attempts_as_written_stand() -> None:
    assert parse_study(changed(example(), "aggregation.spare_attempts", 0)).spare_attempts == 0


def test_with_sites_changes_the_sites_alone() -> None:
    study = parse_study(example())
    assert study.with_sites(9) == parse_study(changed(example(), "simulation.sites", 9))


def test_with_sites_writes_a_section_that_the_file_left_out() -> None:
    study = parse_study(changed(example(), "simulation", None))
    assert study.with_sites(9).simulation.sites == 9


def test_a_study_cannot_be_changed() -> None:
    study = parse_study(example())
    with pytest.raises(ValueError, match="frozen"):
        study.rounds = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("examples/*/study.toml")), ids=lambda p: p.parent.name
)
def test_an_example_that_ships_runs_without_privacy_by_one_override(path: Path) -> None:
    assert load_study(path, ["privacy.mode=none"]).privacy.mode == "none"


# What is refused: the key, what was expected, what was found


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rounds", None, "rounds: missing"),
        ("data.target", None, "data.target: missing"),
        ("data.columns.age.low", None, "data.columns.age.low: missing"),
        ("privacy.delta", None, "privacy.delta: missing"),
        ("privacy.expected_batch", None, "privacy.expected_batch: missing"),
        ("privacy.sampling_rate", None, "privacy.sampling_rate: missing"),
        ("training.local_steps", None, "training.local_steps: missing"),
        ("privacy", None, "privacy: missing"),
        ("privacy.mode", None, "privacy.mode: missing"),
        ("model.name", None, "model.name: missing"),
        ("roundz", 3, "roundz: unknown key"),
        ("privacy.epsilom", 3, "privacy.epsilom: unknown key"),
        ("data.columns.age.lowest", 3, "data.columns.age.lowest: unknown key"),
        ("privacy.epsilon", 0, "privacy.epsilon: expected greater than 0, found 0"),
        ("privacy.epsilon", -1.5, "privacy.epsilon: expected greater than 0, found -1.5"),
        ("privacy.epsilon", math.nan, "privacy.epsilon: expected a finite number, found nan"),
        ("privacy.epsilon", math.inf, "privacy.epsilon: expected a finite number, found inf"),
        ("privacy.epsilon", "4", "privacy.epsilon: expected a valid number, found '4'"),
        ("privacy.delta", 0, "privacy.delta: expected greater than 0, found 0"),
        ("privacy.delta", 1, "privacy.delta: expected less than 1, found 1"),
        ("privacy.clipping_norm", 0, "privacy.clipping_norm: expected greater than 0, found 0"),
        ("privacy.clipping_norm", math.inf, "privacy.clipping_norm: expected a finite number"),
        ("privacy.expected_batch", 0, "privacy.expected_batch: expected greater than or equal"),
        ("privacy.sampling_rate", 0, "privacy.sampling_rate: expected greater than 0, found 0"),
        ("privacy.sampling_rate", 1.01, "privacy.sampling_rate: expected less than or equal to 1"),
        ("privacy.noise_multiplier", 1.0, "privacy: expected epsilon or noise_multiplier"),
        ("privacy.mode", "global", "privacy.mode: expected 'none', 'local', 'distributed', found"),
        ("privacy.unit", "ward", "privacy.unit: expected 'record' or 'patient', found 'ward'"),
        ("simulation.sites", 2, "simulation.sites: expected greater than or equal to 3, found 2"),
        ("aggregation.min_sites", 2, "aggregation.min_sites: expected greater than or equal to 3"),
        ("task", "astrology", "task: expected 'tabular', 'image', 'series', 'sequence', "),
        ("model.name", "oracle", "model.name: expected 'mlp', 'cnn', 'lstm', 'gru', 'rnn', 'atten"),
        ("rounds", 0, "rounds: expected greater than or equal to 1, found 0"),
        ("rounds", 40.5, "rounds: expected a valid integer, found 40.5"),
        ("rounds", True, "rounds: expected a valid integer, found True"),
        ("name", "../etc", "name: String should match pattern"),
        ("aggregation.weighting", "records", "aggregation.weighting: 'records' expects privacy.mo"),
        ("aggregation.weighting", "public", "aggregation: expected weights with weighting"),
        ("aggregation.weights", {"a": 1.0}, "aggregation: expected weights with weighting"),
        ("evaluation.folds", 5, "evaluation.folds: expected only with privacy.mode = 'none'"),
        ("evaluation.holdout", 1, "evaluation.holdout: expected less than 1, found 1"),
        ("evaluation.release", "loud", "evaluation.release: expected 'noised' or 'exact', found"),
        ("aggregation.ring_bits", 64, "aggregation.ring_bits: expected 16 or 32, found 64"),
        ("aggregation.cohort", 2, "aggregation: expected cohort 0 or >= min_sites, found 2"),
        ("aggregation.cohort", 6, "aggregation.cohort: expected at most simulation.sites (5), fou"),
        ("aggregation.masking", "maybe", "aggregation.masking: expected 'fsa1' or 'none', found"),
        ("simulation.partition", "lottery", "simulation.partition: expected iid, dirichlet:ALPHA"),
        ("training.local_epochs", 1, "training: expected local_steps or local_epochs, not both"),
        ("training.batch_size", 8, "training.batch_size: expected only with privacy.mode = 'none'"),
        ("training.learning_rate", 0, "training.learning_rate: expected greater than 0, found 0"),
        ("privacy", "local", "privacy: "),
        ("data.columns", [], "data.columns: expected"),
    ],
)
def test_a_wrong_key_is_named_with_what_was_expected(key: str, value: object, says: str) -> None:
    assert refusal(changed(example(), key, value)).startswith(says)


def test_simulation_of_more_than_100_sites_under_masks_asks_for_cohorts() -> None:
    assert refusal(changed(example(), "simulation.sites", 101)).startswith(
        "aggregation.cohort: expected 3 to 100 when more than 100 sites mask, found 0"
    )


def test_more_than_100_sites_may_mask_in_cohorts() -> None:
    document = changed(example(), "simulation.sites", 1000)
    assert parse_study(changed(document, "aggregation.cohort", 100)).aggregation.cohort == 100


def test_more_than_100_sites_may_run_unmasked() -> None:
    document = changed(example(), "simulation.sites", 1000)
    assert parse_study(changed(document, "aggregation.masking", "none")).simulation.sites == 1000


def test_a_patient_as_unit_needs_a_patient_column() -> None:
    document = changed(example(), "data.patient", None)
    assert refusal(changed(document, "privacy.unit", "patient")).startswith(
        "data.patient: missing, expected with privacy.unit = 'patient'"
    )


def test_epochs_need_a_batch_size() -> None:
    assert refusal(changed(plain(), "training.batch_size", None)).startswith(
        "training.batch_size: missing"
    )


def test_momentum_is_refused_beside_adam() -> None:
    document = changed(example(), "training.optimizer", "adam")
    assert refusal(changed(document, "training.momentum", 0.9)).startswith("training.momentum:")


def test_records_as_weights_need_the_wide_ring() -> None:
    document = changed(plain(), "aggregation.weighting", "records")
    assert refusal(changed(document, "aggregation.ring_bits", 16)).startswith(
        "aggregation.ring_bits: expected 32"
    )


def test_two_mistakes_are_both_named() -> None:
    text = refusal(changed(changed(example(), "rounds", 0), "privacy.epsilon", -1))
    assert "rounds: expected" in text
    assert "; privacy.epsilon: expected" in text


def test_a_key_of_control_characters_stays_on_one_line() -> None:
    assert "unknown key" in refusal(changed(example(), "a\nb", 1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.records_max", 5000),
        ("privacy.colluders", 1),
        ("privacy.noise_answers", 4),
        ("training.local_epochs", 1),
        ("training.batch_size", 8),
        ("aggregation.weighting", "records"),
        ("evaluation.folds", 5),
    ],
)
def test_a_key_of_another_mode_is_refused_in_mode_local(key: str, value: object) -> None:
    document = changed(example(), key, value)
    if key == "training.local_epochs":
        del document["training"]["local_steps"]
    assert key in refusal(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aggregation.value_bound", 1.0),
        ("training.local_steps", 10),
        ("training.batch_size", 8),
        ("aggregation.weighting", "records"),
        ("aggregation.strategy", "fedprox"),
        ("aggregation.strategy", "scaffold"),
        ("evaluation.folds", 5),
        ("training.optimizer", "adam"),
        ("training.momentum", 0.9),
    ],
)
def test_a_key_of_another_mode_is_refused_in_mode_distributed(key: str, value: object) -> None:
    assert key in refusal(changed(distributed(), key, value))


@pytest.mark.parametrize(
    ("document", "units"),
    [
        (example(), 960),  # three sites in every sum, 16 / 0.05 records each
        (changed(example(), "aggregation.min_sites", 5), 1600),
        (changed(example(), "privacy.sampling_rate", 0.5), 96),
        (changed(example(), "privacy.unit", "patient"), 960),
        (distributed(), 5000),  # records_max
        (changed(distributed(), "privacy.records_max", 16), 48),
    ],
)
def test_a_delta_of_one_in_the_public_number_of_records_is_refused(
    document: Document, units: int
) -> None:
    below = changed(document, "privacy.delta", 0.999 / units)
    assert parse_study(below).privacy.mode != "none"
    for delta in (1 / units, 2 / units, 0.5):
        said = refusal(changed(document, "privacy.delta", delta))
        assert f"privacy.delta: expected below one in {units}, the " in said
    if document["privacy"]["unit"] == "patient":
        assert "the patients that" in said


def test_distributed_mode_asks_for_the_size_of_its_ring() -> None:
    assert "privacy.records_max: missing" in refusal(
        changed(distributed(), "privacy.records_max", None)
    )


# Mode none on any study


@pytest.mark.parametrize("mode", ["local", "none", "distributed"])
def test_mode_none_by_one_override_loads_any_study(mode: str) -> None:
    assert parse_study(changed(MODES[mode](), "privacy.mode", "none")).privacy.mode == "none"


def test_mode_none_ignores_private_keys_and_the_digest_does_too() -> None:
    written = {**distributed()["privacy"], "mode": "none", "noise_multiplier": 2.0}
    bare = plain()
    assert parse_study({**bare, "privacy": written}).digest() == parse_study(bare).digest()


def test_mode_none_ignores_even_a_wrong_value_of_a_private_key() -> None:
    document = plain()
    assert parse_study(changed(document, "privacy.epsilon", -1)) == parse_study(document)


def test_mode_none_refuses_an_unknown_private_key() -> None:
    assert refusal(changed(plain(), "privacy.epsilom", 1)) == "privacy.epsilom: unknown key"


# The digest


@pytest.mark.parametrize("mode", MODES)
def test_the_document_of_a_study_loads_into_an_equal_study(mode: str) -> None:
    study = parse_study(MODES[mode]())
    again = parse_study(study.document())
    assert again == study
    assert again.digest() == study.digest()


def test_a_key_written_with_its_default_leaves_the_digest() -> None:
    document = changed(example(), "aggregation", None)
    written = changed(document, "aggregation", {"beta1": 0.9, "strategy": "fedavg"})
    assert parse_study(document).digest() == parse_study(written).digest()


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(MODES)))
def test_the_digest_does_not_depend_on_the_order_of_keys(order: random.Random, mode: str) -> None:
    def shuffled(table: Document, path: str = "") -> Document:
        keys = list(table)
        if path != ".data.columns":
            order.shuffle(keys)
        return {
            k: shuffled(v, f"{path}.{k}") if isinstance(v := table[k], dict) else v for k in keys
        }

    document = MODES[mode]()
    assert parse_study(shuffled(document)).digest() == parse_study(document).digest()


def test_a_whole_number_is_the_same_with_and_without_its_point() -> None:
    whole = EXAMPLE.replace("4.0", "4").replace("1.0", "1").replace("= 600", "= 6e2")
    assert whole != EXAMPLE
    assert parse_study(tomllib.loads(whole)).digest() == parse_study(example()).digest()


def test_a_zero_is_the_same_with_either_sign() -> None:
    document = changed(example(), "data.columns.age.low", 0.0)
    negative = changed(example(), "data.columns.age.low", -0.0)
    assert parse_study(document).digest() == parse_study(negative).digest()


def test_the_digest_depends_on_the_order_of_columns() -> None:
    document = example()
    columns = document["data"]["columns"]
    turned = changed(document, "data.columns", dict(reversed(columns.items())))
    assert parse_study(document).digest() != parse_study(turned).digest()


def test_the_digest_depends_on_the_order_of_the_variables_of_a_series() -> None:
    variables = {"pulse": {"low": 0, "high": 300}, "oxygen": {"low": 0, "high": 300}}
    digests = set()
    for names in (("pulse", "oxygen"), ("oxygen", "pulse")):
        series = {"kind": "series", "steps": 4, "variables": {n: variables[n] for n in names}}
        digests.add(parse_study(changed(example(), "data.columns.stay", series)).digest())
    assert len(digests) == 2


def leaves(table: object, path: str = "") -> list[str]:
    """The dotted keys of all values of a document; of a list of columns by position."""
    if isinstance(table, dict):
        return [leaf for k, v in table.items() for leaf in leaves(v, f"{path}.{k}".strip("."))]
    return [path]


OTHER: dict[str, object] = {
    "name": "other",
    "task": "image",
    "data.target": "chest_pain",
    "data.patient": None,
    "data.columns.age.kind": None,
    "model.name": "lstm",
    "training.optimizer": "adam",
    "privacy.mode": "none",
    "privacy.unit": "patient",
    "aggregation.strategy": "fedyogi",
    "aggregation.masking": "none",
    "aggregation.weighting": None,
    "aggregation.ring_bits": 16,
    "aggregation.cohort": 4,
    "privacy.sampling_rate": 0.5,
    "privacy.clipping": "layer",
    "evaluation.release": "exact",
    "evaluation.holdout": 0.25,
    "simulation.partition": "dirichlet:0.5",
    "data.columns.age.unit": "months",
    "data.columns.patient_id.kind": None,
    "data.columns.chest_pain.kind": None,
    "data.columns.disease.kind": None,
    "data.columns.chest_pain.values": ["typical", "atypical", "non-anginal"],
    "data.columns.disease.values": ["no", "yes"],
    "model.hidden": [64, 63],
}


def other_value(key: str, value: object) -> object:
    if key in OTHER:
        return OTHER[key]
    assert isinstance(value, int | float), key
    if isinstance(value, int):
        return value + 1
    return value * 0.9


def at(document: Document, key: str) -> object:
    place: Any = document
    for part in key.split("."):
        place = place[part]
    return place


# Kinds cannot be changed alone; a weighting needs weights beside it; both have tests of their own.
CHANGEABLE = {
    mode: [
        key
        for key in leaves(make())
        if not (key in OTHER and OTHER[key] is None and key != "data.patient")
        and (mode, key) != ("none", "privacy.mode")  # the other modes have other keys
        and (mode, key) != ("distributed", "training.optimizer")  # has one value there
    ]
    for mode, make in MODES.items()
}


@pytest.mark.parametrize(
    ("mode", "key"), [(mode, key) for mode, keys in CHANGEABLE.items() for key in keys]
)
def test_the_digest_depends_on_every_key(mode: str, key: str) -> None:
    document = MODES[mode]()
    before = parse_study(document).digest()
    altered = changed(document, key, other_value(key, at(document, key)))
    if key == "privacy.mode" and mode == "distributed":
        altered["training"]["local_steps"] = 1
    assert parse_study(altered).digest() != before


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_two_values_of_a_number_have_one_digest_only_when_they_are_equal(
    data: st.DataObject,
) -> None:
    key = data.draw(
        st.sampled_from(
            [
                "privacy.epsilon",
                "training.learning_rate",
                "aggregation.deadline_s",
                "simulation.seed",
            ]
        )
    )
    numbers = (
        st.integers(0, 2**63 - 1)
        if key == "simulation.seed"
        else st.floats(1e-300, 1e300) | st.integers(1, 2**53)
    )
    one, two = data.draw(numbers), data.draw(numbers)
    digests = {parse_study(changed(example(), key, value)).digest() for value in (one, two)}
    assert len(digests) == (1 if one == two else 2)


def test_public_weights_are_in_the_digest_whatever_their_order() -> None:
    weights = {"weighting": "public", "weights": {"a": 1.0, "b": 2.0}}
    turned = {"weighting": "public", "weights": {"b": 2.0, "a": 1.0}}
    heavier = {"weighting": "public", "weights": {"a": 1.0, "b": 3.0}}
    digests = [
        parse_study(changed(example(), "aggregation", section)).digest()
        for section in (weights, turned, heavier)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_the_canonical_form_has_no_key_of_another_mode() -> None:
    privacy = json.loads(parse_study(example()).canonical())["privacy"]
    assert set(privacy) == set(example()["privacy"])
    assert json.loads(parse_study(plain()).canonical())["privacy"] == {"mode": "none"}
    canonical = json.loads(parse_study(distributed()).canonical())
    assert "value_bound" not in canonical["aggregation"]


def test_the_digest_is_the_hash_of_sorted_json_without_blanks() -> None:
    study = parse_study(example())
    parsed = json.loads(study.canonical())
    text = json.dumps(parsed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert study.digest() == hashlib.sha256(text.encode()).hexdigest()


# Overrides


def overridden(tmp_path: Path, *overrides: str) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE)
    return load_study(path, overrides)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("privacy.epsilon=2", "privacy.epsilon", 2),
        ("privacy.epsilon=2.5e-1", "privacy.epsilon", 0.25),
        ("rounds=7", "rounds", 7),
        ("aggregation.strategy=fedadam", "aggregation.strategy", "fedadam"),
        ('aggregation.strategy="fedadam"', "aggregation.strategy", "fedadam"),
        ("model.hidden=[8, 4]", "model.hidden", [8, 4]),
        ("model.hidden=[]", "model.hidden", []),
        ("simulation.partition=dirichlet:0.5", "simulation.partition", "dirichlet:0.5"),
        ("data.header=false", "data.header", False),
        (
            "data.columns.sex={ kind = 'category', values = ['f', 'm'] }",
            "data.columns.sex",
            {"kind": "category", "values": ["f", "m"]},
        ),
        ("data.columns.sex.kind=id", "data.columns.sex", {"kind": "id"}),
        ("name=a=b", "name", None),
    ],
)
def test_an_override_sets_one_key(tmp_path: Path, override: str, key: str, value: object) -> None:
    if value is None:
        with pytest.raises(StudyError, match="found 'a=b'"):
            overridden(tmp_path, override)
        return
    assert overridden(tmp_path, override) == parse_study(changed(example(), key, value))


def test_an_override_makes_the_table_that_the_file_left_out(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE.partition("[evaluation]")[0])
    assert load_study(path, ["evaluation.every=3"]).evaluation.every == 3


def test_the_last_of_two_overrides_stands(tmp_path: Path) -> None:
    assert overridden(tmp_path, "rounds=7", "rounds=8").rounds == 8


@pytest.mark.parametrize(
    "override", ["rounds", "=7", "privacy.=7", ".rounds=7", "privacy..epsilon=2"]
)
def test_an_override_without_key_and_value_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(StudyError, match="expected KEY=VALUE, found"):
        overridden(tmp_path, override)


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"--set rounds\.x: rounds is not a table"):
        overridden(tmp_path, "rounds.x=1")


def test_an_override_of_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"privacy\.epsilom: unknown key"):
        overridden(tmp_path, "privacy.epsilom=1")


def test_an_override_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="rounds: expected a valid integer, found 'many'"):
        overridden(tmp_path, "rounds=many")


def test_an_override_of_two_lines_sets_nothing_behind_the_first(tmp_path: Path) -> None:
    with pytest.raises(StudyError):
        overridden(tmp_path, "rounds=7\nname = 'x'")


# Files


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none\.toml: cannot be read \(No such file"):
        load_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "content",
    [
        b"rounds = ",
        b"\xff\xfe",
        b"rounds = 1\nrounds = 2",
        b"rounds = " + b"9" * 5000,
        b"rounds = " + b"[" * 5000,
    ],
    ids=["no value", "no text", "twice", "5000 digits", "5000 brackets"],
)
def test_what_is_no_toml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyError, match="expected TOML, found") as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


def test_a_file_above_the_ceiling_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE + "#" * STUDY_BYTES_MAX)
    with pytest.raises(StudyError, match="at most 1 MiB"):
        load_study(path)


# The canonical form, read back


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in (ROOT / "examples").glob("*/study.toml"))
)
def test_an_example_is_read_back_from_its_canonical_form(name: str) -> None:
    study = load_study(ROOT / "examples" / name / "study.toml")
    assert read_canonical(study.canonical()).digest() == study.digest()


@pytest.mark.parametrize("made", MODES.values(), ids=list(MODES))
def test_every_mode_is_read_back(made: Callable[[], dict[str, Any]]) -> None:
    study = parse_study(made())
    back = read_canonical(study.canonical())
    assert back.digest() == study.digest()
    assert list(back.data.columns) == list(study.data.columns)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " ",
        lambda text: text.replace(":", ": ", 1),
        lambda text: "[]",
        lambda text: "{",
        lambda text: text.replace('"columns":[', '"columns":[{"kind":"id","name":"patient"},'),
        lambda text: text.replace('"columns":', '"columns":7,"other":'),
    ],
)
def test_another_form_is_no_canonical_study(change: Callable[[str], str]) -> None:
    document = example()
    document["data"]["columns"]["patient"] = {"kind": "id"}
    with pytest.raises(StudyError):
        read_canonical(change(parse_study(document).canonical()))


@pytest.mark.parametrize("target", [["disease", "age"], "scan"])
def test_a_label_is_one_number_or_category(target: object) -> None:
    document = changed(example(), "data.target", target)
    document["data"]["columns"]["scan"] = {"kind": "image", "height": 8, "width": 8}
    assert "data.target: expected one number or category column" in refusal(document)
