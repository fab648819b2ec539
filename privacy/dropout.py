"""Seed what nn.Dropout draws from, and leave no trace of it.

It draws nothing itself.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def dropout_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Start torch's generators, which nn.Dropout reads, at ``seed``; put them back afterwards."""
    if device.type == "cuda":
        with torch.random.fork_rng([device]):
            torch.manual_seed(seed)
            yield
        return
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
