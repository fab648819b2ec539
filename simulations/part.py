"""One process of a simulated deployment: the coordinator or one site, on seeded randomness.

    python -m simulations.part coordinator FOLDER
    python -m simulations.part site FOLDER NAME [DATA]

`simulations.deployed` starts it, and it ends when that does: its stdin is closed then. All that it
does is the two programs' own; records, noise, samples and first weights alone come from the study's
simulation section.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import tomli_w
import torch
import typer

from client import folder as names
from client.enrolment import enrol
from client.packet import Packet
from client.proposal import DATASET, proposed_epsilon
from client.site import Entropy
from client.station import work
from privacy.errors import DataError
from server.checkpoint import Checkpoint
from server.coordinator import Coordinator
from server.folder import open_folder
from shared_models import program
from shared_models.durable import write_durably
from shared_models.steps import evaluation_due
from shared_models.strategies import state_bytes
from shared_models.study import Study, load_study
from simulations.folder import COORDINATOR, SITES, STATES, STUDY, TOKENS
from simulations.pool import Gathered, gather, pool
from simulations.seeds import seeded_key

_GRACE_S = 5.0  # to end by itself, once the driver is gone


def coordinate(folder: Path) -> None:
    """Serve the study as `fedward-server start` does; keep the state of each evaluated round."""
    study = load_study(folder / STUDY)
    (folder / STATES).mkdir(exist_ok=True)

    def keep(now: Checkpoint) -> None:
        number = now.state.round
        if evaluation_due(study, number):
            write_durably(state_file(folder, number), state_bytes(now.state))

    coordinator = Coordinator(open_folder(folder / COORDINATOR), watch=keep)
    try:
        coordinator.run()
    finally:
        coordinator.close()


def state_file(folder: Path, number: int) -> Path:
    """Return where the state after an evaluated round is."""
    return folder / STATES / f"round-{number:06d}.safetensors"


def take_part(folder: Path, name: str, data: Path | None) -> None:
    """Enrol and work as `fedward-site` does, on this site's share of the records."""
    torch.set_num_threads(1)  # the bytes of `--engine local`; a policy only takes threads away
    study, own = load_study(folder / STUDY), folder / SITES / name

    @cache
    def gathered() -> tuple[Gathered, int]:
        found = gather(study, data)
        return found, [site for site, _ in found.sites].index(name)

    if not (own / names.MEMBERSHIP).exists():
        everyone, index = gathered()
        share = everyone.records.take(everyone.sites[index][1])
        _write_policy(study, own)
        token = folder / TOKENS / name
        enrol(token.read_text().strip(), data or own, own, _silent, records=lambda: share)
        token.unlink()
    work(
        own,
        _Agreeing(),
        _silent,
        records=lambda: pool(study, gathered()[0]).split(gathered()[1]),
        entropy=entropy_of(study, name),
    )


def entropy_of(study: Study, name: str) -> Entropy:
    """Return a site's randomness: that of the virtual site of this name.

    An attempt that is made again, after a process was killed, gives the same bytes again: in mode
    distributed, where the step is the attempt, the first one's are taken.
    """
    seed, distributed = study.simulation.seed, study.privacy.mode == "distributed"

    def entropy(purpose: str, number: int, step: int) -> bytes:
        if distributed:
            step = int(purpose == "cells")  # of attempts those to evaluate are odd
        return seeded_key(seed, name, purpose, number, step)

    return entropy


class _Agreeing:
    """The steward of a simulation: every peer is known, and any plan of the study is approved."""

    def decide(self, packet: Packet, changes: Sequence[str], peers: Sequence[str]) -> set[str]:
        """As `client.consent.Steward`."""
        del packet, changes
        return set(peers)


def _write_policy(study: Study, folder: Path) -> None:
    """Write the policy of a steward who allows this study, and nothing beyond it."""
    privacy = study.privacy
    if privacy.mode == "none":
        raise ValueError("expected a private study")
    ceiling = {"unit": privacy.unit, "epsilon": proposed_epsilon(study), "delta": privacy.delta}
    policy = {
        "dataset": DATASET,
        "allow_exact_release": study.evaluation.release == "exact",
        "ceilings": {DATASET: ceiling},
    }
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(folder / names.POLICY, tomli_w.dumps(policy).encode())


def _silent(words: str) -> None:
    del words  # they are in the site's log


def _end_with_driver() -> None:
    """End this process when the driver's end of stdin is closed, however the driver ended."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would outlive the main thread
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(program.INTERRUPTED)

    threading.Thread(target=wait, name="fedward-driver", daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    """Run one process and return its exit code."""
    try:
        with program.terminable(), program.errors("fedward-sim", "go on with --resume"):
            _end_with_driver()
            match arguments:
                case ["coordinator", folder]:
                    coordinate(Path(folder))
                case ["site", folder, name, *data]:
                    take_part(Path(folder), name, Path(data[0]) if data else None)
                case _:
                    raise DataError("expected coordinator FOLDER, or site FOLDER NAME [DATA]")
    except typer.Exit as end:
        return end.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
