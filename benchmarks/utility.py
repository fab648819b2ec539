"""What privacy costs in accuracy: AUC lost against pooled training without privacy, paired by seed.

Every figure goes through the real path: sampling, clipping, noise in the ring, masks, ledger and
accountant. Networks are logistic regressions. It reads public data sets that are not part of the
project and writes two of them as tables into a temporary folder.
"""

import argparse
import csv
import statistics
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import Row, machine, options, show

from shared_models.study import Study, parse_study
from simulations.run import simulate

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 10
Document = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One data set at one epsilon.

    Attributes:
        data: name in DATA.
        epsilon: of the study.
        delta: of the study.
        targets: largest drops allowed: distributed, with shares; None has no target.
        pooled: keys of the study without privacy: those that are best for it.
        distributed: keys of the study in mode distributed.
        local: keys of the study in mode local.
    """

    data: str
    epsilon: float
    delta: float
    targets: tuple[float, float]
    pooled: Document
    distributed: Document
    local: Document

    @property
    def name(self) -> str:
        """As in the rows: heart_eps1."""
        return f"{self.data}_eps{str(self.epsilon).replace('.', '').removesuffix('0') or 0}"


def _pooled(rounds: int, rate: float) -> Document:
    """Full batches, Adam at the server, the mean of the last half of the models."""
    return {
        "rounds": rounds,
        "training.learning_rate": 1.0,
        "aggregation.strategy": "fedadam",
        "aggregation.server_learning_rate": rate,
        "aggregation.average_last": 0.5,
    }


def _distributed(rounds: int, rate: float, clip: float) -> Document:
    return {**_pooled(rounds, rate), "privacy.clipping_norm": clip}


def _local(rounds: int, rate: float, clip: float) -> Document:
    return {
        "rounds": rounds,
        "training.learning_rate": rate,
        "training.local_steps": 1,
        "privacy.clipping_norm": clip,
        "privacy.sampling_rate": 1.0,
        "aggregation.average_last": 0.5,
    }


SETTINGS = (
    Setting(
        *("heart", 1.0, 1e-5, (0.015, 0.020)),
        _pooled(30, 0.05), _distributed(60, 0.05, 0.5), _local(40, 2.0, 0.5),
    ),
    Setting(
        *("heart", 0.1, 1e-3, (0.040, 0.060)),
        _pooled(30, 0.05), _distributed(30, 0.05, 0.3), _local(20, 2.0, 0.5),
    ),
    Setting(
        *("icu40", 2.0, 1e-5, (0.015, 0.020)),
        _pooled(100, 0.1), _distributed(60, 0.05, 2.0), _local(40, 1.0, 1.0),
    ),
    Setting(
        *("splice", 1.0, 1e-5, (0.015, 0.030)),
        _pooled(60, 0.05), _distributed(60, 0.02, 0.5), _local(40, 2.0, 1.0),
    ),
)  # fmt: skip
# AUC of pooled training without privacy: below it the drops would be those of a poor model.
FLOORS = {"heart": 0.865, "icu40": 0.81, "splice": 0.990}


def heart(source: Path, folder: Path) -> tuple[Document, Path]:
    """Return the study of 920 patients in four hospitals, and its records."""
    del folder
    document = tomllib.loads((ROOT / "examples" / "heart" / "study.toml").read_text())
    return _study(document, sites=4, partition="files", train=184), source / "heart"


def icu40(source: Path, folder: Path) -> tuple[Document, Path]:
    """Return the study of 4,000 stays on 40 equal sites: the last value of eighteen quantities."""
    document = tomllib.loads((ROOT / "examples" / "icu" / "study.toml").read_text())
    series = document["data"]["columns"]["stay"]["variables"]
    names = list(series)
    with np.load(source / "physionet2012" / "p2012_hourly.npz", allow_pickle=False) as archive:
        stays, static, outcomes = archive["x"].astype(np.float64), archive["static"], archive["y"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a quantity that was never measured has no mean
        means = np.nanmean(stays, axis=1)
    columns: Document = {
        "death": {"kind": "category", "values": ["0", "1"]},
        "age": {"kind": "number", "low": 15, "high": 100},
        "unit": {"kind": "category", "values": ["1", "2", "3", "4"]},
    }
    values = [outcomes[:, 0].astype(int), static[:, 0], static[:, 3].astype(int)]
    for name in ICU_VARIABLES:
        place = names.index(name)
        for kind, numbers in (("mean", means[:, place]), ("last", _last(stays[:, :, place]))):
            columns[f"{name}_{kind}"] = {
                **{key: series[name][key] for key in ("low", "high")},
                "kind": "number",
                "scale": series[name].get("scale", "linear"),
                "outside": "clamp",
                "missing": "constant",
            }
            values.append(numbers)
    _write(folder / "icu40.csv", columns, zip(*values, strict=True))
    data = {"format": "csv", "target": "death", "positive": ["1"], "columns": columns}
    document = {"name": "icu40", "task": "tabular", "data": data}
    return _study(document, sites=40, partition="iid", train=80), folder / "icu40.csv"


ICU_VARIABLES = (
    *("GCS", "BUN", "HR", "Temp", "Urine", "Lactate", "HCO3", "SysABP", "RespRate"),
    *("Bilirubin", "MechVent", "PaO2"),
)


def splice(source: Path, folder: Path) -> tuple[Document, Path]:
    """Return the study of splice junctions on ten sites: one category a position."""
    columns: Document = {"label": {"kind": "category", "values": ["EI", "IE", "N"]}}
    # Hold-outs are drawn by the record, so equal sequences fall on one side.
    letters = {"kind": "category", "values": ["A", "C", "G", "T"], "missing": "constant"}
    columns |= {f"b{place}": letters for place in range(60)}
    rows = []
    with (source / "splice" / "splice_pauldhein.csv").open(newline="") as file:
        for label, _, sequence in list(csv.reader(file))[1:]:
            bases = [base if base in "ACGT" else "" for base in sequence.strip()]
            rows.append([label.strip(), *bases])
    _write(folder / "splice.csv", columns, rows)
    data = {"format": "csv", "target": "label", "columns": columns}
    document = {"name": "splice", "task": "tabular", "data": data}
    return _study(document, sites=10, partition="iid", train=255), folder / "splice.csv"


DATA: dict[str, Callable[[Path, Path], tuple[Document, Path]]] = {
    "heart": heart,
    "icu40": icu40,
    "splice": splice,
}


def _study(document: Document, sites: int, partition: str, train: int) -> Document:
    """Return a study of logistic regression; ``train`` is about a site's training records."""
    return {
        **{key: document[key] for key in ("name", "task", "data")},
        "rounds": 1,
        "model": {"name": "mlp", "hidden": []},
        "training": {"learning_rate": 0.1},
        "privacy": {"mode": "none", "expected_batch": train},
        "aggregation": {},
        "evaluation": {"every": 1_000_000, "holdout": 0.2},
        "simulation": {"sites": sites, "partition": partition},
    }


def _last(numbers: Any) -> Any:
    found = np.full(len(numbers), np.nan)
    for hour in numbers.T:
        found = np.where(np.isnan(hour), found, hour)
    return found


def _write(path: Path, columns: Document, rows: Any) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["" if value != value else value for value in row])  # NaN is missing


def with_keys(document: Document, keys: Document) -> Study:
    """Return the study with dotted keys set."""
    changed = {
        name: dict(part) if isinstance(part, dict) else part for name, part in document.items()
    }
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        (changed[section] if section else changed)[name] = value
    return parse_study(changed)


class Measured:
    """AUCs of one data set, each configuration run once a seed."""

    def __init__(self, document: Document, records: Path, seeds: range) -> None:
        self.document, self.records, self.seeds = document, records, seeds

    def aucs(self, keys: Document) -> list[float]:
        """Return the AUC of the released model on the pooled hold-out, one a seed."""
        found = []
        for seed in self.seeds:
            study = with_keys(self.document, {**keys, "simulation.seed": seed})
            with tempfile.TemporaryDirectory() as out:
                outcome = simulate(study, self.records, Path(out))
            auc, epsilon = outcome.figures()["auc"].value, keys.get("privacy.epsilon")
            if auc is None or (outcome.spent and outcome.spent.epsilon > (epsilon or 0) * 1.0001):
                raise RuntimeError(f"expected an AUC within epsilon, got {auc}, {outcome.spent}")
            found.append(auc)
        return found


def rows_of(setting: Setting, measured: Measured) -> list[Row]:
    """Measure pooled training and the three ways to be private of one setting."""
    base = {
        "privacy.epsilon": setting.epsilon,
        "privacy.delta": setting.delta,
        "evaluation.epsilon": setting.epsilon,  # of held-out records: as much as of the others
    }
    sites = measured.document["simulation"]["sites"]
    expected = measured.document["privacy"]["expected_batch"]
    distributed = {
        **base,
        **setting.distributed,
        "privacy.mode": "distributed",
        "privacy.records_max": int(4 * expected),
        "aggregation.spare_attempts": 0,
    }
    full = {**distributed, "privacy.noise_answers": sites, "privacy.colluders": 0}
    local = {**base, **setting.local, "privacy.mode": "local", "aggregation.spare_attempts": 0}
    # Steps on all records without clipping and noise: weighted by records, each is a full batch.
    plain = {
        **setting.pooled,
        "privacy.mode": "none",
        "aggregation.weighting": "records",
        "aggregation.masking": "none",
    }
    print(f"{setting.name}_pooled ...", file=sys.stderr, flush=True)
    pooled = measured.aucs(plain)
    made = [
        Row(
            f"{setting.name}_pooled_auc",
            statistics.mean(pooled),
            "AUC",
            "higher",
            FLOORS[setting.data],
            "steps on all records, without clipping and noise",
        )
    ]
    for kind, keys, target, note in (
        ("distributed", full, setting.targets[0], "all sites answer, none leaves its noise out"),
        ("shares", distributed, setting.targets[1], "shares for t answers, a third colluding"),
        ("local", local, None, "each site's update is private by itself"),
    ):
        print(f"{setting.name}_{kind} ...", file=sys.stderr, flush=True)
        pairs = zip(pooled, measured.aucs(keys), strict=True)
        lost = [best - auc for best, auc in pairs]
        spread = statistics.stdev(lost) if len(lost) > 1 else 0.0
        made.append(
            Row(
                f"{setting.name}_{kind}_drop",
                statistics.mean(lost),
                "AUC",
                "lower",
                target,
                f"{note}; epsilon {setting.epsilon:g} at delta {setting.delta:g}, "
                f"{len(lost)} seeds, sd {spread:.4f}",
            )
        )
    return made


def main() -> None:
    """Measure and print."""
    parser: argparse.ArgumentParser = options(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the public data sets")
    parser.add_argument("--only", help="one setting, such as heart_eps1")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    quick, rows = arguments.quick, []
    seeds = range(2 if quick else arguments.seeds)
    with tempfile.TemporaryDirectory() as folder:
        for name, prepare in DATA.items():
            wanted = [
                one for one in SETTINGS if one.data == name and arguments.only in {None, one.name}
            ]
            if not wanted:
                continue
            if quick and name != "heart":
                rows += [_skipped(f"{one.name}_{kind}") for one in wanted for kind in KINDS]
                continue
            document, records = prepare(arguments.data, Path(folder))
            measured = Measured(document, records, seeds)
            for setting in wanted:
                rows += rows_of(setting, measured)
    show("utility", rows, machine(), as_json=arguments.json)


KINDS = ("pooled_auc", "distributed_drop", "shares_drop", "local_drop")


def _skipped(name: str) -> Row:
    return Row(name, None, "AUC", "lower", None, "not measured with --quick")


if __name__ == "__main__":
    main()
