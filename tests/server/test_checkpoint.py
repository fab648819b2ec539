"""Checkpoints: what is written is read back, a crash leaves one of two, damage is one line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from privacy.errors import DataError
from server.checkpoint import Checkpoint, load, save
from shared_models.durable import write_durably
from shared_models.strategies import State, state_bytes

P = 4
OLD = Checkpoint(
    digest="ab" * 32,
    state=State(1, np.arange(P, dtype=np.float64) / 3, {"m": np.full(P, 0.1)}),
    history=({"round": 1, "sites": 3},),
)
NEW = Checkpoint(
    digest="ab" * 32,
    state=State(2, np.arange(P, dtype=np.float64) / 7, {"m": np.full(P, 0.2)}),
    history=({"round": 1, "sites": 3}, {"round": 2, "sites": 4, "released": {"auc": None}}),
    spent_attempts=2,
    stopped=True,
)


def same(one: Checkpoint | None, two: Checkpoint) -> bool:
    return (
        one is not None
        and state_bytes(one.state) == state_bytes(two.state)
        and replace(one, state=two.state) == two
    )


@pytest.mark.parametrize("checkpoint", [OLD, NEW])
def test_a_checkpoint_is_read_back_whole(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save(tmp_path, checkpoint)
    assert same(load(tmp_path, P), checkpoint)


def test_the_last_of_two_checkpoints_is_read(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    save(tmp_path, NEW)
    assert same(load(tmp_path, P), NEW)


def test_a_folder_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert load(tmp_path, P) is None
    assert load(tmp_path / "absent", P) is None


def test_the_folder_is_made(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b", OLD)
    assert same(load(tmp_path / "a" / "b", P), OLD)


def test_a_folder_holds_one_model_and_one_document(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    save(tmp_path, NEW)
    assert [f.name.split("-")[:2] for f in sorted(tmp_path.iterdir())] == [
        ["checkpoint.json"],
        ["round", "000002"],
    ]


def test_the_study_before_the_last_sum_is_read_back_too(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    save(tmp_path, replace(NEW, before=OLD))
    found = load(tmp_path, P)
    assert found is not None
    assert same(found.before, OLD)
    assert same(replace(found, before=None), NEW)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_round_that_is_run_again_does_not_write_over_the_file_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, NEW)
    other = replace(NEW, state=State(2, np.zeros(P), {"m": np.ones(P)}))
    with monkeypatch.context() as patch:
        crashing(patch, "replace", 1, after=True)  # its vectors are there, its document is not
        with pytest.raises(Crash):
            save(tmp_path, other)
    assert same(load(tmp_path, P), NEW)


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    save(tmp_path / "a", NEW)
    save(tmp_path / "b", NEW)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_no_file_of_a_checkpoint_can_be_unpickled(tmp_path: Path) -> None:
    save(tmp_path, NEW)
    for file in tmp_path.iterdir():
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError)):
            pickle.loads(file.read_bytes())


# Crashes


class Crash(BaseException):
    """The process ends here."""


def crashing(monkeypatch: pytest.MonkeyPatch, name: str, call: int, after: bool) -> list[int]:
    """Let the ``call``-th call of a system function end the process, before or after its work."""
    calls: list[int] = []
    owner = Path if name == "unlink" else os
    real = getattr(owner, name)

    def instead(*args: object, **keys: object) -> object:
        calls.append(1)
        if len(calls) == call and not after:
            raise Crash
        result = real(*args, **keys)
        if len(calls) == call:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, instead)
    return calls


STEPS = [("fsync", 4), ("rename", 2), ("unlink", 1)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("name", "call"), [(name, n) for name, count in STEPS for n in range(1, count + 1)]
)
def test_a_crash_at_any_step_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int, after: bool
) -> None:
    save(tmp_path, OLD)
    if name == "rename":
        name = "replace"  # pathlib calls os.replace
    with monkeypatch.context() as patch:
        crashing(patch, name, call, after)
        with pytest.raises(Crash):
            save(tmp_path, NEW)
    found = load(tmp_path, P)
    assert same(found, OLD) or same(found, NEW)
    save(tmp_path, NEW)
    assert same(load(tmp_path, P), NEW)
    assert len(list(tmp_path.glob("round-*.safetensors"))) == 1


def test_the_crash_tests_reach_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, OLD)
    counts = {
        name: crashing(monkeypatch, {"rename": "replace"}.get(name, name), -1, False)
        for name, _ in STEPS
    }
    save(tmp_path, NEW)
    assert {name: len(calls) for name, calls in counts.items()} == dict(STEPS)


def test_a_file_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            seen.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, noted)
    write_durably(tmp_path / "x", b"1")
    assert seen == ["fsync", "replace", "fsync"]


def test_a_half_written_file_of_an_earlier_crash_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json.new").write_bytes(b"{" * 10_000)
    save(tmp_path, OLD)
    assert same(load(tmp_path, P), OLD)


# Damage


def documented(folder: Path, **changes: object) -> None:
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"3", b'"text"', b"{}", pickle.dumps({"a": 1})],
)
def test_a_document_that_is_none_is_damage(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, OLD)
    (tmp_path / "checkpoint.json").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path, P)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": None},
        {"state": "round-000009.safetensors"},
        {"state": 1},
        {"sha256": None},
        {"history": None},
        {"history": 5},
        {"study_digest": None},
        {"spent_attempts": None},
        {"stopped": None},
    ],
)
def test_a_document_with_a_wrong_entry_is_damage(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    save(tmp_path, OLD)
    documented(tmp_path, **changes)
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path, P)


def test_a_changed_byte_of_the_model_is_damage(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    (path,) = tmp_path.glob("round-000001-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256"):
        load(tmp_path, P)


def test_a_lost_model_is_damage(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    (path,) = tmp_path.glob("round-000001-*.safetensors")
    path.unlink()
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path, P)


def test_the_model_of_another_network_is_damage(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path, P + 1)


def test_damage_is_one_line_without_a_value(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    (tmp_path / "checkpoint.json").write_text('{"state": 0.123456')
    with pytest.raises(DataError) as caught:
        load(tmp_path, P)
    assert "\n" not in str(caught.value)
    assert "0.123456" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        save(tmp_path / "taken" / "checkpoint", OLD)


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, OLD)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device"):
            save(tmp_path, NEW)
    assert same(load(tmp_path, P), OLD)


def test_a_checkpoint_can_be_moved(tmp_path: Path) -> None:
    save(tmp_path / "a", OLD)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert same(load(tmp_path / "b", P), OLD)
