"""One hospital's side of a round: check, debit, read records, train or evaluate, encode.

It knows no network and no masks: what it returns are integers that are ready to be summed.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.control import load_control, store_control
from client.folder import LEDGER
from client.policy import Policy, check, check_hours
from client.training import Tensors, Trainer
from privacy.accounting import Event
from privacy.budget import Planned, check_debit
from privacy.encoding import Encoding
from privacy.errors import PrivacyError, ProtocolError
from privacy.heads import EMPTY
from privacy.ledger import Ledger
from privacy.ring import Ring
from privacy.stream import KEY_BYTES, Stream
from shared_models.debits import Phase, sites_of, study_events
from shared_models.lanes import WEIGHT_SCALE, Lanes, count_training, site_weight
from shared_models.release import cell_noise, planned_evaluations
from shared_models.ring import planned_attempts
from shared_models.sections import NoPrivacy
from shared_models.strategies import State, moment_names
from shared_models.study import Study
from shared_models.subgroups import count_cells, count_noised_cells

# (purpose, round, step) -> 32 bytes; mode distributed has one step a round, and gives the attempt
# in its place. A deployment ignores the arguments and asks the system.
Entropy = Callable[[str, int, int], bytes]


def system_entropy(purpose: str, round_number: int, step: int) -> bytes:
    """Return 32 bytes of the operating system's generator, whatever they are for."""
    del purpose, round_number, step
    return os.urandom(KEY_BYTES)


@dataclass(frozen=True)
class Split:
    """A site's records on both sides of the hold-out."""

    train: Tensors
    held: Tensors


@dataclass(frozen=True)
class Contribution:
    """What a site adds to a sum: (d,) int32 values within the bound, (L,) int64 lanes."""

    values: npt.NDArray[np.int32]
    lanes: Lanes


NO_VALUES = np.empty(0, dtype=np.int32)
NO_LANES = np.empty(0, dtype=np.int64)


class Site:
    """One hospital in one study."""

    def __init__(
        self,
        name: str,
        study: Study,
        encoding: Encoding | Ring,
        trainer: Trainer,
        records: Callable[[], Split],
        folder: Path | None,
        policy: Policy,
        entropy: Entropy = system_entropy,
    ) -> None:
        """Set up a site; no record is read yet.

        Args:
            name: as in the roster.
            study: what was approved.
            encoding: how values become integers, for the number of sites that a sum may have; the
                ring in mode distributed.
            trainer: the process's network; sites of one process may share it.
            records: reads the site's records; called only after the ledger was debited.
            folder: the site's own folder (ledger, control variate); None when the study keeps
                neither: mode none without SCAFFOLD.
            policy: the site's own limits.
            entropy: seeded keys, in a simulation only: the same attempt then gives the same
                bytes, and asking for it again costs nothing.
        """
        if isinstance(encoding, Ring) != (study.privacy.mode == "distributed"):
            raise ValueError("expected a ring exactly in mode distributed")
        self.name = name
        self._study = study
        self._digest = study.digest()
        self._encoding = encoding
        self._trainer = trainer
        self._records = records
        self._folder = folder
        self._policy = policy
        self._entropy = entropy
        self._repeats = entropy is not system_entropy
        self._cells = cell_noise(study, sites_of(encoding))
        self._events = study_events(study, trainer.mechanism, policy.dataset, encoding)

    def contribute(self, kind: Phase, state: State, number: int, attempt: int) -> Contribution:
        """Do one round's work and return the integers to be summed.

        Args:
            kind: what the round is for.
            state: the global model and strategy state.
            number: the round, from 1.
            attempt: within the round.

        Raises:
            PrivacyError: the site's policy or its ledger refuses; no record was read.
            ProtocolError: the order does not fit the study; no record was read.
        """
        check(self._policy, self._study)
        check_hours(self._policy, datetime.now())
        if not 1 <= number <= self._study.rounds:
            raise ProtocolError(
                f"expected a round from 1 to {self._study.rounds}, got {number}; nothing was sent"
            )
        missing = moment_names(self._study.aggregation) - set(state.moments)
        if missing:
            raise ProtocolError(
                f"expected a state with {', '.join(sorted(missing))}, got one without; "
                "nothing was sent"
            )
        if kind == "train":
            return self._train(state, number, attempt)
        return self._evaluate(state, number, attempt)

    def ledger_head(self) -> bytes:
        """Return the head of the site's ledger as peers keep it, 32 bytes; zeros without a ledger.

        Raises:
            PrivacyError: the ledger cannot be read, or its last row was changed.
        """
        if self._folder is None or not (self._folder / LEDGER).exists():
            return EMPTY.wire()
        with Ledger(self._folder / LEDGER) as ledger:
            return ledger.head().wire()

    def _train(self, state: State, number: int, attempt: int) -> Contribution:
        self._debit("train", number, attempt)
        records = self._records().train
        if isinstance(self._encoding, Ring):
            return self._sum(self._encoding, state, records, number, attempt)
        scaffold = self._study.aggregation.strategy == "scaffold"
        control = None
        if scaffold:
            if self._folder is None:
                raise ValueError("expected a folder for the control variate of SCAFFOLD")
            control = load_control(self._folder, number, self._trainer.parameters)
        update = self._trainer.train(
            state, records, lambda purpose, step: self._entropy(purpose, number, step), control
        )
        if update.control is not None and self._folder is not None:
            store_control(self._folder, number, update.control)
        weight = site_weight(self._study, self.name, len(records))
        vector = update.change if weight == 1.0 else update.change * np.float32(weight)
        stream = Stream(self._entropy("rounding", number, 0))
        values, _ = self._encoding.quantise(vector, stream)
        if not isinstance(self._study.privacy, NoPrivacy):
            return Contribution(values, NO_LANES)
        return Contribution(values, count_training(weight, update.records, update.loss))

    def _sum(
        self, ring: Ring, state: State, records: Tensors, number: int, attempt: int
    ) -> Contribution:
        """Sum clipped gradients exactly, round once, add the share of the noise: section 7."""

        def keys(purpose: str, step: int) -> bytes:
            return self._entropy(purpose, number, step)

        total = self._trainer.fixed_point_sum(state, records, keys, attempt, ring.grid)
        weight = round(site_weight(self._study, self.name, 0) * WEIGHT_SCALE)
        coins, noise = Stream(keys("rounding", attempt)), Stream(keys("noise", attempt))
        return Contribution(ring.encode(total, coins, noise, weight), NO_LANES)

    def _evaluate(self, state: State, number: int, attempt: int) -> Contribution:
        self._debit("evaluate", number, attempt)
        held = self._records().held
        study, noise, truth = self._study, self._cells, held.targets.numpy()
        predicted = self._trainer.predict(state, held.inputs)
        if noise is None:
            return Contribution(NO_VALUES, count_cells(study, truth, predicted, held.groups))
        cells = count_noised_cells(study, truth, predicted, held.patients, held.groups, noise.step)
        key = self._entropy("cells", number, attempt if isinstance(self._encoding, Ring) else 0)
        return Contribution(NO_VALUES, noise.encode(cells, Stream(key)))

    def _debit(self, phase: Phase, number: int, attempt: int) -> None:
        """Write the round's event down before a record is read.

        Nothing is spent in mode none, nor by an exact evaluation: its promise is not of that kind.
        """
        event = self._events.get(phase)
        if event is None:
            return
        if self._folder is None:
            raise ValueError("expected a folder for the ledger of a private study")
        self._folder.mkdir(parents=True, exist_ok=True)
        key = f"{self._digest}/{phase}/{number}/{attempt}"
        # The server's orders never take a site past the calibration, nor past its own ceiling.
        times = {
            "train": planned_attempts(self._study),
            "evaluate": planned_evaluations(self._study),
        }
        plan = [Planned(self._events[one], times[one]) for one in self._events]
        ceiling = self._policy.ceiling
        under = None if ceiling is None else self._policy.digest()
        with Ledger(self._folder / LEDGER) as ledger:
            debited = False

            def first(history: Sequence[Event]) -> None:
                nonlocal debited
                check_debit(history, plan, ceiling)
                debited = True

            ledger.debit(event, key, allow=None if self._repeats else first, under=under)
        if not self._repeats and not debited:
            # Fresh noise under an old debit would be a second release for the price of one.
            raise PrivacyError(
                f"expected an attempt that was not debited before, got round {number} to {phase}, "
                f"attempt {attempt}, again; no record was read"
            )
