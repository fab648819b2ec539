"""The last table on the screen: whole at 80 columns, with everything it has to say."""

import io
from typing import Any

import pytest
from rich.console import Console

from simulations.summary import print_summary

NAMES = ("accuracy", "balanced_accuracy", "precision", "sensitivity", "auc", "pr_auc", "brier")


def results(baselines: bool, private: bool) -> dict[str, Any]:
    figures = {name: {"value": 0.9234, "low": 0.8641, "high": 0.9579, "n": 1130} for name in NAMES}
    trainings = dict.fromkeys(("pooled", "local_only", "linear"), figures)
    return {
        "study": {"name": "breast", "aggregation": {"masking": "none" if private else "fsa1"}},
        "sites": 5,
        "rounds": 30,
        "headline": "auc",
        "metrics": {**figures, "f1": {"value": None, "low": None, "high": None, "n": 0}},
        "baselines": trainings if baselines else None,
        "privacy": {
            "mode": "local" if private else "none",
            "unit": "record" if private else None,
            "epsilon": 1.8901 if private else None,
            "delta": 1e-5 if private else None,
        },
    }


def shown(document: dict[str, Any], width: int) -> list[str]:
    screen = io.StringIO()
    print_summary(document, Console(file=screen, width=width, color_system=None))
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("baselines", [False, True])
def test_every_metric_is_one_line(width: int, baselines: bool) -> None:
    lines = shown(results(baselines, private=True), width)
    (row,) = [line for line in lines if line.strip().startswith("Balanced accuracy")]
    cells = row.split()
    assert cells[2:7] == ["0.923", "0.864", "–", "0.958", "1,130"]
    assert cells[7:] == ["0.923"] * 3 * baselines
    assert "…" not in "".join(lines)  # nothing is cut
    assert max(map(len, lines)) <= width


def test_an_undefined_figure_is_said_to_be() -> None:
    lines = shown(results(baselines=False, private=True), 80)
    (row,) = [line for line in lines if line.strip().startswith("F1")]
    assert row.split() == ["F1", "undefined", "undefined", "0"]


def test_epsilon_is_rounded_up() -> None:
    text = " ".join(" ".join(shown(results(baselines=False, private=True), 80)).split())
    assert "epsilon 1.90 at delta 1e-05, each record, mode local" in text


@pytest.mark.parametrize(
    ("private", "warning"),
    [(False, "No differential privacy: a simulation"), (True, "No masking of updates: a simul")],
)
def test_missing_protection_is_said(private: bool, warning: str) -> None:
    assert warning in " ".join(shown(results(baselines=False, private=private), 80))
