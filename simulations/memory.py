"""What a virtual site remembers of the protocol, in memory: a crash ends them all together.

The site's own store (privacy.secagg_store) keeps the same on disk before anything is sent.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.wire import Counter

Work = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


class VolatileStore:
    """The memory of one virtual site: what the last run needs, no more."""

    def __init__(self) -> None:
        """Start empty."""
        self._counters: dict[int, Counter] = {}
        self._run = b""
        self._work: tuple[Kind, bytes, Work] | None = None
        self._exact_models: set[bytes] = set()
        self._exact_set: tuple[int, ...] | None = None

    def begin_run(self, run: bytes) -> None:
        """Note the run."""
        if run == self._run:
            raise ProtocolError("expected a new run, got a repeated id; nothing was sent")
        self._run = run

    def counters(self) -> Mapping[int, Counter]:
        """Return the highest counter seen of each site."""
        return self._counters

    def raise_counters(self, seen: Mapping[int, Counter]) -> None:
        """Keep the larger counters."""
        for site, counter in seen.items():
            self._counters[site] = max(counter, self._counters.get(site, counter))

    def advance(self, own: int, counter: Counter) -> None:
        """Take the next counter."""
        self._counters[own] = counter

    def acknowledge(
        self, run: bytes, counter: Counter, cohort: bytes, survivors: tuple[int, ...]
    ) -> None:
        """Forget: the phase holds it."""

    def answer(self, run: bytes, counter: Counter, ack_set: bytes) -> bytes | None:
        """Return None: nothing is asked twice within one process."""
        del run, counter, ack_set
        return None

    def keep_answer(self, run: bytes, counter: Counter, ack_set: bytes, answer: bytes) -> None:
        """Forget the work of the round that was answered for."""
        del run, counter, ack_set, answer
        self._work = None

    def states(self) -> list[tuple[bytes, bytes]]:
        """Return none: a simulation goes on from its checkpoint."""
        return []

    def keep_state(self, blob: bytes, result: bytes) -> None:
        """Forget: the participant holds it."""

    def take_back(self, result: bytes) -> None:
        """Do nothing: the participant forgets."""

    def check_exact(self, model: bytes, survivors: tuple[int, ...] | None) -> None:
        """Check that a model is evaluated exactly once, and by one set of sites."""
        other = survivors is not None and self._exact_set not in {None, survivors}
        if model in self._exact_models or other:
            raise ProtocolError(
                "expected the first exact evaluation of a model, by the sites of the first of all, "
                "got another; nothing was sent"
            )

    def open_exact(self, model: bytes, survivors: tuple[int, ...]) -> None:
        """Note an exact evaluation."""
        self.check_exact(model, survivors)
        self._exact_models.add(model)
        self._exact_set = survivors

    def work(self, kind: Kind, model: bytes) -> Work | None:
        """Return the integers of an open round."""
        if self._work is not None and self._work[:2] == (kind, model):
            return self._work[2]
        return None

    def keep_work(
        self,
        kind: Kind,
        model: bytes,
        values: npt.NDArray[np.int32],
        lanes: npt.NDArray[np.int64],
    ) -> None:
        """Keep the integers of an open round."""
        self._work = (kind, model, (values, lanes))
