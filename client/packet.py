"""The approval packet: every fact that a data steward decides on, from the site's own files.

Nothing in it is the server's word but the study and the roster, whose digests are in the plan. It
asks for nothing; `client.approval` keeps the answer, and the sentences are `client.packet_words`'s.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from client.approval import peers_of, unconfirmed_most
from client.charge import Balance, Charge, balance, study_charge
from client.columns import Column, columns_of
from client.packet_words import Rows, parts
from client.policy import Policy, check
from client.screen import plain
from privacy.errors import PrivacyError
from privacy.ledger import Ledger
from privacy.roster import Kind, Plan, colluders_max
from privacy.secagg_messages import HELLO_BYTES
from shared_models.fingerprint import fingerprint
from shared_models.release import cell_noise, planned_evaluations
from shared_models.roster_file import RosterFile
from shared_models.study import Study, is_exact

_WIDTH = 80


@dataclass(frozen=True)
class Hospital:
    """One line of the roster: its key in six words."""

    index: int
    name: str
    words: str
    own: bool
    revoked: bool


@dataclass(frozen=True)
class Answers:
    """How many hospitals a sum needs, and how many may work for the server.

    Attributes:
        sites: n, revoked ones included.
        threshold: t = floor(2n/3) + 1.
        min_sites: of the study.
        noise_answers: t_n.
        quorum: the largest of the three: fewest hospitals in a sum that is opened.
        colluders: floor((n-1)/3), that the masks allow for.
        noise_colluders: n_c, that may leave their share of the noise out; None in mode local.
        unconfirmed: most hospitals whose fingerprint need not be compared, policy included.
    """

    sites: int
    threshold: int
    min_sites: int
    noise_answers: int
    quorum: int
    colluders: int
    noise_colluders: int | None
    unconfirmed: int


@dataclass(frozen=True)
class Traffic:
    """What leaves the building, in bytes of messages, when all hospitals are there.

    Attributes:
        values: numbers of a training vector.
        bits: of each, masked.
        training: bytes of one attempt to train.
        evaluation: bytes of one evaluation.
        setup: bytes, at most, whenever a run is set up: at the start, and when a hospital comes
            or goes.
        cells: numbers of an evaluation.
    """

    values: int
    bits: int
    training: int
    evaluation: int
    setup: int
    cells: int


@dataclass(frozen=True)
class Evaluation:
    """How held-out records are looked at and what is released.

    Attributes:
        holdout: share of the records, or None where a public column decides.
        column: that column.
        every: rounds between two evaluations.
        times: evaluations that may be debited, spare attempts included.
        release: noised, or exact: summing alone then protects the held-out records.
        deviation: of the noise on one sum of all hospitals, in counts; None when exact.
        subgroups: the column whose groups have figures of their own, or None.
        smallest: records of the smallest group that has; None without groups.
    """

    holdout: float | None
    column: str | None
    every: int
    times: int
    release: Literal["noised", "exact"]
    deviation: float | None
    subgroups: str | None
    smallest: int | None


@dataclass(frozen=True)
class Packet:
    """The facts. ``study`` is kept whole, for what follows from it; ``plan`` is its JSON text."""

    site: str
    address: str
    server: str  # six words
    study: Study
    mode: Literal["local", "distributed"]
    columns: tuple[Column, ...]
    hospitals: tuple[Hospital, ...]
    roster_version: int
    parameters: int
    charge: Charge
    balance: Balance | None
    traffic: Traffic
    answers: Answers
    evaluation: Evaluation
    plan: str
    digest: str

    def document(self) -> dict[str, object]:
        """Return the facts for machines."""
        charge = {k: v for k, v in asdict(self.charge).items() if k != "events"}
        left = self.balance
        return {
            "site": self.site,
            "coordinator": {"address": self.address, "fingerprint": self.server},
            "study": self.study.model_dump(mode="json", exclude_none=True),
            "study_digest": self.study.digest(),
            "columns": [asdict(column) for column in self.columns],
            "roster_version": self.roster_version,
            "hospitals": [asdict(hospital) for hospital in self.hospitals],
            "parameters": self.parameters,
            "rounds": self.study.rounds,
            "spare_attempts": self.study.spare_attempts,
            "privacy": {"mode": self.mode, **charge},
            "ceiling": left
            and {**asdict(left), "left_before": left.left_before, "left_after": left.left_after},
            "traffic": asdict(self.traffic),
            "answers": asdict(self.answers),
            "evaluation": asdict(self.evaluation),
            "plan": json.loads(self.plan),
            "digest": self.digest,
        }


def make_packet(
    study: Study,
    roster: RosterFile,
    plan: Plan,
    plan_text: str,
    policy: Policy,
    ledger: Ledger,
    site: str,
    address: str = "",
) -> Packet:
    """Put the packet together; it takes seconds, since epsilon is computed.

    Args:
        study: as the invitation names it.
        roster: the latest one that this site accepted.
        plan: as this site computes it.
        plan_text: its canonical JSON.
        policy: of this site.
        ledger: of this site; it is only read.
        site: the own name in the roster.
        address: of the coordinator, host and port.

    Raises:
        PrivacyError: the policy or its ceiling refuses the study, or the ledger was changed: then
            there is nothing to approve.
        ValueError: the site is not in the roster, or the study has no privacy.
    """
    check(policy, study)
    mode = study.privacy.mode
    if mode == "none" or all(one.name != site for one in roster.sites):
        raise ValueError("expected a private study, and a site of its roster")
    charge = study_charge(study, plan.n, plan.values, policy.dataset)
    left = balance(policy, charge, ledger.events())
    if left is not None and not left.left_after >= 0:
        raise PrivacyError(
            f"expected at most epsilon {left.ceiling:g} for each {left.unit} of dataset "
            f"{left.dataset!r} over all studies, got {left.after:.4g} with the whole of this one "
            f"({left.before:.4g} without); there is nothing to approve",
            "`fedward-site budget` shows what was spent",
        )
    distributed = mode == "distributed"
    return Packet(
        site=site,
        address=address,
        server=fingerprint(bytes.fromhex(roster.server)),
        study=study,
        mode=mode,
        columns=columns_of(study.data),
        hospitals=_hospitals(roster, site),
        roster_version=roster.version,
        parameters=plan.values // (2 if study.aggregation.strategy == "scaffold" else 1),
        charge=charge,
        balance=left,
        traffic=_traffic(plan),
        answers=Answers(
            sites=plan.n,
            threshold=plan.t,
            min_sites=plan.min_sites,
            noise_answers=plan.t_n,
            quorum=plan.quorum,
            colluders=colluders_max(plan.n),
            noise_colluders=plan.n_c if distributed else None,
            unconfirmed=min(
                unconfirmed_most(plan, distributed, policy), len(peers_of(roster, site))
            ),
        ),
        evaluation=_evaluation(study, plan.n),
        plan=plan_text,
        digest=plan.digest.hex(),
    )


def show(packet: Packet, console: Console) -> None:
    """Print the packet in plain words, at most 80 columns wide."""
    width = min(console.width, _WIDTH)
    for part in parts(packet):
        console.print(Text(part.title.upper(), style="bold"), width=width)
        for block in part.blocks:
            shown = plain(block) if isinstance(block, str) else _table(block)
            console.print(Padding(shown, (0, 0, 1, 2)), width=width)


def _table(rows: Rows) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if rows.head else None,
        show_header=bool(rows.head),
        show_edge=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for place in range(len(rows.lines[0])):
        table.add_column(
            rows.head[place] if rows.head else "",
            overflow="fold",
            justify="right" if place in rows.right else "left",
            no_wrap=place in rows.whole,
        )
    for place, line in enumerate(rows.lines):
        table.add_row(*map(plain, line), style="bold" if place in rows.marked else None)
    return table


def _hospitals(roster: RosterFile, site: str) -> tuple[Hospital, ...]:
    return tuple(
        Hospital(
            one.index,
            one.name,
            fingerprint(bytes.fromhex(one.public)),
            one.name == site,
            one.revoked,
        )
        for one in roster.sites
    )


def _traffic(plan: Plan) -> Traffic:
    n = plan.n
    # Section 2 of the protocol: Ready, Masked without its payload, SurvivorAck and Unmask.
    around = (128 + 148 * n) + 168 + 160 + (98 + 34 * n)
    train, evaluate = plan.shape(Kind.TRAIN), plan.shape(Kind.EVALUATE)
    greeting = 2 + 3 * 32 + HELLO_BYTES
    return Traffic(
        values=plan.values,
        bits=plan.ring_bits,
        training=around + train.payload_bytes,
        evaluation=around + evaluate.payload_bytes,
        setup=greeting + 98 + 50 * (n - 1),
        cells=plan.evaluate_lanes,
    )


def _evaluation(study: Study, sites: int) -> Evaluation:
    asked, noise = study.evaluation, cell_noise(study, sites)
    column = asked.holdout_column
    return Evaluation(
        holdout=asked.holdout if column is None else None,
        column=column,
        every=asked.every,
        times=planned_evaluations(study),
        release="exact" if is_exact(study) else "noised",
        deviation=None if noise is None else noise.deviation(noise.sites),
        subgroups=None if asked.subgroups is None else asked.subgroups.column,
        smallest=None if asked.subgroups is None else asked.subgroups.smallest,
    )
