"""A data steward's answer: which fingerprints must have been compared, and the signed record of it.

It asks nobody and shows nothing: the packet (`client.packet`) is what is approved.
"""

import json
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from client.policy import Policy
from privacy.errors import DataError, PrivacyError
from privacy.keys import SIGNATURE_BYTES, Identity, verify
from privacy.roster import Plan, colluders_max, threshold
from shared_models.contract import Section
from shared_models.plan import code_digest, roster_digest
from shared_models.roster_file import Name, RosterFile
from shared_models.study import Study

APPROVAL_BYTES_MAX = 1 << 16
_HEADER = b"fedward approval"  # no roster, no letter, no head and no message of FSA1 begins so

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Approval(Section):
    """What was approved, by whom it was confirmed, and when. What `load` returns is signed.

    Attributes:
        plan: digest of the plan, which covers the four that follow and the thresholds.
        study: digest of the study.
        roster: of who takes part, as the plan has it: index, name and key of each site.
        code: of the code of the five packages.
        version: of the roster file that was shown.
        revoked: the sites that were revoked in it.
        confirmed: the peers whose fingerprints were compared by another channel.
        time: when, in UTC, by this machine's clock.
        signature: of the site's Ed25519 key, in hexadecimal, over all of the above.
    """

    plan: Digest
    study: Digest
    roster: Digest
    code: Digest
    version: int = Field(ge=1)
    revoked: tuple[Name, ...]
    confirmed: tuple[Name, ...]
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    signature: str = Field(pattern=rf"^[0-9a-f]{{{2 * SIGNATURE_BYTES}}}$")


def peers_of(roster: RosterFile, site: str) -> tuple[str, ...]:
    """Return the other sites of a roster, without those that are revoked, in its order."""
    return tuple(one.name for one in roster.sites if one.name != site and not one.revoked)


def unconfirmed_most(plan: Plan, distributed: bool, policy: Policy) -> int:
    """Return how many peers may be left unconfirmed.

    A peer that nobody knows may be the server's own. So there may be as many as the masks allow to
    work for it, and in mode distributed no more than the noise allows for; a policy may ask for
    fewer.
    """
    limits = [colluders_max(plan.n)]
    if distributed:
        limits.append(plan.n_c)
    if policy.unconfirmed_max is not None:
        limits.append(policy.unconfirmed_max)
    return min(limits)


def check_confirmed(
    plan: Plan, distributed: bool, peers: Sequence[str], confirmed: Collection[str], policy: Policy
) -> None:
    """Refuse an approval in which too few peers' fingerprints were compared.

    Args:
        plan: as it is to be approved.
        distributed: whether the noise is the sites' together (mode distributed).
        peers: names of the other sites.
        confirmed: those whose six words were compared by another channel.
        policy: of this site.

    Raises:
        DataError: a name that is confirmed is no peer's.
        PrivacyError: too many are left; names them.
    """
    strangers = sorted(set(confirmed) - set(peers))
    if strangers:
        raise DataError(
            f"confirmed: expected names of the other hospitals, got {strangers[0]!a}; "
            "nothing was approved",
            f"they are {', '.join(peers)}",
        )
    left = [name for name in peers if name not in confirmed]
    most = unconfirmed_most(plan, distributed, policy)
    if len(left) > most:
        raise PrivacyError(
            f"expected at most {most} of {len(peers)} other hospitals with a fingerprint that was "
            f"not compared by another channel, got {len(left)}: {', '.join(left)}; nothing was "
            "approved",
            "call them and compare the six words of each",
        )


def sign(
    identity: Identity,
    study: Study,
    plan: Plan,
    roster: RosterFile,
    confirmed: Collection[str],
    now: datetime,
) -> Approval:
    """Return the signed record of an approval of ``plan``, given at ``now`` (with its zone)."""
    content: dict[str, object] = {
        "plan": plan.digest.hex(),
        "study": study.digest(),
        "roster": roster_digest(roster.roster()),
        "code": code_digest(),
        "version": roster.version,
        "revoked": _revoked(roster),
        "confirmed": sorted(confirmed),
        "time": f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    signature = identity.sign(_HEADER, _canonical(content))
    return Approval.model_validate_json(_canonical({**content, "signature": signature.hex()}))


def keep(approval: Approval, path: Path) -> None:
    """Put the approval into ``path``, mode 0600, whole or not at all; an older one is replaced.

    Raises:
        DataError: it cannot be written; the older one stays.
    """
    aside = path.with_name(path.name + ".new")
    try:
        with suppress(FileNotFoundError):
            aside.unlink()  # of a process that was killed
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(_canonical(approval.model_dump(mode="json")))
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name too must outlive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); the approval was not kept"
        ) from error


def load(path: Path, public: bytes) -> Approval | None:
    """Return the approval in ``path``, its signature checked; None when there is none.

    Args:
        path: of the file.
        public: the site's own key.

    Raises:
        DataError: it cannot be read or is no approval.
        PrivacyError: this site did not sign it so.
    """
    hint = "move the file away, and `fedward-site start` asks again"
    try:
        with path.open("rb") as file:
            data = file.read(APPROVAL_BYTES_MAX + 1)
        if len(data) > APPROVAL_BYTES_MAX:
            raise DataError(f"{path}: expected an approval, found a longer file", hint)
        approval = Approval.model_validate_json(data)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError:
        raise DataError(f"{path}: expected an approval, found something else", hint) from None
    content = _canonical(approval.model_dump(mode="json", exclude={"signature"}))
    if not verify(public, _HEADER, content, bytes.fromhex(approval.signature)):
        raise PrivacyError(
            f"{path}: expected an approval that this site signed, found another; "
            "nothing is approved",
            hint,
        )
    return approval


def holds(approval: Approval, plan_digest: str, roster: RosterFile) -> bool:
    """Say whether an approval still covers a plan and a roster.

    A newer roster in which more sites are revoked needs no new approval, as long as t are left. A
    change of study, sites, keys, thresholds or code is another plan; all but the code are refused
    before (`client.membership.load`, `shared_models.roster_file.accept`).

    Args:
        approval: as `load` returned it.
        plan_digest: of the plan as this site computes it now, in hexadecimal.
        roster: the latest one that this site accepted.
    """
    stay = sum(not site.revoked for site in roster.sites)
    return (
        approval.plan == plan_digest
        and approval.roster == roster_digest(roster.roster())
        and roster.version >= approval.version
        and set(approval.revoked) <= set(_revoked(roster))
        and stay >= threshold(len(roster.sites))
    )


def changes(approval: Approval, study: Study, roster: RosterFile) -> tuple[str, ...]:
    """Return in plain words what is not as it was approved; what asks again.

    Args:
        approval: that does not hold any more.
        study: as it is now.
        roster: as it is now.
    """
    now = {
        "the study": (approval.study, study.digest()),
        "the hospitals or their keys": (approval.roster, roster_digest(roster.roster())),
        "the code": (approval.code, code_digest()),
    }
    found = tuple(what for what, (before, after) in now.items() if before != after)
    return found or ("the plan's thresholds, its first model, or a revocation",)


def _revoked(roster: RosterFile) -> list[str]:
    return [site.name for site in roster.sites if site.revoked]


def _canonical(content: object) -> bytes:
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()
