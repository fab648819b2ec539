"""Permutation importance: how much worse a model is when one column is another record's.

It needs the records' own answers, and says what matters to the model on average, not for a record.
How many records it asks about hangs on what asking costs: the work, not the time, so that the same
records give the same figures on every machine.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from client.data.records import Records
from client.explain.layout import GROUPS_MAX, Group, Layout
from shared_models.inputs import records_at_once
from shared_models.study import Study
from shared_models.tasks import target_of

Floats = npt.NDArray[np.float64]

RECORDS_MAX, RECORDS_MIN = 300, 10  # evenly spaced among all: a shuffle costs a pass over them
WORK_MAX = 200 * 10**9  # floating-point operations of three repeats: about four seconds of one core
WORK_OF_A_NUMBER = 1000  # beside what is counted: copies, and recurrent layers, which are not
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
    count = affordable(network, records, _count(layout))
    rows = np.unique(np.linspace(0, len(records) - 1, count).round().astype(np.int64))
    inputs, targets = torch.from_numpy(records.inputs[rows]), records.targets[rows]
    groups = _varied(layout, records.inputs[rows])
    loss = _mean_loss(study, network, inputs, targets)
    cell_of = torch.from_numpy(layout.cell_of.copy())
    # Nothing here is secret: the same seed gives the same report, and every group the same orders.
    draw = np.random.default_rng(0)
    orders = [torch.from_numpy(draw.permutation(len(rows))) for _ in range(repeats)]

    def rises(group: Group) -> list[float]:
        moved = torch.isin(cell_of, torch.from_numpy(group.cells))  # of one record's shape
        shuffled = (torch.where(moved, inputs[order], inputs) for order in orders)
        return [_mean_loss(study, network, one, targets) - loss for one in shuffled]

    found = np.array([rises(group) for group in groups])  # (G, repeats)
    names = tuple(group.name for group in groups)
    return Importance(names, loss, found.mean(axis=1), found.std(axis=1), len(rows))


def affordable(network: nn.Module, records: Records, groups: int) -> int:
    """Return how many records may be asked about with each of ``groups`` groups shuffled."""
    one = torch.from_numpy(records.inputs[:1])
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(one)
    work = int(counted.get_total_flops()) + WORK_OF_A_NUMBER * one.numel()
    return min(RECORDS_MAX, max(RECORDS_MIN, WORK_MAX // (REPEATS * groups * work)))


def _count(layout: Layout) -> int:
    count = len(layout.groups)
    return min(count, GROUPS_MAX) if layout.kind == "molecule" else count


def _varied(layout: Layout, inputs: npt.NDArray[np.generic]) -> tuple[Group, ...]:
    """Return the groups; of a molecule's buckets those of which records differ most."""
    if layout.kind != "molecule":
        return layout.groups
    order = np.argsort(-inputs.var(axis=0), kind="stable")[: _count(layout)]
    return tuple(layout.groups[place] for place in np.sort(order))


def _mean_loss(
    study: Study, network: nn.Module, inputs: torch.Tensor, targets: npt.NDArray[np.generic]
) -> float:
    with torch.no_grad():
        pieces = torch.split(inputs, min(BATCH, records_at_once(inputs.shape[1:])))
        outputs = torch.cat([network(piece) for piece in pieces])
    return float(target_of(study).losses(outputs, torch.from_numpy(targets)).mean())
