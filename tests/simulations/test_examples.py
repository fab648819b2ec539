"""Every example study: it loads, and trains a round on made records of its own contract."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from shared_models.contract import (
    AnyColumn,
    CategoryColumn,
    Data,
    IdColumn,
    ImageColumn,
    LettersColumn,
    MaskColumn,
    NumberColumn,
    SeriesColumn,
)
from shared_models.study import Study, load_study
from simulations.run import simulate

ROOT = Path(__file__).parents[2] / "examples"
STUDIES = sorted(ROOT.glob("*/*.toml"))
RECORDS = 60
PARTS = {"train": 36, "val": 12, "test": 12}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def values(
    column: AnyColumn, draw: np.random.Generator, count: int, sizes: tuple[int, ...] = ()
) -> np.ndarray:
    """Return ``count`` values that the column's contract allows, as its file would hold them."""
    if isinstance(column, MaskColumn):
        levels = column.levels or range(len(column.values))
        return draw.choice(levels, (count, *sizes)).astype(np.uint8)
    if isinstance(column, CategoryColumn):
        return np.resize(column.values, count)  # every value comes up
    if isinstance(column, NumberColumn):
        return np.round(draw.uniform(column.low, column.high, count), 6)
    if isinstance(column, IdColumn):
        return np.arange(count)
    if isinstance(column, LettersColumn):
        letters = draw.choice(list(column.alphabet), (count, column.length))
        return np.array(["".join(row) for row in letters])
    if isinstance(column, ImageColumn):
        shape = (count, *column.sizes, *((column.channels,) if column.channels > 1 else ()))
        return draw.integers(column.low, column.high, shape, endpoint=True).astype(np.uint8)
    if isinstance(column, SeriesColumn):
        ranges = [(v.low, v.high) for v in column.variables.values()]
        made = np.stack([draw.uniform(*r, (count, column.steps)) for r in ranges], axis=2)
        return np.where(draw.random(made.shape) < 0.8, np.nan, made)
    return np.array([" ".join(draw.choice(["heart", "lung", "pain"], 9)) for _ in range(count)])


def made_records(data: Data, folder: Path) -> Path | None:
    """Write records of the study's contract in the study's format; None where they ship."""
    if data.builtin is not None:
        return None
    draw = np.random.default_rng(5)
    if data.format == "npz":
        np.savez(folder / "made.npz", **_arrays(data, draw))  # type: ignore[arg-type]
        return folder
    table = {key: values(column, draw, RECORDS) for key, column in data.columns.items()}
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if data.format == "jsonl":
        text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
        (folder / "made.jsonl").write_text(text)
        return folder
    for index in range(4 if data.files else 1):  # a file a site
        path = folder / (data.files or "made.csv").replace("*", f"made{index}")
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            if data.header:
                writer.writerow(table)
            writer.writerows(row.values() for row in rows)
    return folder


def _arrays(data: Data, draw: np.random.Generator) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for part, count in PARTS.items() if data.parts else {"": RECORDS}.items():
        indexed: dict[str, dict[int, np.ndarray]] = {}
        for key, column in data.columns.items():
            sizes = data.image.sizes if isinstance(column, MaskColumn) else ()
            made = values(column, draw, count, sizes)
            if isinstance(column, CategoryColumn) and column.index is not None:
                made = made.astype(np.float64)
            array = (column.array or key).format(part=part)
            if column.index is None:
                arrays[array] = made
            else:
                indexed.setdefault(array, {})[column.index] = made
        for array, columns in indexed.items():
            unread = np.zeros(count)
            places = range(max(columns) + 1)
            arrays[array] = np.stack([columns.get(i, unread) for i in places], axis=1)
    return arrays


def short(path: Path) -> Study:
    """Return the study cut to one round, which is evaluated."""
    study = load_study(path)
    changes = ["rounds=1", "evaluation.every=1"]
    if study.training.local_epochs is not None:
        changes.append("training.local_epochs=1")
    return load_study(path, changes)


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_an_example_trains_a_round_on_records_of_its_contract(path: Path, tmp_path: Path) -> None:
    study = short(path)
    records = tmp_path / "records"
    records.mkdir()
    found = simulate(study, made_records(study.data, records), tmp_path / "out")
    assert found.checkpoint.state.round == 1
    assert found.figures()["loss"].value is not None


def test_splice_is_learnt_by_attention_too(tmp_path: Path) -> None:
    """The other network that its study names; short, on made sequences."""
    model = 'model={name="attention", width=8, heads=2, layers=1, feedforward=8}'
    study = load_study(
        ROOT / "splice" / "study.toml", ["rounds=1", "training.local_epochs=1", model]
    )
    found = simulate(study, made_records(study.data, tmp_path), tmp_path / "out")
    assert found.figures()["loss"].value is not None
    assert np.isfinite(found.checkpoint.state.model).all()


@pytest.mark.parametrize("path", [p for p in STUDIES if p.stem == "private"], ids=name)
def test_a_private_study_has_the_records_and_hold_out_of_the_plain_one(path: Path) -> None:
    private, plain = (load_study(path.with_name(f"{stem}.toml")) for stem in ("private", "study"))
    assert private.privacy.mode != "none"
    for part in ("task", "data", "simulation"):
        assert getattr(private, part) == getattr(plain, part)
    for key in ("holdout", "holdout_column", "holdout_values"):
        assert getattr(private.evaluation, key) == getattr(plain.evaluation, key)


@pytest.mark.parametrize("readme", sorted(ROOT.glob("*/README.md")), ids=lambda p: p.parent.name)
def test_a_readme_gives_the_commands_of_its_studies(readme: Path) -> None:
    text, folder = readme.read_text(), readme.parent
    for study in folder.glob("*.toml"):
        assert f"fedward-sim run examples/{folder.name}/{study.name}" in text
