"""The live line of a run on stderr: round, metric, epsilon so far, time left. Silent in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from shared_models.study import Study
from shared_models.tasks import target_of
from shared_models.wording import show_epsilon

if TYPE_CHECKING:
    from simulations.run import Progress as Step

NAME_MAX = 18  # longer names are cut, so that a line of 80 columns has room for the rest


@contextmanager
def live_progress(console: Console, study: Study) -> Iterator[Callable[["Step"], None]]:
    """Show a bar over the rounds and yield what moves it."""
    headline = target_of(study).headline
    name = study.name if len(study.name) <= NAME_MAX else study.name[: NAME_MAX - 1] + "…"
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the words leave
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    hidden = not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, expand=True) as bar:
        task = bar.add_task(f"{name}: preparing", total=study.rounds, figures="", start=False)
        metric = epsilon = ""

        def watch(step: "Step") -> None:
            nonlocal metric, epsilon
            bar.start_task(task)
            figure = step.metric.get(headline)
            if figure is not None and figure.value is not None:
                metric = f"{headline} {figure.value:.3f}"
            if step.epsilon is not None:
                epsilon = f"epsilon {show_epsilon(step.epsilon)}"
            fold = f"fold {step.fold + 1} " if step.fold is not None else ""
            if step.baseline:
                fold = f"baseline {step.baseline} "
            bar.update(
                task,
                completed=step.round,
                description=f"{name}: {fold}round {step.round}/{step.rounds}",
                figures=f"{metric} {epsilon}".strip(),
            )

        yield watch
