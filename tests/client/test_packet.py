"""The approval packet: its figures against the ledger's and the protocol's own, and its words."""

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from client.approval import check_confirmed, peers_of
from client.charge import study_charge
from client.columns import columns_of
from client.packet import Packet, make_packet, show
from client.packet_words import _wager
from client.policy import Policy
from client.site import Site, Split
from client.training import Tensors, Trainer
from privacy import keys, secagg_server, secagg_setup, secagg_site
from privacy.accounting import Event, epsilon
from privacy.budget import Ceiling
from privacy.errors import PrivacyError
from privacy.ledger import Ledger
from privacy.roster import Kind, Member
from privacy.secagg_server import Coordinator, RunningSum
from privacy.secagg_site import Expected
from privacy.wire import Counter
from shared_models.contract import Data
from shared_models.debits import planned_mechanism, study_events
from shared_models.fingerprint import fingerprint
from shared_models.guarantee import planned_cost, unknown_noise
from shared_models.messages import greeting
from shared_models.plan import make_plan, plan_document
from shared_models.registry import build_network
from shared_models.roster_file import RosterFile, sign_roster
from shared_models.steps import site_encoding
from shared_models.strategies import first_state
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of

SERVER = keys.identity(bytes([99]) * 32)
VECTORS = Path(__file__).parents[1] / "vectors"
NAMES = ("ash", "bonn", "cork", "delft", "essen", "faro", "gent")
CEILING = Ceiling(unit="record", epsilon=8.0, delta=1e-6)
POLICY = Policy(dataset="ward", ceilings={"ward": CEILING})
LOCAL = {
    "mode": "local",
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "sampling_rate": 1.0,
    "expected_batch": 100,
}
DISTRIBUTED = {**LOCAL, "mode": "distributed", "records_max": 500}
COLUMNS: dict[str, Any] = {
    "ill": {"kind": "category", "values": ["no", "mild", "grave"]},
    "age": {"kind": "number", "low": 18, "high": 100, "unit": "years"},
    "ward": {"kind": "category", "values": ["a", "b"], "input": False},
    "patient": {"kind": "id"},
}


def site_key(name: str) -> keys.Identity:
    return keys.identity(name.encode()[:32].ljust(32, b"-"))


def study(
    privacy: Mapping[str, object] = DISTRIBUTED,
    evaluation: Mapping[str, object] | None = None,
    columns: Mapping[str, Any] = COLUMNS,
    data: Mapping[str, object] | None = None,
    **other: object,
) -> Study:
    training = {"learning_rate": 0.1} | ({"local_steps": 2} if privacy["mode"] == "local" else {})
    return parse_study(
        {
            "name": "s",
            "task": "tabular",
            "rounds": 10,
            "data": {"target": "ill", "columns": columns, **(data or {})},
            "model": {"name": "mlp", "hidden": [4]},
            "training": training,
            "privacy": privacy,
            "evaluation": evaluation or {},
            **other,
        }
    )


def roster(n: int, revoked: Sequence[str] = (), names: Sequence[str] = NAMES) -> RosterFile:
    members = [Member(name, site_key(name).public, name in revoked) for name in names[:n]]
    return sign_roster("s", 2 if revoked else 1, members, SERVER)


def parameters_of(given: Study) -> int:
    return sum(one.numel() for one in build_network(given).parameters())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def packet_of(
    given: Study,
    ledger: Ledger,
    n: int = 5,
    policy: Policy = POLICY,
    who: RosterFile | None = None,
    site: str = "bonn",
) -> Packet:
    who = who or roster(n)
    about = (given, who.roster(), parameters_of(given), bytes(32))
    return make_packet(
        given,
        who,
        make_plan(*about),
        plan_document(*about),
        policy,
        ledger,
        site,
        "fed.example.org:8443",
    )


def lines_of(packet: Packet, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    show(packet, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def words_of(packet: Packet) -> str:
    return " ".join(" ".join(lines_of(packet)).split())


# What it costs


@pytest.mark.parametrize("privacy", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_epsilon_is_that_of_the_debits_that_the_site_will_make(
    privacy: Mapping[str, object], ledger: Ledger, tmp_path: Path
) -> None:
    """Against a site that makes every planned attempt, and its ledger."""
    given = study(privacy)
    found = packet_of(given, ledger).charge
    empty = Tensors(torch.empty((0, 1)), torch.empty(0, dtype=torch.int64))
    trainer = Trainer(given, planned_mechanism(given))
    encoding = site_encoding(given, 5, trainer.parameters)
    site = Site(
        "bonn", given, encoding, trainer, lambda: Split(empty, empty), tmp_path / "b", Policy()
    )
    state = first_state(given.aggregation, vector_of(build_network(given)))
    for attempt in range(given.rounds + given.spare_attempts):
        site.contribute("train", state, 1, attempt)
    for attempt in range(2 + given.spare_attempts):  # after rounds 5 and 10
        site.contribute("evaluate", state, 5, attempt)
    with pytest.raises(PrivacyError, match="which its noise is calibrated for, got one more"):
        site.contribute("train", state, 1, 99)
    with Ledger(tmp_path / "b" / "ledger.db") as own:
        made = own.events()
    sides = {phase: [e for e in made if e.phase == phase] for phase in ("train", "evaluate")}
    assert found.study == epsilon(made, 1e-5).epsilon
    assert found.training == epsilon(sides["train"], 1e-5).epsilon
    assert found.evaluation == epsilon(sides["evaluate"], 1e-5).epsilon
    assert 3.9 < found.training <= 4.0
    assert 0.99 < found.evaluation <= 1.0


def test_against_peers_that_know_their_share_it_is_what_a_simulation_prints() -> None:
    given = study({**DISTRIBUTED, "colluders": 0})
    found = study_charge(given, 4, parameters_of(given), "ward")
    ring = site_encoding(given, 4, parameters_of(given))
    events = study_events(given, planned_mechanism(given), "ward", ring)
    peers = planned_cost(given, events, {"train": 11, "evaluate": 3}, unknown_noise(ring))  # type: ignore[arg-type]
    assert peers is not None
    assert (found.peers, found.against_peers) == (1, peers.epsilon)
    assert found.against_peers > found.study + 0.1


def test_colluders_that_the_noise_allows_for_know_no_more_than_the_public() -> None:
    found = study_charge(study(), 7, 10, "ward")
    assert (found.peers, found.against_peers) == (2, found.study)


def test_in_mode_local_no_noise_hangs_on_peers() -> None:
    found = study_charge(study(LOCAL), 4, 10, "ward")
    assert (found.peers, found.against_peers) == (None, None)


def test_an_exact_evaluation_is_no_cost() -> None:
    found = study_charge(study(LOCAL, {"release": "exact"}), 4, 10, "ward")
    assert found.evaluation is None
    assert found.study == found.training


def other_event(**changes: object) -> Event:
    return Event.model_validate(
        {
            "study": "b" * 64,
            "dataset": "ward",
            "unit": "record",
            "sampling_rate": 1.0,
            "noise_multiplier": 5.0,
            "clipping_norm": 1.0,
            "steps": 1,
            "denominator": 16.0,
            "mode": "local",
            **changes,
        }
    )


def test_the_ceiling_is_told_before_and_after(ledger: Ledger) -> None:
    others = [other_event()] * 4
    for number, event in enumerate(others):
        ledger.debit(event, str(number))
    ledger.debit(other_event(dataset="clinic", noise_multiplier=0.5), "clinic")
    given = study()
    packet = packet_of(given, ledger)
    ledger.debit(packet.charge.events[0], "own")  # in the study's midst the figures stay
    again = packet_of(given, ledger)
    assert packet == again
    left = packet.balance
    assert left is not None
    before = epsilon(others, 1e-6).epsilon
    after = epsilon([*others, *packet.charge.events], 1e-6).epsilon
    assert (left.before, left.after) == (before, after)
    assert 0 < before < after < 8
    assert (left.left_before, left.left_after) == (8 - before, 8 - after)
    rows = [line.split() for line in lines_of(packet)]
    spent, rest = next(r[-2:] for r in rows if r[:3] == ["with", "all", "of"])
    assert after <= float(spent) < after + 0.01
    assert 8 - after - 0.01 < float(rest) <= 8 - after


def test_a_study_that_does_not_fit_below_the_ceiling_is_not_shown(ledger: Ledger) -> None:
    fits = packet_of(study(), ledger).balance
    assert fits is not None
    for limit, fitting in ((fits.after, True), (np.nextafter(fits.after, 0), False)):
        ceiling = CEILING.model_copy(update={"epsilon": float(limit)})
        policy = Policy(dataset="ward", ceilings={"ward": ceiling})
        if fitting:
            packet_of(study(), ledger, policy=policy)
            continue
        with pytest.raises(PrivacyError, match="there is nothing to approve"):
            packet_of(study(), ledger, policy=policy)


def test_a_study_that_the_policy_refuses_is_not_shown(ledger: Ledger) -> None:
    policy = POLICY.model_copy(update={"modes": ("local",)})
    with pytest.raises(PrivacyError, match=r"privacy\.mode: expected local by this site's policy"):
        packet_of(study(), ledger, policy=policy)


@pytest.mark.parametrize("given", [study({"mode": "none"}), study()], ids=["none", "no member"])
def test_what_is_no_question_for_a_steward_is_a_bug(given: Study, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="expected a private study, and a site of its roster"):
        packet_of(given, ledger, policy=Policy(allow_no_privacy=True), site="nobody")


# What leaves the building


@pytest.mark.parametrize("n", [3, 4, 7])
def test_the_bytes_are_those_of_a_run(n: int, ledger: Ledger) -> None:
    """Against the messages of whole rounds, all sites present."""
    given, who = study(), roster(n)
    plan = make_plan(given, who.roster(), parameters_of(given), bytes(32))
    server = Coordinator(SERVER, plan, who.roster())
    sites = [
        secagg_setup.Site(site_key(name), index, plan, who.roster())
        for index, name in enumerate(NAMES[:n])
    ]
    sent = 0
    greeted, hellos = {}, []
    for site in sites:
        greeted[site.index], data = secagg_setup.hello(site, bytes(16), Counter(0, 0))
        hellos.append((site.index, data))
    sent += len(greeting(hellos[0][1], [bytes(32)] * 3))
    gathered, told = secagg_server.gather(server, bytes(16), hellos)
    joined, groups = {}, []
    for index, phase in greeted.items():
        joined[index], data = secagg_setup.join(phase, told)
        groups.append((index, data))
    sent += len(groups[0][1])
    found = packet_of(given, ledger, n).traffic
    assert found.setup == sent
    run, boxes = secagg_server.relay(gathered, groups)
    grouped = {index: secagg_setup.group(phase, boxes[index]) for index, phase in joined.items()}
    for round_, kind in enumerate((Kind.TRAIN, Kind.EVALUATE), 1):
        counter = Counter(round_, 0)
        started, begin = secagg_server.start_round(run, counter, kind, bytes(32))
        phases, readies = {}, []
        for index, phase in grouped.items():
            phases[index], data = secagg_site.start(
                phase, begin, Expected(kind, bytes(32)), Counter(round_ - 1, 0)
            )
            readies.append((index, data))
        formed = secagg_server.form_cohort(started, readies)
        running, shape = RunningSum(formed), plan.shape(kind)
        masked, vectors = {}, []
        for index, phase in phases.items():
            shared = secagg_site.admit(phase, formed.message(index))
            values = np.zeros(shape.values, np.int32), np.zeros(shape.lanes, np.int64)
            masked[index], data = secagg_site.mask(shared, *values)
            assert running.add(index, data)
            vectors.append(data)
        closed, survivors = secagg_server.close(running)
        acknowledged = {i: secagg_site.acknowledge(one, survivors) for i, one in masked.items()}
        acks = [(index, data) for index, (_, data) in acknowledged.items()]
        _, ack_set = secagg_server.agree_survivors(closed, acks)
        _, answer = secagg_site.reveal(acknowledged[0][0], ack_set)
        sent = len(readies[0][1]) + len(vectors[0]) + len(acks[0][1]) + len(answer)
        assert sent == (found.training if kind is Kind.TRAIN else found.evaluation)
    assert (found.values, found.bits) == (parameters_of(given), 32)
    assert found.cells == plan.evaluate_lanes


# Who takes part


@pytest.mark.parametrize(
    ("n", "privacy", "unconfirmed", "words"),
    [
        (3, LOCAL, None, "each of the 2 other hospitals"),
        (4, LOCAL, None, "at least 2 of the 3 other hospitals"),
        (4, {**DISTRIBUTED, "colluders": 0}, None, "each of the 3 other hospitals"),
        (7, DISTRIBUTED, None, "at least 4 of the 6 other hospitals"),
        (7, DISTRIBUTED, 0, "each of the 6 other hospitals"),
    ],
)
def test_as_many_fingerprints_are_asked_for_as_the_rule_wants(
    n: int, privacy: Mapping[str, object], unconfirmed: int | None, words: str, ledger: Ledger
) -> None:
    policy = POLICY.model_copy(update={"unconfirmed_max": unconfirmed})
    packet = packet_of(study(privacy), ledger, n, policy)
    assert words in words_of(packet)
    left = packet.answers.unconfirmed
    plan = make_plan(study(privacy), roster(n).roster(), packet.parameters, bytes(32))
    peers, distributed = peers_of(roster(n), "bonn"), packet.mode == "distributed"
    check_confirmed(plan, distributed, peers, peers[left:], policy)
    with pytest.raises(PrivacyError):
        check_confirmed(plan, distributed, peers, peers[left + 1 :], policy)


def test_every_hospital_stands_there_with_its_six_words_and_the_own_one_is_marked(
    ledger: Ledger,
) -> None:
    packet = packet_of(study(), ledger, who=roster(5, revoked=["delft"]))
    lines = lines_of(packet)
    for name in NAMES[:5]:
        words = fingerprint(site_key(name).public)
        (line,) = [line for line in lines if words in line]
        note = {"bonn": "this hospital", "delft": "revoked"}.get(name, "")
        assert line.split() == [name, *words.split(), *note.split()]
    assert any(line.strip() == fingerprint(SERVER.public) for line in lines)
    assert "at least 2 of the 3 other hospitals" in words_of(packet)
    assert packet.roster_version == 2


# Columns


def test_each_column_stands_there_with_its_public_range_and_its_use(ledger: Ledger) -> None:
    given = study({**DISTRIBUTED, "unit": "patient"}, data={"patient": "patient"})
    policy = Policy(
        dataset="ward", ceilings={"ward": CEILING.model_copy(update={"unit": "patient"})}
    )
    packet = packet_of(given, ledger, policy=policy)
    assert [(c.name, c.kind, c.range, c.use) for c in packet.columns] == [
        ("ill", "category", "no, mild, grave", "learnt"),
        ("age", "number", "18 to 100 years", "input"),
        ("ward", "category", "a, b", "not an input"),
        ("patient", "id", "any text", "patient"),
    ]
    assert "whether a patient took part" in words_of(packet)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ({"kind": "image", "height": 8, "width": 9}, "9 x 8 pixels, 1 a point, 0 to 255"),
        (
            {"kind": "image", "depth": 7, "height": 8, "width": 9},
            "9 x 8 x 7 voxels, 1 a point, 0 to 255",
        ),
        (
            {"kind": "mask", "values": ["ground", "nucleus"]},
            "at each point one of ground, nucleus",
        ),
        ({"kind": "letters", "alphabet": "ACGT", "length": 60}, "up to 60 letters of ACGT"),
        ({"kind": "words", "length": 12}, "a text, its first 12 words"),
        (
            {"kind": "series", "steps": 3, "variables": {
                "HR": {"low": 0, "high": 250, "unit": "1/min"}, "T": {"low": 30.5, "high": 45}}},
            "3 times: HR 0 to 250 1/min, T 30.5 to 45",
        ),
        ({"kind": "category", "values": [str(k) for k in range(14)]},
         "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"),
    ],
)  # fmt: skip
def test_a_column_of_each_kind_is_in_words(column: dict[str, Any], text: str) -> None:
    columns = {"ill": COLUMNS["ill"], "x": column}
    data = Data.model_validate_json(json.dumps({"target": "ill", "columns": columns}))
    assert columns_of(data)[1].range == text


# Its words


@pytest.mark.parametrize("privacy", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
def test_the_whole_packet_says_what_it_said(
    privacy: Mapping[str, object], ledger: Ledger, tmp_path: Path
) -> None:
    """A sentence that a steward decides on neither vanishes nor changes unnoticed.

    Left out is what asks again, with the plan's digest, which each change of the code changes.
    """
    ledger.debit(other_event(), "0")
    packet = packet_of(study(privacy), ledger, who=roster(5, revoked=["delft"]))
    text = "".join(f"{line.rstrip()}\n" for line in lines_of(packet))
    text, cut = re.subn(rf"(?s)(WHAT YOU APPROVE\n).*{packet.digest}", r"\1  ...", text)
    assert cut == 1
    golden = VECTORS / f"packet_{packet.mode}.txt"
    found = tmp_path / golden.name
    found.write_text(text)
    assert text == golden.read_text(), f"if the change is meant: cp {found} {golden}"


def test_whatever_a_terminal_would_obey_is_written_out(ledger: Ledger) -> None:
    columns = {
        "ill": {"kind": "category", "values": ["no", "\x1b[8myes", "\u202eno"]},
        "[bold]age[/]\x1b]0;x\x07": {"kind": "number", "low": 0, "high": 1, "unit": "a\rb"},
    }
    text = "\n".join(lines_of(packet_of(study(columns=columns), ledger)))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "[bold]age[/]" in text
    assert r"no, \x1b[8myes, \u202eno" in text


@pytest.mark.parametrize("privacy", [LOCAL, DISTRIBUTED], ids=["local", "distributed"])
@pytest.mark.parametrize("release", ["noised", "exact"])
@pytest.mark.parametrize("n", [3, 5])
def test_it_fits_eighty_columns_whatever_the_names(
    privacy: Mapping[str, object], release: str, n: int, ledger: Ledger
) -> None:
    long = {"x" * 90: {"kind": "number", "low": -1e-300, "high": 1e300, "unit": "u" * 70}}
    given = study(privacy, {"release": release}, {**COLUMNS, **long})
    names = [f"{k}-{'hospital' * 7}" for k in range(n)]
    policy = POLICY.model_copy(update={"allow_exact_release": True})
    packet = packet_of(given, ledger, policy=policy, who=roster(n, names=names), site=names[1])
    for width in (80, 200):
        assert max(map(len, lines_of(packet, width))) <= 80
    lines = lines_of(packet)
    for name in names:  # no word of a key is cut, whatever stands beside it
        (line,) = [one for one in lines if fingerprint(site_key(name).public) in one]
        assert line.split()[0] == name[: len(line.split()[0])]
    assert "".join(re.findall(r"x{5,}", "\n".join(lines))) == "x" * 90
    assert packet.digest in [line.strip() for line in lines]


def test_mode_local_says_what_holds_against_all_others(ledger: Ledger) -> None:
    words = words_of(packet_of(study(LOCAL), ledger))
    assert (
        "carries all of its noise, as do its counts. Epsilon 4.00 holds against them too." in words
    )
    assert "it would find this hospital's update with all of its noise" in words
    assert "(t_n)" not in words
    assert "(n_c)" not in words


def test_mode_distributed_says_what_is_weaker_against_peers(ledger: Ledger) -> None:
    packet = packet_of(study(), ledger, 3)
    against = packet.charge.against_peers
    assert against is not None
    up = math.ceil(against * 100 - 1e-9) / 100
    words = words_of(packet)
    assert f"Against it, epsilon of this study is {up:.2f}, and not 4.00." in words
    assert "each of the others sees the sum of this hospital and the third" in words
    assert "with its share of the noise alone" in words
    assert "none of the hospitals works for it" in words


def test_an_exact_release_says_that_summing_alone_protects(ledger: Ledger) -> None:
    policy = POLICY.model_copy(update={"allow_exact_release": True})
    for privacy in (LOCAL, DISTRIBUTED):
        words = words_of(packet_of(study(privacy, {"release": "exact"}), ledger, policy=policy))
        assert "protected by that sum alone, and not by epsilon" in words
        assert "counts of evaluations" in words
        assert "evaluations, likewise" not in words


def test_how_many_must_answer_stands_there(ledger: Ledger) -> None:
    given = study({**DISTRIBUTED, "noise_answers": 6, "colluders": 1}, aggregation={"min_sites": 5})
    lines = [line.strip() for line in lines_of(packet_of(given, ledger, 7))]
    figures = {
        re.sub(r"\s+\d+$", "", line): int(line.split()[-1])
        for line in lines[lines.index("HOW MANY MUST ANSWER") + 1 :][:7]
    }
    assert list(figures.values()) == [7, 5, 5, 6, 6, 2, 1]
    assert "least 5 others" in words_of(packet_of(given, ledger, 7))


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"every": 1}, "evaluated after every round, at most 11 times"),
        ({"every": 3}, "evaluated after every 3rd round and the last, at most 5 times"),
        ({"holdout": 0.3}, "about 0.3 of the records is held out, by a hash"),
        ({"holdout_column": "ward", "holdout_values": ["b"]}, "by the public column ward"),
        (
            {"subgroups": {"column": "ward", "smallest": 30}},
            "So are those of each group by ward; figures are told of groups of 30 records and more",
        ),
    ],
)
def test_how_records_are_held_out_stands_there(
    evaluation: Mapping[str, object], words: str, ledger: Ledger
) -> None:
    assert words in words_of(packet_of(study(LOCAL, evaluation), ledger))


def test_the_document_has_every_fact(ledger: Ledger) -> None:
    packet = packet_of(study(), ledger)
    found = json.loads(json.dumps(packet.document(), allow_nan=False))
    assert found["digest"] == packet.digest
    assert found["plan"]["study"] == found["study_digest"] == study().digest()
    assert found["coordinator"]["address"] == "fed.example.org:8443"
    assert [one["name"] for one in found["hospitals"] if one["own"]] == ["bonn"]
    assert found["privacy"]["study"] == packet.charge.study
    assert found["privacy"]["delta"] == 1e-5
    assert packet.balance is not None
    assert found["ceiling"]["left_after"] == packet.balance.left_after
    assert found["traffic"]["training"] == packet.traffic.training
    assert found["answers"]["quorum"] == 4
    assert (found["rounds"], found["spare_attempts"]) == (10, 1)


def test_without_a_ceiling_there_is_no_balance(ledger: Ledger) -> None:
    packet = packet_of(study(), ledger, policy=Policy())
    assert packet.balance is None
    assert packet.document()["ceiling"] is None
    assert "ceiling" not in words_of(replace(packet, balance=None))


def test_the_wager_is_the_one_of_the_report() -> None:
    assert _wager(0.0, 0.0) == "50.0 %"
    assert _wager(math.log(3), 0.0) == "75.0 %"
    assert float(_wager(1.0, 1e-3)[:-2]) / 100 >= (math.e + 1e-3) / (1 + math.e)
    assert _wager(800.0, 1e-5) == "100 %"
