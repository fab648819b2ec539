"""The live line says round, metric and epsilon on one line, and nothing in a pipe."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from shared_models.metrics import Figure
from shared_models.study import Study
from simulations.progress import live_progress
from simulations.run import Progress


def shown(study: Study, width: int, terminal: bool, fold: int | None = None) -> str:
    screen = io.StringIO()
    console = Console(
        file=screen, width=width, force_terminal=terminal, color_system=None, legacy_windows=False
    )
    with live_progress(console, study) as watch:
        watch(Progress(1, study.rounds, {}, None, fold))
        figure = Figure(0.98765, 0.9, 1.0, 23)
        watch(Progress(2, study.rounds, {"auc": figure}, 1.2345, fold))
        watch(Progress(3, study.rounds, {}, None, fold))
    return screen.getvalue()


def last_line(text: str) -> str:
    """Return the line as it stood last, without the terminal's control sequences."""
    drawn = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text)
    return [line for line in re.split(r"[\r\n]", drawn) if line.strip()][-1]


@pytest.mark.parametrize("width", [80, 120])
def test_the_line_says_round_metric_epsilon_and_time_left(
    toy_study: Callable[..., Study], width: int
) -> None:
    line = last_line(shown(toy_study(), width, terminal=True))
    for part in ("toy", "3/4", "auc 0.988", "epsilon 1.24", "left"):
        assert part in line, line


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_beside_a_long_name(toy_study: Callable[..., Study], width: int) -> None:
    study = toy_study(name="a-study-of-tumours-in-many-hospitals-2026", rounds=1000)
    line = last_line(shown(study, width, terminal=True))
    assert len(line) <= width
    for part in ("a-study-of-tumour", "round 3/1000", "auc 0.988", "epsilon 1.24", " left"):
        assert part in line, line


def test_a_fold_is_named(toy_study: Callable[..., Study]) -> None:
    assert "fold 2" in last_line(shown(toy_study(), 80, terminal=True, fold=1))


def test_a_pipe_gets_nothing(toy_study: Callable[..., Study]) -> None:
    assert shown(toy_study(), 80, terminal=False).strip() == ""


def test_an_undefined_metric_is_not_shown(toy_study: Callable[..., Study]) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    with live_progress(console, toy_study()) as watch:
        watch(Progress(1, 4, {"auc": Figure(None, None, None, 0)}, None))
    assert "None" not in screen.getvalue()
    assert "nan" not in screen.getvalue()
