"""A study as a deployment on this machine: a coordinator and each site as a process of its own.

It founds, invites, starts, seals and watches, as people would; what the processes do is
`simulations.part`'s. None outlives it. What it measures is a simulation's own.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import tomli_w
import torch

from client.audit import read_audit
from client.training import Trainer
from privacy import keyfile
from privacy.errors import AbsentError, DataError, PrivacyError, ProtocolError
from server import checkpoint, desk
from server.books import Books
from server.folder import BOOKS, CHECKPOINT, METRICS, Folder, open_folder
from server.founding import found
from server.metrics import read_metrics
from shared_models.debits import planned_mechanism
from shared_models.durable import write_durably
from shared_models.plan import count_values
from shared_models.program import INTERRUPTED
from shared_models.steps import evaluation_due, site_encoding
from shared_models.strategies import read_state
from shared_models.study import Study, parse_study
from simulations.federation import Traffic
from simulations.folder import COORDINATOR, DEPLOY, LOGS, SITES, STUDY, TOKENS
from simulations.outcome import Outcome, open_metrics
from simulations.part import state_file
from simulations.pool import Pool, gather, pool
from simulations.run import Measure, Progress, Watch, conclude, measured_after
from simulations.seeds import seeded_integer

MODULE = "simulations.part"
HOST = "127.0.0.1"
DAYS = 365  # a run that is resumed late still enrols
_TICK_S = 0.2
_START_S = 120.0  # to import and listen, on a busy machine
_HOME_S = 60.0  # for a site to end, once the coordinator has told it
_STOP_S = 20.0  # for a process to end by itself, once it was told to
_CODES = {2: DataError, 3: PrivacyError, 4: ProtocolError, 5: AbsentError}
_RESUME = "go on with --resume"


def deploy(
    study: Study,
    data: Path | None,
    out: Path,
    *,
    with_baselines: bool = False,
    watch: Watch | None = None,
) -> Outcome:
    """Run a study as a deployment, or go on with it, and leave its files in ``out``.

    Args:
        study: what to run, its simulation section included.
        data: the records' file or folder; None for records that ship with a dependency.
        out: where folders of coordinator and sites, and metrics go as they arise.
        with_baselines: also train without federation.
        watch: told after each round.

    Raises:
        StudyError, DataError: the study, the records or the folder cannot be used.
        PrivacyError, ProtocolError, AbsentError: as the process said that ended so; or one ended
            for no reason that it knew.
    """
    torch.set_num_threads(1)
    began = time.monotonic()
    gathered = gather(study, data)
    sites = tuple(name for name, _ in gathered.sites)
    if len(sites) != study.simulation.sites:
        study = study.with_sites(len(sites))
    records, trainer = pool(study, gathered), Trainer(study, planned_mechanism(study))
    # What would be refused later is refused here, before anything is made.
    for site in sites:
        desk.check_name(site)
    site_encoding(study, len(sites), count_values(study, trainer.parameters))
    with Deployment(study, data, out / DEPLOY, sites) as deployment:
        rows = _Rows(study, records, trainer, out, watch)
        if not deployment.is_over():
            deployment.run(rows.follow)
        rows.follow()
        rows.follow()  # the last row is noted once it was seen twice
    folder = deployment.coordinator
    final = checkpoint.load(folder / CHECKPOINT, trainer.parameters)
    if final is None:
        raise DataError(f"{folder / CHECKPOINT}: expected the last checkpoint, found none")
    traffic = _traffic(out / DEPLOY, sites)
    traffic.site_rounds = sum(int(str(row["sites"])) for row in final.history)
    outcome = conclude(
        study,
        measured_after(study, records, trainer, final, traffic),
        folder.study,
        out / DEPLOY / SITES,
        with_baselines=with_baselines,
        watch=watch,
    )
    return replace(outcome, seconds=time.monotonic() - began, engine="deploy")


class Deployment:
    """The processes of one study; none outlives the context.

    Attributes:
        coordinator: its folder.
        processes: by name, once they were started.
    """

    def __init__(self, study: Study, data: Path | None, folder: Path, sites: Sequence[str]) -> None:
        """Found the coordinator and invite the sites, as far as that is not done yet.

        Errors: as `server.founding.found` and `server.desk.invite`.
        """
        self._data, self._folder, self._sites = data, folder, tuple(sites)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.coordinator = self._founded(study)
        with closing(Books(self.coordinator / BOOKS)) as books:
            self._invite(books)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def is_over(self) -> bool:
        """Say whether the study has run to its end."""
        with closing(Books(self.coordinator / BOOKS)) as books:
            return books.page().ended in ("finished", "early")

    def run(self, follow: Callable[[], None]) -> None:
        """Run the study to its end; as `finish`."""
        self.serve()
        for site in self._sites:
            self.start(site)
        self.seal()
        self.finish(follow)

    def finish(self, follow: Callable[[], None]) -> None:
        """Wait until the coordinator and the sites end; ``follow`` is called every now and then.

        Raises:
            FedwardError: what the coordinator, or else a site, ended with.
        """

        def ended() -> bool:
            follow()
            return self._done(COORDINATOR)

        self.until(ended)
        end = time.monotonic() + _HOME_S
        self.until(lambda: time.monotonic() > end or all(map(self._done, self._sites)))

    def serve(self) -> None:
        """Start the coordinator, and wait until it listens."""
        self._begin(COORDINATOR, "coordinator", str(self._folder))
        end = time.monotonic() + _START_S
        self.until(lambda: self._listens() or time.monotonic() > end)

    def start(self, site: str) -> None:
        """Start a site."""
        data = [] if self._data is None else [str(self._data)]
        self._begin(site, "site", str(self._folder), site, *data)

    def seal(self) -> None:
        """Wait until every site has enrolled, and close the roster, unless it is."""
        with closing(Books(self.coordinator / BOOKS)) as books:
            self.until(lambda: not books.page().invited)
            if books.page().roster is None:
                desk.seal(self.coordinator, books)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait, as long as no process ends in failure; FedwardError says which one did, and why."""
        while not holds():
            for name in (COORDINATOR, *self._sites):
                self._check(name)
            time.sleep(_TICK_S)
        for name in (COORDINATOR, *self._sites):
            self._check(name)

    def stop(self) -> None:
        """End every process and wait until it is gone."""
        running = [one for one in self.processes.values() if one.poll() is None]
        for one in running:
            one.terminate()
        end = time.monotonic() + _STOP_S
        for one in running:
            try:
                one.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
        for one in self.processes.values():
            if one.stdin is not None:
                one.stdin.close()

    def _founded(self, study: Study) -> Folder:
        """Return the coordinator's folder; the study that is founded has no seed in it."""
        path = self._folder / COORDINATOR
        if path.exists():
            return open_folder(path)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._folder / STUDY, tomli_w.dumps(study.document()).encode())
        document = study.document()
        document.get("simulation", {}).pop("seed", None)
        weights = seeded_integer(study.simulation.seed, "model")
        with socket.socket() as one:
            one.bind((HOST, 0))
            port = one.getsockname()[1]
        return found(parse_study(document), path, HOST, port, model_seed=weights)[0]

    def _invite(self, books: Books) -> None:
        """Leave a token for each site that has not enrolled; who has keeps the one before."""
        page = books.page()
        if page.roster is not None:
            return
        for site in set(self._sites) - set(page.staying):
            path = self._folder / TOKENS / site
            path.unlink(missing_ok=True)
            keyfile.keep(path, desk.invite(self.coordinator, books, site, DAYS)[0].encode())

    def _begin(self, name: str, *arguments: str) -> None:
        logs = self._folder / LOGS
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.txt").open("wb") as words:
            self.processes[name] = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-m", MODULE, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,  # closed when this process ends, however it does
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,  # Ctrl-C is this process's to hear
            )

    def _done(self, name: str) -> bool:
        return self.processes[name].poll() is not None

    def _check(self, name: str) -> None:
        process = self.processes.get(name)
        if process is None or not process.poll():
            return
        if name != COORDINATOR and self._is_stopped():
            return  # the coordinator, which ends next, knows why
        raise self._failure(name, process.returncode)

    def _is_stopped(self) -> bool:
        coordinator = self.processes.get(COORDINATOR)
        if coordinator is None or coordinator.poll() is not None:
            return False
        with closing(Books(self.coordinator / BOOKS)) as books:
            return books.page().ended == "stopped"

    def _failure(self, name: str, code: int) -> Exception:
        lines = (self._folder / LOGS / f"{name}.txt").read_text(errors="replace").splitlines()
        said = [line for line in lines if ": error: " in line]
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        if code < 0 or code == INTERRUPTED or not said:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return AbsentError(
                f"{name}: its process ended before the study did ({how}); what is done is kept",
                _RESUME,
            )
        words = said[-1].partition(": error: ")[2]
        hint = hints[-1] if hints else ""
        if code not in _CODES:
            return RuntimeError(f"{name}: {words} ({hint})")
        return _CODES[code](f"{name}: {words}", hint)

    def _listens(self) -> bool:
        with socket.socket() as one:
            one.settimeout(1.0)
            return one.connect_ex((HOST, self.coordinator.settings.port)) == 0


class _Rows:
    """metrics.csv of the run: the coordinator's rows, and the exact figures beside them."""

    def __init__(
        self, study: Study, records: Pool, trainer: Trainer, out: Path, watch: Watch | None
    ) -> None:
        """Begin anew: rows of before are measured again, from the states that are kept."""
        self._study, self._trainer, self._out, self._watch = study, trainer, out, watch
        self._measure = Measure(study, records, trainer)
        self._file = open_metrics(study, out, 0)
        self._seen = 0

    def follow(self) -> None:
        """Add what is new since the last call; the last row once it has been seen before."""
        folder = self._out / DEPLOY / COORDINATOR
        rows = read_metrics(folder) if (folder / METRICS).exists() else []
        if len(rows) == self._seen:
            ready = rows
        else:
            self._seen, ready = len(rows), rows[:-1]  # it may be half written
        if len(ready) < self._file.last:  # a sum was taken back
            self._file = open_metrics(self._study, self._out, len(ready))
        for row in ready[self._file.last :]:
            self._add(row)

    def _add(self, row: dict[str, float | None]) -> None:
        number, figures = int(row["round"] or 0), {}
        if evaluation_due(self._study, number):
            blob = state_file(self._out / DEPLOY, number).read_bytes()
            figures = self._measure(read_state(blob, self._trainer.parameters))
        exact = {name: figure.value for name, figure in figures.items()}
        whole = {"round": number, "sites": int(row["sites"] or 0)}
        self._file.add({**row, **whole, **exact})
        if self._watch is not None:
            self._watch(Progress(number, self._study.rounds, figures, row["epsilon"]))


def _traffic(folder: Path, sites: Sequence[str]) -> Traffic:
    """Add up what the sites' logs say was sent, and was asked for it."""
    logs = (read_audit(folder / SITES / site).sent for site in sites)
    notes = [note.facts for log in logs for note in log if note.kind == "sent"]  # no letters
    return Traffic(
        bytes_up=sum(int(str(one["bytes"])) for one in notes),
        bytes_down=sum(int(str(one["asked_bytes"])) for one in notes),
        answers=len(notes),
    )
