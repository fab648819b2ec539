"""The card of a trained model: what it is, what it was measured to do, what it costs and protects.

Both ends write the same one, each from the debits that it can vouch for. It computes no guarantee.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared_models import wording
from shared_models.contract import AnyColumn
from shared_models.fingerprint import fingerprint
from shared_models.inputs import input_spec
from shared_models.metrics import Figure
from shared_models.notice import REASONS, Reason
from shared_models.roster_file import RosterFile
from shared_models.study import Study


@dataclass(frozen=True)
class Ending:
    """How a study ended.

    Attributes:
        reason: one of `shared_models.notice.REASONS`.
        plan: digest, in hexadecimal.
        rounds: that were done.
        evaluated: the round of the last evaluation that was opened, if it is known; else 0.
        released: its figures by name; none when nothing was opened.
        subgroups: the same by group; None of a group too small to be told.
    """

    reason: Reason
    plan: str
    rounds: int
    evaluated: int
    released: Mapping[str, Mapping[str, Any]]
    subgroups: Mapping[str, Mapping[str, Mapping[str, Any]] | None] = field(default_factory=dict)


def card(
    study: Study,
    roster: RosterFile,
    ending: Ending,
    promise: Mapping[str, Any],
    covers: str,
    *,
    signed: bool,
    computed: bool | None = None,
) -> str:
    """Return the card in Markdown.

    Args:
        study: as run.
        roster: the last version.
        ending: of the study.
        promise: the guarantee (`shared_models.guarantee`).
        covers: one sentence that says which debits were added up.
        signed: whether checksums and the coordinator's signature lie beside it.
        computed: at a site, whether it computed the model itself; None elsewhere.
    """
    room = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 - Markdown; what stands in tables goes through `cell`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    room.filters["cell"] = _cell
    results: dict[str, Any] = {
        "study": study.model_dump(mode="json", exclude_none=True),
        "sites": len(roster.sites),
        "privacy": promise,
    }
    return room.get_template("card.md.j2").render(
        name=study.name,
        digest=study.digest(),
        plan=ending.plan,
        network=wording.network_words(results["study"]),
        target=", ".join(study.data.targets),
        targets=study.data.targets,
        task=study.task,
        classes=study.data.classes,
        shape=list(input_spec(study).shape),
        sites=[
            (one.name, fingerprint(bytes.fromhex(one.public)), one.revoked) for one in roster.sites
        ],
        rounds=ending.rounds,
        planned=study.rounds,
        ending=REASONS[ending.reason],
        stopped=ending.reason == "stopped",
        columns=[(name, *_column(column)) for name, column in study.data.columns.items()],
        evaluated=ending.evaluated,
        metrics=[_metric(name, one) for name, one in ending.released.items()],
        asked=study.evaluation.subgroups,
        groups=[
            (group, None if told is None else [_metric(name, one) for name, one in told.items()])
            for group, told in ending.subgroups.items()
        ],
        sharing=wording.sharing(results),
        evaluation=wording.evaluation_words(promise),
        privacy=promise,
        epsilon=wording.show_epsilon,
        epsilon_words=wording.epsilon_words(promise, covers),
        noise_words=wording.noise_words(promise),
        exposures=wording.exposures(results),
        signed=signed,
        computed=computed,
    )


def _metric(name: str, figure: Mapping[str, Any]) -> tuple[str, str, str, str]:
    one = Figure(**figure)
    limits = "undefined"
    if one.low is not None and one.high is not None:
        limits = f"{wording.show(one.low)} to {wording.show(one.high)}"
    return wording.label(name), wording.show(one.value), limits, f"{one.n:,}"


def _column(column: AnyColumn) -> tuple[str, str]:
    """Return a column's kind and what the study says of its values."""
    said = column.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    said.pop("kind", None)
    return column.kind, _said(said)


def _said(value: object) -> str:
    """Return a value of a study's JSON as a person would write it."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {_said(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(value: object) -> str:
    """Return a text as it may stand in a cell of a Markdown table."""
    text = " ".join(str(value).split())
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return text
