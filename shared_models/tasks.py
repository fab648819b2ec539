"""What can be learnt: each task's data, its networks and its target.

It builds no network (the registry does) and computes nothing from records (the target does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from shared_models.alarms import alarms, alarms_fit
from shared_models.anomaly import anomaly, anomaly_fits
from shared_models.contract import CategoryColumn, NumberColumn
from shared_models.label import label
from shared_models.mask import mask, mask_fits
from shared_models.panel import panel
from shared_models.survival import survival, survival_fits
from shared_models.target import Target

if TYPE_CHECKING:
    from shared_models.study import Study


def answers(study: Study) -> Target:
    """Return what one answer asks of a model, or a panel of them."""
    return panel(study) if len(study.data.targets) > 1 else label(study)


def answers_fit(study: Study) -> None:
    """Check that the target is one answer, or a panel of them.

    Raises:
        ValueError: it is neither.
    """
    data = study.data
    targets = [data.columns[name] for name in data.targets]
    panel = all(isinstance(one, CategoryColumn) and len(one.values) == 2 for one in targets)
    if not isinstance(targets[0], NumberColumn | CategoryColumn) or len(targets) > 1 > panel:
        raise ValueError(
            "data.target: expected one number or category column, or several categories of "
            f"two values (no, then yes), found {data.target!r}"
        )


@dataclass(frozen=True)
class Task:
    """One kind of learning problem.

    Attributes:
        name: as a study's ``task`` writes it.
        summary: what it is, in plain words.
        networks: the names of the networks that can do it, the usual one first.
        columns: the kinds of input columns it reads. One of the kinds that are no numbers or
            categories must be there, unless "number" stands first.
        examples: studies under examples/ that do it.
        target: makes what a study's target asks of a model.
        fits: checks what only this task asks of a study; a ValueError says what was expected.
        parts: whether inputs of several kinds are read side by side, each a part of the record.
    """

    name: str
    summary: str
    networks: tuple[str, ...]
    columns: tuple[str, ...]
    examples: tuple[str, ...]
    target: Callable[[Study], Target] = answers
    fits: Callable[[Study], None] = answers_fit
    parts: bool = False


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "tabular",
            "Diagnosis, or a number, from one row of findings: ages, laboratory values, codes.",
            networks=("mlp",),
            columns=("number", "category"),
            examples=("breast", "heart"),
        ),
        Task(
            "image",
            "Diagnosis from one small picture, such as an X-ray.",
            networks=("cnn", "mlp"),
            columns=("image",),
            examples=("pneumonia", "lung", "digits", "tissue"),
        ),
        Task(
            "series",
            "Outcome from measurements over time, such as the vital signs of a hospital stay.",
            networks=("lstm", "gru", "rnn", "attention", "mlp"),
            columns=("series", "number", "category"),
            examples=("icu", "glucose"),
        ),
        Task(
            "sequence",
            "Class of a text, or of a sequence of letters such as DNA.",
            networks=("attention", "cnn", "lstm", "gru", "rnn"),
            columns=("letters", "words"),
            examples=("splice", "questions"),
        ),
        Task(
            "molecule",
            "Effects of a molecule, written as SMILES, such as those of a panel of assays.",
            networks=("mlp",),
            columns=("molecule",),
            examples=("tox21",),
        ),
        Task(
            "anomaly",
            "How unlike normal records one is, learnt without a single case of disease.",
            networks=("autoencoder",),
            columns=("number", "category", "image", "series"),
            examples=("anomalies",),
            target=anomaly,
            fits=anomaly_fits,
        ),
        Task(
            "warning",
            "Risk of an event, such as death, at each hour from what was measured up to then.",
            networks=("lstm", "gru", "rnn", "mlp"),
            columns=("series", "number", "category"),
            examples=("vitals",),
            target=alarms,
            fits=alarms_fit,
        ),
        Task(
            "fusion",
            "Diagnosis from values, a series and a picture together, any of which may be missing.",
            networks=("fusion",),
            columns=("number", "category", "series", "image"),
            examples=("fusion",),
            parts=True,
        ),
        Task(
            "survival",
            "Time until an event, such as death or relapse, of which some records do not know.",
            networks=("mlp",),
            columns=("number", "category"),
            examples=("brca",),
            target=survival,
            fits=survival_fits,
        ),
        Task(
            "segmentation",
            "Where a structure is: each point of a picture or volume, such as nuclei in tissue.",
            networks=("unet",),
            columns=("image",),
            examples=("nuclei",),
            target=mask,
            fits=mask_fits,
        ),
    )
}


def _known(name: str) -> str:
    if name not in TASKS:
        *others, last = map(repr, TASKS)
        raise ValueError(f"expected {', '.join(others)} or {last}, found {name!r}")
    return name


TaskName = Annotated[str, AfterValidator(_known)]
"""A name in TASKS, in a document."""


def target_of(study: Study) -> Target:
    """Return what the study's target asks of a model."""
    return TASKS[study.task].target(study)
