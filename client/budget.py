"""What a site's ledger says was spent of each dataset, by which study, and what is left.

It changes nothing: no policy is adopted, no debit made. What a study may still cost is decided by
the ledger's own check, which composes; the difference shown here is for people.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.folder import JOURNAL, LEDGER, POLICY
from client.journal import Journal, ledger_ends
from client.policy import Policy, load_policy
from privacy.accounting import Event, Spent
from privacy.budget import Ceiling, spent
from privacy.chain import Adopted, Row
from privacy.errors import PrivacyError
from privacy.heads import EMPTY, Head
from privacy.ledger import Ledger

_DIGEST = 12  # characters of a study's digest that tell it from others on a screen
_BAR = 40


@dataclass(frozen=True)
class StudySpent:
    """What one study has cost by itself; such figures do not add up, they compose."""

    digest: str
    debits: int
    steps: int
    spent: Spent


@dataclass(frozen=True)
class Account:
    """One dataset: its ceiling, what all studies together have spent, and each by itself."""

    dataset: str
    ceiling: Ceiling
    spent: Spent
    studies: tuple[StudySpent, ...]

    @property
    def left(self) -> float:
        """Epsilon below the ceiling; 0 where a ceiling was lowered below what was spent."""
        return max(0.0, self.ceiling.epsilon - self.spent.epsilon)


@dataclass(frozen=True)
class Budget:
    """A site's whole ledger, verified.

    Attributes:
        head: the end of the chain.
        adopted: whether the policy in the file is the one that debits are made under.
        accounts: one a dataset of the policy, in its order.
    """

    head: Head
    adopted: bool
    accounts: tuple[Account, ...]


def read_budget(folder: Path) -> Budget:
    """Verify a site's ledger against the heads that others signed, and add up what was spent.

    Raises:
        DataError: there is no policy, or it cannot be used.
        PrivacyError: the ledger was changed or cut, or a dataset of it has no ceiling.
    """
    policy = load_policy(folder / POLICY)
    rows = verified_rows(folder)
    events = [row.entry for row in rows if isinstance(row.entry, Event)]
    for name in dict.fromkeys(event.dataset for event in events):
        if name not in policy.ceilings:
            raise PrivacyError(
                f"{folder / POLICY}: ceilings.{name}: expected a ceiling, since the ledger has "
                "debits of it, got none",
                "give it back the ceiling that it had: the ledger has every policy",
            )
    accounts = [
        _account(name, ceiling, [event for event in events if event.dataset == name])
        for name, ceiling in policy.ceilings.items()
    ]
    return Budget(rows[-1].head if rows else EMPTY, _adopted(policy, rows), tuple(accounts))


def document(budget: Budget) -> dict[str, object]:
    """Return the budget for machines: epsilons as they are, not rounded."""
    return {
        "ledger": {"rows": budget.head.rows, "head": budget.head.digest},
        "policy_adopted": budget.adopted,
        "datasets": [
            {
                "dataset": account.dataset,
                "unit": account.ceiling.unit,
                "rows_per_patient": account.ceiling.rows_per_patient,
                "adjacency": account.spent.adjacency,
                "accountant": account.spent.accountant,
                "delta": account.ceiling.delta,
                "ceiling": account.ceiling.epsilon,
                "spent": account.spent.epsilon,
                "rdp_epsilon": account.spent.rdp_epsilon,
                "left": account.left,
                "studies": [
                    {
                        "study": one.digest,
                        "debits": one.debits,
                        "steps": one.steps,
                        "epsilon": one.spent.epsilon,
                    }
                    for one in account.studies
                ],
            }
            for account in budget.accounts
        ],
    }


def show_budget(budget: Budget, console: Console, words: Console) -> None:
    """Print one table and one bar a dataset to ``console``, and remarks to ``words``."""
    for account in budget.accounts:
        _show_account(account, console)
    if not budget.adopted:
        words.print(
            f"{POLICY} is not the policy that the ledger has last: no debit is made under it "
            "until `fedward-site start` has written it down.",
            soft_wrap=True,
        )


def verified_rows(folder: Path) -> list[Row]:
    """Return the ledger's rows, once they go through every end that the site's log names.

    The log's own end is signed by the coordinator and seen by the peers. No file is made where
    there is none.
    """
    named: list[Head] = []
    if (folder / JOURNAL).exists():
        with Journal(folder / JOURNAL) as journal:
            journal.verify()
            named = ledger_ends(journal.rows())
    if not (folder / LEDGER).exists():
        if named:
            raise PrivacyError(
                f"{folder / LEDGER}: expected the ledger that the site's log names, found none"
            )
        return []
    with Ledger(folder / LEDGER) as ledger:
        ledger.verify(*named)
        return ledger.rows()


def _adopted(policy: Policy, rows: Sequence[Row]) -> bool:
    last = next((row.entry for row in reversed(rows) if isinstance(row.entry, Adopted)), None)
    return last is not None and last.digest == policy.digest()


def _account(name: str, ceiling: Ceiling, events: Sequence[Event]) -> Account:
    studies: dict[str, list[Event]] = {}
    for event in events:
        studies.setdefault(event.study, []).append(event)
    return Account(
        name,
        ceiling,
        spent(events, ceiling),
        tuple(
            StudySpent(digest, len(own), sum(e.steps for e in own), spent(own, ceiling))
            for digest, own in studies.items()
        ),
    )


def _show_account(account: Account, console: Console) -> None:
    ceiling = account.ceiling
    rows = ceiling.rows_per_patient
    charged = f", records charged as {rows} a patient" if rows is not None else ""
    console.print(
        f"[bold]{escape(account.dataset)}[/]: epsilon for each {ceiling.unit} at delta "
        f"{ceiling.delta:g}{charged}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_footer=True,
    )
    table.add_column("study", footer="all together")
    for title, footer in (
        ("debits", sum(one.debits for one in account.studies)),
        ("steps", sum(one.steps for one in account.studies)),
    ):
        table.add_column(title, footer=f"{footer:,}", justify="right")
    table.add_column("epsilon", footer=_up(account.spent.epsilon), justify="right")
    for one in account.studies:
        table.add_row(
            escape(one.digest[:_DIGEST]),
            f"{one.debits:,}",
            f"{one.steps:,}",
            _up(one.spent.epsilon),
        )
    console.print(table)
    filled = min(_BAR, math.ceil(_BAR * account.spent.epsilon / ceiling.epsilon))
    console.print(
        f"{'█' * filled}{'░' * (_BAR - filled)} {_up(account.spent.epsilon)} of "
        f"{ceiling.epsilon:g} spent, {_down(account.left)} left\n"
        f"({account.spent.adjacency}; {account.spent.accountant})\n",
        highlight=False,
        soft_wrap=True,
    )


def _up(epsilon: float) -> str:
    """Write an epsilon with two decimals, never less than it is."""
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}" if math.isfinite(epsilon) else "infinite"


def _down(epsilon: float) -> str:
    """Write an epsilon with two decimals, never more than it is."""
    return f"{math.floor(epsilon * 100 + 1e-9) / 100:.2f}"
