"""The sentences of the approval packet: facts in the words of a hospital's data steward.

It computes nothing but the wager that epsilon stands for. Each sentence is one that the code keeps;
what is not protected is said beside what is.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.columns import listed
from shared_models.contract import MaskColumn, NumberColumn
from shared_models.wording import network_words, show_epsilon

if TYPE_CHECKING:
    from client.packet import Packet


@dataclass(frozen=True)
class Rows:
    """A small table.

    Attributes:
        head: titles of the columns; () for none.
        lines: of text, one a row; >= 1.
        right: columns that hold numbers.
        whole: columns that are never broken over lines.
        marked: rows that are printed bold.
    """

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    right: Collection[int] = ()
    whole: Collection[int] = ()
    marked: Collection[int] = ()


@dataclass(frozen=True)
class Part:
    """One question of the steward, and its answer."""

    title: str
    blocks: tuple[str | Rows, ...]


def parts(packet: "Packet") -> tuple[Part, ...]:
    """Return the whole packet in words, in the order in which it is read."""
    return (
        _who_asks(packet),
        _what_is_learnt(packet),
        _what_is_read(packet),
        _who_takes_part(packet),
        _what_it_costs(packet),
        _what_leaves(packet),
        _what_the_server_sees(packet),
        _how_many_answer(packet),
        _what_hospitals_see(packet),
        _what_is_released(packet),
        _what_is_approved(packet),
    )


def _who_asks(packet: "Packet") -> Part:
    where = f" at {packet.address}" if packet.address else ""
    return Part(
        "Who asks",
        (
            f"The coordinator{where} asks the hospital {packet.site} to take part in the study "
            f"{packet.study.name}. The coordinator's key, in six words:",
            Rows((), ((packet.server,),), marked={0}),
            "It is the key of the token with which this hospital enrolled, and cannot change. "
            "Whoever gave you the token can read the words to you.",
        ),
    )


def _what_is_learnt(packet: "Packet") -> Part:
    study = packet.study
    data, target = study.data, study.data.columns[study.data.targets[0]]
    if len(data.targets) > 1:
        learnt = f"{len(data.targets)} answers"
    elif isinstance(target, NumberColumn):
        unit = f" {target.unit}" if target.unit else ""
        learnt = f"a number from {target.low:g} to {target.high:g}{unit}"
    elif isinstance(target, MaskColumn):
        learnt = f"at each point one of {listed(target.values)}"
    else:
        learnt = f"one of {listed(data.classes)}"
        if data.positive:
            learnt += f" (yes stands for {listed(data.positive)})"
    plural = "s" if len(data.targets) > 1 else ""
    network = network_words(study.model_dump(mode="json"))
    spare = study.spare_attempts
    more = f" Up to {_count(spare, 'more attempt')} may be made, where one fails." if spare else ""
    return Part(
        "What is learnt",
        (
            f"To predict the column{plural} {listed(data.targets)} of a record, {learnt}, from its "
            f"other columns. The model is {network} of {packet.parameters:,} numbers, and everyone "
            "who takes part keeps it at the end.",
            f"{_count(study.rounds, 'round')} of training.{more} {_a_round(packet)}",
        ),
    )


def _a_round(packet: "Packet") -> str:
    study, privacy = packet.study, packet.study.privacy
    if privacy.mode == "none":
        raise ValueError("expected a private study")
    unit = privacy.unit
    drawn = (
        f"all of its {unit}s but those that are held out"
        if privacy.sampling_rate == 1
        else f"{unit}s drawn with chance {privacy.sampling_rate:g}"
    )
    if packet.mode == "distributed":
        return (
            f"In each, a hospital adds up one clipped gradient of {drawn}, and its share of "
            "the noise."
        )
    steps = _count(study.training.local_steps or 1, "step")
    return (
        f"In each, a hospital trains {steps} on {drawn}, with clipped gradients and all of the "
        "noise."
    )


def _what_is_read(packet: "Packet") -> Part:
    lines = tuple((one.name, one.kind, one.range, one.use) for one in packet.columns)
    return Part(
        "Which columns are read",
        (
            Rows(("column", "kind", "public range", "use"), lines),
            "Ranges are written in the study and not taken from records. Other columns of the "
            "records' files are not used.",
        ),
    )


def _who_takes_part(packet: "Packet") -> Part:
    lines = tuple(
        (one.name, one.words, "this hospital" if one.own else "revoked" if one.revoked else "")
        for one in packet.hospitals
    )
    own = {place for place, one in enumerate(packet.hospitals) if one.own}
    others = [one for one in packet.hospitals if not one.own and not one.revoked]
    wanted = len(others) - packet.answers.unconfirmed
    which = "each of the" if wanted == len(others) else f"at least {wanted} of the"
    return Part(
        "Which hospitals take part",
        (
            Rows(("hospital", "key in six words", ""), lines, whole={1}, marked=own),
            f"Before you approve, compare the six words of {which} {len(others)} other hospitals "
            "with them, by telephone or face to face and not through the coordinator. A hospital "
            "that nobody knows may be the coordinator's own.",
        ),
    )


def _what_it_costs(packet: "Packet") -> Part:
    charge, left = packet.charge, packet.balance
    whose = "a patient" if charge.unit == "patient" else "a record"
    lines = [("training, all rounds and spare attempts", show_epsilon(charge.training))]
    if charge.evaluation is not None:
        lines.append(("evaluations, likewise", show_epsilon(charge.evaluation)))
        lines.append((f"this study: {whose} is in one or the other", show_epsilon(charge.study)))
    blocks: list[str | Rows] = [
        f"Epsilon for each {charge.unit} at delta {charge.delta:g}, against the server and "
        "everyone who has the model:",
        Rows((), tuple(lines), right={1}, marked={len(lines) - 1}),
        f"Somebody who knows everything but whether {whose} took part, and bets on it, is right "
        "half of the time without this study, and at most "
        f"{_wager(charge.study, charge.delta)} of the time with it. That is the limit in the worst "
        "case, whatever else they know; smaller epsilons are safer.",
    ]
    if left is not None:
        blocks += [
            f"This hospital's ceiling for the dataset {left.dataset} is epsilon "
            f"{left.ceiling:g} for each {left.unit} at delta {left.delta:g}, over all studies:",
            Rows(
                ("", "spent", "left"),
                (
                    ("without this study", _spent(left.before), _down(left.left_before)),
                    ("with all of it", _spent(left.after), _down(left.left_after)),
                ),
                right={1, 2},
            ),
            "Every attempt that costs is written into the ledger before records are read, and "
            "stays there, whether or not a sum came of it.",
        ]
    return Part("What it costs", tuple(blocks))


def _what_leaves(packet: "Packet") -> Part:
    traffic = packet.traffic
    return Part(
        "What leaves the building",
        (
            "No record. In each attempt, masked numbers with keys and signatures around them:",
            Rows(
                ("", "numbers", "bits each", "bytes in all"),
                (
                    (
                        "to train",
                        f"{traffic.values:,}",
                        str(traffic.bits),
                        f"{traffic.training:,}",
                    ),
                    ("to evaluate", f"{traffic.cells:,}", "64", f"{traffic.evaluation:,}"),
                    ("setup, when hospitals come or go", "", "", f"{traffic.setup:,}"),
                ),
                right={1, 2, 3},
            ),
            "Masks make each number look random. They cancel in the sum of the hospitals' "
            "vectors, and nowhere else.",
            "Besides: this approval with the names you confirmed, the length and the hash of this "
            "hospital's ledger and log, signs of life, and, when something is refused, a code of "
            "a closed list. Times are not hidden: how long training takes, which depends "
            "on the number of records, can be seen.",
        ),
    )


def _what_the_server_sees(packet: "Packet") -> Part:
    answers = packet.answers
    if packet.mode == "local":
        worse = "it would find this hospital's update with all of its noise"
    else:
        worse = "it would find this hospital's sum with its share of the noise alone"
    counts = "with noise" if packet.evaluation.release == "noised" else "without noise"
    return Part(
        "What the server sees",
        (
            f"It sees who answers and when, each sum of at least {answers.quorum} hospitals, the "
            f"model after each round, and the counts of each evaluation, added up {counts}.",
            "It does not see a record, how many records this hospital has, or the vector, the "
            "loss or a metric of this hospital alone.",
            f"This holds while {_none_but(answers.colluders)} for it, and for a server that "
            "follows the protocol. Against one that does not, this program checks every message, "
            "but the protocol has no proof of its own and nobody outside of the project has "
            "reviewed it. "
            f"Were the masks to fail, {worse}.",
        ),
    )


def _how_many_answer(packet: "Packet") -> Part:
    answers = packet.answers
    lines = [
        ("hospitals in the study (n)", answers.sites),
        ("needed to rebuild the keys of those that are lost (t)", answers.threshold),
        ("fewest in a sum, by the study (min_sites)", answers.min_sites),
    ]
    if answers.noise_colluders is not None:
        lines.append(("needed for all of the noise (t_n)", answers.noise_answers))
    lines.append(("so must answer, or no sum is opened", answers.quorum))
    most = len(lines) - 1
    lines.append(("may work for the server, by the masks: floor((n-1)/3)", answers.colluders))
    if answers.noise_colluders is not None:
        lines.append(("may leave out their noise, or tell it (n_c)", answers.noise_colluders))
    rows = tuple((text, str(number)) for text, number in lines)
    return Part("How many must answer", (Rows((), rows, right={1}, marked={most}),))


def _what_hospitals_see(packet: "Packet") -> Part:
    answers, charge = packet.answers, packet.charge
    blocks = [
        "Every hospital sees each sum and the model. It can take its own vector away: what is "
        f"left is a sum of at least {answers.quorum - 1} others."
    ]
    if answers.sites == 3:
        blocks.append(
            "With three hospitals, each of the others sees the sum of this hospital and the third."
        )
    if answers.colluders:
        blocks.append(
            f"The server with {_hospitals(answers.colluders)} sees a sum of at least "
            f"{answers.quorum - answers.colluders} others."
        )
    if packet.mode == "local":
        kept = "what this hospital sent in training carries all of its noise"
        exact = packet.evaluation.release == "exact"
        kept += ", its counts of evaluations none" if exact else ", as do its counts"
        holds = show_epsilon(charge.training if exact else charge.study)
        blocks.append(
            f"All others together could take away all vectors but this hospital's: {kept}. "
            f"Epsilon {holds} holds against them too{' in training' if exact else ''}."
        )
    elif charge.against_peers is not None and charge.peers is not None:
        public, weaker = show_epsilon(charge.study), show_epsilon(charge.against_peers)
        who = (
            "Another hospital knows its own share of the noise. Against it"
            if charge.peers == 1
            else f"Hospitals know their own share of the noise. Against {charge.peers} together"
        )
        holds = f"{weaker}, and not {public}" if weaker != public else f"{public} as well"
        left = "its share of the noise alone"
        if packet.evaluation.release == "exact":
            left += ", and its counts of evaluations without any"
        blocks += [
            f"{who}, epsilon of this study is {holds}.",
            "All others together could take away all vectors but this hospital's: what it sent "
            f"would be seen with {left}.",
        ]
    return Part("What another hospital sees", tuple(blocks))


def _what_is_released(packet: "Packet") -> Part:
    evaluation, unit = packet.evaluation, packet.charge.unit
    if evaluation.column is None:
        how = (
            f"A part of about {evaluation.holdout:g} of the {unit}s is held out, by a hash under "
            "a key of this hospital: never trained on, only evaluated."
        )
    else:
        how = (
            f"Records are held out by the public column {evaluation.column}: never trained on, "
            "only evaluated."
        )
    every = "" if evaluation.every == 1 else f"{_ordinal(evaluation.every)} "
    last = "" if evaluation.every == 1 else " and the last"
    when = (
        f" They are evaluated after every {every}round{last}, at most "
        f"{_count(evaluation.times, 'time')}."
    )
    if evaluation.release == "exact" or evaluation.deviation is None:
        what = (
            f"Their counts are added up and released without noise: held-out {unit}s are "
            "protected by that sum alone, and not by epsilon."
        )
    else:
        what = (
            f"Their counts are added up and released with noise of standard deviation "
            f"{evaluation.deviation:.2g} on each, when all hospitals answer."
        )
    if evaluation.subgroups is not None:
        what += (
            f" So are those of each group by {evaluation.subgroups}; figures are told of groups "
            f"of {evaluation.smallest} {unit}s and more."
        )
    return Part("What is released of evaluations", (how + when, what))


def _what_is_approved(packet: "Packet") -> Part:
    return Part(
        "What you approve",
        (
            "The plan with this digest. It fixes the study, the hospitals and their keys, how many "
            "must answer, the first model and the code that runs here. Other code asks you again; "
            "another study, other hospitals or keys are refused, and need a new invitation. A "
            "hospital that is revoked or leaves changes nothing that you approved.",
            Rows((), ((packet.digest,),), marked={0}),
            "Approved, this program works until the study ends. `fedward-site leave` ends it "
            "before the next vector; what was summed until then stays in the model.",
        ),
    )


def _hospitals(number: int) -> str:
    return "one hospital" if number == 1 else f"{number} hospitals"


def _none_but(number: int) -> str:
    if number == 0:
        return "none of the hospitals works"
    return f"no more than {'one' if number == 1 else number} of the hospitals works"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0)
    return f"{number}{ending or 'th'}"


def _wager(epsilon: float, delta: float) -> str:
    # Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, section 2.1: no test does better.
    right = (1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon))
    tenths = math.ceil(right * 1000 - 1e-9)
    return f"{tenths / 10:.1f} %" if tenths < 1000 else "100 %"


def _spent(epsilon: float) -> str:
    return show_epsilon(epsilon) if epsilon else "0.00"


def _down(epsilon: float) -> str:
    """Write what is left with two decimals, never more than it is."""
    return f"{math.floor(max(epsilon, 0.0) * 100 + 1e-9) / 100:.2f}"
