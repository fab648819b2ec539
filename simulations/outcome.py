"""What a run found, and the files that say so: results.json, metrics.csv, the model, the study.

It computes figures from predictions and ledgers; pictures and words are the report's.
"""

import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tomli_w

from privacy.accounting import Event, Spent
from privacy.ledger import Ledger
from privacy.ring import Ring
from server.checkpoint import Checkpoint
from server.metrics import MetricsFile, read_metrics, write_rows
from shared_models import subgroups
from shared_models.cells import Targets
from shared_models.durable import write_durably
from shared_models.guarantee import cost, guarantee
from shared_models.metrics import Figure
from shared_models.model_file import DESCRIPTION, MODEL, description, json_bytes
from shared_models.sections import NoPrivacy
from shared_models.study import Study
from shared_models.tasks import target_of
from simulations.federation import Traffic

Document = dict[str, object]
PACKAGES = ("fedward", "flwr", "torch", "opacus", "dp-accounting", "cryptography", "numpy")


@dataclass(frozen=True)
class Outcome:
    """Everything that is known after a run.

    Attributes:
        study: as run.
        sites: names, in order.
        checkpoint: after the last round.
        targets: (H,) of the pooled hold-out.
        predictions: (H, C) probabilities or (H,) numbers.
        site_index: (H,) which site each held-out record is of.
        groups: (H,) place of each held-out record's group; None in a study without groups.
        baselines: figures of the models without federation, or None.
        spent: what the sites' ledgers say, the largest over sites; None in mode none.
        traffic: bytes of all messages.
        seconds: wall time.
        model: safetensors of the released model.
        ring: of mode distributed, else None.
        peers: what `spent` is against sites that know their own noise; mode distributed only.
        slow: why private steps took the slow way, in one line; empty when they did not.
        engine: what ran it.
    """

    study: Study
    sites: tuple[str, ...]
    checkpoint: Checkpoint
    targets: Targets
    predictions: npt.NDArray[np.float64]
    site_index: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64] | None
    baselines: dict[str, dict[str, Figure]] | None
    spent: Spent | None
    traffic: Traffic
    seconds: float
    model: bytes
    ring: Ring | None = None
    peers: Spent | None = None
    slow: str = ""
    engine: str = "local"

    def figures(self) -> dict[str, Figure]:
        """Return the exact metrics of the released model on the pooled hold-out."""
        return _exact(self.study, self.targets, self.predictions)

    def privacy(self) -> Document:
        """Return what was debited, and what that promises."""
        summed = self.study.aggregation.cohort or len(self.sites)
        return guarantee(self.study, summed, self.spent, self.peers, self.ring)

    def results(self) -> Document:
        """Return the content of results.json."""
        target = target_of(self.study)
        last = self.checkpoint.history[-1] if self.checkpoint.history else {}
        rounds = self.checkpoint.state.round
        return {
            "study": self.study.model_dump(mode="json", exclude_none=True),
            "study_digest": self.study.digest(),
            "versions": {"python": platform.python_version(), **_versions()},
            "engine": self.engine,
            "seed": self.study.simulation.seed,
            "sites": len(self.sites),
            "rounds": rounds,
            "headline": target.headline,
            "metrics": _figures(self.figures()),
            "metrics_note": "exact figures on the pooled hold-out, which only a simulation knows",
            "released": last.get("released"),
            "subgroups": self._subgroups(last.get("subgroups")),
            "sites_metrics": self._sites_metrics(),
            "baselines": self.baselines
            and {name: _figures(figures) for name, figures in self.baselines.items()},
            "privacy": self.privacy(),
            "curves": {
                **target.curves(self.targets, self.predictions),
                "positive": ", ".join(self.study.data.positive),
            },
            "costs": {
                "wall_s": round(self.seconds, 3),
                "site_rounds_per_s": round(self.traffic.site_rounds / max(self.seconds, 1e-9), 1),
                "peak_rss_mb": round(peak_rss_mb(), 1),
                "bytes_up": self.traffic.bytes_up,
                "bytes_down": self.traffic.bytes_down,
            },
        }

    def _subgroups(self, released: object) -> Document | None:
        """Return the figures by group; null of a group too small to be told."""
        asked = self.study.evaluation.subgroups
        if asked is None:
            return None
        exact = subgroups.exact_figures(self.study, self.targets, self.predictions, self.groups)
        return {
            "column": asked.column,
            "smallest": asked.smallest,
            "metrics": {name: found and _figures(found) for name, found in exact.items()},
            "released": released,
        }

    def _sites_metrics(self) -> Document:
        metrics: Document = {}
        for index, name in enumerate(self.sites):
            own = self.site_index == index
            found = _exact(self.study, self.targets[own], self.predictions[own])
            metrics[name] = {"n": int(own.sum()), **{k: f.value for k, f in found.items()}}
        return metrics


def write_outcome(outcome: Outcome, folder: Path) -> Document:
    """Write results.json, the model with its description and the study; return the results."""
    results = outcome.results()
    study = outcome.study
    model = description(study, outcome.privacy())
    write_durably(folder / MODEL, outcome.model)
    write_durably(folder / DESCRIPTION, json_bytes(model))
    write_durably(folder / "study.toml", tomli_w.dumps(study.document()).encode())
    write_durably(folder / "results.json", json_bytes(results))
    return results


def open_metrics(study: Study, folder: Path, rounds: int) -> MetricsFile:
    """Open metrics.csv of a run that has ``rounds`` rounds behind it."""
    names = target_of(study).metrics
    columns = ("round", "sites", "epsilon", "train_loss", *names, *(f"released_{n}" for n in names))
    folder.mkdir(parents=True, exist_ok=True)
    return MetricsFile(folder / "metrics.csv", columns, rounds)


def join_metrics(folds: Sequence[Path], folder: Path) -> None:
    """Write the metrics.csv of a run of folds: of every round, the mean over the folds' own."""
    rounds: dict[float, list[dict[str, float | None]]] = {}
    for fold in folds:
        for row in read_metrics(fold):
            rounds.setdefault(row["round"] or 0.0, []).append(row)
    rows = [_mean_row(rounds[number]) for number in sorted(rounds)]
    write_rows(folder / "metrics.csv", list(rows[0]) if rows else ["round"], rows)


def _mean_row(rows: Sequence[Mapping[str, float | None]]) -> dict[str, object]:
    mean: dict[str, object] = {}
    for name in rows[0]:
        known = [value for row in rows if (value := row[name]) is not None]
        mean[name] = float(np.mean(known)) if known else None
    mean["round"] = int(rows[0]["round"] or 0)
    return mean


def spent_in(study: Study, folder: Path, sites: Sequence[str], noise: float = 1.0) -> Spent | None:
    """Return the largest cost over the sites, from the events in their ledgers.

    ``noise``: the part of the noise's deviation that counts, for whoever knows the rest of it.
    """
    if isinstance(study.privacy, NoPrivacy):
        return None
    histories: dict[tuple[str, ...], list[Event]] = {}
    for site in sites:  # many sites have the same history: compose it once
        events = _events(folder / site, study)
        histories[tuple(event.model_dump_json() for event in events)] = events
    costs = [cost(events, study, noise) for events in histories.values()]
    return max(costs, key=lambda spent: spent.epsilon)


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process and its largest child, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, child) * unit / 2**20


def _events(folder: Path, study: Study) -> list[Event]:
    path = folder / "ledger.db"
    if not path.exists():
        return []
    with Ledger(path) as ledger:
        return ledger.events(study=study.digest())


def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def _exact(
    study: Study, targets: Targets, predictions: npt.NDArray[np.float64]
) -> dict[str, Figure]:
    return target_of(study).exact_figures(targets, predictions)


def _figures(figures: Mapping[str, Figure]) -> Document:
    return {name: asdict(figure) for name, figure in figures.items()}
