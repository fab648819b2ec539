"""A run that was cut anywhere goes on to the same bytes; the cut is an exception here.

Real processes and SIGKILL are in tests/system.
"""

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from privacy.errors import DataError, StudyError
from privacy.ledger import Ledger
from server import checkpoint as checkpoints
from shared_models.study import Study
from simulations.outcome import Outcome, write_outcome
from simulations.run import Progress, simulate


class Cut(BaseException):
    """Stands in for SIGKILL: nothing of the program catches it."""


DISTRIBUTED = {
    "rounds": 3,
    "training": {"learning_rate": 0.5},
    "aggregation.strategy": "fedadam",
    "aggregation.average_last": 0.7,
    "privacy": {
        "mode": "distributed",
        "epsilon": 4.0,
        "delta": 1e-5,
        "clipping_norm": 1.0,
        "sampling_rate": 0.5,
        "expected_batch": 16,
        "records_max": 60,
    },
}
CASES = {
    "fedavg": (False, {"rounds": 3}),
    "private": (True, {"rounds": 3}),
    "masked": (True, {"rounds": 3, "aggregation.masking": "fsa1"}),
    "distributed": (False, DISTRIBUTED),
    "distributed-masked": (False, {**DISTRIBUTED, "aggregation.masking": "fsa1"}),
    "fedadam": (False, {"rounds": 3, "aggregation.strategy": "fedadam"}),
    "mean": (False, {"rounds": 3, "aggregation.average_last": 0.7}),
    "scaffold": (False, {"rounds": 3, "aggregation.strategy": "scaffold"}),
    "private-scaffold": (True, {"rounds": 3, "aggregation.strategy": "scaffold"}),
    "cohorts": (False, {"rounds": 3, "aggregation.cohort": 3, "simulation.sites": 5}),
    "stopping": (
        False,
        {"rounds": 6, "evaluation.every": 1, "evaluation.patience": 1, "training.learning_rate": 9},
    ),
    "folds": (False, {"rounds": 2, "evaluation.folds": 2}),
}
EVERY_CASE = pytest.mark.parametrize("case", list(CASES))


@contextmanager
def cut_at(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> Iterator[list[int]]:
    """Cut the run at the ``count``-th call of os.fsync or Path.replace; yield the calls so far."""
    calls = [0]
    real = {"fsync": os.fsync, "replace": Path.replace}[name]

    def wrapped(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] == count:
            raise Cut
        return real(*arguments)  # type: ignore[operator]

    with monkeypatch.context() as patch:
        patch.setattr(os if name == "fsync" else Path, name, wrapped)
        yield calls


def finish(study: Study, records: Path, folder: Path, resume: bool) -> Outcome:
    outcome = simulate(study, records, folder, resume=resume)
    write_outcome(outcome, folder)
    return outcome


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@EVERY_CASE
def test_a_run_cut_after_any_round_ends_in_the_same_files(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path, case: str
) -> None:
    private, changes = CASES[case]
    study = toy_study(private, **changes)
    finish(study, toy_csv, tmp_path / "whole", resume=False)

    def cut(step: Progress) -> None:
        raise Cut

    for _ in range(50):  # one round a session
        try:
            simulate(study, toy_csv, tmp_path / "cut", resume=True, watch=cut)
            break
        except Cut:
            continue
    finish(study, toy_csv, tmp_path / "cut", resume=True)
    for name in ("model.safetensors", "metrics.csv", "model.json", "study.toml"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# fsync is called before and after each rename but that of a control variate.
@pytest.mark.parametrize(
    ("case", "call"), [("private", "fsync"), ("folds", "fsync"), ("scaffold", "replace")]
)
def test_a_run_cut_at_any_write_ends_in_the_same_files(
    toy_study: Callable[..., Study],
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    call: str,
) -> None:
    private, changes = CASES[case]
    study = toy_study(private, **changes)
    with cut_at(monkeypatch, call, 0) as calls:
        whole = finish(study, toy_csv, tmp_path / "whole", resume=False)
    writes = calls[0]
    assert writes > 5
    rows = table(tmp_path / "whole")
    for count in range(1, writes + 1):
        folder = tmp_path / f"cut-{count}"
        with cut_at(monkeypatch, call, count), pytest.raises(Cut):
            finish(study, toy_csv, folder, resume=False)
        assert finish(study, toy_csv, folder, resume=True).model == whole.model, count
        assert table(folder) == rows, count


def test_rounds_run_again_are_not_debited_again(
    toy_study: Callable[..., Study],
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = toy_study(True, rounds=3)
    for count in (3, 6):  # within the writing of a checkpoint: all sites of the sum have debited
        with cut_at(monkeypatch, "fsync", count), pytest.raises(Cut):
            finish(study, toy_csv, tmp_path, resume=True)
    outcome = finish(study, toy_csv, tmp_path, resume=True)
    for site in outcome.sites:
        with Ledger(tmp_path / "sites" / site / "ledger.db") as ledger:
            phases = [event.phase for event in ledger.events(study=study.digest())]
        assert phases == ["train", "train", "evaluate", "train", "evaluate"]


def test_a_finished_run_resumes_to_itself(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study(True)
    first = finish(study, toy_csv, tmp_path, resume=False)
    before = (tmp_path / "metrics.csv").read_bytes()
    again = finish(study, toy_csv, tmp_path, resume=True)
    assert again.model == first.model
    assert again.spent == first.spent
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_resume_may_change_the_number_of_workers(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study(**{"aggregation.strategy": "scaffold", "simulation.sites": 5})
    whole = simulate(study, toy_csv, tmp_path / "whole")

    def cut(step: Progress) -> None:
        raise Cut

    with pytest.raises(Cut):
        simulate(study, toy_csv, tmp_path / "cut", workers=2, watch=cut)
    with pytest.raises(Cut):
        simulate(study, toy_csv, tmp_path / "cut", workers=3, watch=cut, resume=True)
    assert simulate(study, toy_csv, tmp_path / "cut", resume=True).model == whole.model


def test_a_checkpoint_of_another_study_is_refused(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    simulate(toy_study(), toy_csv, tmp_path)
    with pytest.raises(StudyError, match="found a changed one"):
        simulate(toy_study(rounds=5), toy_csv, tmp_path, resume=True)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"state": 3}', b"\xff"])
def test_a_damaged_checkpoint_is_refused_and_kept(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path, damage: bytes
) -> None:
    simulate(toy_study(), toy_csv, tmp_path)
    path = tmp_path / "checkpoint" / "checkpoint.json"
    path.write_bytes(damage)
    with pytest.raises(DataError, match="found a damaged one"):
        simulate(toy_study(), toy_csv, tmp_path, resume=True)
    assert path.read_bytes() == damage


def test_a_model_changed_on_disk_is_refused(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    simulate(toy_study(), toy_csv, tmp_path)
    (path,) = (tmp_path / "checkpoint").glob("round-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256"):
        simulate(toy_study(), toy_csv, tmp_path, resume=True)


def test_the_last_two_checkpoints_are_kept(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    simulate(toy_study(), toy_csv, tmp_path)
    names = [path.name for path in sorted((tmp_path / "checkpoint").iterdir())]
    # The last sum was an evaluation, which leaves the state as it is: one file serves both.
    assert [name.split("-")[:2] for name in names] == [["checkpoint.json"], ["round", "000004"]]


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(
    toy_study: Callable[..., Study],
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = toy_study()
    whole = simulate(study, toy_csv, tmp_path / "whole")
    real, calls = checkpoints.write_durably, 0

    def full(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second round's checkpoint.json
            raise OSError(28, "No space left on device")
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_durably", full)
        with pytest.raises(DataError, match="cannot be written \\(No space left on device\\)"):
            simulate(study, toy_csv, tmp_path / "cut")
    assert simulate(study, toy_csv, tmp_path / "cut", resume=True).model == whole.model
