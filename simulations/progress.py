"""The live line of a run on stderr: round, metric, epsilon so far, time left. Silent in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from shared_models.inputs import loss_kind
from shared_models.metrics import HEADLINE
from shared_models.study import Study

if TYPE_CHECKING:
    from simulations.run import Progress as Step


@contextmanager
def live_progress(console: Console, study: Study) -> Iterator[Callable[["Step"], None]]:
    """Show a bar over the rounds and yield what moves it."""
    headline = HEADLINE[loss_kind(study.data)]
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metric]}"),
        TextColumn("{task.fields[epsilon]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(
            f"{study.name}: preparing", total=study.rounds, metric="", epsilon="", start=False
        )
        started = False

        def watch(step: "Step") -> None:
            nonlocal started
            if not started:
                bar.start_task(task)
                started = True
            fold = f" fold {step.fold + 1}" if step.fold is not None else ""
            bar.update(task, completed=step.round, description=f"{study.name}: round{fold}")
            figure = step.metric.get(headline)
            if figure is not None and figure.value is not None:
                bar.update(task, metric=f"{headline} {figure.value:.3f}")
            if step.epsilon is not None:
                bar.update(task, epsilon=f"epsilon {step.epsilon:.2f}")

        yield watch
