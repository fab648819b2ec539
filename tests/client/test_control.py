"""A site's control variate on disk."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from client.control import load_control, store_control
from privacy.errors import DataError
from shared_models.weights import Vector32

P = 3


def variate(value: float) -> Vector32:
    return np.full(P, value, dtype=np.float32)


def test_before_the_first_round_it_is_zero(tmp_path: Path) -> None:
    found = load_control(tmp_path / "absent", 1, P)
    assert found.dtype == np.float32
    assert found.tolist() == [0.0] * P


def test_the_next_round_reads_what_the_last_one_stored(tmp_path: Path) -> None:
    store_control(tmp_path / "site", 1, variate(1 / 3))
    assert load_control(tmp_path / "site", 2, P).tobytes() == variate(1 / 3).tobytes()


def test_a_round_that_is_run_again_starts_from_the_one_before(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        store_control(tmp_path, number, variate(number))
    assert load_control(tmp_path, 3, P).tolist() == [2.0] * P


def test_a_first_round_that_is_run_again_starts_from_zero(tmp_path: Path) -> None:
    store_control(tmp_path, 1, variate(1))
    assert load_control(tmp_path, 1, P).tolist() == [0.0] * P


def test_rounds_that_a_site_missed_do_not_matter(tmp_path: Path) -> None:
    store_control(tmp_path, 2, variate(2))
    assert load_control(tmp_path, 9, P).tolist() == [2.0] * P


def test_rounds_are_ordered_as_numbers(tmp_path: Path) -> None:
    store_control(tmp_path, 999_999, variate(1))
    store_control(tmp_path, 1_000_000, variate(2))
    assert load_control(tmp_path, 1_000_001, P).tolist() == [2.0] * P


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        store_control(tmp_path, number, variate(number))
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "control-000004.safetensors",
        "control-000005.safetensors",
    ]


def test_storing_a_round_again_replaces_it(tmp_path: Path) -> None:
    store_control(tmp_path, 1, variate(1))
    store_control(tmp_path, 1, variate(2))
    assert load_control(tmp_path, 2, P).tolist() == [2.0] * P


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K*.",
        safetensors.numpy.save({"other": variate(1)}),
        safetensors.numpy.save({"control": variate(1)[:-1]}),
        safetensors.numpy.save({"control": variate(1).astype(np.float64)}),
    ],
    ids=["empty", "pickle", "another name", "another size", "another format"],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "control-000001.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="nothing was sent") as caught:
        load_control(tmp_path, 2, P)
    assert "\n" not in str(caught.value)
