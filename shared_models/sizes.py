"""How large a message of a study can be: what each end refuses to read more of.

Both ends compute it from the study and the size of its network, before there is a roster; it reads
no message. Source: the layouts of section 2 of the protocol, with as many sites as it allows.
"""

from privacy.keys import SIGNATURE_BYTES
from privacy.masking import Shape
from privacy.roster import KEY_BYTES, SITES_MAX
from privacy.secagg_messages import (
    ACK_BYTES,
    HASH_BYTES,
    HELLO_BYTES,
    PART_BOX,
    SHARES_BOX,
    Masked,
    Result,
    RoundStart,
)
from privacy.wire import COUNT, HEADER_BYTES
from shared_models.lanes import evaluate_lanes, train_lanes
from shared_models.messages import TRAIL_MAX
from shared_models.notice import NOTICE_BYTES_MAX
from shared_models.plan import count_values
from shared_models.study import Study

_FRAME = HEADER_BYTES + SIGNATURE_BYTES + COUNT.size
_SITE = COUNT.size  # an index before each record
_READY = _FRAME + 114 + SITES_MAX * (_SITE + 2 * HASH_BYTES)  # the signed part; 114: fixed fields
_VECTORS = 4  # a state's, at most: model, two moments or a control variate, the mean
_STATE_HEAD = 4096  # of safetensors, and the notice's or the directions' lengths


def answer_bytes(study: Study, parameters: int) -> int:
    """Return the most bytes of a site's answer in a round.

    Args:
        study: whose messages they are.
        parameters: P of the study's network.
    """
    return max(
        HELLO_BYTES + _FRAME,
        _FRAME + SITES_MAX * (_SITE + PART_BOX),  # GroupPart
        _READY + SITES_MAX * (_SITE + SHARES_BOX),
        _FRAME + Masked.BODY.size + _payload_bytes(study, parameters),
        _FRAME + SITES_MAX * (_SITE + KEY_BYTES),  # Unmask
    )


def question_bytes(study: Study, parameters: int) -> int:
    """Return the most bytes of a message of the server, the state and the trail with it.

    Args and meaning of the numbers are those of `answer_bytes`.
    """
    opening = (
        (_FRAME + RoundStart.BODY.size)
        + (_FRAME + SITES_MAX * ACK_BYTES)
        + (_FRAME + Result.BODY.size + _payload_bytes(study, parameters))
    )
    state = _VECTORS * 8 * parameters + _STATE_HEAD
    return max(
        _FRAME + SITES_MAX * HELLO_BYTES,  # RunRoster
        _FRAME + SITES_MAX * (_READY + _SITE + SHARES_BOX),  # Cohort
        _FRAME + RoundStart.BODY.size + TRAIL_MAX * opening + state,  # directions
        NOTICE_BYTES_MAX + state,
    )


def _payload_bytes(study: Study, parameters: int) -> int:
    """Return the size of the largest masked vector."""
    bits = study.aggregation.ring_bits
    train = Shape(count_values(study, parameters), len(train_lanes(study)), bits)
    return max(train.payload_bytes, Shape(0, len(evaluate_lanes(study)), bits).payload_bytes)
