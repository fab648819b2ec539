"""fedward-sim: try a study on virtual sites before anyone commits to it. It parses and prints."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from privacy.errors import DataError, StudyError
from privacy.startup import check_packages
from shared_models import program

PROGRAM = "fedward-sim"

app = typer.Typer(
    help="Simulate a federated study on one machine, through the code of a real deployment.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
T = TypeVar("T")

Study_ = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]
Data = Annotated[
    Path | None, typer.Option(help="File or folder of records; none for records that ship.")
]
Sites = Annotated[int | None, typer.Option(min=1, help="Number of virtual sites.")]
Partition = Annotated[
    str | None,
    typer.Option(help="iid, dirichlet:ALPHA, quantity:ALPHA, column:NAME or files."),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="local|deploy",
        help="local: all sites in this process and its workers; deploy: each a process, over TLS.",
    ),
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Processes that train.")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where networks are trained.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set privacy.epsilon=2"),
]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same model.")]
Baselines = Annotated[
    bool, typer.Option("--baselines", help="Also train pooled, per site, and a linear model.")
]
Out = Annotated[Path | None, typer.Option(help="Folder for the results. [runs/NAME]")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run was cut.")]
Json = Annotated[bool, typer.Option("--json", help="Print results.json on stdout.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo"),
) -> None:
    """Train one private model for five hospitals on real breast-cancer records."""
    with program.errors(PROGRAM):
        study = _examples() / "breast" / "study.toml"
        _run(study, None, [], out, baselines=True, replace=True)


@app.command()
def run(
    study: Study_,
    data: Data = None,
    sites: Sites = None,
    partition: Partition = None,
    engine: Engine = "local",
    workers: Workers = 1,
    device: Device = "cpu",
    set_: Set = None,
    seed: Seed = None,
    baselines: Baselines = False,
    out: Out = None,
    resume: Resume = False,
    json_: Json = False,
) -> None:
    """Run one study on virtual sites."""
    with program.errors(PROGRAM, "go on with --resume"):
        if device not in {"cpu", "cuda"}:
            raise StudyError(f"--device: expected cpu or cuda, found {device!r}")
        overrides = list(set_ or [])
        for key, value in (("sites", sites), ("partition", partition), ("seed", seed)):
            if value is not None:
                overrides.append(f"simulation.{key}={value}")
        _run(
            study,
            data,
            overrides,
            out,
            engine=engine,
            workers=workers,
            device=device,
            baselines=baselines,
            resume=resume,
            as_json=json_,
        )


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="One task in full.")] = None,
) -> None:
    """List what can be learnt, from which data, and an example study each."""
    with program.errors(PROGRAM, "go on with --resume"):
        from simulations.catalogue import show_tasks

        show_tasks(name, _examples(), Console())


def _run(
    path: Path,
    data: Path | None,
    overrides: list[str],
    out: Path | None,
    *,
    engine: str = "local",
    workers: int = 1,
    device: str = "cpu",
    baselines: bool = False,
    resume: bool = False,
    as_json: bool = False,
    replace: bool = False,
) -> None:
    from shared_models.study import load_study
    from simulations.engines import check_engine, check_same
    from simulations.folder import claim

    console = Console(stderr=True)
    study = load_study(path, overrides)
    out = out or Path("runs") / study.name
    check_engine(engine, study, workers, device)
    claim(out, study, resume=resume, replace=replace)
    check_same(engine, out)
    # Only now: torch and flwr take seconds to import, and a bad study should not wait for them.
    from server.metrics import read_metrics
    from simulations.outcome import write_outcome
    from simulations.progress import live_progress
    from simulations.report import write_report
    from simulations.run import simulate
    from simulations.summary import print_summary

    with live_progress(console, study) as watch, _interruptible(watch) as watched:
        if engine == "deploy":
            from simulations.deployed import deploy

            outcome = deploy(study, data, out, with_baselines=baselines, watch=watched)
        else:
            outcome = simulate(
                study,
                data,
                out,
                workers=workers,
                resume=resume,
                with_baselines=baselines,
                device=device,
                watch=watched,
            )
    if outcome.slow:
        console.print(f"note: {outcome.slow}", markup=False, highlight=False, soft_wrap=True)
    results = write_outcome(outcome, out)
    write_report(results, read_metrics(out), out / "report.html")
    if as_json:
        sys.stdout.write(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print_summary(results, console)
    where = f"Results in {out}, report in {out / 'report.html'}"
    console.print(where, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _interruptible(watch: Callable[[T], None]) -> Iterator[Callable[[T], None]]:
    """Make sure that Ctrl-C ends the run, at the next round at the latest.

    An exception raised in a callback of a library may be dropped there; the flag is not.
    """
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def watched(step: T) -> None:
        watch(step)
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield watched
    finally:
        signal.signal(signal.SIGINT, before)


def _examples() -> Path:
    folder = check_packages() / "examples"
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected the example studies, found no folder",
            "they come with the project's source, not with the installed packages",
        )
    return folder


def main() -> None:
    """Run the program."""
    program.run(app, PROGRAM)
