"""The list of tasks: all of them, their networks, and an example as it stands in its file."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from privacy.errors import StudyError
from shared_models.tasks import TASKS
from simulations.catalogue import show_tasks


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for task in TASKS.values():
        for example in task.examples:
            (tmp_path / example).mkdir()
            (tmp_path / example / "study.toml").write_text(
                f"# {example} [bold]is no markup[/bold]\n"
                + 'positive = ["1", "2"]'
                + " " * 90
                + "#\n"
            )
    return tmp_path


def shown(name: str | None, examples: Path, width: int = 80) -> str:
    screen = io.StringIO()
    show_tasks(name, examples, Console(file=screen, width=width, color_system=None))
    return screen.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_has_every_task_with_its_networks(examples: Path, width: int) -> None:
    text = " ".join(shown(None, examples, width).split())
    for task in TASKS.values():
        assert task.name in text
        assert all(network in text for network in task.networks)


def test_a_task_is_shown_with_its_examples_letter_for_letter(examples: Path) -> None:
    text = shown("tabular", examples)
    for example in TASKS["tabular"].examples:
        assert (examples / example / "study.toml").read_text() in text


def test_an_unknown_task_is_refused_with_the_known_ones(examples: Path) -> None:
    with pytest.raises(StudyError, match=r"expected tabular, image, .*, found 'x'"):
        shown("x", examples)
