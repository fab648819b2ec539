"""Runs of the console script that are killed or interrupted: they go on, and leave nobody behind.

Each reference is the same study run whole in this process: the bytes must agree across processes.
"""

import csv
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from privacy.ledger import Ledger
from server.checkpoint import load
from shared_models.registry import build_network
from shared_models.steps import evaluation_due
from shared_models.study import Study, load_study
from shared_models.weights import vector_of
from simulations.run import simulate

Start = Callable[..., "subprocess.Popen[str]"]
Finish = Callable[..., "subprocess.CompletedProcess[str]"]

PLAIN = "privacy.mode=none"
SCAFFOLD = "aggregation.strategy=scaffold"
DISTRIBUTED = (
    *("privacy.mode=distributed", "privacy.records_max=99", "training.local_steps=1"),
    "aggregation.masking=fsa1",
)
CASES = {
    "plain": ([PLAIN], 1),
    "masked-two-workers": (["aggregation.masking=fsa1"], 2),
    "scaffold-private": ([SCAFFOLD], 1),
    "distributed": ([*DISTRIBUTED], 1),
}
WAIT_S = 90  # for a process to get as far as its first rounds, on a busy machine


def rounds_done(folder: Path) -> int:
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            return len(list(csv.reader(file))) - 1
    except OSError:
        return 0


def wait_for_round(process: "subprocess.Popen[str]", folder: Path, number: int) -> None:
    """Return once ``number`` rounds are done or the process has ended."""
    end = time.monotonic() + WAIT_S
    while rounds_done(folder) < number and process.poll() is None:
        assert time.monotonic() < end, "the run did not get as far as the round of the kill"
        time.sleep(0.001)
    if process.poll() not in (None, 0):
        pytest.fail(f"the run ended by itself: {process.communicate()[1]}")


def children_of(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry.name.isdigit() and int(fields[1]) == process:
            found.append(int(entry.name))
    return found


def gone(process: int) -> bool:
    """Say whether a process has ended (a zombie that nobody has waited for has)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def all_gone(processes: list[int], within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if all(gone(process) for process in processes):
            return True
        time.sleep(0.02)
    return False


def arguments(case: str, *more: str) -> list[str]:
    changes, workers = CASES[case]
    overrides = [word for change in changes for word in ("--set", change)]
    return [
        *("run", "study.toml", "--data", "toy.csv", "--out", "out", "--resume"),
        *("--workers", str(workers), *overrides, *more),
    ]


def study_of(case: str, folder: Path) -> Study:
    return load_study(folder / "study.toml", CASES[case][0])


def kill_and_resume(
    case: str, kills: int, seed: int, folder: Path, start: Start, finish: Finish
) -> None:
    draw, out = random.Random(seed), folder / "out"
    study = study_of(case, folder)
    whole = simulate(study, folder / "toy.csv", folder / "whole")
    aims = sorted(draw.sample(range(study.rounds), kills))
    for aim in aims:  # 0: before the first round is done
        process = start(*arguments(case))
        wait_for_round(process, out, aim)
        time.sleep(draw.uniform(0, 0.02))  # some rounds take as long: anywhere within one
        workers = children_of(process.pid)
        process.kill()
        process.wait()
        assert all_gone(workers), "workers outlived the run that was killed"
    ended = finish(*arguments(case))
    assert ended.returncode == 0, ended.stderr
    assert (out / "model.safetensors").read_bytes() == whole.model
    assert (out / "metrics.csv").read_bytes() == (folder / "whole" / "metrics.csv").read_bytes()
    assert rounds_done(out) == study.rounds
    if study.privacy.mode != "none":
        for site in whole.sites:
            with Ledger(out / "sites" / site / "ledger.db") as ledger:
                phases = [event.phase for event in ledger.events(study=study.digest())]
            assert phases.count("train") == study.rounds
            due = sum(evaluation_due(study, number) for number in range(1, study.rounds + 1))
            assert phases.count("evaluate") == due


@pytest.mark.parametrize(
    ("case", "kills"),
    [("plain", 1), ("masked-two-workers", 2), ("scaffold-private", 1), ("distributed", 1)],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    case: str, kills: int, folder: Path, start: Start, fedward_sim: Finish
) -> None:
    seed = list(CASES).index(case)
    kill_and_resume(case, kills, seed, folder, start, fedward_sim)


@pytest.mark.soak
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("seed", [100, 101])
def test_a_run_killed_nine_times_resumes_to_the_same_bytes(
    case: str, seed: int, folder: Path, start: Start, fedward_sim: Finish
) -> None:
    kill_and_resume(case, 9, seed, folder, start, fedward_sim)  # 8 x 9 kills


def test_ctrl_c_ends_a_run_in_one_line_and_leaves_it_resumable(folder: Path, start: Start) -> None:
    case, out = "masked-two-workers", folder / "out"
    process = start(*arguments(case, "--set", "rounds=2000"))
    wait_for_round(process, out, 3)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers too
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert printed == ""
    assert said == (
        "fedward-sim: error: interrupted; what is done is kept\nhint: go on with --resume\n"
    )
    assert all_gone(workers)
    assert kept_rounds(folder, *CASES["masked-two-workers"][0], "rounds=2000") >= 3


def kept_rounds(folder: Path, *overrides: str) -> int:
    study = load_study(folder / "study.toml", overrides)
    parameters = len(vector_of(build_network(study)))
    kept = load(folder / "out" / "checkpoint", parameters)
    assert kept is not None
    assert kept.digest == study.digest()
    return kept.state.round


def test_a_worker_that_is_killed_ends_the_run_and_leaves_it_resumable(
    folder: Path, start: Start
) -> None:
    process = start(*arguments("masked-two-workers", "--set", "rounds=2000"))
    wait_for_round(process, folder / "out", 3)
    workers = children_of(process.pid)
    os.kill(workers[0], signal.SIGKILL)  # as the kernel does when memory runs out
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert said.count("\n") == 2
    assert all_gone(workers)
    assert kept_rounds(folder, *CASES["masked-two-workers"][0], "rounds=2000") >= 3
