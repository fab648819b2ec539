"""What a study fixes for the aggregation before it begins: the plan's numbers and the pinned keys.

It does not assemble the plan's canonical JSON: it takes the digest that a steward approved.
Nothing in here is ever taken from the server (section 1 of the protocol).
"""

from dataclasses import dataclass
from enum import IntEnum

from privacy import keys
from privacy.encoding import RingBits
from privacy.errors import ProtocolError, StudyError
from privacy.masking import Shape

SITES_MIN, SITES_MAX = 3, 100  # two sites would each see the other; bitmaps and costs end at 100
KEY_BYTES = 32

_P = 2**255 - 19  # the field and the curve of Ed25519: RFC 8032, section 5.1
_D = -121665 * pow(121666, -1, _P) % _P


class Kind(IntEnum):
    """What a round sums."""

    TRAIN = 1
    EVALUATE = 2


def threshold(n: int) -> int:
    """Return t, the fewest sites that rebuild a secret: floor(2n/3) + 1 of the roster's n."""
    return 2 * n // 3 + 1


def colluders_max(n: int) -> int:
    """Return floor((n-1)/3), the most sites that may work for the server."""
    return (n - 1) // 3


@dataclass(frozen=True)
class Plan:
    """The numbers of the approved plan that the protocol needs.

    Args:
        digest: SHA-256 of the plan's canonical JSON, as approved.
        n: sites of the roster, 3 to 100, whoever is invited or alive.
        values: d, ring words of a training vector.
        ring_bits: 16 or 32.
        train_lanes: 64-bit lanes of a training round (0 under privacy).
        evaluate_lanes: lanes of an evaluation round, which has no values.
        min_sites: fewest sites whose sum may be opened, at least 3.
        answers_min: t_n, fewest answers that may be opened (noise), t to n; None stands for t.
        colluders: n_c, sites that the noise allows for; None stands for floor((n-1)/3), the most.

    Raises:
        StudyError: a number is outside its range: nothing can be agreed on.
    """

    digest: bytes
    n: int
    values: int
    ring_bits: RingBits = 32
    train_lanes: int = 0
    evaluate_lanes: int = 0
    min_sites: int = SITES_MIN
    answers_min: int | None = None
    colluders: int | None = None

    def __post_init__(self) -> None:
        if len(self.digest) != KEY_BYTES:
            raise ValueError(f"expected a digest of {KEY_BYTES} bytes, got {len(self.digest)}")
        if min(self.values, self.train_lanes, self.evaluate_lanes) < 0:
            raise ValueError("expected values and lanes >= 0")
        for name, least, got, most in (
            ("sites", SITES_MIN, self.n, SITES_MAX),
            ("min_sites", SITES_MIN, self.min_sites, self.n),
            ("noise_answers", self.t, self.t_n, self.n),
            ("colluders", 0, self.n_c, colluders_max(self.n)),
        ):
            if not least <= got <= most:
                raise StudyError(f"expected {name} in {least}..{most}, got {got}; nothing was sent")
        if self.ring_bits not in (16, 32):
            raise StudyError(f"expected ring_bits 16 or 32, got {self.ring_bits}; nothing was sent")

    @property
    def t(self) -> int:
        """Shares that rebuild a secret, acknowledgements that allow an unmasking."""
        return threshold(self.n)

    @property
    def t_n(self) -> int:
        """Fewest answers that carry all of the noise."""
        return self.t if self.answers_min is None else self.answers_min

    @property
    def n_c(self) -> int:
        """Sites that may leave their share of the noise out."""
        return colluders_max(self.n) if self.colluders is None else self.colluders

    @property
    def quorum(self) -> int:
        """Fewest vectors in a sum that is opened: max(t, min_sites, t_n)."""
        return max(self.t, self.min_sites, self.t_n)

    def shape(self, kind: Kind) -> Shape:
        """Return what one vector of a round of this kind holds."""
        if kind is Kind.TRAIN:
            return Shape(self.values, self.train_lanes, self.ring_bits)
        return Shape(0, self.evaluate_lanes, self.ring_bits)


@dataclass(frozen=True)
class Member:
    """One line of the roster; its position is the site's index in every message."""

    name: str
    public: bytes  # Ed25519
    revoked: bool = False


@dataclass(frozen=True)
class Roster:
    """The sites of a study in index order, and the server, with their pinned Ed25519 keys."""

    sites: tuple[Member, ...]
    server: bytes

    def __post_init__(self) -> None:
        publics = [member.public for member in self.sites] + [self.server]
        if len(set(publics)) != len(publics):
            raise StudyError("expected a key of its own for each site, got one twice; refused")

    def name(self, index: int) -> str:
        """Return how messages to people call a site."""
        return self.sites[index].name if index < len(self.sites) else f"number {index}"


def is_signing_key(public: bytes) -> bool:
    """Say whether ``public`` is an Ed25519 key that pins somebody.

    It is 32 bytes, the one encoding of a point of the curve, and not of low order: under such a key
    anybody can sign. Source: RFC 8032, section 5.1.3.
    """
    y = int.from_bytes(public, "little") & (2**255 - 1)  # the top bit is the sign of x
    if len(public) != KEY_BYTES or y >= _P:
        return False
    # x^2 = (y^2 - 1) / (d y^2 + 1) must be a square, and the product is one when the quotient is
    # (Euler's criterion). x = 0 belongs to the points of order 1 and 2 alone.
    if pow((y * y - 1) * (_D * y * y + 1), (_P - 1) // 2, _P) != 1:
        return False
    # The same point on Curve25519 (RFC 7748, section 4.1): X25519 refuses low order whatever the
    # secret is, which is why a constant one does.
    u = (1 + y) * pow(1 - y, -1, _P) % _P
    try:
        keys.agree(keys.agreement_key(bytes(KEY_BYTES)), u.to_bytes(KEY_BYTES, "little"))
    except ProtocolError:
        return False
    return True
