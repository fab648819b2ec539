"""Keys against the RFCs' and NIST's vectors and the protocol's own known answers."""

import json
from pathlib import Path

import pytest

from privacy import keys
from privacy.errors import ProtocolError
from privacy.stream import Stream

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "fsa1.json").read_text())
unhex = bytes.fromhex
CTX = unhex(KNOWN["ctx"])
TRANSCRIPT = unhex(KNOWN["transcript"])
COHORT = unhex(KNOWN["cohort_hash"])
SITES = range(KNOWN["n"])
PAIRS = [(low, high) for high in SITES for low in range(high)]
RFC_8032_SEED = unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")


def test_agreement_gives_the_secret_of_rfc_7748() -> None:
    own = keys.agreement_key(
        unhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    )
    peer = unhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert keys.agree(own, peer) == unhex(
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    )


def test_identity_gives_the_key_and_signature_of_rfc_8032() -> None:
    one = keys.identity(RFC_8032_SEED)
    assert one.public == unhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert one._key.sign(b"") == unhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_hkdf_gives_test_case_1_of_rfc_5869() -> None:
    okm = keys.hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm == unhex(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_box_gives_gcm_test_case_14_of_nist() -> None:
    box = keys.seal(bytes(32), bytes(12), bytes(16), b"")
    assert box == unhex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")


def test_stream_starts_with_the_zero_block_of_aes_256() -> None:
    assert Stream(bytes(32)).read(16) == unhex("dc95c078a2408989ad48a21492842087")


@pytest.mark.parametrize("name", ["mask", "channel"])
def test_public_keys_are_the_known_ones(name: str) -> None:
    for secret, public in zip(KNOWN[f"{name}_secret"], KNOWN[f"{name}_public"], strict=True):
        assert keys.agreement_key(unhex(secret)).public == unhex(public)


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_channel_keys_are_the_known_ones_at_both_ends(low: int, high: int) -> None:
    secrets = [keys.agreement_key(unhex(text)) for text in KNOWN["channel_secret"]]
    known = (
        unhex(KNOWN["channel_key"][f"{low}>{high}"]),
        unhex(KNOWN["channel_key"][f"{high}>{low}"]),
    )
    for own, peer in ((low, high), (high, low)):
        shared = keys.agree(secrets[own], secrets[peer].public)
        assert keys.channel_keys(shared, TRANSCRIPT, low, high) == known


@pytest.mark.parametrize(("low", "high"), PAIRS)
def test_pair_mask_keys_are_the_known_ones(low: int, high: int) -> None:
    own = keys.agreement_key(unhex(KNOWN["mask_secret"][high]))
    shared = keys.agree(own, unhex(KNOWN["mask_public"][low]))
    key = keys.pair_mask_key(shared, CTX, low, high, COHORT)
    assert key == unhex(KNOWN["pair_mask_key"][f"{low},{high}"])


@pytest.mark.parametrize("site", SITES)
def test_self_mask_keys_and_commitments_are_the_known_ones(site: int) -> None:
    secret = unhex(KNOWN["self_secret"][site])
    assert keys.self_mask_key(secret, CTX, site) == unhex(KNOWN["self_mask_key"][site])
    assert keys.self_commitment(CTX, secret) == unhex(KNOWN["self_commitment"][site])


def test_group_key_tag_and_mac_key_are_the_known_ones() -> None:
    group = KNOWN["group"]
    parts = [unhex(part) for part in group["parts"]]
    kappa = keys.group_key(parts, TRANSCRIPT)
    assert kappa == unhex(group["kappa"])
    assert keys.group_tag(kappa, CTX) == unhex(group["group_tag"])
    assert keys.mac_key(kappa, CTX) == unhex(group["mac_key"])
    assert [keys.part_commitment(part).hex() for part in parts] == group["part_commitment"]


def test_share_commitment_is_the_known_one() -> None:
    known = KNOWN["share_commitment"]
    commitment = keys.share_commitment(
        CTX, known["kind"], known["destination"], unhex(known["share"])
    )
    assert commitment == unhex(known["commitment"])


def test_box_is_the_known_one_and_opens() -> None:
    known = KNOWN["box"]
    key, bound = unhex(known["key"]), unhex(known["aad"])
    nonce = keys.box_nonce(known["round"], known["attempt"], known["kind"])
    assert nonce == unhex(known["nonce"])
    box = keys.seal(key, nonce, unhex(known["plaintext"]), bound)
    assert box == unhex(known["box"])
    assert keys.unseal(key, nonce, box, bound) == unhex(known["plaintext"])


@pytest.mark.parametrize("change", ["key", "nonce", "box", "bound"])
def test_a_box_with_one_bit_changed_does_not_open(change: str) -> None:
    parts = {"key": bytes(32), "nonce": bytes(12), "bound": b"round 3"}
    parts["box"] = keys.seal(parts["key"], parts["nonce"], b"share", parts["bound"])
    parts[change] = bytes([parts[change][0] ^ 1]) + parts[change][1:]
    assert keys.unseal(parts["key"], parts["nonce"], parts["box"], parts["bound"]) is None


def test_signature_is_the_known_one_and_verifies() -> None:
    known = KNOWN["signature"]
    one = keys.identity(unhex(known["identity_secret"]))
    header, body = unhex(known["header"]), unhex(known["body"])
    signature = one.sign(header, body)
    assert one.public == unhex(known["identity_public"])
    assert signature == unhex(known["signature"])
    assert keys.verify(one.public, header, body, signature)
    assert keys.verify(one.public, header, body, signature)  # the remembered verdict


@pytest.mark.parametrize("part", range(4))
def test_a_signature_over_anything_else_is_refused(part: int) -> None:
    one = keys.identity(RFC_8032_SEED)
    claim = [one.public, bytes(32), b"body", one.sign(bytes(32), b"body")]
    assert keys.verify(*claim)
    claim[part] = bytes([claim[part][0] ^ 1]) + claim[part][1:]
    assert not keys.verify(*claim)
    assert not keys.verify(*claim)  # the remembered verdict


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\x01" + bytes(31),
        unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        b"\xec" + b"\xff" * 30 + b"\x7f",
        b"\xed" + b"\xff" * 30 + b"\x7f",
        b"\xee" + b"\xff" * 30 + b"\x7f",
    ],
)
def test_low_order_points_are_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError, match="low-order"):
        keys.agree(keys.agreement_key(bytes(range(32))), point)


def test_remembered_agreements_are_those_of_agree_and_are_computed_once_a_pair() -> None:
    one, two = (keys.agreement_key(bytes([fill]) * 32) for fill in (1, 2))
    shared = keys.SharedAgreements()
    assert shared(one, two.public) == keys.agree(one, two.public)
    assert len(shared._known) == 1
    assert shared(two, one.public) == keys.agree(one, two.public)
    assert not shared._known


def test_remembered_agreements_are_bounded() -> None:
    shared = keys.SharedAgreements(pairs=2)
    own = keys.agreement_key(bytes([9]) * 32)
    for fill in range(1, 6):
        shared(own, keys.agreement_key(bytes([fill]) * 32).public)
    assert len(shared._known) == 2


def test_no_secret_shows_in_a_repr() -> None:
    key = keys.agreement_key(bytes(range(32)))
    assert repr(bytes(range(32))) not in repr(key)
    assert "PrivateKey" not in repr(key) + repr(keys.identity(RFC_8032_SEED))
