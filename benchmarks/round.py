"""What a round between hospitals costs: the real processes over TLS, beside stock Flower's in turn.

Nobody trains for more than one step, and nothing is evaluated: what is left is keys, masks, checks,
files and transport. Everything runs on this machine, with one thread a process.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

from round_flower import StockFlower
from round_ours import RECORDS, VALUES, Ours
from rows import PAIRS_MIN, Pairs, Row, load, machine, measure, options, show

SITES, MORE_SITES = 3, 10
ROUNDS, ROUNDS_QUICK = 10, 5  # of ours in a turn
PEER_ROUNDS, PEER_ROUNDS_QUICK = 3, 1
IDLE_S, IDLE_QUICK_S = 60.0, 6.0
SETTLE_S = 3.0  # after the last site has connected
NOT_QUICK = "not measured by --quick"
STUDY = (
    f"mode local, masked, {VALUES:,} values (an MLP 1-1000-995-2), one private step on {RECORDS} "
    "records a round, nothing evaluated"
)


@dataclass(frozen=True)
class Seen:
    """What was seen of one study: seconds, and the most memory that a process had, in bytes."""

    start: float
    rounds: list[float]
    site: float
    server: int


@dataclass(frozen=True)
class Turn:
    """One study of three sites, one run of Flower, one study of ten, one after the other."""

    ours: Seen
    peer: list[float]
    more: Seen | None


@cache
def turns(quick: bool) -> list[Turn]:
    """Take all turns, every second one in the opposite order; the rows share them."""
    if quick:
        return [Turn(watch(SITES, ROUNDS_QUICK), stock(PEER_ROUNDS_QUICK), None)]
    taken = []
    for index in range(PAIRS_MIN):
        if index % 2:
            more, peer, ours = watch(MORE_SITES, ROUNDS), stock(PEER_ROUNDS), watch(SITES, ROUNDS)
        else:
            ours, peer, more = watch(SITES, ROUNDS), stock(PEER_ROUNDS), watch(MORE_SITES, ROUNDS)
        taken.append(Turn(ours, peer, more))
    return taken


def watch(sites: int, rounds: int) -> Seen:
    """Run a study for so many rounds; the first, which makes the sites' keys, is the start's."""
    with tempfile.TemporaryDirectory() as folder, Ours(Path(folder), sites) as study:
        start = study.start_all()
        seconds = study.round_seconds(rounds)
        memory = [peak_of(process.pid) for process in study.sites.values()]
        return Seen(start, seconds, statistics.median(memory), peak_of(study.coordinator.pid))


def stock(rounds: int) -> list[float]:
    """Let Flower run so many rounds; the first, with which its processes start, does not count."""
    with tempfile.TemporaryDirectory() as folder:
        flower = StockFlower(Path(folder), SITES, VALUES)
        try:
            return flower.rounds(rounds + 1)[1:]
        finally:
            flower.close()


def peak_of(pid: int) -> int:
    """Return the most memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 2**10


def processor_of(pid: int) -> float:
    """Return the seconds of the processor that a process has had, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compared(
    row: Row, quick: bool, one: Callable[[Turn], float], other: Callable[[Turn], float]
) -> Row:
    """Return the row with the median over the turns of ``other`` over ``one``."""
    taken = turns(quick)
    pairs = Pairs([one(turn) for turn in taken], [other(turn) for turn in taken])
    spread = pairs.quartiles() if len(taken) > 1 else "one pair"
    note = f"{row.note}; {pairs.times()}, {spread}; {load()}"
    return replace(row, value=pairs.ratio(), note=note)


def lower(name: str, unit: str, target: float | None, note: str) -> Row:
    return Row(name, None, unit, "lower", target, note)


def round_vs_stock_flower_row(*, quick: bool) -> Row:
    """Compare a round with Flower's."""
    note = (
        f"flower-superlink, {SITES} flower-supernode and flwr run as they come (subprocess "
        "isolation, no TLS), FedAvg, its clients give back what they got; and fedward-server and "
        f"{SITES} fedward-site, TLS: {STUDY}; medians of the rounds of a turn"
    )
    row = lower("round_vs_stock_flower", "ratio", 0.15, note)
    return compared(row, quick, lambda turn: _mid(turn.peer), lambda turn: _mid(turn.ours.rounds))


def sites_10_vs_3_row(*, quick: bool) -> Row:
    """Compare a round of ten sites with one of three."""
    note = f"a round of {SITES} sites, and of {MORE_SITES} on the same cores: {STUDY}"
    row = lower("sites_10_vs_3", "ratio", 4, note)
    if quick:
        return replace(row, note=NOT_QUICK)
    return compared(
        row, quick, lambda turn: _mid(turn.ours.rounds), lambda turn: _mid(_more(turn).rounds)
    )


def start_to_first_round_s_row(*, quick: bool) -> Row:
    """Time a start until the first round is done."""
    taken = turns(quick)
    note = (
        f"coordinator and {SITES} enrolled sites started at one moment, imports, approval, keys "
        f"and the first round in it; median of {len(taken)}; {load()}"
    )
    if not quick:
        ten = statistics.median(_more(turn).start for turn in taken)
        note += f"; {ten:.1f} s with {MORE_SITES} sites"
    value = statistics.median(turn.ours.start for turn in taken)
    return replace(lower("start_to_first_round_s", "s", None, note), value=value)


@dataclass(frozen=True)
class Traffic:
    """What a study costs that waits, and what its rounds send: a round and site, in bytes."""

    idle: list[float]
    idle_server: float
    up: float
    down: float


@cache
def traffic(quick: bool) -> Traffic:
    """Let all sites but one wait for the last one's approval, then run rounds through a relay."""
    seconds, rounds = (IDLE_QUICK_S, ROUNDS_QUICK) if quick else (IDLE_S, ROUNDS)
    with tempfile.TemporaryDirectory() as folder, Ours(Path(folder), SITES, relayed=True) as study:
        *waiting, last = study.names
        for name in waiting:
            study.start(name)
        study.await_work(waiting)
        time.sleep(SETTLE_S)
        processes = [study.sites[name].pid for name in waiting] + [study.coordinator.pid]
        before = [processor_of(pid) for pid in processes]
        time.sleep(seconds)
        after = [processor_of(pid) for pid in processes]
        *idle, server = (
            100 * (end - begin) / seconds for begin, end in zip(before, after, strict=True)
        )
        study.start(last)
        study.round_seconds(1)
        sent = study.bytes_sent()
        study.round_seconds(rounds - 1)
        # Both looks are at the end of a round: so many rounds lie between them.
        up, down = (
            (end - begin) / rounds / SITES
            for begin, end in zip(sent, study.bytes_sent(), strict=True)
        )
        return Traffic(idle, server, up, down)


def idle_cpu_percent_site_row(*, quick: bool) -> Row:
    """Measure what a site costs that waits."""
    seen = traffic(quick)
    note = (
        "of one core, user and system: fedward-site start, approved, connected, and waiting for "
        f"another site; mean of {len(seen.idle)} over {IDLE_QUICK_S if quick else IDLE_S:.0f} s; "
        f"the coordinator {seen.idle_server:.2f}"
    )
    row = lower("idle_cpu_percent_site", "%", 1, note)
    return replace(row, value=statistics.mean(seen.idle))


def bytes_up_vs_float32_row(*, quick: bool) -> Row:
    """Compare what a site sends with four bytes a value."""
    seen = traffic(quick)
    note = (
        "all bytes of a site's TCP connections to the coordinator in a round, TLS, HTTP and "
        f"signatures in it, over {4 * VALUES:,}; {seen.down / (4 * VALUES):.3f} down"
    )
    row = lower("bytes_up_vs_float32", "ratio", 1.05, note)
    return replace(row, value=seen.up / (4 * VALUES))


def rss_site_mb_row(*, quick: bool) -> Row:
    """Weigh a site's process."""
    value = statistics.median(turn.ours.site for turn in turns(quick)) / 1e6
    note = f"the most that fedward-site start had, PyTorch in it; {STUDY}"
    return replace(lower("rss_site_mb", "MB", None, note), value=value)


def rss_server_10_vs_3_row(*, quick: bool) -> Row:
    """Weigh the coordinator with ten sites and with three."""
    note = (
        f"the most that fedward-server start had in {ROUNDS} rounds of {SITES} sites, and of "
        f"{MORE_SITES}: {STUDY}"
    )
    row = lower("rss_server_10_vs_3", "ratio", 1.6, note)
    if quick:
        return replace(row, note=NOT_QUICK)
    taken = turns(quick)
    few = statistics.median(turn.ours.server for turn in taken)
    many = statistics.median(_more(turn).server for turn in taken)
    return replace(row, value=many / few, note=f"{note}; {few / 1e6:.0f} and {many / 1e6:.0f} MB")


def _mid(seconds: list[float]) -> float:
    return statistics.median(seconds)


def _more(turn: Turn) -> Seen:
    if turn.more is None:
        raise ValueError("expected a turn with ten sites")
    return turn.more


ROWS: tuple[Callable[..., Row], ...] = (
    round_vs_stock_flower_row,
    sites_10_vs_3_row,
    start_to_first_round_s_row,
    idle_cpu_percent_site_row,
    bytes_up_vs_float32_row,
    rss_site_mb_row,
    rss_server_10_vs_3_row,
)


def main() -> None:
    """Measure the rows one after the other."""
    asked = options(__doc__).parse_args()
    rows = measure(ROWS, quick=asked.quick)
    about = {**machine(), "flwr": version("flwr"), "torch": version("torch")}
    show("round", rows, about, as_json=asked.json)


if __name__ == "__main__":
    main()
