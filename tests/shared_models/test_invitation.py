"""Tokens: whole, short, and refused when a character is changed, lost or added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import DataError
from shared_models.invitation import Invitation, read_token, write_token

ONE = Invitation(
    "fedward.example.org", 8443, bytes(32), bytes([1]) * 32, bytes([2]) * 32, "bonn",
    1_800_000_000, bytes(range(16)),
)  # fmt: skip
keys = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80)


@given(
    st.builds(
        Invitation,
        host=texts,
        port=st.integers(1, 65535),
        authority=keys,
        server=keys,
        study=keys,
        site=texts,
        expires=st.integers(0, 2**32 - 1),
        secret=st.binary(min_size=16, max_size=16),
    )
)
def test_a_token_says_what_was_written(invitation: Invitation) -> None:
    token = write_token(invitation)
    assert len(token) < 400
    assert read_token(token) == invitation


def test_the_longest_names_still_fit_and_longer_ones_are_refused() -> None:
    long = Invitation("h" * 105, 1, *(bytes(32),) * 3, "s" * 64, 2**32 - 1, bytes(16))
    assert len(write_token(long)) == 399
    with pytest.raises(DataError, match="at most 169 characters together, got 170"):
        write_token(Invitation("h" * 106, 1, *(bytes(32),) * 3, "s" * 64, 1, bytes(16)))


def test_a_token_survives_a_mail_that_breaks_lines() -> None:
    token = write_token(ONE)
    assert read_token(f"  {token[:60]}\n{token[60:]}\n") == ONE


def test_every_changed_character_is_noticed() -> None:
    token = write_token(ONE)
    for at in range(len(token)):
        other = "B" if token[at] == "A" else "A"
        for wrong in (token[:at] + other + token[at + 1 :], token[:at] + token[at + 1 :]):
            with pytest.raises(DataError, match="expected a token") as found:
                read_token(wrong)
            assert wrong[-20:] not in str(found.value)


@pytest.mark.parametrize("text", ["", "fedward1.", "fedward1.AAAA", "x" * 500, "fedward1.é"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="nothing was sent"):
        read_token(text)


def test_the_secret_is_not_shown() -> None:
    assert ONE.secret.hex() not in repr(ONE)
    assert repr(ONE.secret) not in repr(ONE)
