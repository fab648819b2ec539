"""What stands in a record's columns, words or letters, as a person writes it: for the pictures."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.molecules import molecule_symbols
from client.data.read import read_texts, read_words
from shared_models.contract import (
    CategoryColumn,
    LettersColumn,
    MoleculeColumn,
    NumberColumn,
    WordsColumn,
)
from shared_models.inputs import PADDING, input_spec, scalar_names
from shared_models.study import Study

Inputs = npt.NDArray[np.float32] | npt.NDArray[np.int64]


def written(study: Study, data: Path, inputs: Inputs, rows: list[int]) -> list[tuple[str, ...]]:
    """Return what stands in each cell of the records at ``rows``; () for pictures and series.

    Of a molecule its symbols, of several parts what stands in the columns.

    Args:
        study: as the records were read, with the target or without.
        data: where they were read.
        inputs: (N, *shape) of all of them.
        rows: which.

    Raises:
        DataError: the records cannot be read again.
    """
    columns = study.data.inputs
    for name, column in columns.items():
        if isinstance(column, WordsColumn):
            texts = read_words(study, data, name)
            return [texts[row] for row in rows]
        if isinstance(column, MoleculeColumn):
            molecules = read_texts(study, data, name)
            return [tuple(molecule_symbols(molecules[row])) for row in rows]
        if isinstance(column, LettersColumn):
            return [
                tuple(column.alphabet[token - 1] for token in inputs[row] if token != PADDING)
                for row in rows
            ]
    spec = input_spec(study)
    if spec.kind in {"features", "parts"}:  # columns come first among parts
        return [_row(study, inputs[row]) for row in rows]
    return [()] * len(rows)


def _row(study: Study, features: Inputs) -> tuple[str, ...]:
    """Return the values of a table's row, in the order of the layout."""
    found, place = [], 0
    for name, column in study.data.inputs.items():
        width = len(scalar_names({name: column}))
        own = features[place : place + width]
        place += width
        if isinstance(column, CategoryColumn):
            chosen = np.flatnonzero(own[: len(column.values)])
            found.append(column.values[chosen[0]] if len(chosen) else "missing")
        elif isinstance(column, NumberColumn):
            if column.missing == "indicator" and own[-1]:
                found.append("missing")
            else:
                found.append(f"{_unscaled(float(own[0]), column):.4g} {column.unit or ''}".strip())
    return tuple(found)


def _unscaled(value: float, column: NumberColumn) -> float:
    """Return the number that `client.data.encode.scale_values` scaled to [-1, 1]."""
    share, span = (value + 1) / 2, column.high - column.low
    return column.low + (
        math.expm1(share * math.log1p(span)) if column.scale == "log" else share * span
    )
