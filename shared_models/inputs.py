"""The shape and the feature names of a network's input, as the data contract fixes them.

It turns no record into numbers: the readers of a site do, in the order that is named here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from privacy.errors import StudyError
from shared_models.contract import (
    AnyColumn,
    CategoryColumn,
    ImageColumn,
    LettersColumn,
    MoleculeColumn,
    NumberColumn,
    SeriesColumn,
    WordsColumn,
)
from shared_models.study import Study
from shared_models.tasks import TASKS

C = TypeVar("C")

PADDING = 0  # the token id that stands for nothing
_AT_ONCE = 1024  # records
_VALUES_AT_ONCE = 1 << 22  # of their inputs: 16 MB, and some times that inside a network


PartName = Literal["static", "series", "image"]


@dataclass(frozen=True)
class PartSpec:
    """One kind of input among several.

    Attributes:
        name: of the kind.
        shape: static (F,) | series (T, F) | image (C, H, W).
        names: of the F features; () for an image.
    """

    name: PartName
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputSpec:
    """What one record looks like to a network.

    Attributes:
        kind: features (F,) | series (T, F) | image (C, H, W) | volume (C, D, H, W), float32;
            tokens (L,), int64; parts (F,), float32: each part flat, then for each 1 where the
            record has it, else 0.
        shape: of one record, without the batch.
        names: of the F features; () for images, volumes, tokens, molecules and parts.
        vocabulary: number of token ids, padding included; 0 for numbers.
        parts: in their order, of kind parts.
    """

    kind: Literal["features", "series", "image", "volume", "tokens", "parts"]
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    vocabulary: int = 0
    parts: tuple[PartSpec, ...] = ()


def input_spec(study: Study) -> InputSpec:
    """Return the shape of one record's input.

    Raises:
        StudyError: the columns are not those that the task wants.
    """
    task = TASKS[study.task]
    if task.parts:
        return _parts(study)
    present = {column.kind for column in study.data.inputs.values()}
    for kind, spec in _SPECS.items():
        if kind in task.columns and kind in present:
            return spec(study)
    return _SPECS.get(task.columns[0], _scalars)(study)  # which says what is missing


def records_at_once(shape: Sequence[int]) -> int:
    """Return how many records of a shape a network should be asked about in one batch."""
    return max(1, min(_AT_ONCE, _VALUES_AT_ONCE // max(1, math.prod(shape))))


def scalar_names(columns: dict[str, AnyColumn]) -> tuple[str, ...]:
    """Return the names of the features of number and category columns, in the study's order.

    A number is one feature, a category one a value (one-hot); missing = "indicator" adds one more.
    """
    names: list[str] = []
    for name, column in columns.items():
        if isinstance(column, NumberColumn):
            names.append(name)
        elif isinstance(column, CategoryColumn):
            names.extend(f"{name}={value}" for value in column.values)
        else:
            continue
        if column.missing == "indicator":
            names.append(f"{name} missing")
    return tuple(names)


def _series_names(series: SeriesColumn) -> tuple[str, ...]:
    names = tuple(series.variables)
    if series.missing in {"indicator", "forward_indicator"}:
        names += tuple(f"{name} missing" for name in series.variables)
    return names


def _parts(study: Study) -> InputSpec:
    """Return the parts: static values, a series, a picture; two of them or all."""
    inputs = study.data.inputs
    parts = []
    names = scalar_names(inputs)
    if names:
        parts.append(PartSpec("static", (len(names),), names))
    if any(isinstance(column, SeriesColumn) for column in inputs.values()):
        series = _only(study, SeriesColumn)
        names = _series_names(series)
        parts.append(PartSpec("series", (series.steps, len(names)), names))
    if any(isinstance(column, ImageColumn) for column in inputs.values()):
        image = _only(study, ImageColumn)
        parts.append(PartSpec("image", (image.channels, *image.sizes)))
    known = (NumberColumn, CategoryColumn, SeriesColumn, ImageColumn)
    if len(parts) < 2 or not all(isinstance(column, known) for column in inputs.values()):
        raise _wants(study, "two kinds of input or three: number or category, series, image")
    size = sum(math.prod(part.shape) for part in parts) + len(parts)
    return InputSpec("parts", (size,), parts=tuple(parts))


def _scalars(study: Study) -> InputSpec:
    names = scalar_names(study.data.inputs)
    if len(names) == 0:
        raise _wants(study, "number or category columns")
    return InputSpec("features", (len(names),), names)


def _series(study: Study) -> InputSpec:
    series = _only(study, SeriesColumn)
    names = _series_names(series)
    names += scalar_names({n: c for n, c in study.data.inputs.items() if c is not series})
    return InputSpec("series", (series.steps, len(names)), names)


def _image(study: Study) -> InputSpec:
    image = _only(study, ImageColumn)
    return InputSpec("image" if image.depth is None else "volume", (image.channels, *image.sizes))


def _molecule(study: Study) -> InputSpec:
    return InputSpec("features", (_only(study, MoleculeColumn).buckets,))


def _words(study: Study) -> InputSpec:
    words = _only(study, WordsColumn)
    return InputSpec("tokens", (words.length,), vocabulary=words.buckets + 1)


def _letters(study: Study) -> InputSpec:
    letters = _only(study, LettersColumn)
    return InputSpec("tokens", (letters.length,), vocabulary=len(letters.alphabet) + 1)


# The first that a task reads and a study has is its input; numbers and categories join a series.
_SPECS: dict[str, Callable[[Study], InputSpec]] = {
    "series": _series,
    "image": _image,
    "molecule": _molecule,
    "words": _words,
    "letters": _letters,
}


def _only(study: Study, kind: type[C]) -> C:
    found = [column for column in study.data.inputs.values() if isinstance(column, kind)]
    if len(found) != 1:
        raise _wants(study, f"exactly one input column ({kind.__name__})")
    return found[0]


def _wants(study: Study, wanted: str) -> StudyError:
    return StudyError(f"data.columns: task {study.task!r} expected {wanted}")
