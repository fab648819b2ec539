"""The plan covers what no server may choose, and nothing that a revocation changes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from privacy.errors import StudyError
from privacy.keys import identity
from privacy.roster import Member, Roster
from shared_models.plan import (
    PACKAGES,
    ROOT,
    code_digest,
    make_plan,
    plan_document,
    roster_digest,
)
from shared_models.ring import ring_of
from shared_models.study import Study, parse_study

LOCAL = {
    "mode": "local",
    "epsilon": 2.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 0.5,
    "expected_batch": 16,
}
DISTRIBUTED = {
    "mode": "distributed",
    "epsilon": 2.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 16,
    "records_max": 500,
}
FIRST = bytes([9]) * 32


def study(privacy: dict[str, Any] | None = None, **aggregation: Any) -> Study:
    privacy = privacy or {"mode": "none"}
    training: dict[str, Any] = {"learning_rate": 0.5}
    if privacy["mode"] == "local":
        training["local_steps"] = 2
    return parse_study(
        {
            "name": "toy",
            "task": "tabular",
            "rounds": 4,
            "data": {
                "target": "ill",
                "columns": {
                    "age": {"kind": "number", "low": 0, "high": 100},
                    "ill": {"kind": "category", "values": ["no", "yes"]},
                },
            },
            "model": {"name": "mlp", "hidden": [4]},
            "training": training,
            "privacy": privacy,
            "aggregation": aggregation,
            "simulation": {"sites": 100},
        }
    )


def public(number: int) -> bytes:
    return identity(bytes([number]) * 32).public


def roster(n: int = 7) -> Roster:
    return Roster(tuple(Member(f"site-{i}", public(i + 1)) for i in range(n)), public(200))


def read(given: Study, n: int = 7) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(plan_document(given, roster(n), 33, FIRST))
    return document


def test_the_digest_is_the_sha_256_of_the_document() -> None:
    text = plan_document(study(), roster(), 33, FIRST)
    assert make_plan(study(), roster(), 33, FIRST).digest == hashlib.sha256(text.encode()).digest()


def test_the_document_is_canonical() -> None:
    text = plan_document(study(), roster(), 33, FIRST)
    again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert text == again


def test_the_document_has_the_keys_of_the_protocol() -> None:
    assert set(read(study())) == {
        *("study", "roster", "n", "t", "t_n", "n_c", "min_sites", "d", "ring_bits", "scale"),
        *("lanes", "first_model", "code"),
    }


def test_the_numbers_follow_from_the_roster() -> None:
    document = read(study(), 7)
    assert [document[key] for key in ("n", "t", "t_n", "n_c")] == [7, 5, 5, 2]


def test_min_sites_stands_in_the_plan() -> None:
    assert read(study(min_sites=6))["min_sites"] == 6


def test_the_scale_is_that_of_the_encoding() -> None:
    assert read(study(value_bound=0.25), 7)["scale"] == ((2**31 - 1) // 7) / 0.25


def test_the_scale_of_the_narrow_ring_is_its_own() -> None:
    assert read(study(ring_bits=16), 7)["scale"] == float((2**15 - 1) // 7)


def test_the_scale_of_mode_distributed_is_that_of_its_ring() -> None:
    given = study({**DISTRIBUTED, "clipping_norm": 0.25})
    assert read(given)["scale"] == 4 * 2.0 ** ring_of(given, 7, 33).exponent


def test_a_distributed_study_without_room_has_no_plan() -> None:
    with pytest.raises(StudyError, match="expected room for"):
        read(study({**DISTRIBUTED, "records_max": 10**9, "delta": 1e-12}))


def test_a_value_bound_without_a_finite_scale_is_refused() -> None:
    with pytest.raises(StudyError, match="value_bound"):
        plan_document(study(value_bound=5e-324), roster(), 33, FIRST)


def test_a_cohort_is_the_n_of_its_runs() -> None:
    assert read(study(cohort=4), 7)["n"] == 4


def test_t_n_and_n_c_of_the_study_stand_in_the_plan() -> None:
    document = read(study({**DISTRIBUTED, "noise_answers": 6, "colluders": 1}), 7)
    assert (document["t_n"], document["n_c"]) == (6, 1)


def test_n_c_of_zero_is_kept() -> None:
    assert read(study({**DISTRIBUTED, "colluders": 0}), 7)["n_c"] == 0


@pytest.mark.parametrize("n", [7, 100])
def test_more_colluders_than_a_third_are_refused(n: int) -> None:
    many = study({**DISTRIBUTED, "colluders": (n - 1) // 3 + 1})
    with pytest.raises(StudyError, match="colluders"):
        plan_document(many, roster(n), 33, FIRST)


@pytest.mark.parametrize("t_n", [4, 8])
def test_t_n_below_t_or_above_n_is_refused(t_n: int) -> None:
    with pytest.raises(StudyError, match="noise_answers"):
        plan_document(study({**DISTRIBUTED, "noise_answers": t_n}), roster(7), 33, FIRST)


def test_min_sites_above_n_are_refused() -> None:
    with pytest.raises(StudyError, match="min_sites"):
        plan_document(study(min_sites=8), roster(7), 33, FIRST)


def test_two_sites_have_no_plan() -> None:
    with pytest.raises(StudyError, match="sites in 3"):
        plan_document(study(), roster(2), 33, FIRST)


def test_scaffold_sends_twice_the_values() -> None:
    assert read(study(strategy="scaffold"))["d"] == 66


def test_a_private_training_round_has_no_lanes() -> None:
    assert read(study(LOCAL))["lanes"]["train"] == []


def test_a_first_model_that_is_no_hash_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="hash of 32 bytes"):
        plan_document(study(), roster(), 33, b"short")


def test_a_revocation_leaves_the_digest_of_the_plan() -> None:
    whole = roster()
    fewer = Roster(
        (*whole.sites[:6], Member("site-6", whole.sites[6].public, revoked=True)), whole.server
    )
    assert make_plan(study(), whole, 33, FIRST) == make_plan(study(), fewer, 33, FIRST)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda r: Roster(r.sites[:-1], r.server), id="fewer sites"),
        pytest.param(lambda r: Roster(r.sites[::-1], r.server), id="another order"),
        pytest.param(lambda r: Roster(r.sites, public(201)), id="another server"),
        pytest.param(
            lambda r: Roster((Member("site-0", public(99)), *r.sites[1:]), r.server),
            id="another key",
        ),
        pytest.param(
            lambda r: Roster((Member("bonn", r.sites[0].public), *r.sites[1:]), r.server),
            id="another name",
        ),
    ],
)
def test_any_other_change_of_the_roster_changes_its_digest(other: Any) -> None:
    assert roster_digest(other(roster())) != roster_digest(roster())


@pytest.mark.parametrize(
    ("given", "parameters", "first"),
    [
        (study(min_sites=4), 33, FIRST),
        (study(value_bound=2.0), 33, FIRST),
        (study(), 34, FIRST),
        (study(), 33, bytes(32)),
    ],
)
def test_what_the_plan_covers_changes_its_digest(
    given: Study, parameters: int, first: bytes
) -> None:
    assert make_plan(given, roster(), parameters, first).digest != (
        make_plan(study(), roster(), 33, FIRST).digest
    )


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def line(name: str, content: bytes) -> bytes:
    return f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode()


def test_the_code_digest_is_over_lines_sorted_by_path_over_all_packages(tmp_path: Path) -> None:
    files = {f"{package}/x.py": package.encode() for package in PACKAGES}
    # "client/data.py" and the folder "client/data": as texts "." sorts before "/"
    files |= {"client/data/a.py": b"1", "client/data.py": b"2"}
    expected = b"".join(line(name, files[name]) for name in sorted(files))
    assert code_digest(tree(tmp_path, files)) == hashlib.sha256(expected).hexdigest()


def test_the_code_digest_leaves_out_what_is_no_code_of_ours(tmp_path: Path) -> None:
    ours, more = tmp_path / "ours", tmp_path / "more"
    code = {"privacy/x.py": b"1"}
    others = {"privacy/x.txt": b"2", "tests/x.py": b"3", "privacy/__pycache__/x.pyc": b"4"}
    assert code_digest(tree(ours, code)) == code_digest(tree(more, code | others))


@pytest.mark.parametrize(
    "files", [{"privacy/x.py": b"2"}, {"privacy/y.py": b"1"}, {"client/x.py": b"1"}]
)
def test_another_file_or_name_changes_the_code_digest(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    one = code_digest(tree(tmp_path / "one", {"privacy/x.py": b"1"}))
    assert code_digest(tree(tmp_path / "other", files)) != one


def test_the_running_code_is_all_five_packages() -> None:
    assert {name for name in PACKAGES if any((ROOT / name).rglob("*.py"))} == set(PACKAGES)
