"""The study file: one frozen document that says what is learnt, from which records, how privately.

It reads and checks TOML; it does not look at records and starts nothing.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from privacy.errors import StudyError
from shared_models.contract import (
    CategoryColumn,
    Data,
    MaskColumn,
    NumberColumn,
    Section,
    SeriesColumn,
)
from shared_models.sections import (
    MASKED_SITES_MAX,
    SPARE_MAX,
    Aggregation,
    DistributedPrivacy,
    EarlyWarning,
    Evaluation,
    Forecast,
    Model,
    NoPrivacy,
    Privacy,
    Simulation,
    Survival,
    Training,
)
from shared_models.tasks import TASKS, TaskName, target_of

STUDY_BYTES_MAX = 1 << 20
GROUPS_MAX = 16  # of held-out records: each has cells of its own
MISSING_GROUP = "missing"  # records that lack the column's value


class Study(Section):
    """The whole document. Equal studies have equal digests, whatever their file looks like."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    task: TaskName
    rounds: int = Field(ge=1, le=1_000_000)
    data: Data
    model: Model
    training: Training
    privacy: Privacy
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()
    simulation: Simulation = Simulation()
    survival: Survival | None = None  # of task survival
    forecast: Forecast | None = None  # of task series and a number
    warning: EarlyWarning | None = None  # of task warning

    @model_validator(mode="after")
    def _modes(self) -> Self:
        self._target_fits()
        self._forecast_fits()
        self._training_fits()
        self._privacy_fits()
        self._subgroups_fit()
        self._stopping_fits()
        aggregation, simulation = self.aggregation, self.simulation
        plain_sgd = self.training.optimizer == "sgd" and not self.training.momentum
        if aggregation.strategy == "scaffold" and not plain_sgd:
            raise ValueError(
                "training.optimizer: expected sgd without momentum with strategy = 'scaffold', "
                "whose control variates are means of plain gradients"
            )
        if aggregation.weighting == "records" and aggregation.ring_bits == 16:
            raise ValueError(
                "aggregation.ring_bits: expected 32 with weighting = 'records', found 16"
            )
        if isinstance(self.privacy, DistributedPrivacy):
            if aggregation.strategy in {"fedprox", "scaffold"}:
                raise ValueError(
                    "aggregation.strategy: expected fedavg or an adaptive one with privacy.mode = "
                    f"'distributed', found {aggregation.strategy!r}"
                )
            if "value_bound" in aggregation.model_fields_set:
                raise ValueError(
                    "aggregation.value_bound: has no meaning with privacy.mode = 'distributed'; "
                    "the scale follows from privacy.clipping_norm"
                )
        size = aggregation.cohort or simulation.sites
        if aggregation.masking == "fsa1" and size > MASKED_SITES_MAX:
            raise ValueError(
                f"aggregation.cohort: expected 3 to {MASKED_SITES_MAX} when more than "
                f"{MASKED_SITES_MAX} sites mask, found {aggregation.cohort}"
            )
        if aggregation.cohort > simulation.sites:
            raise ValueError(
                f"aggregation.cohort: expected at most simulation.sites ({simulation.sites}), "
                f"found {aggregation.cohort}"
            )
        return self

    def _target_fits(self) -> None:
        if (self.survival is not None) != (self.task == "survival"):
            raise ValueError("survival: expected with task = 'survival', and only then")
        if (self.warning is not None) != (self.task == "warning"):
            raise ValueError("warning: expected with task = 'warning', and only then")
        masks = [name for name, one in self.data.columns.items() if isinstance(one, MaskColumn)]
        if masks and self.task != "segmentation":
            raise ValueError(f"data.columns.{masks[0]}: expected with task = 'segmentation'")
        TASKS[self.task].fits(self)

    def _forecast_fits(self) -> None:
        if self.forecast is None:
            return
        number = isinstance(self.data.columns[self.data.targets[0]], NumberColumn)
        if self.task != "series" or not number:
            raise ValueError("forecast: expected with task = 'series' and a number to be predicted")
        inputs = self.data.inputs
        series = [one for one in inputs.values() if isinstance(one, SeriesColumn)]
        if not any(self.forecast.of in one.variables for one in series):
            raise ValueError(
                f"forecast.of: expected a variable of the series, found {self.forecast.of!r}"
            )
        if not isinstance(inputs.get(self.forecast.slot), CategoryColumn):
            raise ValueError(
                f"forecast.slot: expected an input of kind category, found {self.forecast.slot!r}"
            )

    def _training_fits(self) -> None:
        training, mode = self.training, self.privacy.mode
        if training.augment is not None and self.task != "image":
            raise ValueError(
                f"training.augment: expected only with task = 'image', found task {self.task!r}"
            )
        if training.local_steps is not None and training.local_epochs is not None:
            raise ValueError("training: expected local_steps or local_epochs, not both")
        if training.momentum and training.optimizer != "sgd":
            raise ValueError("training.momentum: expected optimizer = 'sgd' with it")
        if mode == "none":
            if training.local_epochs is not None and training.batch_size is None:
                raise ValueError("training.batch_size: missing, expected with local_epochs")
            return  # neither steps nor epochs: one step a round, as in mode distributed
        for key in ("local_epochs", "batch_size"):
            if getattr(training, key) is not None:
                raise ValueError(f"training.{key}: expected only with privacy.mode = 'none'")
        if mode == "local" and training.local_steps is None:
            raise ValueError("training.local_steps: missing, expected with privacy.mode = 'local'")
        if mode != "distributed":
            return
        if training.local_steps not in {None, 1}:
            raise ValueError("training.local_steps: expected none with privacy.mode='distributed'")
        for key, plain in (("optimizer", "sgd"), ("momentum", 0.0)):
            if getattr(training, key) != plain:
                raise ValueError(
                    f"training.{key}: expected none with privacy.mode = 'distributed', where a "
                    "round is one step of aggregation.strategy"
                )

    def _privacy_fits(self) -> None:
        if isinstance(self.privacy, NoPrivacy):
            return
        if self.aggregation.weighting == "records":
            raise ValueError(
                "aggregation.weighting: 'records' expects privacy.mode = 'none'; "
                "a record count is never told under privacy"
            )
        if self.evaluation.folds is not None:
            raise ValueError("evaluation.folds: expected only with privacy.mode = 'none'")
        if self.privacy.unit == "patient" and self.data.patient is None:
            raise ValueError("data.patient: missing, expected with privacy.unit = 'patient'")
        units = self._public_units()
        if not self.privacy.delta * units < 1:
            raise ValueError(
                f"privacy.delta: expected below one in {units:.0f}, the {self.privacy.unit}s that "
                "sampling_rate, expected_batch, min_sites and records_max speak of, found "
                f"{self.privacy.delta}"
            )

    def _subgroups_fit(self) -> None:
        asked = self.evaluation.subgroups
        if asked is None:
            return
        column = self.data.columns.get(asked.column)
        if not isinstance(column, CategoryColumn) or asked.column in self.data.targets:
            raise ValueError(
                "evaluation.subgroups.column: expected a category that is no target, found "
                f"{asked.column!r}"
            )
        count = len(column.values) + (column.missing != "refuse")
        if not 2 <= count <= GROUPS_MAX or MISSING_GROUP in column.values:
            raise ValueError(
                f"evaluation.subgroups.column: expected 2 to {GROUPS_MAX} groups, none of them "
                f"called {MISSING_GROUP!r}, found {count} of {asked.column!r}"
            )

    def _stopping_fits(self) -> None:
        if self.evaluation.patience is not None and stopping_figure(self) is None:
            raise ValueError(
                "evaluation.patience: expected evaluations that tell a loss or "
                f"{target_of(self).headline}, which stop a study, found neither with "
                f"evaluation.release = {self.evaluation.release!r}: leave patience out"
            )

    def _public_units(self) -> float:
        """Return the largest number of records (patients) that the study's public figures name.

        A site's rate and batch say how many it is thought to have, and min_sites such sites are in
        every sum; records_max is what one may have. Whoever publishes one of n records at random
        keeps delta = 1/n, so the largest n is the one to ask for.
        """
        if isinstance(self.privacy, NoPrivacy):
            return 0.0
        a_site = self.privacy.expected_batch / self.privacy.sampling_rate
        most = self.privacy.records_max if isinstance(self.privacy, DistributedPrivacy) else 0
        return max(self.aggregation.min_sites * a_site, most)

    @property
    def spare_attempts(self) -> int:
        """Attempts beyond one a round that the noise is calibrated for."""
        spare = self.aggregation.spare_attempts
        return min(-(-self.rounds // 10), SPARE_MAX) if spare is None else spare

    def with_sites(self, count: int) -> "Study":
        """Return the study with the number of sites that the records turned out to have."""
        document = self.document()
        document.setdefault("simulation", {})["sites"] = count
        return parse_study(document, self.name)

    def canonical(self) -> str:
        """Return the canonical JSON: defaults filled in, keys sorted, columns in order."""
        document = self.model_dump(mode="json", exclude_none=True)
        if isinstance(self.privacy, DistributedPrivacy):
            del document["aggregation"]["value_bound"]  # a key of the other modes
        columns = document["data"]["columns"]
        # A table's order is its file's order when there is no header: the digest must cover it.
        document["data"]["columns"] = [{"name": name, **columns[name]} for name in columns]
        for column in document["data"]["columns"]:
            if column["kind"] == "series":
                column["variables"] = [{"name": n, **v} for n, v in column["variables"].items()]
        return json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def document(self) -> dict[str, Any]:
        """Return the study as a TOML document that loads into an equal study."""
        return self.model_dump(mode="json", exclude_none=True, exclude_unset=True)


def is_exact(study: Study) -> bool:
    """Say whether evaluations are released without noise: always so in mode none."""
    return isinstance(study.privacy, NoPrivacy) or study.evaluation.release == "exact"


def is_trusting(study: Study) -> bool:
    """Say whether held-out records are protected by summing alone, in a study with privacy."""
    return is_exact(study) and not isinstance(study.privacy, NoPrivacy)


def stopping_figure(study: Study) -> str | None:
    """Return the figure that early stopping reads: the loss where it is told, else the main one.

    The study alone decides, so that every evaluation is compared by the same figure. None: neither
    is told.
    """
    target = target_of(study)
    told = target.told(exact=is_exact(study))
    return next((name for name in ("loss", target.headline) if name in told), None)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply ``KEY=VALUE`` overrides, such as ``privacy.epsilon=2``.

    Raises:
        StudyError: the file cannot be read, is not TOML, or a key of it is wrong.
    """
    try:
        with path.open("rb") as file:
            text = file.read(STUDY_BYTES_MAX + 1)
        if len(text) > STUDY_BYTES_MAX:
            raise StudyError(f"{path}: expected a study of at most 1 MiB, found more")
        document = tomllib.loads(text.decode())
    except OSError as error:
        raise StudyError(
            f"{path}: cannot be read ({error.strerror})", "give the path of a study file"
        ) from error
    except (ValueError, RecursionError) as error:  # no text, no TOML, absurd numbers or depth
        raise StudyError(f"{path}: expected TOML, found {error}") from error
    for override in overrides:
        _override(document, override)
    return parse_study(document, str(path))


def parse_study(document: Mapping[str, Any], source: str = "study") -> Study:
    """Check a document and freeze it; ``source`` names it in errors.

    Raises:
        StudyError: names every wrong key, what was expected and what was found.
    """
    try:
        # JSON mode reads lists as tuples while staying strict about numbers and text.
        return Study.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        mistakes = [_mistake(item, document) for item in error.errors(include_url=False)]
        raise StudyError(
            f"{source}: {'; '.join(dict.fromkeys(mistakes))}",
            "`fedward-sim tasks` shows an example study for every task",
        ) from error


def read_canonical(text: str) -> Study:
    """Return the study of a canonical JSON, as it travels; nothing else is accepted.

    Raises:
        StudyError: it is another text, or one in another form.
    """
    try:
        document = json.loads(text)
        data = document["data"]
        data["columns"] = {one.pop("name"): one for one in data["columns"]}
        for column in data["columns"].values():
            if column["kind"] == "series":
                column["variables"] = {one.pop("name"): one for one in column["variables"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StudyError("study: expected canonical JSON, got something else") from None
    study = parse_study(document)
    if study.canonical() != text:  # a name that stands twice, a blank, a default left out
        raise StudyError("study: expected canonical JSON, got another form")
    return study


def _override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise StudyError(f"--set: expected KEY=VALUE, found {override!r}")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {"value": text}  # a bare word is a text
    if len(parsed) > 1:
        raise StudyError(f"--set {key}: expected one value, found more lines")
    table: Any = document
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise StudyError(f"--set {key}: {part} is not a table of the study")
    table[parts[-1]] = parsed["value"]


def _mistake(item: Any, document: Mapping[str, Any]) -> str:
    """Write one pydantic error as "key: expected ..., found ..."; tags of unions are left out."""
    place: Any = document
    names: list[str] = []
    for part in item["loc"]:
        inside = part in place if isinstance(place, Mapping) else False
        if inside or (isinstance(place, list) and isinstance(part, int) and part < len(place)):
            place = place[part]
        elif item["type"] == "missing" and part == item["loc"][-1]:
            place = None
        else:
            continue
        text = str(part)
        names.append(text if text.isprintable() else repr(text))
    key = ".".join(names)
    kind, text = item["type"], str(item["msg"])
    if kind == "missing":
        return f"{key}: missing, the study must say it"
    if kind == "extra_forbidden":
        return f"{key}: unknown key"
    if kind == "union_tag_not_found":
        return f"{key}.{_tag(item)}: missing, the study must say it"
    if kind == "union_tag_invalid":
        tag = _tag(item)
        return f"{key}.{tag}: expected {item['ctx']['expected_tags']}, found {place.get(tag)!r}"
    if kind == "value_error":
        text = text.removeprefix("Value error, ")
        return f"{key}: {text}" if key else text
    found = "a table" if isinstance(place, Mapping) else repr(place)
    return f"{key}: {text.replace('Input should be', 'expected')}, found {found}"


def _tag(item: Any) -> str:
    return str(item["ctx"]["discriminator"]).strip("'")
