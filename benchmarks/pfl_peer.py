"""Rounds of federated averaging in Apple's pfl, one for each line on stdin; its seconds on stdout.

It is run by simulation.py in the environment that `make peers` makes, and shares nothing with it
but the sizes on its command line.
"""

import argparse
import itertools
import sys
import time

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn

FOREVER = 1_000_000


class Mlp(nn.Sequential):
    """A dense network with the two methods that pfl wants of a model."""

    def __init__(self, widths: list[int]) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""
        return nn.functional.cross_entropy(self(inputs), targets)

    def metrics(self, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Return nothing: no figure is asked for while the clock runs."""
        del inputs, targets
        return {}


class OnDemand(TrainingProcessCallback):
    """Reports each round's seconds and waits for the next line; ends when stdin does."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Stop the clock, report, wait, start the clock."""
        del aggregate_metrics, model, central_iteration
        sys.stdout.write(f"{time.perf_counter() - self._began}\n")
        sys.stdout.flush()
        ended = not sys.stdin.readline()
        self._began = time.perf_counter()
        return ended, Metrics()


def main() -> None:
    """Train until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--widths", type=int, nargs="+", required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    sites = {
        str(index): PyTorchTensorDataset(
            (
                torch.rand(asked.records, asked.widths[0]),
                torch.randint(asked.widths[-1], (asked.records,)),
            ),
            user_id=str(index),
        )
        for index in range(asked.sites)
    }
    data = FederatedDataset(sites.__getitem__, MinimizeReuseUserSampler(list(sites)))
    network = Mlp(asked.widths)
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=FOREVER,
            evaluation_frequency=FOREVER,
            train_cohort_size=asked.sites,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=asked.learning_rate,
            local_batch_size=asked.batch_size,
        ),
        callbacks=[OnDemand()],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
