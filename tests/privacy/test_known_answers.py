"""Every known answer of the protocol follows from its secrets: none stands there unused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy import keys, mac, masking, sharing
from privacy.encoding import from_ring, ring_bound
from privacy.roster import threshold
from privacy.secagg_messages import cohort_hash

FILE = Path(__file__).parents[1] / "vectors" / "fsa1.json"
KNOWN: dict[str, Any] = json.loads(FILE.read_text())
SHARED = Path(os.environ.get("FEDWARD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
unhex = bytes.fromhex
CTX, TRANSCRIPT = unhex(KNOWN["ctx"]), unhex(KNOWN["transcript"])
SITES = range(KNOWN["n"])
PAIRS = [(low, high) for low in SITES for high in SITES if low < high]
MASK = [keys.agreement_key(unhex(secret)) for secret in KNOWN["mask_secret"]]
CHANNEL = [keys.agreement_key(unhex(secret)) for secret in KNOWN["channel_secret"]]
COHORT = cohort_hash({site: key.public for site, key in enumerate(MASK)})
PARTS = [unhex(part) for part in KNOWN["group"]["parts"]]
KAPPA = keys.group_key(PARTS, TRANSCRIPT)
MAC_KEY = keys.mac_key(KAPPA, CTX)
SELF = [
    keys.self_mask_key(unhex(secret), CTX, site) for site, secret in enumerate(KNOWN["self_secret"])
]
PAIR = {
    (low, high): keys.pair_mask_key(
        keys.agree(MASK[high], MASK[low].public), CTX, low, high, COHORT
    )
    for low, high in PAIRS
}


def channel_keys() -> Iterator[tuple[str, str]]:
    for low, high in PAIRS:
        shared = keys.agree(CHANNEL[low], CHANNEL[high].public)
        up, down = keys.channel_keys(shared, TRANSCRIPT, low, high)
        yield f"{low}>{high}", up.hex()
        yield f"{high}>{low}", down.hex()


def box() -> dict[str, Any]:
    given = KNOWN["box"]
    nonce = keys.box_nonce(given["round"], given["attempt"], given["kind"])
    plain, bound = unhex(given["plaintext"]), unhex(given["aad"])
    key = unhex(dict(channel_keys())["0>1"])
    sealed = keys.seal(key, nonce, plain, bound)
    return {**given, "key": key.hex(), "nonce": nonce.hex(), "box": sealed.hex()}


def group() -> dict[str, Any]:
    return {
        "parts": KNOWN["group"]["parts"],
        "part_commitment": [keys.part_commitment(part).hex() for part in PARTS],
        "kappa": KAPPA.hex(),
        "group_tag": keys.group_tag(KAPPA, CTX).hex(),
        "mac_key": MAC_KEY.hex(),
        "rho": mac.coefficients(MAC_KEY, len(KNOWN["group"]["rho"])),
    }


def shamir() -> dict[str, Any]:
    given = KNOWN["shamir"]
    draws = iter(unhex(one) for one in given["coefficients"])
    shares = sharing.split(unhex(given["secret"]), KNOWN["t"], SITES, lambda _: next(draws))
    return {**given, "shares": {str(site + 1): share.hex() for site, share in shares.items()}}


def share_commitment() -> dict[str, Any]:
    given = KNOWN["share_commitment"]
    share = unhex(shamir()["shares"][str(given["destination"] + 1)])
    found = keys.share_commitment(CTX, given["kind"], given["destination"], share)
    return {**given, "share": share.hex(), "commitment": found.hex()}


def signature() -> dict[str, Any]:
    given = KNOWN["signature"]
    one = keys.identity(unhex(given["identity_secret"]))
    signed = one.sign(unhex(given["header"]), unhex(given["body"]))
    return {**given, "identity_public": one.public.hex(), "signature": signed.hex()}


def masked(given: Any, shape: masking.Shape, site: int) -> masking.Payload:
    values = np.array(given["quantised"][site], np.int32)
    lanes = np.array(given["lane_values"][site], np.int64)
    plus = [SELF[site], *(PAIR[site, peer] for peer in SITES if peer > site)]
    minus = [PAIR[peer, site] for peer in SITES if peer < site]
    tau = mac.tau(MAC_KEY, values, lanes)
    return masking.masked_payload(shape, values, lanes, tau, plus, minus)


def vectors(bits: Any) -> dict[str, Any]:
    given = KNOWN["vectors"][str(bits)]
    shape = masking.Shape(given["d"], given["lanes"], bits)
    sent = [masked(given, shape, site) for site in SITES]
    head = [one.words[: masking.MAC_BYTES] for one in sent]
    total, rest = masking.zero_payload(shape), masking.zero_payload(shape)
    for site, one in enumerate(sent):
        total.add(one)
        if site != 2:
            rest.add(one)
    masking.add_streams(total, [], SELF)
    plus = [PAIR[2, site] for site in SITES if site > 2]
    minus = [PAIR[site, 2] for site in SITES if site < 2]
    masking.add_streams(rest, plus, [*minus, *(SELF[site] for site in SITES if site != 2)])
    rows = zip(given["quantised"], given["lane_values"], strict=True)
    return {
        **given,  # d, lanes, and the integers that each site sends
        "bound": ring_bound(bits, KNOWN["n"]),
        "tau": [mac.tau(MAC_KEY, np.array(v, np.int32), np.array(w, np.int64)) for v, w in rows],
        "masked": [
            {"mac": tau.tobytes().hex(), "lanes": p.lanes.tobytes().hex(), "values": v}
            for tau, p, v in zip(head, sent, (p.values.tobytes().hex() for p in sent), strict=True)
        ],
        "sum": from_ring(total.values).tolist(),
        "lane_sum": total.lanes.view(np.int64).tolist(),
        "tau_sum": total.tau,
        "sum_without_2": from_ring(rest.values).tolist(),
    }


def test_the_whole_file_follows_from_its_secrets() -> None:
    assert {
        "label": "public",
        "n": KNOWN["n"],
        "t": threshold(KNOWN["n"]),
        "prime": hex(sharing.PRIME),
        "mac_prime": mac.PRIME,
        "ctx": KNOWN["ctx"],
        "transcript": KNOWN["transcript"],
        "mask_secret": KNOWN["mask_secret"],
        "mask_public": [key.public.hex() for key in MASK],
        "channel_secret": KNOWN["channel_secret"],
        "channel_public": [key.public.hex() for key in CHANNEL],
        "self_secret": KNOWN["self_secret"],
        "self_commitment": [
            keys.self_commitment(CTX, unhex(secret)).hex() for secret in KNOWN["self_secret"]
        ],
        "cohort_hash": COHORT.hex(),
        "channel_key": dict(channel_keys()),
        "box": box(),
        "pair_mask_key": {f"{low},{high}": key.hex() for (low, high), key in PAIR.items()},
        "self_mask_key": [key.hex() for key in SELF],
        "group": group(),
        "vectors": {"32": vectors(32), "16": vectors(16)},
        "shamir": shamir(),
        "share_commitment": share_commitment(),
        "signature": signature(),
    } == KNOWN


def test_the_file_is_the_published_one() -> None:
    published = SHARED / "fsa1_vectors.json"
    if not published.exists():
        pytest.skip(f"the published known answers are not here: {published} (set FEDWARD_DATA)")
    assert published.read_bytes() == FILE.read_bytes()
