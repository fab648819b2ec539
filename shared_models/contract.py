"""The data contract of a study: which columns a record has and which public values they may take.

It holds no record and reads no file. Every range, category, alphabet and length is written by the
study, so that turning records into tensors never looks at what the records happen to hold.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Missing = Literal["refuse", "constant", "indicator"]
SeriesMissing = Literal["refuse", "constant", "indicator", "forward", "forward_indicator"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def number_of(text: str) -> float | str:
    """Return the number that a text is, or the text: "1", "1.0" and "1e0" are equal values."""
    return float(text) if _NUMBER.fullmatch(text) else text


class Section(BaseModel):
    """A part of a document: unknown keys refused, values as written, nothing changed afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*")
    @classmethod
    def _one_zero(cls, value: object) -> object:
        # -0.0 equals 0.0 and is written otherwise: equal studies must have equal digests.
        return value + 0.0 if isinstance(value, float) else value


class Column(Section):
    """What every column may say besides its kind.

    ``array`` and ``index`` say where an NPZ file keeps the column: ``archive[array][:, index]``.
    """

    array: str | None = None  # NPZ only; "{part}" stands for each of data.parts
    index: int | None = Field(None, ge=0)


class NumberColumn(Column):
    """A number with a public range; [low, high] becomes [-1, 1]."""

    kind: Literal["number"]
    low: float
    high: float
    unit: str | None = None
    scale: Literal["linear", "log"] = "linear"  # log: log1p(x - low), for long tails
    outside: Literal["refuse", "clamp"] = "refuse"
    missing: Missing = "refuse"
    fill: float | None = None  # what stands in for a missing value; default: 0 after scaling
    input: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        if self.fill is not None and not self.low <= self.fill <= self.high:
            raise ValueError(f"expected fill between low and high, found {self.fill}")
        return self


class CategoryColumn(Column):
    """One of a few public values; equal numbers are equal values ("1" is "1.0")."""

    kind: Literal["category"]
    values: tuple[str, ...] = Field(min_length=1)
    missing: Missing = "refuse"  # constant: all zeros; indicator: one more value
    input: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({number_of(value) for value in self.values}) < len(self.values):
            raise ValueError("expected values without repetition (equal numbers are equal values)")
        if "" in self.values or any(value != value.strip() for value in self.values):
            raise ValueError("expected values that are not empty and have no blanks around them")
        return self


class IdColumn(Column):
    """A name that is never an input: a patient, a sample."""

    kind: Literal["id"]


class Variable(Section):
    """One measured quantity of a series, with its public range."""

    low: float
    high: float
    unit: str | None = None
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        return self


class SeriesColumn(Column):
    """Equally spaced measurements, (steps, variables); forward: the last value is carried on."""

    kind: Literal["series"]
    steps: int = Field(ge=1, le=100_000)
    variables: dict[str, Variable] = Field(min_length=1)
    outside: Literal["refuse", "clamp"] = "refuse"
    missing: SeriesMissing = "refuse"


class ImageColumn(Column):
    """A picture, or with a depth a volume, of fixed size; [low, high] becomes [0, 1] per point."""

    kind: Literal["image"]
    depth: int | None = Field(None, ge=1, le=4096)  # slices of a volume
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    channels: int = Field(1, ge=1, le=16)
    low: float = 0.0
    high: float = 255.0
    missing: Literal["refuse", "constant"] = "refuse"  # NPZ: NaN all over; constant: as if all low

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, found {self.low} and {self.high}")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """(H, W) of a picture, (D, H, W) of a volume."""
        flat = (self.height, self.width)
        return flat if self.depth is None else (self.depth, *flat)


class MaskColumn(Column):
    """Which structure each point of the study's image is of; the first value is the background."""

    kind: Literal["mask"]
    values: tuple[str, ...] = Field(min_length=2, max_length=64)
    levels: tuple[Annotated[int, Field(ge=0, le=65_535)], ...] = ()  # of values in files: 0, 1, ...
    spacing: tuple[Annotated[float, Field(gt=0)], ...] = ()  # of points along each axis: 1, ...
    unit: str | None = None  # of the spacing; None: points

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.values)) < len(self.values) or "" in self.values:
            raise ValueError("expected values that are not empty, without repetition")
        if self.levels and (
            len(set(self.levels)) < len(self.levels) or len(self.levels) != len(self.values)
        ):
            raise ValueError(f"expected {len(self.values)} levels, one a value, no two alike")
        return self


class LettersColumn(Column):
    """A sequence of single letters of a public alphabet: token ids 1 and up, 0 for padding."""

    kind: Literal["letters"]
    alphabet: str = Field(min_length=1)
    length: int = Field(ge=1, le=100_000)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.alphabet)) < len(self.alphabet):
            raise ValueError("expected an alphabet without repetition")
        return self


class WordsColumn(Column):
    """A text: its words hashed into public buckets (no vocabulary is learnt from records)."""

    kind: Literal["words"]
    buckets: int = Field(8192, ge=16, le=1 << 20)
    length: int = Field(64, ge=1, le=100_000)


class MoleculeColumn(Column):
    """A molecule as a SMILES text: what it is made of, hashed into public buckets."""

    kind: Literal["molecule"]
    buckets: int = Field(2048, ge=16, le=1 << 16)
    features: Literal["ngrams", "morgan"] = "ngrams"  # morgan: circles of radius 2, by RDKit
    grams: int = Field(4, ge=1, le=8)  # ngrams: of so many symbols at most
    split: Literal["molecule", "scaffold"] = "molecule"  # scaffold: by RDKit, held out as a whole


AnyColumn = Annotated[
    NumberColumn
    | CategoryColumn
    | IdColumn
    | SeriesColumn
    | ImageColumn
    | MaskColumn
    | LettersColumn
    | WordsColumn
    | MoleculeColumn,
    Field(discriminator="kind"),
]


class Data(Section):
    """The contract of every site's records, and how their files are laid out."""

    target: str | tuple[str, ...]  # several where the task asks for several
    columns: dict[str, AnyColumn] = Field(min_length=1)
    positive: tuple[str, ...] = ()  # values of the target that count as "yes": makes it binary
    patient: str | None = None
    format: Literal["csv", "tsv", "jsonl", "npz", "png", "nifti"] | None = None  # by file name
    files: str | None = None  # which files of the folder, e.g. "processed.*.data"
    header: bool = True  # False: the columns in the order of the study
    missing: tuple[str, ...] = ("",)  # marks of a missing value in text files
    parts: tuple[str, ...] = ()  # NPZ that keep a data set in parts; gives the public column "part"
    builtin: Literal["breast_cancer", "digits"] | None = None  # records inside scikit-learn

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = self.targets
        if len(names) != len(set(names)) or not names:
            raise ValueError("target: expected a column, or several, each once")
        for name in names:
            if isinstance(self.columns.get(name, None), IdColumn | None):
                raise ValueError(f"target: expected a column, found {name!r}")
        if self.positive:
            target = self.columns[names[0]] if len(names) == 1 else None
            if not isinstance(target, CategoryColumn):
                raise ValueError("positive: expected a category target")
            unknown = sorted(set(self.positive) - set(target.values))
            if unknown or len(set(self.positive)) >= len(target.values):
                raise ValueError("positive: expected some, not all, of the values of the target")
        if self.patient is not None and not isinstance(self.columns.get(self.patient), IdColumn):
            raise ValueError(f"patient: expected a column of kind id, found {self.patient!r}")
        if "part" in self.columns and self.parts:
            raise ValueError("parts: expected no column named 'part' beside it")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the target's columns: one, or as many as the task asks for."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def image(self) -> ImageColumn:
        """The one image that the network sees, where the task has one."""
        (found,) = (one for one in self.inputs.values() if isinstance(one, ImageColumn))
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the network's outputs; () for a number."""
        target = self.columns[self.targets[0]]
        if len(self.targets) > 1 or not isinstance(target, CategoryColumn):
            return ()
        return ("no", "yes") if self.positive else target.values

    @property
    def inputs(self) -> dict[str, AnyColumn]:
        """The columns that a network sees, in the study's order."""
        return {
            name: column
            for name, column in self.columns.items()
            if name not in self.targets
            and not isinstance(column, IdColumn)
            and getattr(column, "input", True)
        }
