"""A site's own limits on what any study may ask of it; they can only tighten a study.

They stand in a TOML file that the data steward edits, and in the ledger, which has a row for each
policy that was ever in force. It adds nothing up: the ceilings are checked where debits are made.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from client.hours import DAYS, Window, is_open, opening, read_window
from privacy.accounting import Event
from privacy.budget import Ceiling, check_unit
from privacy.chain import Row
from privacy.errors import DataError, PrivacyError
from privacy.ledger import Ledger
from shared_models.contract import Section
from shared_models.sections import NoPrivacy
from shared_models.study import Study, is_exact, is_trusting
from shared_models.tasks import TaskName

POLICY_BYTES_MAX = 1 << 16
ALLOW = "change policy.toml if you want to allow it, or let the coordinator change the study"
Dataset = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Mode = Literal["local", "distributed"]


class Policy(Section):
    """What the data steward allows. Left out, a limit is the study's own matter.

    Attributes:
        dataset: the steward's name of the patient population that the records are of; ledger
            entries carry it. Changed or newer files of the same patients keep the name.
        ceilings: what each population may spend, over all studies and years; a policy without any
            is for simulations.
        min_sites: fewest hospitals in a sum that this site takes part in.
        epsilon_per_study: largest epsilon of one study, of training and of evaluation each.
        tasks: what may be learnt.
        modes: how training may be private.
        unconfirmed_max: most hospitals of a study whose fingerprint was not compared by another
            channel; the rule of `client.approval` stands beside it.
        hours: windows of the week, by this machine's clock, in which records may be read, as
            "mon-fri 20:00-06:00"; none are all. What was begun in one is finished.
        cpu_threads: threads that train, as far as the machine has them; left out, one.
        allow_exact_release: whether evaluations may be released without noise: held-out patients
            are then protected by summing alone.
        allow_no_privacy: whether a study without differential privacy may run: simulation only.
    """

    dataset: Dataset = "records"
    ceilings: dict[Dataset, Ceiling] = Field(default_factory=dict)
    min_sites: int = 3
    epsilon_per_study: float | None = None
    tasks: tuple[TaskName, ...] | None = Field(None, min_length=1)
    modes: tuple[Mode, ...] | None = Field(None, min_length=1)
    unconfirmed_max: int | None = Field(None, ge=0)
    hours: tuple[str, ...] = ()
    cpu_threads: int | None = Field(None, ge=1)
    allow_exact_release: bool = False
    allow_no_privacy: bool = False

    @field_validator("hours")
    @classmethod
    def _windows(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for text in hours:
            read_window(text)
        return hours

    @model_validator(mode="after")
    def _own_ceiling(self) -> Self:
        if self.ceilings and self.dataset not in self.ceilings:
            raise ValueError(f"ceilings.{self.dataset}: missing, dataset expects a ceiling")
        return self

    @property
    def ceiling(self) -> Ceiling | None:
        """The ceiling of the dataset in use; None in a simulation."""
        return self.ceilings.get(self.dataset)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The hours of work; none stand for all."""
        return tuple(read_window(text) for text in self.hours)

    def canonical(self) -> str:
        """Return the canonical JSON: defaults filled in, keys sorted."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hexadecimal, as the ledger has it."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def load_policy(path: Path) -> Policy:
    """Read a site's policy file.

    Raises:
        DataError: it cannot be read, is not TOML, or is no policy that a hospital may run under.
    """
    hint = "the data steward edits this file; docs/policy.md shows one in full"
    try:
        with path.open("rb") as file:
            text = file.read(POLICY_BYTES_MAX + 1)
        if len(text) > POLICY_BYTES_MAX:
            raise DataError(f"{path}: expected a policy of at most 64 KiB, found more", hint)
        document = tomllib.loads(text.decode())
        policy = Policy.model_validate_json(json.dumps(document, default=str))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", hint) from error
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        words = str(found["msg"]).removeprefix("Value error, ").replace("Input should", "should")
        raise DataError(f"{path}: {f'{place}: ' if place else ''}{words}", hint) from error
    except (ValueError, RecursionError) as error:  # no text, no TOML, absurd numbers or depth
        raise DataError(f"{path}: expected TOML, found {error}", hint) from error
    if not policy.ceilings:
        raise DataError(f"{path}: ceilings: expected one for each dataset, found none", hint)
    if policy.allow_no_privacy:
        raise DataError(f"{path}: allow_no_privacy: expected false outside a simulation", hint)
    return policy


def adopt(policy: Policy, ledger: Ledger) -> Row | None:
    """Write the policy into the ledger, when it is not the one in force; debits then count on it.

    A new dataset id, a raised ceiling or another unit is so in the chain that peers and server
    countersign, before anything is debited under it.

    Returns:
        the new row, or None when nothing changed.

    Raises:
        PrivacyError: a dataset that was debited has no ceiling any more, or one that counts units
            which its debits cannot be charged to. The policy before stays in force.
    """

    def allow(history: Sequence[Event]) -> None:
        for name in sorted({event.dataset for event in history}):
            if name not in policy.ceilings:
                raise PrivacyError(
                    f"ceilings.{name}: expected a ceiling, since the ledger has debits of it, got "
                    "none; the policy before stays in force"
                )
            for event in history:
                if event.dataset == name:
                    check_unit(event.unit, policy.ceilings[name])

    return ledger.adopt(policy.canonical(), allow=allow)


def check(policy: Policy, study: Study) -> None:
    """Refuse a study that the policy does not allow, whatever was spent before.

    Raises:
        PrivacyError: says which limit, what the study asks and what is allowed.
    """
    privacy = study.privacy
    if policy.tasks is not None and study.task not in policy.tasks:
        raise _refusal("task", " or ".join(policy.tasks), study.task)
    if study.aggregation.min_sites < policy.min_sites:
        asked_sites = str(study.aggregation.min_sites)
        raise _refusal("aggregation.min_sites", f">= {policy.min_sites}", asked_sites)
    if policy.ceilings and study.aggregation.masking == "none":
        raise PrivacyError("aggregation.masking: expected fsa1, got none; no record was read")
    if isinstance(privacy, NoPrivacy):
        if not policy.allow_no_privacy:
            raise PrivacyError(
                "privacy.mode: expected local or distributed, got none; no record was read"
            )
        return
    if policy.modes is not None and privacy.mode not in policy.modes:
        raise _refusal("privacy.mode", " or ".join(policy.modes), privacy.mode)
    if is_trusting(study) and not policy.allow_exact_release:
        raise _refusal("evaluation.release", "noised", "exact")
    asked = [("privacy.epsilon", privacy.epsilon)]
    if not is_exact(study):
        asked.append(("evaluation.epsilon", study.evaluation.epsilon))
    limit = policy.epsilon_per_study
    for name, epsilon in asked:
        if limit is not None and not (epsilon is not None and epsilon <= limit):
            raise _refusal(name, f"<= {limit}", str(epsilon))
    if policy.ceiling is not None:
        check_unit(privacy.unit, policy.ceiling)


def check_hours(policy: Policy, now: datetime) -> None:
    """Refuse to begin work outside of the policy's hours.

    Args:
        policy: with its windows.
        now: by the wall clock of the site's machine.

    Raises:
        PrivacyError: it is outside, whatever the work is.
    """
    windows = policy.windows
    if not is_open(windows, now):
        again = opening(windows, now)
        raise _refusal(
            "hours",
            " or ".join(policy.hours),
            f"{DAYS[now.weekday()]} {now:%H:%M}",
            f"the site works again from {DAYS[again.weekday()]} {again:%H:%M}",
        )


def limit_threads(policy: Policy) -> None:
    """Let torch use as many threads as the policy says, but never more than it used before.

    One is the default: other programs' load then changes no byte of what is trained.
    """
    import torch  # only now: commands that print a policy do not need it

    torch.set_num_threads(min(policy.cpu_threads or 1, torch.get_num_threads()))


def check_delta(policy: Policy, study: Study, units: int) -> None:
    """Refuse a delta that is no promise for as many records or patients as this site has.

    Whoever publishes one of n records at random keeps delta = 1/n. It is asked once, at enrolment,
    on the site's own screen, before anything is sent: ``units`` is a fact about the records, and
    what the site sends or refuses later must not depend on it.

    Args:
        policy: with the delta of its ceiling.
        study: with the delta of its guarantee.
        units: records, or patients where they are the unit, that the site would take part with.

    Raises:
        PrivacyError: a delta is 1/units or more. The text is for the site alone.
    """
    if isinstance(study.privacy, NoPrivacy):
        return
    asked = [("privacy.delta", study.privacy.delta)]
    if policy.ceiling is not None:
        asked.append((f"ceilings.{policy.dataset}.delta", policy.ceiling.delta))
    for name, delta in asked:
        if not delta * units < 1:
            raise PrivacyError(
                f"{name}: expected below one in the {units} {study.privacy.unit}s of this site, "
                f"got {delta:g}; the site is not enrolled, and nothing was sent",
                "a delta far below one in the number of patients is usual",
            )


def _refusal(key: str, expected: str, got: str, hint: str = ALLOW) -> PrivacyError:
    return PrivacyError(
        f"{key}: expected {expected} by this site's policy, got {got}; no record was read", hint
    )
