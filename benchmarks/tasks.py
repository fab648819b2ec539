"""Every example study again: federated, private, pooled, and a linear model beside them.

Each run is a process of its own. It wants `--data`, a folder with the public data sets that the
examples name, and writes the README's table with `--readme`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rows import Row, machine, options, show

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES, README = ROOT / "examples", ROOT / "README.md"
BEGIN, END = "<!-- tasks -->\n", "<!-- /tasks -->\n"
HEAD = (
    "| example | task | records | sites | figure "
    "| pooled | federated | private, epsilon 4 | linear |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)
# The study's own and those after it; five where what an example claims is the mean of five.
SEEDS = 3
SEEDS_OF = {"brca": 5, "fusion": 5}
QUICK_S = 115.0  # for one example, starts of processes included
EPSILON = 4.0
Kind = Literal["federated", "private", "pooled", "linear"]
# In this order: what is left of two minutes goes to the last.
KINDS: tuple[Kind, ...] = ("linear", "federated", "private", "pooled")
# Folder or file of an example's records under --data; {} of records inside a dependency.
RECORDS = {
    **dict.fromkeys(("pneumonia", "lung", "anomalies"), "pneumoniamnist"),
    **dict.fromkeys(("icu", "vitals", "fusion"), "physionet2012"),
    **dict.fromkeys(("nuclei", "tissue"), "nuclei"),
    "brca": "tcga_brca",
    "glucose": "uci_diabetes",
    "heart": "heart",
    "questions": "medquad",
    "splice": "splice",
    "tox21": "tox21/tox21.csv.gz",
}
# What each must reach, federated, without privacy: a figure, or the linear model's less .02.
TARGETS = {
    **dict.fromkeys(("pneumonia", "lung"), 0.95),
    "icu": 0.82,
    "splice": 0.955,
    "tox21": 0.80,
    "brca": 0.74,
    "nuclei": 0.83,
}
# What an example is about, where it is not what its task puts first.
FIGURES = {"tissue": "auc"}  # three classes, one of them rare: accuracy is that of the common ones
NOTES: dict[Kind, str] = {
    "federated": "the study, masked, without privacy",
    "private": f"epsilon {EPSILON:g} by the study's own private settings",
    "pooled": "the study with one site that has all records",
    "linear": "a linear model of its kind, by scikit-learn, on all records in one place",
}


@dataclass(frozen=True)
class Found:
    """What one run gave.

    Attributes:
        value: the study's main figure on the pooled hold-out; None where it is undefined.
        metric: its name.
        lower: whether less of it is better.
        task: of the study.
        records: of all sites.
        sites: how many.
        epsilon: that was spent; None without privacy.
    """

    value: float | None
    metric: str
    lower: bool
    task: str
    records: int
    sites: int
    epsilon: float | None


def measure(name: str, kind: Kind, seed: int, records: Path | None) -> Found:
    """Run one example once, in this process."""
    from shared_models.metrics import LOWER_IS_BETTER
    from shared_models.registry import build_network
    from shared_models.study import load_study
    from shared_models.tasks import target_of
    from shared_models.weights import vector_of
    from simulations.baselines import linear, pooled
    from simulations.pool import gather, pool
    from simulations.run import simulate
    from simulations.seeds import seeded_integer

    path, changes = EXAMPLES / name / "study.toml", [f"simulation.seed={seed}"]
    if kind == "private":
        own = path.with_name("private.toml")
        changes += [] if own.exists() else ["privacy.mode=distributed"]
        path = own if own.exists() else path
        changes += [f"privacy.epsilon={EPSILON}"]
    else:
        changes += ["privacy.mode=none"]
    study = load_study(path, changes)
    if study.evaluation.patience is None:
        study = load_study(path, [*changes, f"evaluation.every={study.rounds}"])
    with tempfile.TemporaryDirectory() as folder:
        records = _prepared(name, records, Path(folder), study.data.format or "csv")
        gathered = gather(study, records)
        epsilon = None
        if kind in {"federated", "private"}:
            outcome = simulate(study, records, Path(folder) / "run")
            figures = outcome.figures()
            epsilon = outcome.spent and outcome.spent.epsilon
        else:
            study = study.with_sites(len(gathered.sites))
            everyone = pool(study, gathered)
            if kind == "linear":
                figures = linear(study, everyone.train(), everyone.held())
            else:
                network = build_network(study, seeded_integer(seed, "model"))
                figures = pooled(study, everyone, vector_of(network))
    metric = FIGURES.get(name, target_of(study).headline)
    count, sites = len(gathered.records), len(gathered.sites)
    value, lower = figures[metric].value, metric in LOWER_IS_BETTER
    return Found(value, metric, lower, study.task, count, sites, epsilon)


def _prepared(name: str, records: Path | None, folder: Path, ending: str) -> Path | None:
    """Return the records as the study reads them; some examples write them first."""
    script = EXAMPLES / name / "prepare.py"
    if records is None or not script.exists():
        return records
    out = folder / f"{name}.{ending}"
    subprocess.run([sys.executable, script, records, out], check=True)
    return out


def ask(name: str, kind: Kind, seed: int, records: Path | None, left_s: float) -> Found | str:
    """Run one example in a process of its own; return why there is no figure, if so."""
    if not left_s > 0:
        return "not done within two minutes"
    words = [sys.executable, str(Path(__file__)), "--run", name, kind, str(seed)]
    words += [] if records is None else ["--data", str(records)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=left_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return "not done within two minutes"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it failed"])[-1]
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def rows_of(name: str, data: Path | None, seeds: range, *, quick: bool) -> tuple[list[Row], str]:
    """Measure one example; return its rows, and its line of the README's table."""
    end = time.monotonic() + QUICK_S
    records = None if name not in RECORDS or data is None else data / RECORDS[name]
    found: dict[Kind, list[Found]] = {}
    rows: dict[Kind, Row] = {}
    for kind in KINDS:
        told: list[Found | str] = []
        for seed in seeds:
            print(f"{name}_{kind}, seed {seed} ...", file=sys.stderr, flush=True)
            left_s = end - time.monotonic() if quick else 24 * 3600.0
            told.append(ask(name, kind, seed, records, left_s))
        found[kind] = [one for one in told if isinstance(one, Found)]
        why = [one for one in told if isinstance(one, str)]
        rows[kind] = _row(name, kind, found[kind], why, _target(name, kind, found["linear"]))
    order: tuple[Kind, ...] = ("federated", "private", "pooled", "linear")
    return [rows[kind] for kind in order], _line(name, found, rows)


def _target(name: str, kind: Kind, linear: list[Found]) -> float | None:
    if kind != "federated":
        return None
    if name == "questions" and linear:
        return statistics.mean(one.value or 0.0 for one in linear) - 0.02
    return TARGETS.get(name)


def _row(name: str, kind: Kind, found: list[Found], why: list[str], target: float | None) -> Row:
    values = [one.value for one in found if one.value is not None]
    if why or not values:
        return Row(f"{name}_{kind}", None, "", "higher", None, why[0] if why else "undefined")
    one, note = found[0], NOTES[kind]
    if len(values) > 1:
        note += f"; {len(values)} seeds: {', '.join(f'{value:.4g}' for value in values)}"
    epsilons = [run.epsilon for run in found if run.epsilon is not None]
    if epsilons:
        note += f"; spent {max(epsilons):.2f}"
    better: Literal["higher", "lower"] = "lower" if one.lower else "higher"
    return Row(f"{name}_{kind}", statistics.mean(values), one.metric, better, target, note)


def _line(name: str, found: dict[Kind, list[Found]], rows: dict[Kind, Row]) -> str:
    one = next((runs[0] for runs in found.values() if runs), None)
    if one is None:
        return ""
    figures = " | ".join(
        _figure(rows[kind].value) for kind in ("pooled", "federated", "private", "linear")
    )
    what = f"{one.task} | {one.records:,} | {one.sites} | {one.metric}"
    return f"| {name} | {what} | {figures} |\n"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}".removeprefix("0") if abs(value) <= 1 else f"{value:.1f}"


def write_table(lines: dict[str, str]) -> None:
    """Put lines into the README's table, in the place of the same examples' older ones."""
    text = README.read_text()
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    kept = {line.split("|")[1].strip(): f"{line}\n" for line in table.splitlines()[2:]}
    kept |= {name: line for name, line in lines.items() if line}
    whole = "".join(kept[name] for name in sorted(kept))
    README.write_text(f"{before}{BEGIN}{HEAD}{whole}{END}{after}")


def main() -> None:
    """Measure and print."""
    parser: argparse.ArgumentParser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the public data sets")
    parser.add_argument("--only", action="append", help="one example, or several")
    parser.add_argument("--seeds", type=int, help="of each example: 3, of brca and fusion 5")
    parser.add_argument(
        "--readme",
        action="store_true",
        help="also write the lines of the examples that ran into the table of README.md; "
        "without it nothing is written",
    )
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # example, kind, seed
    given = parser.parse_args()
    if given.run is not None:
        name, kind, seed = given.run
        print(json.dumps(asdict(measure(name, kind, int(seed), given.data))))
        return
    names = sorted(path.parent.name for path in EXAMPLES.glob("*/study.toml"))
    for name in given.only or ():
        if name not in names:
            parser.error(f"--only: expected {', '.join(names)}, found {name!r}")
    rows, lines = [], {}
    for name in given.only or names:
        count = given.seeds or SEEDS_OF.get(name, SEEDS)
        seeds = _seeds(name, 1 if given.quick else count)
        made, lines[name] = rows_of(name, given.data, seeds, quick=given.quick)
        rows += made
    if given.readme:
        write_table(lines)
    show("tasks", rows, machine(), as_json=given.json)


def _seeds(name: str, count: int) -> range:
    from shared_models.study import load_study

    own = load_study(EXAMPLES / name / "study.toml").simulation.seed
    return range(own, own + count)


if __name__ == "__main__":
    main()
