"""A site's own limits on what any study may ask of it; they can only tighten a study.

They stand in a TOML file that the data steward edits, and in the ledger, which has a row for each
policy that was ever in force. It adds nothing up: the ceilings are checked where debits are made.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from privacy.accounting import Event
from privacy.budget import Ceiling, check_unit
from privacy.chain import Row
from privacy.errors import DataError, PrivacyError
from privacy.ledger import Ledger
from shared_models.contract import Section
from shared_models.sections import NoPrivacy
from shared_models.study import Study, is_exact, is_trusting

POLICY_BYTES_MAX = 1 << 16
Dataset = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Policy(Section):
    """What the data steward allows.

    Attributes:
        dataset: the steward's name of the patient population that the records are of; ledger
            entries carry it. Changed or newer files of the same patients keep the name.
        ceilings: what each population may spend, over all studies and years; a policy without any
            is for simulations.
        min_sites: fewest hospitals in a sum that this site takes part in.
        epsilon_per_study: largest epsilon of one study, of training and of evaluation each; None
            leaves it to the study.
        allow_exact_release: whether evaluations may be released without noise: held-out patients
            are then protected by summing alone.
        allow_no_privacy: whether a study without differential privacy may run: simulation only.
    """

    dataset: Dataset = "records"
    ceilings: dict[Dataset, Ceiling] = Field(default_factory=dict)
    min_sites: int = 3
    epsilon_per_study: float | None = None
    allow_exact_release: bool = False
    allow_no_privacy: bool = False

    @model_validator(mode="after")
    def _own_ceiling(self) -> Self:
        if self.ceilings and self.dataset not in self.ceilings:
            raise ValueError(f"ceilings.{self.dataset}: missing, dataset expects a ceiling")
        return self

    @property
    def ceiling(self) -> Ceiling | None:
        """The ceiling of the dataset in use; None in a simulation."""
        return self.ceilings.get(self.dataset)

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
    if study.aggregation.min_sites < policy.min_sites:
        raise PrivacyError(
            f"aggregation.min_sites: expected >= {policy.min_sites} by this site's policy, "
            f"got {study.aggregation.min_sites}; no record was read"
        )
    if policy.ceilings and study.aggregation.masking == "none":
        raise PrivacyError("aggregation.masking: expected fsa1, got none; no record was read")
    if isinstance(privacy, NoPrivacy):
        if not policy.allow_no_privacy:
            raise PrivacyError(
                "privacy.mode: expected local or distributed, got none; no record was read"
            )
        return
    if is_trusting(study) and not policy.allow_exact_release:
        raise PrivacyError(
            "evaluation.release: expected noised by this site's policy, got exact; "
            "no record was read"
        )
    asked = [("privacy.epsilon", privacy.epsilon)]
    if not is_exact(study):
        asked.append(("evaluation.epsilon", study.evaluation.epsilon))
    limit = policy.epsilon_per_study
    for name, epsilon in asked:
        if limit is not None and not (epsilon is not None and epsilon <= limit):
            raise PrivacyError(
                f"{name}: expected <= {limit} by this site's policy, got {epsilon}; "
                "no record was read"
            )
    if policy.ceiling is not None:
        check_unit(privacy.unit, policy.ceiling)


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
