"""What `fedward-sim tasks` prints: tasks, their networks, the data they want, examples."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from privacy.errors import StudyError
from shared_models.tasks import TASKS


def show_tasks(name: str | None, examples: Path, console: Console) -> None:
    """Print all tasks as a table, or one of them with its example studies in full.

    Raises:
        StudyError: there is no such task.
    """
    if name is None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("task", "learns", "networks", "columns", "examples"):
            table.add_column(column)
        for task in TASKS.values():
            table.add_row(
                task.name,
                task.summary,
                ", ".join(task.networks),
                ", ".join(task.columns),
                "\n".join(f"examples/{example}/study.toml" for example in task.examples),
            )
        console.print(table)
        return
    if name not in TASKS:
        raise StudyError(f"task: expected {', '.join(TASKS)}, found {name!r}")
    task = TASKS[name]
    console.print(f"[bold]{task.name}[/bold]  {task.summary}")
    console.print(f"networks  {', '.join(task.networks)}")
    console.print(f"columns   {', '.join(task.columns)}")
    for example in task.examples:
        path = examples / example / "study.toml"
        console.print(f"\n[dim]# examples/{example}/study.toml[/dim]")
        console.print(path.read_text(), markup=False, highlight=False, soft_wrap=True)
