"""One site's training in one round: from the global model to an update, plainly or privately.

It draws no randomness of its own (keys are given), keeps no ledger and sends nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.augment import DRAWS, augment
from client.traced import Gradient, gradient_by_autograd, traced_gradient
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.sampling import poisson_sample
from privacy.stream import Stream
from shared_models.inputs import records_at_once
from shared_models.registry import build_network
from shared_models.sections import NoPrivacy
from shared_models.strategies import State
from shared_models.study import Study
from shared_models.tasks import target_of
from shared_models.weights import Vector32, flatten_in_place, views

BATCH_SIZE = 32  # of mode none when the study names local_steps without a batch size
Keys = Callable[[str, int], bytes]  # (purpose, step) -> 32 bytes, used once


@dataclass(frozen=True)
class Tensors:
    """A site's training records.

    Attributes:
        inputs: (N, *shape).
        targets: (N,), (N, C), or (N, *sizes) of a mask.
        patients: (N,) index of each record's patient, or None when a record is the unit.
        groups: (N,) place of each record's group, or None in a study without groups.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    patients: npt.NDArray[np.int64] | None = None
    groups: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Update:
    """What training gave: the change of the model and, without privacy, what it saw.

    Attributes:
        change: (P,) float32; (2 P,) for SCAFFOLD: then the change of the control variate.
        control: (P,) the site's new control variate, or None.
        loss: sum over the records that were trained on; 0 under privacy.
        records: how many records that were; 0 under privacy.
    """

    change: Vector32
    control: Vector32 | None
    loss: float
    records: int


class Trainer:
    """One network whose parameters are views of one flat tensor, trained for any site in turn.

    A process keeps one Trainer for all its (virtual) sites: building networks and private steps
    costs more than a small site's whole round.
    """

    def __init__(self, study: Study, mechanism: Mechanism | None, device: str = "cpu") -> None:
        """Build the network on ``device`` (cpu, cuda); ``mechanism`` is None in mode none."""
        if isinstance(study.privacy, NoPrivacy) != (mechanism is None):
            raise ValueError("expected a mechanism exactly when the study is private")
        self._study = study
        self._target = target_of(study)
        self._device = torch.device(device)
        self._network = build_network(study).to(self._device)
        self._network.train()
        self._flat = flatten_in_place(self._network)
        self._views = views(self._flat, self._network)
        self._autograd = gradient_by_autograd(self._network, self._target.losses)
        self._traced: Gradient | None = None
        self._mechanism = mechanism
        self._private = (
            None
            if mechanism is None
            else PrivateStep(self._network, self._target.losses, mechanism)
        )
        self._noised = torch.empty_like(self._flat) if mechanism is not None else None
        self._stochastic = getattr(study.model, "dropout", 0.0) > 0
        self._global: tuple[State, torch.Tensor] | None = None

    @property
    def mechanism(self) -> Mechanism | None:
        """The private step's parameters; None in mode none."""
        return self._mechanism

    @property
    def parameters(self) -> int:
        """Number of parameters P."""
        return self._flat.numel()

    @property
    def fallback(self) -> str:
        """Why private steps are slow, in one line; empty when they are not, or not yet known."""
        return "" if self._private is None else self._private.fallback

    def train(
        self, state: State, records: Tensors, keys: Keys, control: Vector32 | None = None
    ) -> Update:
        """Train from the global model of ``state`` on one site's records.

        Args:
            state: the global model, (P,), and the global control variate of SCAFFOLD.
            records: the site's training records, perhaps none.
            keys: fresh keys of this site and round.
            control: (P,) the site's control variate; SCAFFOLD only.
        """
        start = self._start(state)
        self._flat.copy_(start)
        if self._stochastic:  # dropout reads torch's global generator
            torch.manual_seed(int.from_bytes(keys("dropout", 0)[:8], "little") >> 1)
        drift = self._drift(state, start, control)
        step = self._descent(drift)
        if self._private is None:
            steps, loss, seen = self._plain_steps(records, keys, step, fused=drift is None)
        else:
            steps, loss, seen = self._private_steps(records, keys, step), 0.0, 0
        change = (self._flat - start).cpu().numpy()
        if control is None:
            return Update(change, None, loss, seen)
        # SCAFFOLD, Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, line 12, option II.
        # It reads the (private) model only, so it costs no privacy beyond the model's.
        scale = 1.0 / (max(steps, 1) * self._study.training.learning_rate)
        reference = state.moments["control"].astype(np.float32)
        moved = np.zeros_like(control)
        if steps:
            moved -= reference + change * np.float32(scale)
        return Update(np.concatenate([change, moved]), control + moved, loss, seen)

    def fixed_point_sum(
        self, state: State, records: Tensors, keys: Keys, attempt: int, grid: float
    ) -> npt.NDArray[np.int64]:
        """Return the exact sum of the clipped gradients of one Poisson sample, without noise.

        Args:
            state: the global model, (P,).
            records: the site's training records, perhaps none.
            keys: fresh keys of this site and round.
            attempt: draws its own sample: keys are asked for by purpose and attempt.
            grid: units of the fixed point per model unit.

        Returns:
            (P,) integers: not private before the noise of the ring is added.
        """
        if self._private is None:
            raise ValueError("expected a private study")
        self._flat.copy_(self._start(state))
        batch = self._sample(records, keys, attempt)
        return self._private.fixed_point_sum(*batch, Stream(keys("dropout", attempt)), grid)

    def predict(self, state: State, inputs: torch.Tensor) -> npt.NDArray[np.float64]:
        """Return the predictions of the released model for (N, *shape) inputs.

        Returns:
            (N, C) probabilities, or (N,) numbers in the units of the target, or as it says.
        """
        self._flat.copy_(torch.from_numpy(state.released().astype(np.float32)))
        self._network.eval()
        with torch.no_grad():
            pieces = [
                self._network(part.to(self._device))
                for part in torch.split(inputs, records_at_once(inputs.shape[1:]))
            ]
        self._network.train()
        return self._target.predictions(torch.cat(pieces))

    def _start(self, state: State) -> torch.Tensor:
        # Virtual sites of one process receive the same state: convert it once.
        if self._global is None or self._global[0] is not state:
            model = torch.from_numpy(state.model.astype(np.float32)).to(self._device)
            self._global = (state, model)
        return self._global[1]

    def _drift(
        self, state: State, start: torch.Tensor, control: Vector32 | None
    ) -> Callable[[], torch.Tensor] | None:
        """Return what is added to each gradient besides the loss: (P,), a function of weights."""
        aggregation, training = self._study.aggregation, self._study.training
        decay, sparsity = training.weight_decay, training.l1  # of the weights, never of records
        proximal = aggregation.proximal if aggregation.strategy == "fedprox" else 0.0
        correction: torch.Tensor | None = None
        if control is not None:
            difference = state.moments["control"].astype(np.float32) - control
            correction = torch.from_numpy(difference).to(self._device)
        if not decay and not sparsity and not proximal and correction is None:
            return None

        def drift() -> torch.Tensor:
            total = decay * self._flat
            if sparsity:
                total = total + sparsity * self._flat.sign()  # a subgradient: 0 at 0
            if proximal:  # FedProx, Li et al. 2020, arXiv:1812.06127, equation 2
                total = total + proximal * (self._flat - start)
            return total if correction is None else total + correction

        return drift

    def _descent(self, drift: Callable[[], torch.Tensor] | None) -> Callable[[torch.Tensor], None]:
        """Return the optimizer's step on a flat (P,) gradient, with fresh optimizer state."""
        training = self._study.training
        rate = training.learning_rate
        if training.optimizer == "sgd" and not training.momentum:

            def plain(gradient: torch.Tensor) -> None:
                self._flat.add_(gradient if drift is None else gradient + drift(), alpha=-rate)

            return plain
        kept = torch.nn.Parameter(self._flat)
        optimizer: torch.optim.Optimizer
        if training.optimizer == "adam":
            optimizer = torch.optim.Adam([kept], lr=rate)
        else:
            optimizer = torch.optim.SGD([kept], lr=rate, momentum=training.momentum)

        def stateful(gradient: torch.Tensor) -> None:
            kept.grad = gradient if drift is None else gradient + drift()
            optimizer.step()

        return stateful

    def _plain_steps(
        self,
        records: Tensors,
        keys: Keys,
        step: Callable[[torch.Tensor], None],
        *,
        fused: bool,
    ) -> tuple[int, float, int]:
        training = self._study.training
        fused = fused and training.optimizer == "sgd" and not training.momentum
        steps, seen = 0, 0
        total = torch.zeros((), device=self._device)
        for rows in _batches(self._study, len(records), keys):
            inputs = self._inputs(records, rows, keys, steps)
            targets = records.targets[rows].to(self._device)
            gradients, batch_loss = self._gradient(inputs, targets)(self._views, inputs, targets)
            if fused:  # one call for all parameters, as torch.optim.SGD does it
                torch._foreach_add_(self._views, gradients, alpha=-training.learning_rate)
            else:
                step(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            total += batch_loss
            steps, seen = steps + 1, seen + len(rows)
        return steps, float(total), seen

    def _gradient(self, inputs: torch.Tensor, targets: torch.Tensor) -> Gradient:
        """Return the traced gradient for full batches, autograd's for others.

        The choice hangs on the shape alone, so that every process makes it alike.
        """
        if self._stochastic or len(targets) != (self._study.training.batch_size or BATCH_SIZE):
            return self._autograd
        if self._traced is None:
            traced = traced_gradient(self._network, self._target.losses, inputs, targets)
            self._traced = traced or self._autograd
        return self._traced

    def _private_steps(
        self, records: Tensors, keys: Keys, step: Callable[[torch.Tensor], None]
    ) -> int:
        """DP-SGD, Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, with Poisson samples."""
        if self._private is None:
            raise ValueError("expected a private study")
        steps = self._study.training.local_steps or 1
        for number in range(steps):
            batch = self._sample(records, keys, number)
            step(self._private.gradient(*batch, keys("noise", number), self._noised))
        return steps

    def _sample(
        self, records: Tensors, keys: Keys, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.int64] | None]:
        """Return inputs, targets and patients of a Poisson sample of the units."""
        if self._mechanism is None:
            raise ValueError("expected a private study")
        units = records.patients
        count = len(records) if units is None else int(units.max(initial=-1)) + 1
        chosen = poisson_sample(count, self._mechanism.sampling_rate, Stream(keys("sample", step)))
        rows = chosen if units is None else np.flatnonzero(np.isin(units, chosen))
        index = torch.from_numpy(rows)
        return (
            self._inputs(records, index, keys, step),
            records.targets[index].to(self._device),
            None if units is None else units[rows],
        )

    def _inputs(self, records: Tensors, rows: torch.Tensor, keys: Keys, step: int) -> torch.Tensor:
        """Return the inputs of ``rows``, changed at random where the study says so."""
        inputs = records.inputs[rows].to(self._device)
        how = self._study.training.augment
        if how is None:
            return inputs
        # Draws for every record of the site, taken or not: they hang on its place, not on others.
        draws = Stream(keys("augment", step)).uniform(len(records) * DRAWS)
        own = torch.from_numpy(draws.reshape(-1, DRAWS))[rows]  # (B, 4)
        return augment(inputs, own, how)


def _batches(study: Study, count: int, keys: Keys) -> Iterator[torch.Tensor]:
    """Yield shuffled batches of row numbers: whole epochs, or a number of steps over epochs."""
    training = study.training
    size = training.batch_size or BATCH_SIZE
    if count == 0:
        return
    if training.local_steps is None and training.local_epochs is None:
        # What a distributed study does in a round, at its default sampling rate of 1.
        yield torch.arange(count)
        return
    left = training.local_steps if training.local_steps is not None else -1
    epoch = 0
    while left != 0 and (left > 0 or epoch < (training.local_epochs or 0)):
        # Sorting random words gives a uniform permutation (ties have probability N^2 / 2^65).
        order = torch.from_numpy(np.argsort(Stream(keys("order", epoch)).words64(count)))
        for start in range(0, count, size):
            yield order[start : start + size]
            left -= 1
            if left == 0:
                return
        epoch += 1
