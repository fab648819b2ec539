"""Letters: what a site and the coordinator tell each other outside of the rounds.

A site asks and the coordinator answers: enrolment, news, an approval, a farewell, an echo. Each
letter is signed by who wrote it; an answer names the question that it answers, so that none can be
played again. They hold no record and no model. It opens no connection and decides nothing.
"""

import hashlib
import json
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from privacy.errors import ProtocolError
from privacy.keys import KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from shared_models.contract import Section
from shared_models.roster_file import ROSTER_BYTES_MAX, Key, Name

PATH = "/fedward/letters"
QUESTION_BYTES_MAX = 1 << 16
ANSWER_BYTES_MAX = 1 << 20
ECHO_VALUES_MAX = 4096
_HEADER = b"fedward letter"  # no roster, no head and no message of FSA1 begins so

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
SignedHeadText = Annotated[str, Field(pattern=r"^[0-9a-f]{320}$")]  # of privacy.heads.SignedHead


class _Question(Section):
    study: Digest
    site: Name
    nonce: Nonce


class Enrol(_Question):
    """A site's keys, with the secret of its invitation; signed under ``public`` itself.

    Attributes:
        look: only the study is asked for: nobody is enrolled and the secret stays good, so that a
            site can hold its policy and its records against the study before it is a member.
    """

    kind: Literal["enrol"] = "enrol"
    secret: Nonce = Field(repr=False)
    public: Key  # Ed25519, of the site
    node: str = Field(max_length=1000)  # EC P-384 in PEM, of its requests alone
    look: bool = False


class Ask(_Question):
    """What is new? With it goes the end of the site's log, for others to keep."""

    kind: Literal["ask"] = "ask"
    head: SignedHeadText | None = None


class Approve(_Question):
    """A data steward's approval of a plan: what the coordinator can show later."""

    kind: Literal["approve"] = "approve"
    plan: Digest
    confirmed: tuple[Name, ...] = Field(max_length=100)  # peers whose fingerprints were compared


class Leave(_Question):
    """The site takes part no longer."""

    kind: Literal["leave"] = "leave"


class Echo(_Question):
    """A made vector, to be sent back: a test of the way, without a record."""

    kind: Literal["echo"] = "echo"
    values: tuple[int, ...] = Field(max_length=ECHO_VALUES_MAX)


class _Answer(Section):
    question: Digest  # SHA-256 of the letter that is answered


class Enrolled(_Answer):
    """The site's place, and what it takes to make the study's plan.

    Attributes:
        node: its number in the fleet; 0 to a look.
        study: in canonical JSON.
        first_model: SHA-256 of the first state, which the plan names.
    """

    kind: Literal["enrolled"] = "enrolled"
    node: int
    study: str
    first_model: Digest


class SiteNews(Section):
    """How far a site is."""

    name: Name
    state: Literal["invited", "enrolled", "approved", "left", "revoked"]


class News(_Answer):
    """Where the study stands.

    Attributes:
        state: inviting until the roster is sealed, then approving, running, and at last ended (all
            rounds) or stopped (before that).
        sites: every name that was invited and is not withdrawn.
        roster: the latest roster file, once it is sealed.
        heads: ends of logs: this site's, signed by the server, and its peers', signed by each.
    """

    kind: Literal["news"] = "news"
    state: Literal["inviting", "approving", "running", "ended", "stopped"]
    sites: tuple[SiteNews, ...]
    roster: Annotated[str, Field(max_length=ROSTER_BYTES_MAX)] | None = None
    heads: tuple[SignedHeadText, ...] = ()


class Echoed(_Answer):
    """The made vector, and the code that the coordinator runs: a site's must be the same.

    Attributes:
        values: of the question.
        version: of the program.
        code: digest of the five packages, as `shared_models.plan.code_digest`.
    """

    kind: Literal["echoed"] = "echoed"
    values: tuple[int, ...]
    version: str = Field(max_length=100)
    code: Digest


Reason = Literal["token", "expired", "sealed", "study", "plan", "unknown", "revoked", "full"]


class Refused(_Answer):
    """Why a question got no answer, as one of a closed list."""

    kind: Literal["refused"] = "refused"
    reason: Reason


REASONS: dict[Reason, str] = {
    "token": "the token is not valid, or was used before, or is another site's",
    "expired": "the token has expired",
    "sealed": "the roster is closed",
    "study": "the coordinator runs another study",
    "plan": "the coordinator has another plan",
    "unknown": "the coordinator does not know this site",
    "revoked": "the site was revoked, or has left",
    "full": "the coordinator cannot write its files",
}

Question = Annotated[Enrol | Ask | Approve | Leave | Echo, Field(discriminator="kind")]
Answer = Annotated[Enrolled | News | Echoed | Refused, Field(discriminator="kind")]
_QUESTIONS: TypeAdapter[Enrol | Ask | Approve | Leave | Echo] = TypeAdapter(Question)
_ANSWERS: TypeAdapter[Enrolled | News | Echoed | Refused] = TypeAdapter(Answer)


def write(identity: Identity, letter: Section) -> bytes:
    """Return a letter: its writer's signature, then its canonical JSON."""
    text = _canonical(letter)
    return identity.sign(_HEADER, text) + text


def read_question(data: bytes) -> Enrol | Ask | Approve | Leave | Echo:
    """Return a site's letter. It may be anybody's until `check` has held against the site's key.

    Raises:
        ProtocolError: it is no letter.
    """
    return _read(_QUESTIONS, data, QUESTION_BYTES_MAX)


def check(public: bytes, data: bytes) -> None:
    """Check who wrote a letter.

    Raises:
        ProtocolError: the signature is not that of ``public``.
    """
    if not verify(public, _HEADER, data[SIGNATURE_BYTES:], data[:SIGNATURE_BYTES]):
        raise ProtocolError("expected a letter under the pinned key, got another; it was not used")


def digest(data: bytes) -> str:
    """Return what an answer names its question by."""
    return hashlib.sha256(data).hexdigest()


def read_answer(data: bytes, server: bytes, question: bytes) -> Enrolled | News | Echoed | Refused:
    """Return the coordinator's answer to the letter ``question``.

    Raises:
        ProtocolError: it is no letter, not signed by ``server``, or answers another question.
    """
    if len(server) != KEY_BYTES:
        raise ValueError("expected a key of 32 bytes")
    check(server, data)
    answer = _read(_ANSWERS, data, ANSWER_BYTES_MAX)
    if answer.question != digest(question):
        raise ProtocolError("expected the answer to this letter, got another's; it was not used")
    return answer


_Letter = TypeVar("_Letter", bound=Section)


def _read(kinds: TypeAdapter[_Letter], data: bytes, most: int) -> _Letter:
    try:
        if len(data) > most:
            raise ValueError
        letter = kinds.validate_json(data[SIGNATURE_BYTES:])
        if _canonical(letter) != data[SIGNATURE_BYTES:]:  # one letter, one byte string
            raise ValueError
    except (ValidationError, ValueError, RecursionError):
        raise ProtocolError("expected a letter, got something else; it was not used") from None
    return letter


def _canonical(letter: Section) -> bytes:
    return json.dumps(
        letter.model_dump(mode="json"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()
