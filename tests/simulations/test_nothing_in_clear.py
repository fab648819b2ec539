"""Attack 16 on whole studies: what one site adds to a sum is nowhere but under its masks.

Real sites, real records, real rounds over Flower's messages. Looked through are every message in
both directions, every log line, what the coordinator writes, and what it is given as a sum.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from client.site import Contribution, Site
from client.training import Trainer
from server.checkpoint import Checkpoint, save
from server.rounds import run_rounds
from shared_models.debits import planned_mechanism
from shared_models.registry import build_network
from shared_models.strategies import first_state
from shared_models.study import Study
from shared_models.weights import vector_of
from simulations.federation import open_federation
from simulations.pool import gather, pool

RARE = 10**5  # a number below it may stand somewhere by chance


def traces(given: Contribution) -> Iterator[bytes]:
    """How a contribution would look: any two values side by side, any lanes, their digits."""
    values, lanes = given.values, given.lanes
    for order in ("<", ">"):
        wide = values.astype(f"{order}i4").tobytes()
        pairs = [at for at in range(len(values) - 1) if min(abs(values[at : at + 2])) > RARE]
        yield from (wide[4 * at : 4 * at + 8] for at in pairs)
        yield from (lane.tobytes() for lane in lanes.astype(f"{order}i8") if abs(lane) > RARE)
        yield lanes.astype(f"{order}i8").tobytes()  # small counts: all of them in a row
    yield from (str(number).encode() for number in (*values, *lanes) if abs(number) > RARE)


PRIVATE = {"epsilon": 4.0, "delta": 1e-5, "clipping_norm": 1.0, "expected_batch": 16}
MODES: dict[str, dict[str, object]] = {
    "none": {},
    "local": {"privacy": {**PRIVATE, "mode": "local", "sampling_rate": 0.5}},
    "distributed": {
        "privacy": {**PRIVATE, "mode": "distributed", "records_max": 60},
        "training": {"learning_rate": 0.5},
    },
}


@pytest.mark.parametrize("mode", list(MODES))
def test_attack_16_nothing_of_one_site_is_in_clear_anywhere(
    toy_study: Callable[..., Study],
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    mode: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    study = toy_study(**MODES[mode], **{"aggregation.masking": "fsa1"})
    given, wire = list[Contribution](), list[bytes]()
    work = Site.contribute

    def contribute(self: Site, *order: Any) -> Contribution:
        given.append(work(self, *order))
        return given[-1]

    monkeypatch.setattr(Site, "contribute", contribute)
    first = first_state(study.aggregation, vector_of(build_network(study, 3)))
    trainer = Trainer(study, planned_mechanism(study))
    records = pool(study, gather(study, toy_csv))
    federation = open_federation(study, records, trainer, tmp_path / "sites", first)

    def exchange(
        kind: str, messages: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes]]:
        wire.extend(messages[site] for site in messages)
        for site, reply in federation.exchange(kind, messages, deadline_s):
            wire.append(reply)
            yield site, reply

    start = Checkpoint(study.digest(), first, ())
    sums = []

    def keep(now: Checkpoint) -> None:
        save(tmp_path / "server", now)
        sums.append(repr(now).encode())
        sums.extend(file.read_bytes() for file in (tmp_path / "server").iterdir())

    for _ in run_rounds(
        study, start, exchange, federation.summation, federation.cohorts, 3, keep=keep
    ):
        pass
    federation.close()
    said = capfd.readouterr()
    seen = [*wire, *sums, caplog.text.encode(), said.out.encode(), said.err.encode()]
    assert len(given) == 3 * (4 + 2)  # sites times sums, of training and of evaluation
    hidden = {trace for one in given for trace in traces(one) if len(trace) > 5}
    assert len(hidden) > 100
    pattern = re.compile(b"|".join(map(re.escape, hidden)))
    for data in seen:
        assert not pattern.search(data)
    # The search finds what is there: the same contributions, sent as they are.
    assert all(pattern.search(b"x" + one.values.tobytes() + one.lanes.tobytes()) for one in given)
