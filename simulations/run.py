"""One study on virtual sites, from its records to its results; it prints nothing.

The rounds are the server's and the training the client's. Here is what only a simulation may know:
exact figures on the pooled hold-out, figures of single sites, baselines.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.training import Trainer
from privacy.errors import StudyError
from privacy.ring import Ring
from server.checkpoint import Checkpoint, load, save
from server.rounds import awaits_evaluation, run_rounds
from shared_models.cells import Targets
from shared_models.debits import Phase, planned_mechanism
from shared_models.guarantee import planned_cost, unknown_noise
from shared_models.metrics import Figure
from shared_models.model_file import model_bytes
from shared_models.registry import build_network
from shared_models.steps import site_encoding
from shared_models.strategies import State, first_state
from shared_models.study import Study
from shared_models.tasks import target_of
from shared_models.weights import vector_of
from simulations.baselines import baselines
from simulations.federation import Federation, Traffic, open_federation
from simulations.outcome import (
    Outcome,
    join_metrics,
    open_metrics,
    spent_in,
)
from simulations.pool import Gathered, Pool, gather, pool
from simulations.seeds import seeded_integer

Predictions = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each round."""

    round: int
    rounds: int
    metric: dict[str, Figure]
    epsilon: float | None
    fold: int | None = None
    baseline: str = ""  # which training without federation, once the rounds are over


Watch = Callable[[Progress], None]


def simulate(
    study: Study,
    data: Path | None,
    out: Path,
    *,
    workers: int = 1,
    resume: bool = False,
    with_baselines: bool = False,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Outcome:
    """Run a study on virtual sites and leave its files in ``out``.

    Args:
        study: what to run, its simulation section included.
        data: the records' file or folder; None for records that ship with a dependency.
        out: where checkpoints and metrics go as they arise.
        workers: processes that train.
        resume: go on from the checkpoint in ``out``.
        with_baselines: also train without federation.
        device: where networks are trained, cpu or cuda.
        watch: told after each round.

    Raises:
        StudyError, DataError: the study, the records, the folder or the device cannot be used.
        ProtocolError, AbsentError: too many attempts failed; the last checkpoint stands.
    """
    _check_device(device, workers)
    torch.set_num_threads(1)  # the same bytes for any number of workers; two threads collapse
    began = time.monotonic()
    gathered = gather(study, data)
    found = len(gathered.sites)
    if found != study.simulation.sites:
        study = study.with_sites(found)
    parts = [
        _one_fold(study, gathered, fold, out, workers, resume, device, watch)
        for fold in (range(study.evaluation.folds) if study.evaluation.folds else [None])
    ]
    if study.evaluation.folds is not None:
        join_metrics([_folder(out, fold) for fold in range(study.evaluation.folds)], out)
    outcome = conclude(
        study,
        parts[0] if len(parts) == 1 else _joined(parts),
        study,
        out / "sites",
        with_baselines=with_baselines,
        watch=watch,
    )
    return replace(outcome, seconds=time.monotonic() - began)


def conclude(
    study: Study,
    measured: "Measured",
    debited: Study,
    ledgers: Path,
    *,
    with_baselines: bool,
    watch: Watch | None,
) -> Outcome:
    """Return what is known of a run whose rounds are over, its wall time left out.

    Args:
        study: as run.
        measured: what the rounds gave; of folds, joined.
        debited: the study as the sites' ledgers know it.
        ledgers: a folder a site.
        with_baselines: also train without federation.
        watch: told of each step of those.
    """
    lone = None
    if with_baselines:
        network = build_network(study, seeded_integer(study.simulation.seed, "model"))

        def tell(label: str, number: int) -> None:
            if watch is not None:
                watch(Progress(number, study.rounds, {}, None, baseline=label))

        lone = baselines(study, measured.pool, vector_of(network), tell)
    names = measured.pool.sites
    asked = study.aggregation.cohort or len(names)
    encoding = site_encoding(study, asked, len(measured.checkpoint.state.model))
    ring = encoding if isinstance(encoding, Ring) else None
    peers = None
    if ring is not None:
        peers = spent_in(debited, ledgers, names, unknown_noise(ring))
    return Outcome(
        study=study,
        sites=names,
        checkpoint=measured.checkpoint,
        targets=measured.targets,
        predictions=measured.predictions,
        site_index=measured.site_index,
        groups=measured.groups,
        baselines=lone,
        spent=spent_in(debited, ledgers, names),
        traffic=measured.traffic,
        seconds=0.0,
        slow=measured.slow,
        model=measured.model,
        ring=ring,
        peers=peers,
    )


@dataclass(frozen=True)
class Measured:
    """What one run of the rounds gave."""

    pool: Pool
    checkpoint: Checkpoint
    targets: Targets
    predictions: Predictions
    site_index: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64] | None
    traffic: Traffic
    model: bytes
    slow: str


def _one_fold(
    study: Study,
    gathered: Gathered,
    fold: int | None,
    out: Path,
    workers: int,
    resume: bool,
    device: str,
    watch: Watch | None,
) -> Measured:
    records = pool(study, gathered, fold)
    folder = _folder(out, fold)
    trainer = Trainer(study, planned_mechanism(study), device)
    network = build_network(study, seeded_integer(study.simulation.seed, "model"))
    first = first_state(study.aggregation, vector_of(network))
    start = Checkpoint(study.digest(), first, ())
    if resume:
        start = load(folder / "checkpoint", trainer.parameters) or start
        if start.digest != study.digest():
            raise StudyError(
                f"{out}: expected the study that was started there, found a changed one",
                "give another --out folder",
            )
    federation = open_federation(
        study, records, trainer, folder / "sites", first, workers, start.state
    )
    measure = Measure(study, records, trainer)
    try:
        final = _rounds(study, start, federation, measure, folder, watch)
    finally:
        federation.close()
    return measured_after(study, records, trainer, final, federation.traffic)


def measured_after(
    study: Study, records: Pool, trainer: Trainer, final: Checkpoint, traffic: Traffic
) -> Measured:
    """Return what rounds gave that ended with the checkpoint ``final``."""
    held = records.held()
    return Measured(
        pool=records,
        checkpoint=final,
        targets=held.targets.numpy(),
        predictions=trainer.predict(final.state, held.inputs),
        site_index=records.held_site(),
        groups=held.groups,
        traffic=traffic,
        model=model_bytes(study, final.state),
        slow=trainer.fallback,
    )


def _check_device(device: str, workers: int) -> None:
    """Refuse a device that is not there, or that forked workers cannot use."""
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise StudyError(f"--device: expected cpu, found {device!r} on a machine without CUDA")
    if workers > 1:
        raise StudyError(f"--workers: expected 1 with --device {device}, found {workers}")


def _folder(out: Path, fold: int | None) -> Path:
    return out if fold is None else out / f"fold-{fold + 1}"


class Measure:
    """Exact figures of a model on the pooled hold-out: a simulation's own, never the server's."""

    def __init__(self, study: Study, records: Pool, trainer: Trainer) -> None:
        self._study, self._trainer, self._held = study, trainer, records.held()

    def __call__(self, state: State) -> dict[str, Figure]:
        """Return the figures of the released model of a state."""
        predicted = self._trainer.predict(state, self._held.inputs)
        return target_of(self._study).exact_figures(self._held.targets.numpy(), predicted)


def _rounds(
    study: Study,
    start: Checkpoint,
    federation: Federation,
    measure: Measure,
    folder: Path,
    watch: Watch | None,
) -> Checkpoint:
    """Run the server's rounds; add the exact figures to metrics.csv as they arise."""
    now = start
    done = start.state.round - awaits_evaluation(study, start)
    metrics = open_metrics(study, folder, done)
    asked: Counter[str] = Counter()
    for number in range(1, done + 1):
        asked.update(federation.cohorts(number))

    def note(now: Checkpoint) -> Progress:
        number, row = now.state.round, now.history[-1]
        due = number % study.evaluation.every == 0 or number == study.rounds or now.stopped
        figures = measure(now.state) if due else {}
        epsilon = None
        if due:
            debits = max(asked.values()) + now.spent_attempts
            evaluated = sum("released" in row for row in now.history) + now.spent_attempts
            times: dict[Phase, int] = {"train": debits, "evaluate": evaluated}
            cost = planned_cost(study, federation.events, times)
            epsilon = cost and cost.epsilon
        released = row.get("released")
        columns = (
            {f"released_{k}": f["value"] for k, f in released.items()}
            if isinstance(released, dict)
            else {}
        )
        exact = {name: figure.value for name, figure in figures.items()}
        metrics.add({**row, **exact, **columns, "epsilon": epsilon})
        return Progress(number, study.rounds, figures, epsilon)

    if done == start.state.round > metrics.last:  # the run was cut between checkpoint and metrics
        note(start)
    for now in run_rounds(
        study,
        start,
        federation.exchange,
        federation.summation,
        federation.cohorts,
        study.simulation.sites,
        keep=lambda checkpoint: save(folder / "checkpoint", checkpoint),
    ):
        federation.traffic.site_rounds += int(str(now.history[-1]["sites"]))
        asked.update(federation.cohorts(now.state.round))
        progress = note(now)
        if watch is not None:
            watch(progress)
    return now


def _joined(parts: list[Measured]) -> Measured:
    """Pool the held-out predictions of all folds: every record is predicted exactly once."""
    traffic = Traffic(
        sum(part.traffic.bytes_up for part in parts),
        sum(part.traffic.bytes_down for part in parts),
        sum(part.traffic.answers for part in parts),
        sum(part.traffic.site_rounds for part in parts),
    )
    return replace(
        parts[0],
        targets=np.concatenate([part.targets for part in parts]),
        predictions=np.concatenate([part.predictions for part in parts]),
        site_index=np.concatenate([part.site_index for part in parts]),
        groups=None
        if parts[0].groups is None
        else np.concatenate([part.groups for part in parts if part.groups is not None]),
        traffic=traffic,
    )
