"""What a model is explained by: attributions of some records, what matters on average, a check.

It asks nobody and writes no file: `client.explain.report` shows it, `client.explain.folder` keeps
it. Everything in it is of patients, and stays where the records are.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.data.read import read_texts
from client.data.records import Records
from client.explain.layout import Layout, layout_of
from client.explain.methods import (
    Floats,
    Subject,
    attention_weights,
    integrated_gradients,
    occlusion,
    rank_correlation,
    to_cells,
)
from client.explain.molecules import named, on_symbols
from client.explain.permutation import Importance, permutation_importance
from client.explain.values import Inputs, written
from client.predict import forward, load_model, read_answered, unanswered
from privacy.errors import DataError
from shared_models.contract import MoleculeColumn
from shared_models.inputs import PADDING
from shared_models.registry import build_network
from shared_models.study import Study
from shared_models.target import Words
from shared_models.tasks import target_of

RECORDS = 6  # explained one by one unless others are asked for: a page that can be read
SEEDS = (1_000_003, 1_000_033, 1_000_037)  # of networks that learnt nothing
ALIKE = 0.5  # rank correlation from which on an explanation does not hang on what was learnt
CELLS_MIN = 8  # below, a rank correlation is chance


def _gradients(subject: Subject) -> Floats:
    found = integrated_gradients(subject.score, subject.points(), subject.baselines())
    return to_cells(found, subject.layout)


def _hidden(subject: Subject) -> Floats:
    return occlusion(subject.score, subject.points(), subject.baselines(), subject.layout)


METHODS: dict[str, Callable[[Subject], Floats | None]] = {
    "integrated_gradients": _gradients,
    "occlusion": _hidden,
    "attention": lambda subject: attention_weights(subject.network, subject.inputs),
}
"""Name -> (N, M) values of N records' cells, or (N, T) of their steps, or None."""

PERMUTATION = "permutation_importance"

Tell = Callable[[str, float], None]
"""What is being done, and which share of everything was done before it."""


@dataclass(frozen=True)
class Told:
    """One record, explained.

    Attributes:
        number: of the record, from 1, as `fedward-site predict` numbers it.
        inputs: of the network.
        cells: what stands in each cell, where that can be written.
        prediction: as `fedward-site predict` has it.
        words: how that is called, and which of it is explained.
        score: what is explained, in the explanation's unit.
        baseline: the score of a record that says nothing.
        values: method -> (M,), or (T,) of attention, or (S,) of a molecule's symbols.
    """

    number: int
    inputs: Inputs
    cells: tuple[str, ...]
    prediction: Floats
    words: Words
    score: float
    baseline: float
    values: Mapping[str, Floats]

    @property
    def gap(self) -> float:
        """How far integrated gradients are from adding up to score - baseline."""
        return abs(float(self.values["integrated_gradients"].sum()) - (self.score - self.baseline))


@dataclass(frozen=True)
class Check:
    """Whether a method tells the model from networks of random weights.

    Attributes:
        method: one of METHODS, or permutation importance.
        correlation: mean rank correlation with what it says of such a network; None: undefined.
        cells: that were ranked, on average.

    Source: Adebayo et al. 2018, arXiv:1810.03292, section 3.
    """

    method: str
    correlation: float | None
    cells: float

    @property
    def passed(self) -> bool | None:
        """False: it says the same of a network that learnt nothing; None: it cannot be told."""
        if self.correlation is None:
            return None
        if self.correlation >= ALIKE:
            return False
        return True if self.cells >= CELLS_MIN else None


@dataclass(frozen=True)
class Explanation:
    """What was found.

    Attributes:
        study: of the model.
        layout: of its records.
        records: explained one by one.
        count: of all records that were read.
        importance: of columns, variables, places; None where the records' answers are not known.
        why: they are not.
        checks: one a method.
    """

    study: Study
    layout: Layout
    records: tuple[Told, ...]
    count: int
    importance: Importance | None
    why: str
    checks: tuple[Check, ...]

    @property
    def unit(self) -> str:
        """Of the scores."""
        return target_of(self.study).score_unit

    def absent(self, told: Told) -> tuple[str, ...]:
        """Return the parts that a record lacks."""
        marks = told.inputs[len(told.inputs) - len(self.layout.parts) :]
        pairs = zip(self.layout.parts, marks, strict=False)
        return tuple(part.name for part, mark in pairs if not mark)


def explain(
    model: Path,
    data: Path,
    numbers: Sequence[int] = (),
    tell: Tell | None = None,
) -> Explanation:
    """Return what explains a model on local records.

    Args:
        model: the folder, or its model.safetensors.
        data: a file or folder of records that keep the study's contract; the target may be absent.
        numbers: which records are explained one by one, from 1; the first ones if none is named.
        tell: is told how far it is.

    Raises:
        DataError: the model is none, is damaged, or overflows; a record breaks the contract, or is
            not there.
        StudyError: records of this kind cannot be explained.
    """
    study, network = load_model(model)
    layout = layout_of(study)
    records, why = read_answered(study, data)
    rows = _rows(records, numbers, data)
    target = target_of(study)
    predicted = forward(study, network, records.take(np.array(rows)))
    asked = target.asked(predicted)
    inputs = torch.from_numpy(records.inputs[rows])
    subject = Subject(network, inputs, torch.from_numpy(asked), target, layout)
    scores, baselines = _scores(subject)
    if not (np.isfinite(scores).all() and np.isfinite(baselines).all()):
        raise DataError(f"{model}: expected finite answers, found others; nothing was written")
    cells = written(unanswered(study) if why else study, data, records.inputs, rows)
    step = _stepper(tell, bool(why))
    values = _values(subject, step)
    shown = _shown(study, values, cells)
    told = tuple(
        Told(
            number=row + 1,
            inputs=records.inputs[row],
            cells=cells[place],
            prediction=predicted[place],
            words=target.words(
                int(asked[place]), predicted[place], None if why else records.targets[row]
            ),
            score=float(scores[place]),
            baseline=float(baselines[place]),
            values=shown[place],
        )
        for place, row in enumerate(rows)
    )
    importance = None
    if not why:
        step(PERMUTATION)
        layout = _named(layout, study, data)
        importance = permutation_importance(study, network, records, layout)
    checks = _checks(subject, study, records, values, importance, step)
    return Explanation(study, layout, told, len(records), importance, why, checks)


def _stepper(tell: Tell | None, unanswered: bool) -> Callable[[str], None]:
    """Return what is told of each step: every method, of the model and of each random network."""
    count = (len(METHODS) + (not unanswered)) * (1 + len(SEEDS))
    steps = itertools.count()

    def step(name: str) -> None:
        share = next(steps) / count
        if tell is not None:
            tell(name.replace("_", " "), share)

    return step


def _values(subject: Subject, step: Callable[[str], None]) -> dict[str, Floats]:
    found = {}
    for name, method in METHODS.items():
        step(name)
        values = method(subject)
        if values is not None:
            found[name] = values
    return found


def _molecule(study: Study) -> tuple[str, MoleculeColumn] | None:
    inputs = study.data.inputs.items()
    return next(((n, one) for n, one in inputs if isinstance(one, MoleculeColumn)), None)


def _named(layout: Layout, study: Study, data: Path) -> Layout:
    """Return the layout, with a molecule's buckets named by what is in them here."""
    found = _molecule(study)
    return layout if found is None else named(layout, read_texts(study, data, found[0]), found[1])


def _shown(
    study: Study, values: Mapping[str, Floats], cells: Sequence[tuple[str, ...]]
) -> list[dict[str, Floats]]:
    """Return each record's values as they are drawn: of a molecule those of its symbols."""
    found = _molecule(study)
    if found is None:
        return [{name: one[place] for name, one in values.items()} for place in range(len(cells))]
    return [
        {name: on_symbols(one[place], "".join(own), found[1]) for name, one in values.items()}
        for place, own in enumerate(cells)
    ]


def _rows(records: Records, numbers: Sequence[int], data: Path) -> list[int]:
    """Return which records are explained, counted from 0, each once."""
    if not len(records):
        raise DataError(f"{data}: expected a record to explain, found none; nothing was written")
    wrong = [number for number in numbers if not 1 <= number <= len(records)]
    if wrong:
        raise DataError(
            f"--record: expected a number from 1 to {len(records)}, found {wrong[0]}; "
            "nothing was written",
            "`fedward-site predict` numbers the records",
        )
    return [n - 1 for n in dict.fromkeys(numbers)] or [*range(min(RECORDS, len(records)))]


def _scores(subject: Subject) -> tuple[Floats, Floats]:
    rows = torch.arange(len(subject.inputs))
    with torch.no_grad():
        of_points = subject.score(subject.points(), rows)
        of_baselines = subject.score(subject.baselines(), rows)
    return of_points.double().numpy(), of_baselines.double().numpy()


def _checks(
    subject: Subject,
    study: Study,
    records: Records,
    values: Mapping[str, Floats],
    importance: Importance | None,
    step: Callable[[str], None],
) -> tuple[Check, ...]:
    """Ask the same of networks of random weights, and compare cell by cell of each record."""
    networks = [build_network(study, seed).eval() for seed in SEEDS]
    checks = []
    for name, ours in values.items():
        pairs: list[tuple[Floats, Floats]] = []
        for network in networks:
            step(name)
            random = replace(subject, network=network)
            theirs = METHODS[name](random)
            if theirs is None:
                raise ValueError(f"expected {name} of every network of the study")
            pairs += [
                (a[seen], b[seen])
                for a, b, seen in zip(ours, theirs, _seen(subject, ours), strict=True)
            ]
        checks.append(_check(name, pairs))
    if importance is not None:
        others = []
        for network in networks:
            step(PERMUTATION)
            found = permutation_importance(study, network, records, subject.layout, repeats=1)
            others.append(found.rises)
        checks.append(_check(PERMUTATION, [(importance.rises, other) for other in others]))
    return tuple(checks)


def _seen(subject: Subject, values: Floats) -> npt.NDArray[np.bool_]:
    """Return which cells hold something, (N, M): padding is no part of a text."""
    layout, inputs = subject.layout, subject.inputs
    if layout.kind in {"tokens", "molecule"}:
        present: npt.NDArray[np.bool_] = (inputs != PADDING).numpy()  # no count is 0 too
        return present
    seen = np.ones(values.shape, dtype=np.bool_)
    for place, part in enumerate(layout.parts):
        there = inputs[:, place - len(layout.parts), None] > 0  # (N, 1)
        seen[:, part.cells] = there.numpy()
        seen[:, place - len(layout.parts)] = False  # whether it is there, is not hidden
    return seen


def _check(name: str, pairs: Sequence[tuple[Floats, Floats]]) -> Check:
    found = [rank_correlation(one, other) for one, other in pairs]
    known = [one for one in found if one is not None]
    cells = float(np.mean([len(one) for one, _ in pairs]))
    return Check(name, float(np.mean(known)) if known else None, cells)
