"""A roster file is read strictly; a newer one is taken without approval only when it revokes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import DataError, PrivacyError, ProtocolError
from privacy.keys import Identity, identity
from privacy.roster import Member, threshold
from shared_models.plan import roster_digest
from shared_models.roster_file import (
    RosterFile,
    accept,
    digest,
    read_roster,
    roster_bytes,
    sign_roster,
)

SERVER = identity(bytes([255]) * 32)
PUBLICS = [identity(bytes([number]) * 32).public for number in range(101)]


def members(n: int, revoked: frozenset[int] = frozenset()) -> tuple[Member, ...]:
    return tuple(Member(f"site-{i}", PUBLICS[i], i in revoked) for i in range(n))


def roster(
    n: int = 7,
    version: int = 1,
    revoked: frozenset[int] = frozenset(),
    study: str = "heart",
    server: Identity = SERVER,
    sites: tuple[Member, ...] | None = None,
) -> RosterFile:
    return sign_roster(study, version, members(n, revoked) if sites is None else sites, server)


def changed(change: Callable[[dict[str, Any]], object], **given: Any) -> bytes:
    """A roster whose document was changed and signed again, so that only the change is wrong."""
    document = json.loads(roster_bytes(roster(**given)))
    del document["signature"]
    change(document)
    body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    document["signature"] = SERVER.sign(b"fedward roster", body).hex()
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


# --- read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 7, 100])
def test_a_roster_is_read_as_it_was_written(n: int) -> None:
    whole = roster(n)
    assert read_roster(roster_bytes(whole)) == whole


def test_the_protocol_gets_the_sites_in_order() -> None:
    given = roster(version=2, revoked=frozenset({4}))
    assert given.roster().sites == members(7, frozenset({4}))


def test_the_protocol_gets_the_servers_key() -> None:
    assert roster().roster().server == SERVER.public


def test_the_largest_roster_fits() -> None:
    sites = tuple(Member(f"{i:064d}", PUBLICS[i], revoked=False) for i in range(100))
    data = roster_bytes(roster(version=2**31 - 1, study="s" * 64, sites=sites))
    assert len(read_roster(data).sites) == 100


def test_a_change_that_is_signed_again_is_what_the_tests_say_it_is() -> None:
    assert changed(lambda document: None) == roster_bytes(roster())


def site(number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["sites"][number].update(values)


def top(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(values)


LOW_ORDER = "00" * 32
NO_POINT = (2).to_bytes(32, "little").hex()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(top(note="x"), "note: Extra inputs", id="unknown key"),
        pytest.param(
            site(2, note="x"), r"sites\.2\.note: Extra inputs", id="unknown key of a site"
        ),
        pytest.param(lambda d: d.pop("study"), "study: Field required", id="no study"),
        pytest.param(lambda d: d.pop("version"), "version: Field required", id="no version"),
        pytest.param(lambda d: d.pop("server"), "server: Field required", id="no server"),
        pytest.param(
            lambda d: d["sites"][0].pop("revoked"), "revoked: Field required", id="no flag"
        ),
        pytest.param(top(version=0), "version", id="version 0"),
        pytest.param(top(version=-1), "version", id="version below 0"),
        pytest.param(top(version=2**31), "version", id="version too high"),
        pytest.param(top(version=1.0), "version", id="version with a point"),
        pytest.param(top(version=True), "version", id="version true"),
        pytest.param(top(version="1"), "version", id="version as text"),
        pytest.param(lambda d: d.update(sites=d["sites"][:2]), "sites", id="two sites"),
        pytest.param(top(sites=[]), "sites", id="no sites"),
        pytest.param(site(1, index=2), "indices", id="an index twice"),
        pytest.param(lambda d: d["sites"].reverse(), "indices", id="indices in another order"),
        pytest.param(lambda d: d["sites"].pop(0), "indices", id="index 0 missing"),
        pytest.param(site(1, name="site-0"), "a name of its own", id="a name twice"),
        pytest.param(site(1, name="SITE-0"), "a name of its own", id="a name in capitals"),
        pytest.param(site(1, name=""), "name", id="an empty name"),
        pytest.param(site(1, name="../x"), "name", id="a name that leaves its folder"),
        pytest.param(site(1, name=".x"), "name", id="a hidden name"),
        pytest.param(site(1, name="a b"), "name", id="a name with a blank"),
        pytest.param(site(1, name="a\n"), "name", id="a name with a line end"),
        pytest.param(site(1, name="a\x1b[2J"), "name", id="a name that clears the screen"),
        pytest.param(site(1, name="Köln"), "name", id="a name with look-alikes"),
        pytest.param(site(1, name="a" * 65), "name", id="a long name"),
        pytest.param(top(study="../x"), "study", id="a study that leaves its folder"),
        pytest.param(site(1, public=PUBLICS[0].hex()), "a key of its own", id="a key twice"),
        pytest.param(
            site(1, public=SERVER.public.hex()), "a key of its own", id="the server's key"
        ),
        pytest.param(site(1, public=PUBLICS[1].hex().upper()), "public", id="a key in capitals"),
        pytest.param(site(1, public=PUBLICS[1].hex()[:-2]), "public", id="a short key"),
        pytest.param(site(1, public=PUBLICS[1].hex() + "00"), "public", id="a long key"),
        pytest.param(site(1, public="x" * 64), "public", id="a key that is not hex"),
        pytest.param(site(1, public=LOW_ORDER), "site-1: expected an Ed25519", id="low order"),
        pytest.param(site(1, public=NO_POINT), "site-1: expected an Ed25519", id="no point"),
        pytest.param(top(server=LOW_ORDER), "server: expected an Ed25519", id="server, low order"),
        pytest.param(site(1, revoked=1), "revoked", id="a flag that is a number"),
        pytest.param(site(1, revoked=None), "revoked", id="a flag that is null"),
        pytest.param(site(1, revoked=True), "version 1", id="revoked from the beginning"),
        pytest.param(top(sites={}), "sites", id="sites that are a table"),
    ],
)
def test_what_is_not_a_roster_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], told: str
) -> None:
    with pytest.raises(DataError, match=f"^roster: .*{told}"):
        read_roster(changed(change))


def test_101_sites_are_refused() -> None:
    extra = {"index": 100, "name": "x", "public": PUBLICS[100].hex(), "revoked": False}
    with pytest.raises(DataError, match="sites"):
        read_roster(changed(lambda document: document["sites"].append(extra), n=100))


def test_a_long_file_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RosterFile, "model_validate_json", None)
    with pytest.raises(DataError, match="at most 32768 bytes, found 32769"):
        read_roster(b"[" * 32769)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{", b"\xff\xfe", b'"\\ud800"', b"[" * 32768, b"9" * 5000],
)
def test_what_is_not_json_of_a_roster_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^roster: (Invalid JSON|should be an object|Field )"):
        read_roster(data)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda data: data + b"\n", id="a line end"),
        pytest.param(lambda data: data.replace(b":", b": ", 1), id="a blank"),
        pytest.param(lambda data: b'{"version":1,' + data[1:], id="a key twice"),
        pytest.param(lambda data: data.replace(b"heart", b"\\u0068eart"), id="an escape"),
        pytest.param(
            lambda data: json.dumps(
                dict(reversed(json.loads(data).items())), separators=(",", ":")
            ).encode(),
            id="keys in another order",
        ),
    ],
)
def test_another_form_of_the_same_roster_is_refused(other: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DataError, match="canonical"):
        read_roster(other(roster_bytes(roster())))


def test_a_roster_signed_by_somebody_else_is_refused() -> None:
    document = json.loads(roster_bytes(roster()))
    document["server"] = identity(bytes([254]) * 32).public.hex()
    with pytest.raises(DataError, match="signature"):
        read_roster(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_a_signature_of_another_version_does_not_count() -> None:
    document = json.loads(roster_bytes(roster()))
    document["version"] = 2
    with pytest.raises(DataError, match="signature"):
        read_roster(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_is_refused(data: st.DataObject) -> None:
    flipped = bytearray(roster_bytes(roster(4)))
    at = data.draw(st.integers(0, 8 * len(flipped) - 1))
    flipped[at // 8] ^= 1 << at % 8
    with pytest.raises(DataError, match=r"^roster: "):
        read_roster(bytes(flipped))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_end_in_one_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^roster: "):
        read_roster(data)


def test_an_unknown_key_is_shown_without_control_characters_and_cut() -> None:
    with pytest.raises(DataError) as caught:
        read_roster(changed(top(**{"\x1b[2J" * 100: 1})))
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_two_sites_cannot_be_signed() -> None:
    with pytest.raises(DataError, match="sites"):
        roster(2)


# --- digest --------------------------------------------------------------------------------------


def test_the_digest_is_over_the_file_without_its_signature() -> None:
    document = json.loads(roster_bytes(roster()))
    del document["signature"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert digest(roster()) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        roster(version=2),
        roster(study="lung"),
        roster(6),
        roster(server=identity(bytes([254]) * 32)),
        roster(version=2, revoked=frozenset({1})),
    ],
)
def test_another_roster_has_another_digest(other: RosterFile) -> None:
    assert digest(other) != digest(roster())


def test_a_revocation_changes_the_digest() -> None:
    assert digest(roster(version=2)) != digest(roster(version=2, revoked=frozenset({1})))


# --- accept --------------------------------------------------------------------------------------


def test_a_newer_version_that_revokes_is_taken() -> None:
    newer = roster(version=2, revoked=frozenset({3}))
    assert accept(roster(), newer) is newer


def test_a_version_may_be_left_out() -> None:
    newer = roster(version=9, revoked=frozenset({3}))
    assert accept(roster(), newer) is newer


def test_as_many_may_be_revoked_as_leave_t() -> None:
    newer = roster(7, version=2, revoked=frozenset({0, 1}))  # t = 5 of 7
    assert accept(roster(7), newer) is newer


def test_fewer_than_t_left_are_refused() -> None:
    with pytest.raises(PrivacyError, match="at least 5 sites to stay in version 2, got 4"):
        accept(roster(7), roster(7, version=2, revoked=frozenset({0, 1, 2})))


def test_t_is_that_of_all_sites_after_every_revocation() -> None:
    # of the 5 that stay, floor(10/3) + 1 = 4 would be enough: t must not shrink with them
    held = accept(roster(7), roster(7, version=2, revoked=frozenset({0, 1})))
    with pytest.raises(PrivacyError, match="at least 5 sites"):
        accept(held, roster(7, version=3, revoked=frozenset({0, 1, 2})))


def test_of_three_sites_none_can_be_revoked() -> None:
    with pytest.raises(PrivacyError, match="at least 3 sites"):
        accept(roster(3), roster(3, version=2, revoked=frozenset({1})))


def test_the_same_roster_again_is_fine() -> None:
    held = roster(version=2, revoked=frozenset({3}))
    assert accept(held, read_roster(roster_bytes(held))) == held


def test_an_older_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="version 2 or later, got 1"):
        accept(roster(version=2, revoked=frozenset({3})), roster())


def test_an_older_version_is_refused_with_equal_sites() -> None:
    with pytest.raises(ProtocolError, match="version 3 or later, got 2"):
        accept(roster(version=3), roster(version=2))


def test_two_rosters_of_one_version_are_refused() -> None:
    with pytest.raises(ProtocolError, match="one version 2, got a second"):
        accept(roster(version=2, revoked=frozenset({3})), roster(version=2, revoked=frozenset({4})))


SITES = members(7)
OTHER = identity(bytes([254]) * 32)


@pytest.mark.parametrize(
    ("newer", "told"),
    [
        pytest.param(roster(8, 2), "8 sites where there were 7", id="a site added"),
        pytest.param(roster(6, 2), "6 sites where there were 7", id="a site dropped"),
        pytest.param(
            roster(version=2, sites=(*SITES[:6], replace(SITES[6], public=PUBLICS[50]))),
            "another key of site-6",
            id="a key",
        ),
        pytest.param(
            roster(version=2, sites=(*SITES[:6], replace(SITES[6], name="bonn"))),
            "the name bonn for site-6",
            id="a name",
        ),
        pytest.param(
            roster(version=2, sites=(SITES[1], SITES[0], *SITES[2:])),
            "another order of the sites",
            id="the order",
        ),
        pytest.param(
            roster(
                version=2,
                sites=(
                    replace(SITES[0], public=PUBLICS[1]),
                    replace(SITES[1], public=PUBLICS[0]),
                    *SITES[2:],
                ),
            ),
            "another key of site-0",
            id="two keys swapped",
        ),
        pytest.param(roster(version=2, server=OTHER), "another key of the server", id="server"),
        pytest.param(roster(version=2, study="lung"), "the study lung", id="the study"),
    ],
)
def test_anything_but_a_revocation_is_refused_by_name(newer: RosterFile, told: str) -> None:
    with pytest.raises(PrivacyError, match=told):
        accept(roster(), newer)


def test_a_revoked_site_does_not_come_back() -> None:
    held = roster(version=2, revoked=frozenset({3}))
    with pytest.raises(PrivacyError, match="site-3 back"):
        accept(held, roster(version=3, revoked=frozenset({4})))


def test_a_refusal_says_what_stays_in_force() -> None:
    with pytest.raises(PrivacyError, match="version 1 stays in force"):
        accept(roster(7), roster(8, 2))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int, frozenset[int], int, frozenset[int]]:
    """n, then version and revoked sites of the roster held and of the one that comes."""
    n = draw(st.integers(3, 13))
    some = st.frozensets(st.integers(0, n - 1), max_size=n)
    held = draw(some)
    came = draw(some | some.map(lambda more: held | more))  # half of them only revoke
    # version 1 revokes nobody
    versions = [draw(st.integers(2 if gone else 1, 5)) for gone in (held, came)]
    return n, versions[0], held, versions[1], came


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_exactly_the_newer_rosters_that_only_revoke_and_leave_t_are_taken(
    pair: tuple[int, int, frozenset[int], int, frozenset[int]],
) -> None:
    n, version, held, version_2, came = pair
    current, newer = roster(n, version, held), roster(n, version_2, came)
    again = version_2 == version and came == held
    only_revokes = version_2 > version and held <= came and n - len(came) >= threshold(n)
    if again or only_revokes:
        assert accept(current, newer) == newer
    else:
        with pytest.raises((ProtocolError, PrivacyError)):
            accept(current, newer)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 13), st.data())
def test_whatever_comes_the_plans_roster_stays_and_nobody_returns(
    n: int, data: st.DataObject
) -> None:
    held = roster(n)
    pinned, gone = roster_digest(held.roster()), frozenset[int]()
    for _ in range(6):
        came = data.draw(st.frozensets(st.integers(0, n - 1), max_size=n // 3 + 1))
        version = data.draw(st.integers(2, 9))
        count = data.draw(st.sampled_from([n, n, n, n + 1]))
        try:
            held = accept(held, roster(count, version, came))
        except (ProtocolError, PrivacyError):
            continue
        now = frozenset(site.index for site in held.sites if site.revoked)
        assert (roster_digest(held.roster()), gone - now) == (pinned, frozenset())
        assert n - len(now) >= threshold(n)
        gone = now
