"""A run of --engine deploy that is cut, whichever way: no process is left, and it can go on."""

import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import tomli_w

from server.metrics import read_metrics
from shared_models.study import load_study
from simulations.run import simulate
from tests.system.conftest import STUDY, table
from tests.system.test_killed import WAIT_S, all_gone, children_of, wait_for_round

Start = Callable[..., "subprocess.Popen[str]"]
RUN = ("run", "study.toml", "--data", "toy.csv", "--engine", "deploy", "--out", "out")
RESUME = "fedward-sim: error: {}\nhint: go on with --resume\n"


def test_a_run_that_is_cut_leaves_no_process_and_ends_with_the_same_bytes(
    folder: Path, start: Start
) -> None:
    masked(folder)
    out = folder / "out"

    bereft = start(*RUN)
    parts = begun(bereft, out, 3)
    coordinator = next(one for one in parts if "coordinator" in words(one))
    os.kill(coordinator, signal.SIGKILL)
    said = "coordinator: its process ended before the study did (signal SIGKILL); what is done is"
    assert ended(bereft, parts) == (5, RESUME.format(f"{said} kept"))

    interrupted = start(*RUN, "--resume")
    parts = begun(interrupted, out, 8)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal sends it
    assert ended(interrupted, parts) == (
        130,
        RESUME.format("interrupted; what is done is kept"),
    )

    code, said = ended(start(*RUN, "--resume"), [])
    assert code == 0, said
    whole = simulate(load_study(folder / "study.toml"), folder / "toy.csv", folder / "whole")
    assert (out / "model.safetensors").read_bytes() == whole.model
    cut, told = read_metrics(out), read_metrics(folder / "whole")
    for row, undisturbed in zip(cut, told, strict=True):
        # Attempts that were cut may have been paid for: the coordinator counts each.
        assert (row.pop("epsilon") or 0.0) >= (undisturbed.pop("epsilon") or 0.0)
        assert row == undisturbed


def test_no_process_outlives_a_run_that_is_killed(folder: Path, start: Start) -> None:
    masked(folder)
    killed = start(*RUN)
    parts = begun(killed, folder / "out", 0)
    killed.kill()
    assert ended(killed, parts) == (-signal.SIGKILL, "")


def masked(folder: Path) -> None:
    """Write the study and its records, so that a deployment can run them."""
    document = tomllib.loads(STUDY)
    document["aggregation"]["masking"] = "fsa1"
    document["rounds"] = 16
    (folder / "study.toml").write_text(tomli_w.dumps(document))
    (folder / "toy.csv").write_text(table(90))


def begun(process: "subprocess.Popen[str]", out: Path, number: int) -> list[int]:
    """Return the processes of a run, once it has got as far as a round."""
    wait_for_round(process, out, number)
    end = time.monotonic() + WAIT_S
    while len(found := children_of(process.pid)) < 4:  # a coordinator and three sites
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    return found


def ended(process: "subprocess.Popen[str]", parts: list[int]) -> tuple[int, str]:
    _, said = process.communicate(timeout=180)
    assert all_gone(parts), "a process outlived its run"
    return process.returncode, said


def words(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_text().split("\0")
