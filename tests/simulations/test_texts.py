"""A CSV of texts and labels is learnt by attention through the keys of the JSON Lines example."""

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.read import read_records
from shared_models.study import Study, parse_study
from simulations.run import simulate
from tests.simulations.test_examples import ROOT

LABELS: dict[str, dict[str, list[str]]] = {
    "sentiment": {"bad": ["worse", "pain", "awful"], "good": ["better", "slept", "fine"]},
    "triage": {
        "now": ["bleeding", "unconscious"],
        "today": ["fever", "vomiting"],
        "later": ["itch", "prescription"],
    },
}
FILLERS = ["the patient said", "since Monday", "on the ward", "after lunch", "he wrote"]
COUNT = 150


def text_study(labels: dict[str, list[str]]) -> Study:
    """The questions example of its own keys, over two columns of a CSV."""
    document: dict[str, Any] = tomllib.loads((ROOT / "questions" / "study.toml").read_text())
    columns = {
        "text": {**document["data"]["columns"]["a"], "buckets": 256, "length": 24},
        "label": {"kind": "category", "values": list(labels)},
    }
    document["data"] = {"format": "csv", "target": "label", "columns": columns}
    document["model"] |= {"width": 8, "feedforward": 16}
    document["training"] = {
        "optimizer": "adam",
        "learning_rate": 0.02,
        "local_epochs": 4,
        "batch_size": 16,
    }
    document["aggregation"] = {"masking": "none"}
    document["simulation"] = {"sites": 3}
    return parse_study({**document, "rounds": 4, "evaluation": {"every": 4, "holdout": 0.3}})


def written(labels: dict[str, list[str]], path: Path) -> Path:
    """Write texts with commas, quotes and line breaks, each with a word of its label."""
    draw = np.random.default_rng(3)
    rows = [("text", "label")]
    for place in range(COUNT):
        label = list(labels)[place % len(labels)]
        word, (first, last) = draw.choice(labels[label]), draw.choice(FILLERS, 2, replace=False)
        rows.append((f'{first}, "{word}"\n{last}; {place}', label))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.mark.parametrize("kind", LABELS)
def test_texts_with_commas_quotes_and_line_breaks_are_learnt_by_attention(
    kind: str, tmp_path: Path
) -> None:
    study, path = text_study(LABELS[kind]), written(LABELS[kind], tmp_path / "texts.csv")
    records = read_records(study, path)
    assert len(records.targets) == COUNT
    words = (records.inputs > 0).sum(axis=1)
    assert words.min() >= 5  # none was cut at a comma, a quote or a line's end
    outcome = simulate(study, path, tmp_path / "out")
    accuracy = outcome.figures()["accuracy"].value
    assert accuracy is not None
    assert accuracy > 0.9  # by chance: a half, or a third
