"""A record that breaks the contract is left out and counted; the others are what they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.data import ceiling
from client.data.holdout import held_out
from client.data.read import read_records
from client.data.records import Records
from client.split import split
from privacy.errors import DataError
from shared_models.study import Study, parse_study

SECRET = "83514"  # stands in broken records alone
AGE = {"kind": "number", "low": 0, "high": 100}
Y = {"kind": "category", "values": ["0", "1"]}


def study_of(
    columns: dict[str, Any], task: str = "tabular", evaluation: Any = None, **data: Any
) -> Study:
    model = {"tabular": "mlp", "image": "cnn", "series": "lstm", "sequence": "attention"}[task]
    return parse_study(
        {
            "name": "ward",
            "task": task,
            "rounds": 1,
            "data": {"target": "y", "columns": {**columns, "y": Y}, **data},
            "model": {"name": model},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
            **({"evaluation": evaluation} if evaluation else {}),
        }
    )


def same(one: Records, other: Records) -> None:
    assert one.inputs.tobytes() == other.inputs.tobytes()
    assert one.inputs.shape == other.inputs.shape
    assert one.targets.tolist() == other.targets.tolist()
    assert one.identities == other.identities


def read_both(
    study: Study, path: Path, clean: Path, left_out: int, told: int | None = None
) -> Records:
    """Read what is left of a file, and compare it with one that never had the broken records."""
    with pytest.raises(DataError) as refused:
        read_records(study, path)
    assert SECRET not in str(refused.value)
    found = read_records(study, path, leave_out=True)
    same(found, read_records(study, clean))
    assert found.left_out.count == left_out
    assert all(SECRET not in place for place in found.left_out.places)
    assert len(found.left_out.places) == (min(left_out, 5) if told is None else told)
    return found


ROWS = {
    "good": st.integers(0, 100).map(lambda age: f"{age},1"),
    "bad": st.sampled_from(
        [SECRET + ",1", f"7,{SECRET}", f"x{SECRET},0", ",1", "7", "7,1,1", f'"{SECRET},1', "inf,0"]
    ),
}


@given(
    rows=st.lists(
        st.one_of(*(st.tuples(st.just(kind), text) for kind, text in ROWS.items())), min_size=1
    )
)
def test_good_rows_of_a_table_are_read_as_if_there_were_no_others(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    study = study_of({"age": AGE})
    lines = [text for _, text in rows]
    good = [text for kind, text in rows if kind == "good"]
    (folder / "all.csv").write_text("\n".join(["age,y", *lines]) + "\n")
    (folder / "good.csv").write_text("\n".join(["age,y", *good]) + "\n")
    found = read_records(study, folder / "all.csv", leave_out=True)
    same(found, read_records(study, folder / "good.csv"))
    assert found.left_out.count == len(lines) - len(good)
    assert SECRET not in "".join(found.left_out.places)


def test_bytes_that_are_no_text_cost_their_own_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"age,y\n7,1\n\xff\xfe,1\n8,0\n")
    (tmp_path / "b.csv").write_bytes(b"age,y\n7,1\n8,0\n")
    read_both(study_of({"age": AGE}), tmp_path / "a.csv", tmp_path / "b.csv", 1)


def test_what_is_wrong_with_a_whole_file_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,why\n7,1\n")
    with pytest.raises(DataError, match="expected a header with the study's columns"):
        read_records(study_of({"age": AGE}), tmp_path / "a.csv", leave_out=True)
    with pytest.raises(DataError):
        read_records(study_of({"age": AGE}), tmp_path / "none.csv", leave_out=True)


def test_objects_of_json_lines(tmp_path: Path) -> None:
    good = ['{"age": 63, "y": 1}', '{"age": 5, "y": 0}']
    bad = [f'{{"age": {SECRET}, "y": 1}}', '{"age": 3', "[]", '{"y": 1}', f'{{"age": "{SECRET}x"}}']
    (tmp_path / "a.jsonl").write_text("\n".join([bad[0], good[0], *bad[1:], good[1]]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(good) + "\n")
    read_both(study_of({"age": AGE}), tmp_path / "a.jsonl", tmp_path / "b.jsonl", len(bad))


def test_rows_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", age=[1.0, float(SECRET), 2.0, np.nan], y=["0", "1", "1", "1"])
    np.savez(tmp_path / "b.npz", age=[1.0, 2.0], y=["0", "1"])
    read_both(study_of({"age": AGE}), tmp_path / "a.npz", tmp_path / "b.npz", 2)


def test_steps_of_series(tmp_path: Path) -> None:
    column = {"kind": "series", "steps": 2, "variables": {"hr": {"low": 0, "high": 300}}}
    x = np.array([[[60.0], [61.0]], [[62.0], [float(SECRET)]], [[64.0], [65.0]]])
    np.savez(tmp_path / "a.npz", x=x, y=["0", "1", "1"])
    np.savez(tmp_path / "b.npz", x=x[[0, 2]], y=["0", "1"])
    read_both(study_of({"x": column}, "series"), tmp_path / "a.npz", tmp_path / "b.npz", 1)


def test_letters_of_sequences(tmp_path: Path) -> None:
    column = {"kind": "letters", "length": 4, "alphabet": "ACGT"}
    (tmp_path / "a.csv").write_text(f"x,y\nACG,1\nACGTA,1\n{SECRET[:3]},0\nT,0\n")
    (tmp_path / "b.csv").write_text("x,y\nACG,1\nT,0\n")
    read_both(study_of({"x": column}, "sequence"), tmp_path / "a.csv", tmp_path / "b.csv", 2)


def test_pictures_of_folders(tmp_path: Path) -> None:
    column = {"kind": "image", "height": 4, "width": 4, "channels": 1, "high": 255}
    study = study_of({"x": column}, "image", format="png")
    for root in ("all", "good"):
        for label in "01":
            folder = tmp_path / root / label
            folder.mkdir(parents=True)
            pixels = np.full((4, 4), 9 + int(label), dtype="u1")
            Image.fromarray(pixels).save(folder / "a.png")
    (tmp_path / "all" / "1" / "b.png").write_bytes(b"no picture " + SECRET.encode())
    Image.fromarray(np.zeros((5, 4), dtype="u1")).save(tmp_path / "all" / "0" / "c.png")
    read_both(study, tmp_path / "all", tmp_path / "good", 2)


def test_a_site_without_a_good_record_has_none(tmp_path: Path) -> None:
    study = study_of({"age": AGE})
    (tmp_path / "a.csv").write_text(f"age,y\n{SECRET},1\n")
    found = read_records(study, tmp_path / "a.csv", leave_out=True)
    assert (len(found), found.left_out.count) == (0, 1)
    sides = split(study, found, bytes(32), 1.0)
    assert (len(sides.train), len(sides.held)) == (0, 0)
    assert sides.train.inputs.shape == (0, 1)


def test_records_above_the_ceiling_are_left_out_from_the_last_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have grown since the approval: how many there are must not stop a round."""
    column = {"kind": "letters", "length": 64, "alphabet": "ACGT"}  # 512 bytes
    study = study_of({"x": column, "who": {"kind": "id"}}, "sequence", patient="who")
    for folder, rows in (("all", 6), ("few", 4)):
        (tmp_path / folder).mkdir()
        lines = [f"{'ACGT'[row % 4]},p{row // 2},1" for row in range(3 + rows)]
        (tmp_path / folder / "a.csv").write_text("\n".join(["x,who,y", *lines[:3]]))
        (tmp_path / folder / "b.csv").write_text("\n".join(["x,who,y", *lines[3:]]))
    whole = read_records(study, tmp_path / "few")
    monkeypatch.setattr(ceiling, "BYTES_MAX", 7 * 512 + 511)
    found = read_both(study, tmp_path / "all", tmp_path / "few", 2, told=1)
    assert found.patients is not None
    assert whole.patients is not None
    assert found.patients.tolist() == whole.patients.tolist()


def test_a_table_above_the_ceiling_is_left_out_from_there_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of({"age": AGE})
    (tmp_path / "a.csv").write_text("age,y\n1,1\n2,0\n3,1\n4,0\n")
    (tmp_path / "b.csv").write_text("age,y\n1,1\n2,0\n")
    (tmp_path / "a.jsonl").write_text('{"age": 1, "y": 1}\n{"age": 2, "y": 0}\n[]\n[]\n')
    monkeypatch.setattr(ceiling, "CELLS_MAX", 4)
    for name in ("a.csv", "a.jsonl"):
        read_both(study, tmp_path / name, tmp_path / "b.csv", 1)


@pytest.mark.parametrize("most", [800_000, 3 << 18, (3 << 18) + 1])
def test_a_file_above_the_ceiling_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    study = study_of({"age": AGE})
    lines = [f"{row % 90},1" for row in range(200_000)]
    (tmp_path / "a.csv").write_text("\n".join(["age,y", *lines]) + "\n")
    monkeypatch.setattr(ceiling, "BYTES_MAX", most)
    with pytest.raises(DataError, match=f"at most {most:,} bytes"):
        read_records(study, tmp_path / "a.csv")
    found = read_records(study, tmp_path / "a.csv", leave_out=True)
    read = (tmp_path / "a.csv").read_bytes()[:most].count(b"\n") - 1  # without the header
    assert len(found) == read
    assert found.left_out.count in (1, 2)  # the rest, and a line that it cuts
    whole = [row % 90 / 50 - 1 for row in range(read)]
    assert np.allclose(found.inputs[:, 0], whole, atol=1e-6)


def test_pictures_above_the_ceiling_cost_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = {"kind": "image", "height": 4, "width": 4, "channels": 1, "high": 255}
    study = study_of({"x": column}, "image", format="png")
    for root, names in (("all", "abcd"), ("few", "ab")):
        for label in "01":
            folder = tmp_path / root / label
            folder.mkdir(parents=True)
            for shade, name in enumerate(names):
                pixels = np.full((4, 4), 9 * shade + int(label), dtype="u1")
                Image.fromarray(pixels).save(folder / f"{name}.png")
    monkeypatch.setattr(ceiling, "BYTES_MAX", 4 * 16 * 4)
    read_both(study, tmp_path / "all", tmp_path / "few", 4, told=1)


def test_a_picture_without_its_mask_is_left_out(tmp_path: Path) -> None:
    column = {"kind": "image", "height": 4, "width": 4, "channels": 1, "high": 255}
    mask = {"kind": "mask", "values": ["out", "in"]}
    study = parse_study(
        {
            "name": "ward",
            "task": "segmentation",
            "rounds": 1,
            "data": {"target": "y", "columns": {"x": column, "y": mask}, "format": "png"},
            "model": {"name": "unet"},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
        }
    )
    for root, names in (("all", "abc"), ("few", "ac")):
        for folder in "xy":
            (tmp_path / root / folder).mkdir(parents=True)
            for name in names:
                pixels = np.full((4, 4), int(folder == "y"), dtype="u1")
                Image.fromarray(pixels).save(tmp_path / root / folder / f"{name}.png")
    (tmp_path / "all" / "y" / "b.png").unlink()
    read_both(study, tmp_path / "all", tmp_path / "few", 1)


def test_a_patient_on_both_sides_is_held_out_once_the_site_has_begun(tmp_path: Path) -> None:
    columns = {
        "age": AGE,
        "who": {"kind": "id"},
        "fold": {"kind": "category", "values": ["a", "b"]},
    }
    evaluation = {"holdout_column": "fold", "holdout_values": ["b"]}
    study = study_of(columns, patient="who", evaluation=evaluation)
    path = tmp_path / "a.csv"
    path.write_text("age,who,fold,y\n1,p,a,0\n2,p,b,1\n3,q,a,0\n4,r,b,0\n")
    records = read_records(study, path, leave_out=True)
    with pytest.raises(DataError, match="every patient on one side"):
        held_out(records, study.evaluation, bytes(32))
    held = held_out(records, study.evaluation, bytes(32), approved=True)
    assert held.tolist() == [True, True, False, True]
