"""Show for each single check of the protocol's code the test that notices when it is removed.

    python tests/mutation/checks.py [--only TEXT] [--all] [--json]

It knows no check by name: mutants.py finds them, trial.py runs the tests without them. Exit 1: a
check can be removed and no test notices, and spared.toml does not say why that is right.
"""

import argparse
import json
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from mutants import Mutant, mutants  # noqa: E402
from trial import run  # noqa: E402

CHECKS = """
    privacy/wire privacy/roster privacy/keys privacy/heads
    privacy/secagg_messages privacy/secagg_setup privacy/secagg_site privacy/secagg_replay
    privacy/secagg_store privacy/secagg_server privacy/secagg_suspend
    client/masked client/lineage server/masked server/store
    shared_models/messages shared_models/plan shared_models/roster_file
""".split()  # noqa: SIM905
ARITHMETIC = ["privacy/sharing", "privacy/masking", "privacy/encoding", "privacy/mac"]
# Who may notice, in this order: of a part of the protocol its own tests and the attacks alone.
PARTS = """
    privacy/secagg_refusals privacy/secagg privacy/secagg_replay privacy/secagg_store
    privacy/secagg_suspend privacy/wire privacy/known_answers privacy/keys privacy/sharing
    privacy/masking privacy/mac privacy/encoding privacy/roster privacy/heads
    attacks/sums attacks/keys_and_rosters attacks/survivor_sets attacks/views_and_replays
    attacks/bytes_and_sizes attacks/secrets
""".split()  # noqa: SIM905
WHOLE = """
    client/lineage client/masked attacks/sites_with_a_memory attacks/opened_twice
    attacks/views_and_replays server/masked server/store server/crashes
    shared_models/messages shared_models/plan shared_models/roster_file shared_models/steps
""".split()  # noqa: SIM905


def suite(file: str) -> list[str]:
    """Return the files of tests for one file of the code, the one of its name first."""
    tests = PARTS if file.startswith("privacy/") else WHOLE
    own = file.removesuffix(".py")
    first = sorted(tests, key=lambda one: one != own)
    return ["tests/" + "/test_".join(one.split("/")) + ".py" for one in first]


class Table:
    """The verdicts, and what is wrong with them."""

    def __init__(self, spared: dict[tuple[str, str], str], printed: bool) -> None:
        self._spared, self._printed = spared, printed
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []

    def add(self, one: Mutant, test: str, seconds: float) -> None:
        """Note which test noticed a mutant, "" for none."""
        reason = self._spared.get((one.file, one.name), "")
        if bool(test) == bool(reason):
            fault = f"spared, but noticed by {test}" if test else "NO TEST NOTICES"
            self.wrong.append(f"{one.file}:{one.line} {one.name}: {fault}")
        row = {"file": one.file, "line": one.line, "section": one.section, "check": one.name}
        self.rows.append({**row, "test": test, "spared": reason, "seconds": round(seconds, 2)})
        if self._printed:
            where = f"{one.file}:{one.line}"
            answer = test or (f"spared: {reason}" if reason else "NO TEST NOTICES")
            print(f"{where:32} {one.section:16} {one.name}\n    -> {answer}", flush=True)


def every_mutant() -> Iterator[Mutant]:
    """Yield the mutants of all files."""
    for name in (*CHECKS, *ARITHMETIC):
        file = f"{name}.py"
        yield from mutants(file, (ROOT / file).read_text(), name in ARITHMETIC)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="checks whose file, line or text holds this")
    parser.add_argument("--all", action="store_true", help="run the spared ones, too")
    parser.add_argument("--json", action="store_true", help="one JSON array instead of the table")
    options = parser.parse_args()
    lists = tomllib.loads((HERE / "spared.toml").read_text())
    spared = {(file, name): why for file, names in lists.items() for name, why in names.items()}
    found, begin = list(every_mutant()), time.monotonic()
    table = Table(spared, not options.json)
    gone = spared.keys() - {(one.file, one.name) for one in found}
    table.wrong += [f"spared.toml: {file}: no such check: {name}" for file, name in sorted(gone)]
    chosen = [one for one in found if options.only in f"{one.file}:{one.line} {one.name}"]
    for one in chosen:
        if not options.all and (one.file, one.name) in spared:
            table.add(one, "", 0.0)
    left = [one for one in chosen if options.all or (one.file, one.name) not in spared]

    if reason := run(ROOT, suite, left, table.add):
        table.wrong.append(reason)
    if options.json:
        print(json.dumps(table.rows, indent=1))
    for text in table.wrong:
        print(f"error: {text}", file=sys.stderr)
    noticed = sum(bool(row["test"]) for row in table.rows)
    print(
        f"{len(table.rows)} mutants, {noticed} noticed, {len(table.rows) - noticed} not, "
        f"{len(table.wrong)} errors; {time.monotonic() - begin:.0f} s, of the processor "
        f"{sum(row['seconds'] for row in table.rows):.0f} s",
        file=sys.stderr,
    )
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
