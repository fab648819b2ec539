"""Permutation importance: how much worse a model is when one column is another record's.

It needs the records' own answers, and says what matters to the model on average, not for a record.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client.data.records import Records
from client.explain.layout import Group, Layout
from shared_models.study import Study
from shared_models.tasks import target_of

Floats = npt.NDArray[np.float64]

RECORDS_MAX = 300  # evenly spaced among all: a shuffle costs a pass over them
REPEATS = 3
BATCH = 256


@dataclass(frozen=True)
class Importance:
    """What shuffling does to the mean loss.

    Attributes:
        groups: what was shuffled, in the layout's order.
        loss: of the records as they are.
        rises: (G,) mean rise over the repeats.
        deviations: (G,) standard deviation over the repeats.
        records: how many were used.
    """

    groups: tuple[str, ...]
    loss: float
    rises: Floats
    deviations: Floats
    records: int


def permutation_importance(
    study: Study, network: nn.Module, records: Records, layout: Layout, repeats: int = REPEATS
) -> Importance:
    """Return how much the mean loss rises when a group's cells are shuffled among records.

    Sources: Breiman 2001, doi:10.1023/A:1010933404324, section 10; Fisher, Rudin and Dominici 2019,
    arXiv:1801.01489, section 3.
    """
    rows = np.unique(np.linspace(0, len(records) - 1, RECORDS_MAX).round().astype(np.int64))
    inputs, targets = torch.from_numpy(records.inputs[rows]), records.targets[rows]
    loss = _mean_loss(study, network, inputs, targets)
    cell_of = torch.from_numpy(layout.cell_of.copy())
    # Nothing here is secret: the same seed gives the same report, and every group the same orders.
    draw = np.random.default_rng(0)
    orders = [torch.from_numpy(draw.permutation(len(rows))) for _ in range(repeats)]

    def rises(group: Group) -> list[float]:
        moved = torch.isin(cell_of, torch.from_numpy(group.cells))  # of one record's shape
        shuffled = (torch.where(moved, inputs[order], inputs) for order in orders)
        return [_mean_loss(study, network, one, targets) - loss for one in shuffled]

    found = np.array([rises(group) for group in layout.groups])  # (G, repeats)
    names = tuple(group.name for group in layout.groups)
    return Importance(names, loss, found.mean(axis=1), found.std(axis=1), len(rows))


def _mean_loss(
    study: Study, network: nn.Module, inputs: torch.Tensor, targets: npt.NDArray[np.generic]
) -> float:
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in torch.split(inputs, BATCH)])
    return float(target_of(study).losses(outputs, torch.from_numpy(targets)).mean())
