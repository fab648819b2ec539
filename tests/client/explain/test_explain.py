"""fedward-site explain: what it says, what it refuses, and that nothing leaves its folder."""

import base64
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from client import cli
from client.explain import explanation
from client.explain.explanation import Check, explain
from client.explain.methods import Subject
from shared_models.study import Study
from tests.client.explain.models import (
    ANSWER,
    letter_finder,
    random_weights,
    save,
    splice_study,
    study_of,
    table_study,
    weights,
)

ATTENTION = {"name": "attention", "width": 8, "heads": 2, "layers": 1, "feedforward": 8}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Ended]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedward-site", "explain", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        code = end.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return run


def refused(ended: Ended, code: int = 2) -> str:
    lines = ended.err.splitlines()
    assert (ended.code, ended.out) == (code, ""), ended
    assert lines[0].startswith("fedward-site: error: "), ended.err
    assert all(line.startswith("hint: ") for line in lines[1:]), ended.err
    assert len(lines) <= 2, ended.err
    return lines[0].removeprefix("fedward-site: error: ")


def table(path: Path, count: int = 60, answers: bool = True) -> Path:
    values = np.random.default_rng(2).uniform(-1, 1, (count, 8))
    rows = [",".join("abcdefgh") + (",y" if answers else "")]
    for row in values:
        answer = ",yes" if row[4] > 0 else ",no"
        rows.append(",".join(f"{one:.4f}" for one in row) + (answer if answers else ""))
    path.write_text("\n".join(rows) + "\n")
    return path


def model(folder: Path) -> Path:
    """A model that uses column e most, a and b a little."""
    network = weights(random_weights(table_study()), layers__0__weight=[1, -1, 0, 0, 5, 0, 0, 0])
    return save(folder, table_study(), network)


def test_a_table_is_explained(program: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = program(
        model(tmp_path / "m"), "--data", table(tmp_path / "r.csv"), "--out", out, "--json"
    )
    assert ended.code == 0, ended.err
    found = json.loads((out / "explanation.json").read_text())
    assert json.loads(ended.out) == found
    assert [one["record"] for one in found["records"]] == [1, 2, 3, 4, 5, 6]
    for one in found["records"]:
        values = one["attributions"]["integrated_gradients"]
        assert sum(values) == pytest.approx(one["score"] - one["baseline_score"], abs=1e-5)
        assert one["completeness_gap"] < 1e-5
    importance = found["permutation_importance"]
    assert importance["groups"][int(np.argmax(importance["rise"]))] == "e"
    assert [one["method"] for one in found["sanity"]] == [
        "integrated_gradients",
        "occlusion",
        "permutation_importance",
    ]
    for one in found["sanity"]:
        assert f"{one['rank_correlation']:.3f}" in ended.err
    page = (out / "explanation.html").read_text()
    assert "Record 1" in page
    assert "What matters on average" in page


def test_the_page_is_whole_by_itself_and_its_pictures_lie_beside_it(
    program: Program, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program(model(tmp_path / "m"), "--data", table(tmp_path / "r.csv"), "--out", out)
    page = (out / "explanation.html").read_text()
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    shown = [base64.b64decode(one) for one in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    beside = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert sorted(shown) == sorted(beside.values())
    assert sorted(beside) == ["importance.png", *(f"record-{n}.png" for n in range(1, 7))]
    for path in out.glob("*.png"):
        Image.open(path).verify()


@pytest.mark.parametrize("named", [["3"], ["5", "2", "5"]])
def test_the_records_that_are_named_are_explained(
    program: Program, tmp_path: Path, named: list[str]
) -> None:
    out = tmp_path / "out"
    options = [part for number in named for part in ("--record", number)]
    program(model(tmp_path / "m"), "--data", table(tmp_path / "r.csv"), "--out", out, *options)
    found = json.loads((out / "explanation.json").read_text())
    assert [str(one["record"]) for one in found["records"]] == list(dict.fromkeys(named))


def test_without_answers_there_is_no_permutation_importance_and_the_page_says_why(
    program: Program, tmp_path: Path
) -> None:
    out, data = tmp_path / "out", table(tmp_path / "r.csv", answers=False)
    ended = program(model(tmp_path / "m"), "--data", data, "--out", out)
    assert ended.code == 0
    assert "no permutation importance" in ended.err
    found = json.loads((out / "explanation.json").read_text())
    assert found["permutation_importance"] is None
    assert "'y'" in found["no_permutation_importance_because"]
    assert not (out / "importance.png").exists()
    assert "cannot be read" in (out / "explanation.html").read_text()


def letters(path: Path) -> Path:
    path.write_text("s,y\nACTGAGCA,yes\nACTGA,no\nTTTTTGTT,yes\n")
    return path


def pictures(folder: Path, mode: str = "L") -> Path:
    draw = np.random.default_rng(1)
    for name in ("no", "yes"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            shape = (12, 9) if mode == "L" else (12, 9, 3)
            pixels = draw.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def stays(path: Path) -> Path:
    draw = np.random.default_rng(1)
    series = draw.uniform(0, 1, (5, 10, 2))
    series[0, 3, 1] = np.nan
    np.savez(
        path, s=series, age=draw.uniform(0, 1, 5), y=np.array(["no", "yes", "no", "yes", "no"])
    )
    return path


STAY: dict[str, Any] = {
    "s": {
        "kind": "series",
        "steps": 10,
        "missing": "forward_indicator",
        "variables": {"hr": {"low": 0, "high": 1}, "temp$_x$": {"low": 0, "high": 1}},
    },
    "age": {"kind": "number", "low": 0, "high": 1},
}
WORDS = {"t": {"kind": "words", "buckets": 32, "length": 6}}
THREE = {"kind": "category", "values": ["no", "yes", "who knows"]}
PIXELS = {"kind": "image", "height": 12, "width": 9}


def texts(path: Path) -> Path:
    path.write_text(
        '{"t": "Pain & <b>fever</b> since a cold night", "y": "yes"}\n{"t": "... !", "y": "no"}\n'
    )
    return path


CASES: dict[str, tuple[Study, Callable[[Path], Path], str]] = {
    "letters": (splice_study(), letters, "r.csv"),
    "letters lstm": (
        study_of(
            "sequence", {"s": splice_study().data.columns["s"].model_dump()}, {"name": "lstm"}
        ),
        letters,
        "r.csv",
    ),
    "words": (study_of("sequence", {**WORDS, "y": THREE}, ATTENTION), texts, "r.jsonl"),
    "picture": (study_of("image", {"p": PIXELS}, {"name": "cnn", "channels": [2]}), pictures, "p"),
    "colours": (
        study_of("image", {"p": {**PIXELS, "channels": 3}}, {"name": "mlp"}),
        lambda path: pictures(path, "RGB"),
        "p",
    ),
    "series": (study_of("series", STAY, {"name": "gru", "hidden": [4]}), stays, "r.npz"),
    "series attention": (study_of("series", STAY, ATTENTION), stays, "r.npz"),
    "number": (
        study_of(
            "tabular",
            {"a": ANSWER, "y": {"kind": "number", "low": 0, "high": 9, "unit": "mm"}},
            {"name": "mlp"},
        ),
        lambda path: path.write_text("a,y\nyes,1\nno,3\n") and path,
        "r.csv",
    ),
}


@pytest.mark.parametrize(("study", "write", "name"), CASES.values(), ids=CASES)
def test_every_task_and_network_is_explained(
    program: Program, tmp_path: Path, study: Study, write: Callable[[Path], Path], name: str
) -> None:
    out = tmp_path / "out"
    data = write(tmp_path / name)
    ended = program(
        *(save(tmp_path / "m", study, random_weights(study)), "--data", data, "--out", out),
        *("--record", 1, "--record", 2),
    )
    assert ended.code == 0, ended.err
    found = json.loads((out / "explanation.json").read_text())
    methods = {"integrated_gradients", "occlusion"}
    if study.model.name == "attention":
        methods.add("attention")
    for one in found["records"]:
        assert set(one["attributions"]) == methods
        for method in methods - {"attention"}:
            assert np.shape(one["attributions"][method]) == tuple(found["shape"])
        assert (out / f"record-{one['record']}.png").is_file()
    assert found["permutation_importance"]["records"] >= 2


def test_the_words_of_a_record_are_on_the_page(program: Program, tmp_path: Path) -> None:
    study, write, name = CASES["words"]
    program(
        save(tmp_path / "m", study, random_weights(study)),
        *("--data", write(tmp_path / name), "--out", tmp_path / "out"),
    )
    page = (tmp_path / "out" / "explanation.html").read_text()
    shown = re.findall(r'<span style="background:rgba[^>]*>([^<]*)</span>', page)
    assert shown[:6] == ["pain", "b", "fever", "b", "since", "a"]  # six: as many as the network
    assert "<b>fever" not in page


def test_a_planted_letter_is_the_largest_of_its_record(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", splice_study(), letter_finder(3, 5))
    found = explain(folder, letters(tmp_path / "r.csv"))
    first = found.records[0]
    assert first.cells == tuple("ACTGAGCA")
    assert (first.words.explained, round(first.score, 4), first.baseline) == ("yes", 4, 0)
    for values in first.values.values():
        assert values.argmax() == 5
    assert found.records[1].cells == tuple("ACTGA")


def test_how_far_it_is_is_told_step_by_step(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    data = table(tmp_path / "r.csv")
    explain(model(tmp_path / "m"), data, (1,), lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares[0] == 0
    assert shares == sorted(set(shares))
    assert 0.7 < shares[-1] < 1
    assert ("permutation importance", 3 / 16) in told


def test_values_are_shown_as_they_were_written(tmp_path: Path) -> None:
    columns = {
        "age": {"kind": "number", "low": 18, "high": 100, "unit": "years"},
        "dose": {"kind": "number", "low": 0, "high": 1000, "scale": "log", "missing": "indicator"},
        "code": {"kind": "category", "values": ["a", "b"], "missing": "constant"},
    }
    study = study_of("tabular", columns, {"name": "mlp"})
    (tmp_path / "r.csv").write_text("age,dose,code,y\n67,12.5,b,yes\n30,,,no\n")
    found = explain(save(tmp_path / "m", study, random_weights(study)), tmp_path / "r.csv")
    assert [one.cells for one in found.records] == [
        ("67 years", "12.5", "b"),
        ("30 years", "missing", "missing"),
    ]
    assert [one.words.own for one in found.records] == ["yes", "no"]


def test_an_explanation_that_is_not_of_the_model_is_flagged(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an edge detector would: it shows the record, whatever the weights are."""

    def independent(subject: Subject) -> Any:
        return subject.inputs.double().numpy()

    monkeypatch.setitem(explanation.METHODS, "occlusion", independent)
    out = tmp_path / "out"
    ended = program(model(tmp_path / "m"), "--data", table(tmp_path / "r.csv"), "--out", out)
    assert ended.code == 0
    found = json.loads((out / "explanation.json").read_text())["sanity"]
    checks = {one["method"]: one for one in found}
    assert checks["occlusion"]["rank_correlation"] == pytest.approx(1)
    assert checks["occlusion"]["passed"] is False
    assert checks["integrated_gradients"]["passed"] is True
    assert "do not rely on it" in ended.err
    assert 'role="alert">Occlusion:' in (out / "explanation.html").read_text()


def test_a_model_that_learnt_nothing_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanation, "SEEDS", (5,))  # the very weights of the model
    study = table_study((16,))
    folder = save(tmp_path / "m", study, random_weights(study, 5))
    for one in explain(folder, table(tmp_path / "r.csv")).checks:
        if one.method != "permutation_importance":  # fewer repeats there
            assert one.correlation == pytest.approx(1)
        assert one.passed is False


def test_few_cells_cannot_pass_and_undefined_is_no_verdict() -> None:
    assert Check("occlusion", 0.0, 8).passed is True
    assert Check("occlusion", 0.0, 7).passed is None
    assert Check("occlusion", 0.5, 7).passed is False
    assert Check("occlusion", None, 99).passed is None


def test_files_are_for_their_owner_alone_whatever_the_umask(
    program: Program, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        out = tmp_path / "new" / "out"
        program(model(tmp_path / "m"), "--data", table(tmp_path / "r.csv"), "--out", out)
    finally:
        os.umask(before)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert modes == {0o600}


def test_an_earlier_explanation_is_replaced_whole(program: Program, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", (model(tmp_path / "m"), "--data", table(tmp_path / "r.csv"))
    assert program(*asked, "--out", out).code == 0
    (out / "record-1.png").chmod(0o644)
    assert program(*asked, "--out", out, "--record", 9, "--record", 1).code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "explanation.html",
        "explanation.json",
        "importance.png",
        "record-1.png",
        "record-9.png",
    ]
    assert stat.S_IMODE((out / "record-1.png").stat().st_mode) == 0o600


def test_equal_records_give_equal_bytes(program: Program, tmp_path: Path) -> None:
    asked = (model(tmp_path / "m"), "--data", table(tmp_path / "r.csv"))
    program(*asked, "--out", tmp_path / "a")
    program(*asked, "--out", tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["notes.txt", "record-1.png", "explanation.html"])
def test_a_folder_with_something_else_is_refused_before_anything_is_read(
    program: Program, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    said = refused(program(tmp_path / "no model", "--data", tmp_path, "--out", out))
    assert "expected a new folder, or one with an explanation alone" in said
    assert [path.read_text() for path in out.iterdir()] == ["mine"]


def test_what_is_wrong_is_said_in_one_line(program: Program, tmp_path: Path) -> None:
    folder, data, out = model(tmp_path / "m"), table(tmp_path / "r.csv"), tmp_path / "out"
    (tmp_path / "file").write_text("")
    said = refused(program(folder, "--data", data, "--out", tmp_path / "file"))
    assert "file: expected a folder, found a file" in said
    said = refused(program(folder, "--data", data, "--out", tmp_path / "file" / "below"))
    assert "below: cannot be" in said
    said = refused(program(tmp_path / "none", "--data", data, "--out", out))
    assert "model.json: cannot be read" in said
    said = refused(program(folder, "--data", tmp_path / "none.csv", "--out", out))
    assert "none.csv" in said
    for number in (0, 61, -1):
        said = refused(program(folder, "--data", data, "--out", out, "--record", number))
        assert f"expected a number from 1 to 60, found {number}" in said
    (tmp_path / "r.csv").write_text(",".join("abcdefghy") + "\n")
    said = refused(program(folder, "--data", data, "--out", out))
    assert "expected" in said
    (tmp_path / "r.csv").write_text(",".join("abcdefghy") + "\n" + "31337,0,0,0,0,0,0,0,yes\n")
    said = refused(program(folder, "--data", data, "--out", out))
    assert "column 'a'" in said
    assert "31337" not in said
    huge = weights(random_weights(table_study()), layers__0__weight=[3e38] * 8)
    save(folder, table_study(), huge)
    (tmp_path / "r.csv").write_text(",".join("abcdefghy") + "\n" + "1,1,1,1,1,1,1,1,yes\n")
    said = refused(program(folder, "--data", data, "--out", out))
    assert "expected finite answers" in said
    assert not out.exists()


def test_nothing_leaves_the_folder(tmp_path: Path) -> None:
    """The process itself is watched: files opened to be written, sockets, programs started."""
    watch = (
        "import sys, matplotlib.font_manager\n"  # its list of fonts is no part of this
        "def hook(event, given):\n"
        "    if event == 'open' and isinstance(given[0], str | bytes):\n"
        "        mode, flags = given[1] or '', given[2]\n"
        "        if set(mode) & set('wax+') or flags & 0o1103:\n"
        "            print('open', given[0])\n"
        "    elif event.startswith(('socket.', 'subprocess.', 'os.system', 'os.exec', 'os.fork',\n"
        "            'os.posix_spawn', 'os.rename', 'os.link', 'os.symlink', 'urllib')):\n"
        "        print(event, given)\n"
        "sys.addaudithook(hook)\n"
        "from client import cli\n"
        "cli.main()\n"
    )
    out = tmp_path / "out"
    folder, data = model(tmp_path / "m"), table(tmp_path / "r.csv")
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(tmp_path.rglob("*"))
    ended = subprocess.run(
        [sys.executable, "-B", "-c", watch, "explain", folder, "--data", data, "--out", out],
        env={**os.environ, "TMPDIR": str(home), "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    written = sorted(out.iterdir())
    opened = ended.stdout.splitlines()
    assert sorted(opened) == sorted(f"open {path}" for path in written)
    assert sorted([*before, out, *written]) == sorted(tmp_path.rglob("*"))


def test_what_a_study_calls_things_is_no_markup(program: Program, tmp_path: Path) -> None:
    columns = {
        "<script>a": {"kind": "number", "low": 0, "high": 1},
        "y": {"kind": "category", "values": ["no", "<script>b"]},
    }
    study = study_of("tabular", columns, {"name": "mlp"})
    (tmp_path / "r.csv").write_text("<script>a,y\n1,<script>b\n0,no\n")
    folder, out = save(tmp_path / "m", study, random_weights(study)), tmp_path / "out"
    assert program(folder, "--data", tmp_path / "r.csv", "--out", out).code == 0
    page = (out / "explanation.html").read_text()
    assert "&lt;script&gt;b" in page
    assert "&lt;script&gt;a" in page
    assert "<script" not in page
