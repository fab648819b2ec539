"""The notice of a study's end: signed, of one plan, beside the very state that it names."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import keys
from privacy.errors import ProtocolError
from shared_models.notice import (
    NOTICE_BYTES_MAX,
    Notice,
    ReleasedFigure,
    notable,
    read_notice,
    write_notice,
)
from shared_models.study import load_study
from shared_models.tasks import target_of

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVER, OTHER = keys.identity(bytes([2]) * 32), keys.identity(bytes([3]) * 32)
PLAN, STATE = bytes([7]) * 32, b"the bytes of a state" * 50
FIGURE = ReleasedFigure(value=0.9, low=None, high=0.95, n=40)
NOTICE = Notice(
    plan=PLAN.hex(),
    reason="finished",
    model=hashlib.sha256(STATE).hexdigest(),
    released={"auc": FIGURE, "pr_auc": ReleasedFigure(value=None, low=None, high=None, n=0)},
)
MESSAGE = write_notice(SERVER, NOTICE, STATE)


def test_a_notice_is_read_as_written_with_its_state() -> None:
    assert read_notice(MESSAGE, SERVER.public, PLAN) == (NOTICE, STATE)


def test_a_notice_without_any_evaluation_is_one() -> None:
    nothing = NOTICE.model_copy(update={"released": {}, "reason": "stopped"})
    told = read_notice(write_notice(SERVER, nothing, STATE), SERVER.public, PLAN)[0]
    assert (told.released, told.reason) == ({}, "stopped")


def test_figures_by_group_travel_and_most_of_them_fit() -> None:
    names = [f"a{'é' * 77}{k:02}" for k in range(64)]
    worst = ReleasedFigure(value=-1 / 3 * 1e-200, low=-1e200 / 3, high=-1e-200 / 7, n=1 << 40)
    full = dict.fromkeys(names, worst)
    groups = {f"group {k}": full for k in range(15)} | {"small": None}
    grouped = NOTICE.model_copy(update={"released": full, "subgroups": groups})
    told = read_notice(write_notice(SERVER, grouped, STATE), SERVER.public, PLAN)[0]
    assert told == grouped
    with pytest.raises(ValueError, match="at most 16"):
        Notice.model_validate(
            {**grouped.model_dump(), "subgroups": {str(k): None for k in range(17)}}
        )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/study.toml")), ids=lambda p: p.parent.name)
def test_the_figures_of_every_example_can_be_told(path: Path) -> None:
    figures = dict.fromkeys(target_of(load_study(path)).metrics, FIGURE.model_dump())
    told = Notice.model_validate(NOTICE.model_dump() | {"released": notable(figures)})
    assert list(told.released) == list(figures)


def test_what_a_notice_has_no_room_for_is_left_out() -> None:
    figures = {f"auc_{k}": FIGURE for k in range(80)} | {"x" * 81: FIGURE}
    assert list(notable(figures)) == [f"auc_{k}" for k in range(64)]
    assert list(notable({"a\nb": FIGURE, "": FIGURE, "c d": FIGURE})) == ["c d"]


def test_another_server_and_another_plan_are_refused() -> None:
    with pytest.raises(ProtocolError, match="under the pinned key"):
        read_notice(MESSAGE, OTHER.public, PLAN)
    with pytest.raises(ProtocolError, match="end of the approved plan"):
        read_notice(MESSAGE, SERVER.public, bytes(32))


def test_every_changed_byte_is_noticed() -> None:
    for at in range(len(MESSAGE)):
        changed = MESSAGE[:at] + bytes([MESSAGE[at] ^ 1]) + MESSAGE[at + 1 :]
        with pytest.raises(ProtocolError):
            read_notice(changed, SERVER.public, PLAN)


def test_a_state_that_was_cut_or_lengthened_is_noticed() -> None:
    for changed in (MESSAGE[:-1], MESSAGE + b"\0"):
        with pytest.raises(ProtocolError, match="the state that the notice names"):
            read_notice(changed, SERVER.public, PLAN)


def test_a_length_above_the_ceiling_is_not_believed() -> None:
    length = (NOTICE_BYTES_MAX + 1).to_bytes(4, "little")
    with pytest.raises(ProtocolError, match="other bytes"):
        read_notice(MESSAGE[:64] + length + bytes(2 * NOTICE_BYTES_MAX), SERVER.public, PLAN)


def test_another_spelling_under_the_right_key_is_refused() -> None:
    text = NOTICE.model_dump_json(indent=1).encode()
    signature = SERVER.sign(b"fedward notice", text)
    message = signature + len(text).to_bytes(4, "little") + text + STATE
    with pytest.raises(ProtocolError, match="other bytes"):
        read_notice(message, SERVER.public, PLAN)


def test_the_writer_wants_the_state_that_it_names() -> None:
    with pytest.raises(ValueError, match="the state that the notice names"):
        write_notice(SERVER, NOTICE, STATE + b"x")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_notice(data, SERVER.public, PLAN)
