"""How a site knows the state by itself: from the first model, sum by sum. It trusts no next model.

It checks no signature and no MAC (privacy.secagg_*): it is given sums that hold.
"""

from dataclasses import dataclass

from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.secagg_site import Sums
from privacy.wire import Counter
from shared_models.messages import Directions, read_directions
from shared_models.steps import after_sum, evaluation_due
from shared_models.strategies import State, read_state, state_bytes, state_hash
from shared_models.study import Study, is_trusting


@dataclass(frozen=True)
class Known:
    """A state and how the site came by it.

    Attributes:
        state: model and strategy state.
        digest: its hash, which every message names it by.
        blob: the bytes that are hashed.
        computed: by the site itself, from the plan's first model; else it is the server's word.
    """

    state: State
    digest: bytes
    blob: bytes
    computed: bool


class Lineage:
    """Steps from state to state; remembers the last, which many sites of a process share."""

    def __init__(self, study: Study, parameters: int, first_model: bytes) -> None:
        """Start from the plan.

        Args:
            study: says how a sum becomes the next state.
            parameters: of the study's network.
            first_model: hash of the state that the site has by itself: the plan's first one.
        """
        self._study, self._parameters, self.first_model = study, parameters, first_model
        self._directions: tuple[bytes, Directions] | None = None
        self._read: tuple[bytes, Known] | None = None
        self._stepped: tuple[tuple[bytes, bytes], Known] | None = None

    @property
    def opens_once(self) -> bool:
        """Whether a model is evaluated exactly under privacy: once, and by one set of sites."""
        return is_trusting(self._study)

    @property
    def draws_afresh(self) -> bool:
        """Whether every attempt is a new draw and a new debit: section 7, mode distributed."""
        return self._study.privacy.mode == "distributed"

    def directions(self, message: bytes) -> Directions:
        """Return what a site is sent at the start of a round; the parts are still to be checked.

        Raises:
            ProtocolError: the lengths do not fit.
        """
        if self._directions is None or self._directions[0] is not message:
            self._directions = (message, read_directions(message))
        return self._directions[1]

    def told(self, blob: bytes) -> Known:
        """Return a state that the server sent; the one the site has by itself counts as computed.

        Raises:
            ProtocolError: the bytes are no state of this network.
        """
        if self._read is None or self._read[0] != blob:
            digest = state_hash(blob)
            state = read_state(blob, self._parameters)
            self._read = (blob, Known(state, digest, blob, digest == self.first_model))
        return self._read[1]

    def after(self, known: Known, kind: Kind, sums: Sums, names: tuple[str, ...]) -> Known:
        """Return the state after an opened sum.

        Args:
            known: before it.
            kind: what was summed; an evaluation leaves the state as it is.
            sums: as opened and checked.
            names: of all sites of the roster, by index.

        Raises:
            ProtocolError: the server named another next state.
        """
        if kind is Kind.TRAIN:
            known = self._step(known, sums, names)
        if sums.next_model != known.digest:
            raise ProtocolError(
                "message 12: expected the hash of the strategy's own step, got another; "
                "nothing was sent"
            )
        return known

    def round(self, known: Known, kind: Kind, counter: Counter) -> int:
        """Return the number of the round that an order is for, given the state.

        Args:
            known: the state that the order starts from.
            kind: of the order.
            counter: of the order; its round is larger than the state says when a sum was taken
                back before, since counters only grow.

        Raises:
            ProtocolError: the plan does not order this kind of round on this state.
        """
        train = kind is Kind.TRAIN
        number = known.state.round + train
        due = number <= self._study.rounds if train else self.evaluated(number)
        if due and number <= counter.round:
            return number
        raise ProtocolError(
            f"message 4: expected round {known.state.round + 1}, or an evaluation that is due, "
            f"got an order to {kind.name.lower()} as round {counter.round}; nothing was sent"
        )

    def evaluated(self, number: int) -> bool:
        """Say whether the plan evaluates the model after a round."""
        return number > 0 and evaluation_due(self._study, number)

    def _step(self, known: Known, sums: Sums, names: tuple[str, ...]) -> Known:
        key = (known.digest, sums.result_hash)
        if self._stepped is None or self._stepped[0] != key:
            state = after_sum(
                self._study,
                known.state,
                sums.values,
                sums.lanes,
                [names[index] for index in sums.survivors],
                len(names),
                len(names),
            )
            blob = state_bytes(state)
            self._stepped = (key, Known(state, state_hash(blob), blob, computed=True))
        return self._stepped[1]
