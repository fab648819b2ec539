"""Keys against the RFCs' and NIST's vectors and the protocol's own known answers."""

import hashlib
import json
from pathlib import Path

import pytest

from privacy import keys
from privacy.errors import ProtocolError

KNOWN = json.loads((Path(__file__).parents[1] / "vectors" / "fsa1.json").read_text())
unhex = bytes.fromhex
CTX = unhex(KNOWN["ctx"])
TRANSCRIPT = unhex(KNOWN["transcript"])
COHORT = unhex(KNOWN["cohort_hash"])
SITES = range(KNOWN["n"])
PAIRS = [(low, high) for high in SITES for low in range(high)]
RFC_8032_SEED = unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")


ALICE, ALICES_PUBLIC = (
    unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"),
    unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
)
BOB, BOBS_PUBLIC = (
    unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"),
    unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
)


@pytest.mark.parametrize(
    ("secret", "peer", "shared"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_agreement_gives_the_secrets_of_rfc_7748_section_5_2(
    secret: str, peer: str, shared: str
) -> None:
    assert keys.agree(keys.agreement_key(unhex(secret)), unhex(peer)) == unhex(shared)


def test_agreement_gives_the_iterated_secrets_of_rfc_7748_section_5_2() -> None:
    scalar = point = b"\x09" + bytes(31)
    seen = []
    for _ in range(1000):
        scalar, point = keys.agree(keys.agreement_key(scalar), point), scalar
        seen.append(scalar)
    assert seen[0] == unhex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
    assert seen[-1] == unhex("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51")


def test_agreement_gives_the_keys_and_the_secret_of_rfc_7748_section_6_1() -> None:
    alice, bob = keys.agreement_key(ALICE), keys.agreement_key(BOB)
    shared = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert (alice.public, bob.public) == (ALICES_PUBLIC, BOBS_PUBLIC)
    assert keys.agree(alice, bob.public) == keys.agree(bob, alice.public) == shared


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        (
            RFC_8032_SEED.hex(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            b"",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
            "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            b"\x72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            b"\xaf\x82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
        (
            "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
            "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
            hashlib.sha512(b"abc").digest(),
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
            "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
        ),
    ],
    ids=["test 1", "test 2", "test 3", "test SHA(abc)"],
)
def test_identity_gives_the_keys_and_signatures_of_rfc_8032_section_7_1(
    seed: str, public: str, message: bytes, signature: str
) -> None:
    one = keys.identity(unhex(seed))
    assert one.public == unhex(public)
    # The protocol's own signatures are over "FSA1-sig" and more: below it are these.
    assert one._key.sign(message) == unhex(signature)
    assert keys._verify(one.public, unhex(signature), message)


@pytest.mark.parametrize(
    ("ikm", "salt", "info", "okm"),
    [
        (
            b"\x0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb"
            "41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            b"\x0b" * 22,
            b"",
            b"",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["case 1", "case 2", "case 3"],
)
def test_hkdf_gives_the_test_cases_of_rfc_5869_with_sha_256(
    ikm: bytes, salt: bytes, info: bytes, okm: str
) -> None:
    assert keys.hkdf(ikm, salt, info, len(okm) // 2) == unhex(okm)


GCM_KEY = unhex("feffe9928665731c6d6a8f9467308308" * 2)
GCM_IV = unhex("cafebabefacedbaddecaf888")
GCM_PLAIN = unhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
GCM_CIPHER = unhex(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
GCM_BOUND = unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")


@pytest.mark.parametrize(
    ("key", "nonce", "plain", "bound", "cipher", "tag"),
    [
        (bytes(32), bytes(12), b"", b"", b"", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            bytes(32),
            bytes(12),
            bytes(16),
            b"",
            unhex("cea7403d4d606b6e074ec5d3baf39d18"),
            "d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (GCM_KEY, GCM_IV, GCM_PLAIN, b"", GCM_CIPHER, "b094dac5d93471bdec1a502270e3cc6c"),
        (
            GCM_KEY,
            GCM_IV,
            GCM_PLAIN[:60],
            GCM_BOUND,
            GCM_CIPHER[:60],
            "76fc6ece0f4e1768cddf8853bb2d551b",
        ),
    ],
    ids=["case 13", "case 14", "case 15", "case 16"],
)
def test_boxes_are_the_test_cases_of_gcm_with_aes_256(
    key: bytes, nonce: bytes, plain: bytes, bound: bytes, cipher: bytes, tag: str
) -> None:
    """McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B, as sent to NIST."""
    assert keys.seal(key, nonce, plain, bound) == cipher + unhex(tag)
    assert keys.unseal(key, nonce, cipher + unhex(tag), bound) == plain


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


def test_an_equal_claim_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual sites of one process are sent the same signed bytes, each of them."""
    asked: list[bytes] = []

    def verify(public: bytes, signature: bytes, message: bytes) -> bool:
        asked.append(message)
        return True

    monkeypatch.setattr(keys, "_verify", verify)
    assert all(keys.verify(bytes(32), b"header", b"once", bytes(64)) for _ in range(3))
    assert asked == [b"FSA1-sigheaderonce"]


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33)])
def test_what_is_no_key_signed_nothing(public: bytes) -> None:
    assert not keys.verify(public, bytes(32), b"body", bytes(64))


def test_the_remembered_verdict_of_a_key_is_not_that_of_a_longer_one() -> None:
    one = keys.identity(RFC_8032_SEED)
    signature = one.sign(bytes(32), b"body")
    assert keys.verify(one.public, bytes(32), b"body", signature)
    assert not keys.verify(one.public + b"\0", bytes(32), b"body", signature)


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
