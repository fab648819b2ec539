"""The columns of a study in a steward's words: what each holds, its public range, what it is for.

It reads no record.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared_models.contract import (
    AnyColumn,
    CategoryColumn,
    Data,
    IdColumn,
    ImageColumn,
    LettersColumn,
    MaskColumn,
    MoleculeColumn,
    NumberColumn,
    SeriesColumn,
    Variable,
)

SHOWN = 12  # values or variables that are listed

Use = Literal["input", "learnt", "patient", "name", "not an input"]


@dataclass(frozen=True)
class Column:
    """One column that is read.

    Attributes:
        name: as in the records' files.
        kind: as the study names it.
        range: its public values, with their unit.
        use: input of the network; what is learnt from the others; the patient whose records count
            together; a name that is not used; or read and not shown to the network.
    """

    name: str
    kind: str
    range: str
    use: Use


def columns_of(data: Data) -> tuple[Column, ...]:
    """Return every column that a site reads, in the study's order."""
    return tuple(
        Column(name, column.kind, _range(column), _use(data, name, column))
        for name, column in data.columns.items()
    )


def listed(values: Sequence[str]) -> str:
    """Return values with commas between them, the first twelve and how many more there are."""
    shown = ", ".join(values[:SHOWN])
    rest = len(values) - SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _use(data: Data, name: str, column: AnyColumn) -> Use:
    if name in data.targets:
        return "learnt"
    if isinstance(column, IdColumn):
        return "patient" if name == data.patient else "name"
    return "input" if name in data.inputs else "not an input"


def _range(column: AnyColumn) -> str:
    if isinstance(column, NumberColumn | Variable):
        return _numbers(column)
    if isinstance(column, CategoryColumn):
        return listed(column.values)
    if isinstance(column, IdColumn):
        return "any text"
    if isinstance(column, SeriesColumn):
        variables = [f"{name} {_numbers(one)}" for name, one in column.variables.items()]
        return f"{column.steps} times: {listed(variables)}"
    if isinstance(column, ImageColumn):
        return (
            f"{' x '.join(map(str, reversed(column.sizes)))} "
            f"{'pixels' if column.depth is None else 'voxels'}, {column.channels} a point, "
            f"{column.low:g} to {column.high:g}"
        )
    if isinstance(column, MaskColumn):
        return f"at each point one of {listed(column.values)}"
    if isinstance(column, LettersColumn):
        return f"up to {column.length} letters of {column.alphabet}"
    if isinstance(column, MoleculeColumn):
        return "a molecule, as SMILES"
    return f"a text, its first {column.length} words"


def _numbers(column: NumberColumn | Variable) -> str:
    unit = f" {column.unit}" if column.unit else ""
    return f"{column.low:g} to {column.high:g}{unit}"
