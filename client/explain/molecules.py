"""What of a molecule's buckets is whose: symbols of the SMILES text, and runs of them.

A hash has no way back, so a bucket is named by what falls into it at this site.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from client.data.molecules import molecule_places, molecule_symbols
from client.explain.layout import Layout
from shared_models.contract import MoleculeColumn

Floats = npt.NDArray[np.float64]


def on_symbols(values: Floats, text: str, column: MoleculeColumn) -> Floats:
    """Return (S,) what falls on each symbol of a molecule, of (B,) what falls on its buckets.

    A bucket's share is spread evenly over the runs that fell into it, and over their symbols; the
    sum stays what it was.
    """
    found = np.zeros(len(molecule_symbols(text)))
    for number, runs in molecule_places(text, column).items():
        for run in runs:
            found[run.start : run.stop] += values[number] / len(runs) / len(run)
    return found


def named(layout: Layout, molecules: Sequence[str], column: MoleculeColumn) -> Layout:
    """Return the layout with each bucket named by the commonest run of these molecules in it."""
    if column.features != "ngrams":
        return layout
    runs: dict[int, Counter[str]] = defaultdict(Counter)
    for text in molecules:
        symbols = molecule_symbols(text)
        for number, places in molecule_places(text, column).items():
            runs[number].update("".join(symbols[run.start : run.stop]) for run in places)
    groups = tuple(
        replace(group, name=_name(runs[place])) if place in runs else group
        for place, group in enumerate(layout.groups)
    )
    return replace(layout, groups=groups)


def _name(runs: Counter[str]) -> str:
    (first, _), *_ = runs.most_common(1)
    others = len(runs) - 1
    return f"{first} and {others} more" if others else first
