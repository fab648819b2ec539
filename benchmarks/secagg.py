"""What secure aggregation costs: against the least possible, a plain sum and Flower's SecAgg+.

One process, one thread, made-up vectors, no network. Seconds are those of the processor (user and
system): on an idle machine they are those of the clock, and on a busy one nobody else's count.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy starts

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flower_peer import Flower
from rows import PAIRS_MIN, Row, interleave, load, machine, measure, options, show
from secagg_ours import VALUE_BOUND, Ours, made_up
from secagg_weigh import ROUNDS, weigh

from privacy.encoding import Encoding, RingBits
from privacy.masking import CHUNK_BYTES
from privacy.stream import Stream, fresh_key

SITES = 10
VALUES = 10_000_000
VALUES_QUICK = 3_000_000
PAIRS = 9
NOT_QUICK = "not measured by --quick"


@cache
def ours(
    values: int, n: int = SITES, threads: int = 1, clock: Callable[[], float] = time.process_time
) -> Ours:
    return Ours(n, values, threads=threads, clock=clock)


@cache
def flower(values: int) -> Flower:
    return Flower(SITES, lambda index: made_up(values, index), VALUE_BOUND)


def bound(values: int) -> float:
    """Time the least that masks of ten sites can cost a site: ten keystreams, ten additions.

    Both stay in the cache: nothing is read from memory or written to it.
    """
    zeros, stream = bytes(CHUNK_BYTES), np.empty(CHUNK_BYTES // 4, dtype=np.uint32)
    total, out = np.zeros_like(stream), stream.view(np.uint8).data
    ciphers = [
        Cipher(algorithms.AES256(fresh_key()), modes.CTR(bytes(16))).encryptor()
        for _ in range(SITES)
    ]
    began = time.process_time()
    for _ in range(4 * values // CHUNK_BYTES):  # rounded down: never more than the masks have
        for cipher in ciphers:
            cipher.update_into(zeros, out)
            np.add(total, stream, out=total)
    return time.process_time() - began


def float_sum(values: int) -> float:
    """Time numpy's sum of the ten vectors as float32: what a server without masks would do."""
    vectors = stacked(values)
    began = time.process_time()
    vectors.sum(axis=0)
    return time.process_time() - began


@cache
def stacked(values: int) -> npt.NDArray[np.float32]:
    return np.stack([made_up(values, index) for index in range(SITES)])  # (10, d)


def compared(
    row: Row, quick: bool, one: Callable[[int], float], other: Callable[[int], float]
) -> Row:
    """Return the row with how many times longer the other side takes, and both times.

    Args:
        row: its note says what is on each side, the one first.
        quick: fewer values and pairs.
        one: times one side for this number of values.
        other: times the other.
    """
    values, pairs = (VALUES_QUICK, PAIRS_MIN) if quick else (VALUES, PAIRS)
    measured = interleave(lambda: one(values), lambda: other(values), pairs)
    note = f"{row.note}; {values:,} values, {measured.times()}, {measured.quartiles()}"
    return replace(row, value=measured.ratio(), note=note)


def higher(name: str, target: float, note: str) -> Row:
    return Row(name, None, "ratio", "higher", target, note)


def lower(name: str, target: float, note: str) -> Row:
    return Row(name, None, "ratio", "lower", target, note)


# ---- a site

PATH = (
    "a site from RoundStart to Unmask: keys, shares, all checks, quantising, MAC, masks, hash, "
    "signatures, codec (neither training nor the check of Result)"
)
MASKS = "masks alone, integers to masked integers in memory that is there"


def client_vs_bound_row(*, quick: bool) -> Row:
    """Compare the mask loop with the least possible."""
    row = higher("client_vs_bound", 0.8, f"{MASKS}, and ten keystreams added up inside the cache")
    return compared(row, quick, lambda d: ours(d).masks(), bound)


def client_path_vs_bound_row(*, quick: bool) -> Row:
    """Compare all that a site does with the same."""
    row = higher("client_path_vs_bound", 0.33, f"{PATH}, and the same bound")
    return compared(row, quick, lambda d: ours(d).site(), bound)


def client_vs_flower_row(*, quick: bool) -> Row:
    """Compare all that a site does with all that Flower's client does."""
    note = f"{PATH}, and the four stages of flwr.client.mod.secaggplus_mod without its training"
    row = higher("client_vs_flower", 3.5, note)
    return compared(row, quick, lambda d: ours(d).site(), lambda d: flower(d).client())


def mask_vs_flower_row(*, quick: bool) -> Row:
    """Compare the mask loop with Flower's."""
    note = (
        f"{MASKS}, and pseudo_rand_gen with parameters_addition, parameters_subtraction and "
        "parameters_mod as Flower's third stage calls them"
    )
    row = higher("mask_vs_flower", 4.5, note)
    return compared(row, quick, lambda d: ours(d).masks(), lambda d: flower(d).masks())


def two_threads_row(*, quick: bool) -> Row:
    """Compare two threads with one."""
    note = f"{MASKS}, by two threads and by one; seconds of the clock: it wants two idle cores"
    row = higher("two_threads", 1.6, note)

    def by(threads: int, values: int) -> Ours:
        return ours(values, threads=threads, clock=time.perf_counter)

    done = compared(row, quick, lambda d: by(2, d).masks(), lambda d: by(1, d).masks())
    whole = compared(row, quick, lambda d: by(2, d).masked(), lambda d: by(1, d).masked())
    note = f"{done.note}; {load()}; {whole.value:.2f} with MAC, hash and codec, which have one"
    return replace(done, note=note)


def n100_client_vs_n10_row(*, quick: bool) -> Row:
    """Compare a site among a hundred with one among ten."""
    row = lower("n100_client_vs_n10", 12, f"{PATH} among ten sites, and among a hundred")
    return compared(row, quick, lambda d: ours(d).site(), lambda d: ours(d, n=100).site())


def upload_row(*, quick: bool) -> Row:
    """Compare the bytes that a site sends with those of its vector."""
    return _upload(lower("upload_vs_float32", 1.01, ""), 32, quick)


def upload16_row(*, quick: bool) -> Row:
    """Do the same in the small ring."""
    return _upload(lower("upload16_vs_float32", 0.51, ""), 16, quick)


def _upload(row: Row, ring_bits: RingBits, quick: bool) -> Row:
    values = VALUES_QUICK if quick else VALUES
    sent = Ours(SITES, values, ring_bits).upload_bytes
    note = f"Masked, {sent:,} bytes in the ring of {ring_bits} bits; {values:,} values"
    if ring_bits == 32:
        note += f"; Flower's {flower(values).upload_bytes / (4 * values):.2f}"
    return replace(row, value=sent / (4 * values), note=note)


# ---- the server

SERVER = "the server from Ready to Result: all checks, ten vectors folded, masks off, hash, codec"


def server_row(*, quick: bool) -> Row:
    """Compare the server with a sum of floats."""
    note = f"numpy's sum of the ten vectors as float32, and {SERVER}; nobody drops"
    row = lower("server_vs_float_sum", 5, note)
    done = compared(row, quick, float_sum, lambda d: ours(d).server())
    check = 1000 * ours(VALUES_QUICK if quick else VALUES).check_seconds
    return replace(done, note=f"{done.note}; a site then checks Result in {check:.1f} ms")


def server_one_drop_row(*, quick: bool) -> Row:
    """Do the same when the masks of a lost site must be rebuilt."""
    note = "the same sum of ten, and the same of nine: the tenth is lost after its keys were used"
    row = lower("server_one_drop_vs_float_sum", 7, note)
    return compared(row, quick, float_sum, lambda d: ours(d).server(dropped=1))


def server_vs_flower_row(*, quick: bool) -> Row:
    """Compare the server with Flower's."""
    note = (
        f"{SERVER}, and the mean; and flwr.server.workflow.SecAggPlusWorkflow less the clients' "
        "time, with a strategy that does nothing; nobody drops"
    )
    row = higher("server_vs_flower", 6, note)
    done = compared(row, quick, lambda d: ours(d).server(mean=True), lambda d: flower(d).server())
    if quick:
        return done
    lost = compared(
        row,
        quick,
        lambda d: ours(d).server(dropped=1, mean=True),
        lambda d: flower(d).server(dropped=1),
    )
    return replace(done, note=f"{done.note}; {lost.value:.2f} when one drops")


def server_memory_row(*, quick: bool) -> Row:
    """Weigh the server's process as it is deployed."""
    row = lower("server_peak_memory_vs_vector", 4, "")
    if quick:
        return replace(row, note=NOT_QUICK)
    grown = {n: weigh(n, VALUES, keep=True) / (4 * VALUES) for n in (SITES, 50)}
    bare = weigh(SITES, VALUES, keep=False) / (4 * VALUES)
    note = (
        f"what the process of server.masked.MaskedSum grows by in {ROUNDS} rounds, at its peak, "
        f"over the bytes of a vector of {VALUES:,} values; with the sum on its way to the sites, "
        "its store on disk, SQLite's cache and every message, one vector arriving at a time; "
        "without the transport's buffers, the model and the strategy's step; "
        + ", ".join(f"n = {n}: {one:.2f}" for n, one in grown.items())
        + f"; without a store, n = {SITES}: {bare:.2f}"
    )
    return replace(row, value=max(grown.values()), note=note)


# ---- accuracy


def rmse_row(*, quick: bool) -> Row:
    """Measure the error of the mean, which takes no time."""
    del quick
    row = Row("rmse_of_mean", None, "of bound", "lower", 1e-7, "")
    rmse, theory = _rmse(32)
    return replace(row, value=rmse, note=_accuracy(32, theory))


def rmse16_row(*, quick: bool) -> Row:
    """Compare the error of the mean in the small ring with that of rounding."""
    del quick
    rmse, theory = _rmse(16)
    note = f"{_accuracy(16, theory)}; measured {rmse:.2e}"
    return replace(lower("rmse16_vs_theory", 2, note), value=rmse / theory)


def _accuracy(ring_bits: int, theory: float) -> str:
    return (
        f"mean of ten vectors spread over the whole bound, ring of {ring_bits} bits; stochastic "
        f"rounding should give {theory:.2e}"
    )


def _rmse(ring_bits: RingBits) -> tuple[float, float]:
    """Return the root of the mean square error and what rounding alone should give."""
    encoding = Encoding(ring_bits, SITES, VALUE_BOUND)
    vectors = np.random.default_rng(1).uniform(-VALUE_BOUND, VALUE_BOUND, (SITES, 1_000_000))
    total = np.zeros(vectors.shape[1], dtype=np.int64)
    for vector in vectors:
        total += encoding.quantise(vector, Stream(fresh_key()))[0]
    error = encoding.dequantise(total) / SITES - vectors.mean(axis=0)
    # A rounding up or down at a fraction f has variance f (1 - f), in the mean 1/6 of a step.
    theory = 1 / (encoding.scale * (6 * SITES) ** 0.5)
    return float(np.sqrt(np.mean(error**2))) / VALUE_BOUND, theory / VALUE_BOUND


ROWS: tuple[Callable[..., Row], ...] = (
    client_vs_bound_row,
    client_path_vs_bound_row,
    server_row,
    server_one_drop_row,
    client_vs_flower_row,
    mask_vs_flower_row,
    server_vs_flower_row,
    upload_row,
    upload16_row,
    two_threads_row,
    n100_client_vs_n10_row,
    server_memory_row,
    rmse_row,
    rmse16_row,
)


def main() -> None:
    """Measure the rows one after the other."""
    asked = options(__doc__).parse_args()
    rows = measure(ROWS, quick=asked.quick)
    about = {**machine(), "cryptography": version("cryptography"), "flwr": version("flwr")}
    show("secagg", rows, about, as_json=asked.json)


if __name__ == "__main__":
    main()
