"""What can be learnt: each task's data, its networks and its target.

It builds no network (the registry does) and computes nothing from records (the target does).
"""

from collections.abc import Callable
from dataclasses import dataclass

from shared_models.alarms import alarms
from shared_models.anomaly import anomaly
from shared_models.label import label
from shared_models.panel import panel
from shared_models.study import Study
from shared_models.survival import survival
from shared_models.target import Target


def _answers(study: Study) -> Target:
    """Return what one answer asks of a model, or a panel of them."""
    return panel(study) if len(study.data.targets) > 1 else label(study)


@dataclass(frozen=True)
class Task:
    """One kind of learning problem.

    Attributes:
        name: as a study's ``task`` writes it.
        summary: what it is, in plain words.
        networks: the names of the networks that can do it, the usual one first.
        columns: the kinds of input columns it wants.
        examples: studies under examples/ that do it.
        target: makes what a study's target asks of a model.
    """

    name: str
    summary: str
    networks: tuple[str, ...]
    columns: tuple[str, ...]
    examples: tuple[str, ...]
    target: Callable[[Study], Target] = _answers


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
            examples=("pneumonia", "lung", "digits"),
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
            columns=("image", "series", "number", "category"),
            examples=("anomalies",),
            target=anomaly,
        ),
        Task(
            "warning",
            "Risk of an event, such as death, at each hour from what was measured up to then.",
            networks=("lstm", "gru", "rnn", "mlp"),
            columns=("series", "number", "category"),
            examples=("vitals",),
            target=alarms,
        ),
        Task(
            "fusion",
            "Diagnosis from values, a series and a picture together, any of which may be missing.",
            networks=("fusion",),
            columns=("number", "category", "series", "image"),
            examples=("fusion",),
        ),
        Task(
            "survival",
            "Time until an event, such as death or relapse, of which some records do not know.",
            networks=("mlp",),
            columns=("number", "category"),
            examples=("brca",),
            target=survival,
        ),
    )
}


def target_of(study: Study) -> Target:
    """Return what the study's target asks of a model."""
    return TASKS[study.task].target(study)
