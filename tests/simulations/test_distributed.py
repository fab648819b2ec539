"""Mode distributed through the real client and server: bytes, attempts, debits and what is told."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site import Contribution, Site
from client.training import Trainer
from privacy.accounting import epsilon
from privacy.errors import AbsentError, ProtocolError, StudyError
from privacy.ledger import Ledger
from privacy.ring import Ring
from server.checkpoint import Checkpoint
from server.rounds import Exchange, run_rounds
from shared_models.debits import planned_mechanism
from shared_models.registry import build_network
from shared_models.ring import ring_of
from shared_models.strategies import first_state
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of
from simulations.federation import open_federation
from simulations.outcome import Outcome, write_outcome
from simulations.pool import gather, pool
from simulations.report import render_report
from simulations.run import simulate
from simulations.seeds import seeded_integer

PRIVACY: dict[str, object] = {
    "mode": "distributed",
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 16,
    "records_max": 60,
}
Make = Callable[..., Study]


@pytest.fixture
def make(toy_document: Callable[..., dict[str, Any]]) -> Make:
    """make(**{"privacy.epsilon": 2}): the toy study in mode distributed, with changes."""

    def made(**changes: object) -> Study:
        document = copy.deepcopy(toy_document())
        document["privacy"], document["training"] = dict(PRIVACY), {"learning_rate": 0.5}
        for key, value in changes.items():
            *parts, last = key.split(".")
            table: Any = document
            for part in parts:
                table = table.setdefault(part, {})
            if value is None:
                del table[last]
            else:
                table[last] = value
        return parse_study(document)

    return made


@pytest.fixture
def run(make: Make, toy_csv: Path, tmp_path: Path) -> Callable[..., Outcome]:
    count = 0

    def started(workers: int = 1, **changes: object) -> Outcome:
        nonlocal count
        count += 1
        return simulate(make(**changes), toy_csv, tmp_path / f"run-{count}", workers=workers)

    return started


Run = Callable[..., Outcome]


def debits(folder: Path, site: str) -> list[str]:
    with Ledger(folder / "sites" / site / "ledger.db") as ledger:
        return [row.key.split("/train/")[1] for row in ledger.rows() if "/train/" in row.key]


# The same bytes


@pytest.mark.parametrize("masking", ["none", "fsa1"])
def test_any_number_of_workers_gives_the_same_model(run: Run, masking: str) -> None:
    changes = {"aggregation.masking": masking, "simulation.sites": 5}
    assert len({run(workers, **changes).model for workers in (1, 2, 3)}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy.sampling_rate": 0.3},
        {"aggregation.strategy": "fedadam", "aggregation.average_last": 0.5},
        {"aggregation.cohort": 4, "simulation.sites": 6},
        {"aggregation.ring_bits": 16, "privacy.records_max": 4, "simulation.sites": 3},
    ],
    ids=["default", "sampled", "adam", "cohorts", "narrow"],
)
def test_masked_and_plain_sums_give_the_same_model(run: Run, changes: dict[str, object]) -> None:
    plain = run(**changes, **{"aggregation.masking": "none"})
    masked = run(2, **changes, **{"aggregation.masking": "fsa1"})
    assert masked.checkpoint.state.model.tobytes() == plain.checkpoint.state.model.tobytes()
    assert masked.checkpoint.history == plain.checkpoint.history


def test_another_seed_gives_another_model(run: Run) -> None:
    assert len({run(**{"simulation.seed": seed}).model for seed in (1, 2, 3)}) == 3


# What the model carries


def test_the_model_carries_the_noise_of_all_answering_sites(run: Run) -> None:
    """Noise that is missing, halved, used again or sized for other sites shows in the model."""
    noise, rounds = 40.0, 4
    changes = {"privacy.epsilon": None, "privacy.noise_multiplier": noise, "simulation.sites": 5}
    outcome = run(**changes)
    first = vector_of(build_network(outcome.study, seeded_integer(7, "model")))
    drift = (outcome.checkpoint.state.model - first).std()
    ring = outcome.ring
    assert ring is not None
    # five shares where three are enough, over 5 x 16 as denominator, at learning rate .5
    deviation = 0.5 * noise * ring.sensitivity / ring.scale * math.sqrt(5 / 3) / 80
    # 33 coordinates: the deviation of that estimate is an eighth; the records move it a little
    assert drift == pytest.approx(deviation * math.sqrt(rounds), rel=0.5)


@pytest.mark.parametrize("masking", ["none", "fsa1"])
def test_it_learns(run: Run, masking: str) -> None:
    outcome = run(
        **{
            "rounds": 20,
            "privacy.epsilon": 8.0,
            "aggregation.masking": masking,
            "aggregation.strategy": "fedadam",
            "aggregation.server_learning_rate": 0.1,
        }
    )
    auc = outcome.figures()["auc"].value
    assert auc is not None
    assert auc > 0.75  # easy records: a guess is at .5, of deviation .12 with 23 of them


def test_mode_none_trains_the_same_study_without_noise(run: Run) -> None:
    plain = run(**{"privacy.mode": "none", "rounds": 20})
    assert (plain.ring, plain.spent) == (None, None)
    auc = plain.figures()["auc"].value
    assert auc is not None
    assert auc > 0.85


# Attempts


def federated(
    study: Study, records: Path, folder: Path, meddle: Callable[[Exchange], Exchange]
) -> Iterator[Checkpoint]:
    trainer = Trainer(study, planned_mechanism(study))
    first = first_state(study.aggregation, vector_of(build_network(study, 3)))
    gathered = pool(study, gather(study, records))
    federation = open_federation(study, gathered, trainer, folder / "sites", first)
    yield from run_rounds(
        study,
        Checkpoint(study.digest(), first, ()),
        meddle(federation.exchange),
        federation.summation,
        federation.cohorts,
        study.simulation.sites,
        lambda _: None,
    )


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, Contribution]]:
    """What every site computed in training: (site, round, attempt, integers)."""
    kept: list[tuple[str, int, int, Contribution]] = []
    real = Site.contribute

    def noted(self: Site, kind: Any, state: Any, number: int, attempt: int) -> Contribution:
        given = real(self, kind, state, number, attempt)
        if kind == "train":
            kept.append((self.name, number, attempt, given))
        return given

    monkeypatch.setattr(Site, "contribute", noted)
    return kept


def failing(kind: str, times: int) -> Callable[[Exchange], Exchange]:
    """A network on which the answers to the first messages of a kind are lost."""
    left = [times]

    def wrapped(exchange: Exchange) -> Exchange:
        def sending(
            asked: str, messages: Mapping[str, bytes], deadline_s: float
        ) -> Iterator[tuple[str, bytes]]:
            lost = asked == kind and left[0] > 0
            left[0] -= asked == kind
            for answer in exchange(asked, messages, deadline_s):
                if not lost:
                    yield answer

        return sending

    return wrapped


@pytest.mark.parametrize("kind", ["cohort", "survivors", "unmask"])
def test_an_attempt_that_failed_is_drawn_and_debited_again(
    make: Make,
    toy_csv: Path,
    tmp_path: Path,
    sent: list[tuple[str, int, int, Contribution]],
    kind: str,
) -> None:
    study = make(**{"aggregation.masking": "fsa1", "aggregation.spare_attempts": 2, "rounds": 2})
    last = list(federated(study, toy_csv, tmp_path, failing(kind, 1)))[-1]
    assert (last.state.round, last.spent_attempts) == (2, 1)
    ring = ring_of(study, 3, last.state.model.size)
    for name in ("site-001", "site-002", "site-003"):
        mine = [(number, attempt, given) for site, number, attempt, given in sent if site == name]
        assert [place[:2] for place in mine] == [(1, 0), (1, 2), (2, 2)]
        assert debits(tmp_path, name) == ["1/0", "1/2", "2/2"]
        first, again = (given.values.astype(np.int64) for _, _, given in mine[:2])
        # rate 1 and one model: all that differs is the noise, twice over. 33 normals: an eighth
        assert (first - again).std() == pytest.approx(math.sqrt(2 * ring.variance), rel=0.6)


def test_a_study_ends_when_its_spare_attempts_are_spent(
    make: Make, toy_csv: Path, tmp_path: Path
) -> None:
    study = make(**{"aggregation.masking": "fsa1", "aggregation.spare_attempts": 2})
    with pytest.raises((ProtocolError, AbsentError)):
        list(federated(study, toy_csv, tmp_path, failing("survivors", 99)))
    assert debits(tmp_path, "site-002") == ["1/0", "1/2", "1/4"]


def test_epsilon_counts_every_debited_attempt_of_the_site_that_paid_most(
    make: Make, toy_csv: Path, tmp_path: Path
) -> None:
    from simulations.outcome import spent_in

    study = make(**{"aggregation.masking": "fsa1", "aggregation.spare_attempts": 2, "rounds": 2})
    list(federated(study, toy_csv, tmp_path, failing("cohort", 1)))
    with Ledger(tmp_path / "sites" / "site-002" / "ledger.db") as ledger:
        (one, *_) = ledger.events(study=study.digest())
        ledger.debit(one, f"{study.digest()}/train/2/4")  # one site paid once more
    names = ("site-001", "site-002", "site-003")
    spent = spent_in(study, tmp_path / "sites", names)
    assert spent is not None
    assert spent.epsilon == epsilon([one] * 4, 1e-5).epsilon
    assert 3.99 < spent.epsilon <= 4.0  # four attempts were paid for: two rounds, two spare


def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    def large(self: Ring, total: Any, *rest: object) -> Any:
        return np.full(len(total), 1 << 30, dtype=np.int32)

    monkeypatch.setattr(Ring, "encode", large)


@pytest.mark.parametrize("masking", ["none", "fsa1"])
def test_a_sum_that_wraps_ends_the_attempt(
    make: Make, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masking: str
) -> None:
    study = make(**{"aggregation.masking": masking, "aggregation.spare_attempts": 4})
    overflowing(monkeypatch)
    done: list[Checkpoint] = []
    with pytest.raises((ProtocolError, AbsentError)):
        done.extend(federated(study, toy_csv, tmp_path, lambda exchange: exchange))
    paid = debits(tmp_path, "site-001")
    assert len(paid) > 1  # drawn and paid again, and no better
    assert {key.split("/")[0] for key in paid} == {"1"}
    # in clear nothing is opened; under masks the sites find it, and no second round is begun
    assert max((now.state.round for now in done), default=0) <= (masking == "fsa1")


def test_a_sum_of_too_few_sites_is_not_made_in_clear_either(
    make: Make, toy_csv: Path, tmp_path: Path
) -> None:
    study = make(**{"simulation.sites": 6, "aggregation.spare_attempts": 0})
    assert ring_of(study, 6, 33).shares.answers == 5

    def silent(exchange: Exchange) -> Exchange:
        def sending(
            kind: str, messages: Mapping[str, bytes], deadline_s: float
        ) -> Iterator[tuple[str, bytes]]:
            for site, reply in exchange(kind, messages, deadline_s):
                if site not in {"site-001", "site-002"}:
                    yield site, reply

        return sending

    with pytest.raises(AbsentError, match="answers of 5 sites"):
        list(federated(study, toy_csv, tmp_path, silent))


# What is refused before anything is read


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy.records_max": 10_000, "aggregation.ring_bits": 16}, "expected room for"),
        ({"privacy.colluders": 1}, "privacy.colluders: expected 0 to 0 with 3 sites"),
        ({"privacy.noise_answers": 4}, "privacy.noise_answers: expected 3 to 3 with 3 sites"),
        (
            {
                "aggregation.ring_bits": 16,
                "privacy.records_max": 20,
                "privacy.epsilon": None,
                "privacy.noise_multiplier": 0.6,
                "aggregation.spare_attempts": 0,
            },
            "a share of the noise of 100 ring steps",
        ),
    ],
)
def test_a_study_that_does_not_fit_is_refused_in_one_line(
    make: Make, toy_csv: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(StudyError, match=words) as caught:
        simulate(make(**changes), toy_csv, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out" / "sites").exists()


# Records


def test_a_site_with_too_many_records_keeps_some_by_their_hash(
    make: Make, toy_csv: Path, tmp_path: Path
) -> None:
    few = make(**{"privacy.records_max": 20})
    whole, part = (pool(study, gather(study, toy_csv)) for study in (make(), few))
    assert len(part.held()) == len(whole.held())
    for index in range(3):
        kept, everyone = part.split(index).train, whole.split(index).train
        assert 0 < len(kept) <= 20 < len(everyone)
        rows = [tuple(row) for row in everyone.inputs.tolist()]
        assert all(tuple(row) in rows for row in kept.inputs.tolist())
    assert simulate(few, toy_csv, tmp_path).checkpoint.state.round == 4


def test_patients_are_the_unit_when_the_study_says_so(
    make: Make, toy_csv: Path, tmp_path: Path
) -> None:
    header, *lines = toy_csv.read_text().splitlines()
    records = tmp_path / "patients.csv"
    rows = [f"{line},p{index // 3}" for index, line in enumerate(lines)]
    records.write_text("\n".join([f"{header},who", *rows]) + "\n")
    document = make().document()
    document["data"]["columns"]["who"] = {"kind": "id"}
    document["data"]["patient"] = "who"
    document["privacy"]["unit"] = "patient"
    outcome = simulate(parse_study(document), records, tmp_path / "out")
    assert outcome.spent is not None
    assert outcome.spent.unit == "patient"


# What is told


def test_results_hold_both_guarantees_and_what_they_rest_on(run: Run, tmp_path: Path) -> None:
    outcome = run(**{"aggregation.masking": "fsa1"})
    privacy = json.loads(json.dumps(write_outcome(outcome, tmp_path)))["privacy"]
    assert (privacy["mode"], privacy["unit"], privacy["delta"]) == ("distributed", "record", 1e-5)
    assert 0 < privacy["epsilon"] <= 4.0
    assert privacy["epsilon"] <= privacy["rdp_epsilon"]
    assert privacy["noise"] == {
        "sites": 3,
        "answers": 3,
        "colluders": 0,
        "sampling_rate": 1.0,
        "margin": 1.001,
    }
    # with three sites one peer knows a third of the noise, and two shares are left
    peers = privacy["against_sites"]
    assert peers["sites"] == 1
    assert peers["delta"] == 1e-5
    with Ledger(tmp_path / "run-1" / "sites" / "site-002" / "ledger.db") as ledger:
        events = ledger.events(study=outcome.study.digest())
    less = [
        e.model_copy(update={"noise_multiplier": e.noise_multiplier * math.sqrt(2 / 3)})
        for e in events
    ]
    assert peers["epsilon"] == pytest.approx(epsilon(less, 1e-5).epsilon, rel=1e-6)
    assert privacy["epsilon"] < peers["epsilon"] <= peers["rdp_epsilon"]


def test_colluders_are_counted_once_for_both_guarantees(run: Run) -> None:
    outcome = run(**{"simulation.sites": 5})
    assert outcome.spent is not None
    assert outcome.peers is not None
    assert outcome.peers.epsilon == outcome.spent.epsilon  # one site may collude: a peer is that


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_the_report_says_what_the_guarantee_rests_on(run: Run, tmp_path: Path, rate: float) -> None:
    outcome = run(
        **{
            "privacy.sampling_rate": rate,
            "simulation.sites": 5,
            "aggregation.masking": "fsa1",
        }
    )
    page = render_report(write_outcome(outcome, tmp_path), [])
    assert "t_n = 4" in page
    assert "n_c = 1" in page
    assert ("every record is in every step" in page) == (rate == 1)
    assert ("draws its records with probability 0.3" in page) == (rate < 1)
    assert "a margin, not a" in page
    assert "Against the other sites" in page
    assert "inexactness of floating-point noise" not in page


def test_without_masks_the_server_must_be_trusted_and_the_results_say_so(run: Run) -> None:
    told = run(**{"aggregation.masking": "none"}).results()["privacy"]
    assert isinstance(told, dict)
    assert told["trusted"].startswith("the server, which is sent every site's vector")
