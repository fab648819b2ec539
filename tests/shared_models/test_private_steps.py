"""The private step of every shared network is the naive loop over single records."""

import math
from typing import Any

import pytest

from privacy.dpsgd import Mechanism, PrivateStep
from privacy.stream import Stream
from shared_models.registry import build_network
from shared_models.tasks import target_of
from tests.privacy.networks import KEY, assert_close, naive_sum
from tests.shared_models.studies import MODELS, made_records, task_study

CNNS = [
    ("cnn", task, {"norm": norm}) for task in ("image", "sequence") for norm in ("none", "group")
]
READERS = [
    ("attention", task, {"recurrent": reader})
    for task in ("series", "sequence")
    for reader in ("none", "lstm", "gru", "rnn")
]


@pytest.mark.parametrize(("name", "task", "more"), [*CNNS, *READERS])
def test_a_private_step_is_the_naive_loop(name: str, task: str, more: dict[str, Any]) -> None:
    study = task_study(task, model={**MODELS[name], **more})
    network, losses = build_network(study, 3), target_of(study).losses
    x, y = made_records(study, 9)
    for bound in (0.1, math.inf):
        step = PrivateStep(network, losses, Mechanism(bound, 0.0, 0.5, 1.0))
        assert_close(
            step.clipped_sum(x, y, None, Stream(KEY)),
            naive_sum(network, x, y, bound, losses=losses),
        )
    assert step.fallback == ""  # by rules of our own
