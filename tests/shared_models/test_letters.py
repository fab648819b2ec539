"""Letters: signed, of one form, bound to their question, and nothing else is read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import keys
from privacy.errors import ProtocolError
from shared_models import letters

SITE, SERVER = keys.identity(bytes([1]) * 32), keys.identity(bytes([2]) * 32)
ABOUT = {"study": "ab" * 32, "site": "bonn", "nonce": "cd" * 16}
QUESTIONS = [
    letters.Enrol(**ABOUT, secret="ef" * 16, public=SITE.public.hex(), node="PEM"),
    letters.Enrol(**ABOUT, secret="ef" * 16, public=SITE.public.hex(), node="PEM", look=True),
    letters.Ask(**ABOUT),
    letters.Ask(**ABOUT, head="0" * 320),
    letters.Approve(**ABOUT, plan="12" * 32, confirmed=("ulm", "jena")),
    letters.Leave(**ABOUT),
    letters.Echo(**ABOUT, values=(1, -2, 3)),
]


def answers(question: bytes) -> list[letters.Section]:
    of = {"question": letters.digest(question)}
    news = letters.SiteNews(name="bonn", state="approved")
    return [
        letters.Enrolled(**of, node=2**63, study="{}", first_model="34" * 32),
        letters.News(**of, state="running", sites=(news,), roster="{}", heads=("0" * 320,)),
        letters.Echoed(**of, values=(1, 2), version="0.1.0", code="56" * 32),
        letters.Refused(**of, reason="token"),
    ]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda one: one.kind)
def test_a_question_is_read_as_written(question: letters.Ask) -> None:
    data = letters.write(SITE, question)
    assert letters.read_question(data) == question
    letters.check(SITE.public, data)
    with pytest.raises(ProtocolError, match="under the pinned key"):
        letters.check(SERVER.public, data)


def test_an_answer_is_read_as_written_by_who_asked_alone() -> None:
    asked, other = (letters.write(SITE, one) for one in QUESTIONS[1:3])
    for answer in answers(asked):
        data = letters.write(SERVER, answer)
        assert letters.read_answer(data, SERVER.public, asked) == answer
        with pytest.raises(ProtocolError, match="answer to this letter"):
            letters.read_answer(data, SERVER.public, other)
        with pytest.raises(ProtocolError, match="under the pinned key"):
            letters.read_answer(data, SITE.public, asked)


def accept(data: bytes) -> None:
    letters.read_question(data)
    letters.check(SITE.public, data)


def test_every_changed_byte_is_noticed() -> None:
    asked = letters.write(SITE, QUESTIONS[3])
    answer = letters.write(SERVER, answers(asked)[1])
    for at in range(len(asked)):
        changed = asked[:at] + bytes([asked[at] ^ 1]) + asked[at + 1 :]
        with pytest.raises(ProtocolError):
            accept(changed)
    for at in range(len(answer)):
        changed = answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
        with pytest.raises(ProtocolError):
            letters.read_answer(changed, SERVER.public, asked)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected a letter"):
        letters.read_question(data)


def test_another_spelling_of_the_same_letter_is_refused() -> None:
    text = json.dumps(QUESTIONS[1].model_dump(mode="json")).encode()  # blanks, another order
    with pytest.raises(ProtocolError, match="expected a letter"):
        letters.read_question(SITE.sign(b"fedward letter", text) + text)


def test_a_long_letter_is_not_parsed() -> None:
    with pytest.raises(ProtocolError, match="expected a letter"):
        letters.read_question(bytes(64) + b"[" * letters.QUESTION_BYTES_MAX)


def test_the_longest_echo_fits_into_a_question() -> None:
    values = (-(2**31),) * letters.ECHO_VALUES_MAX
    assert len(letters.write(SITE, letters.Echo(**ABOUT, values=values))) < 65536


def test_the_secret_is_not_shown() -> None:
    assert "ef" * 16 not in repr(QUESTIONS[0])
