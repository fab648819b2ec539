"""The check that a network is given records of its study's shape, and none of another.

It reads no value of a record, and adds nothing to what a network keeps or learns.
"""

from dataclasses import dataclass

import torch
from torch import nn

from shared_models.inputs import InputSpec
from shared_models.study import Study


@dataclass(frozen=True)
class ShapeCheck:
    """What runs before the network does: some would answer for other shapes, others fail unnamed.

    Attributes:
        shape: of one record.
        reads: whose network it is and what it reads, in words.
    """

    shape: tuple[int, ...]
    reads: str

    def __call__(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        """Refuse records of another shape than (B, *shape).

        Raises:
            ValueError: their shape is another.
        """
        found = given[0].shape
        if found[1:] != self.shape or not found:
            wanted = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(f"expected ({wanted}), got {tuple(found)}: {self.reads}")


def checked(network: nn.Module, study: Study, spec: InputSpec) -> nn.Module:
    """Return the network, which from now on refuses records that are not of ``spec``."""
    reads = f'the network "{study.model.name}" of study "{study.name}" reads {_in_words(spec)}'
    network.register_forward_pre_hook(ShapeCheck(spec.shape, reads))
    return network


def _in_words(spec: InputSpec) -> str:
    first, *sizes = spec.shape
    match spec.kind:
        case "image" | "volume":
            what = "pictures" if spec.kind == "image" else "volumes"
            return f"{what} of {' x '.join(map(str, sizes))} with {_many(first, 'channel')}"
        case "series":
            return f"series of {_many(first, 'step')} with {_many(sizes[0], 'number')} each"
        case "tokens":
            return f"sequences of {_many(first, 'token id')}"
        case "parts":
            names = ", ".join(part.name for part in spec.parts)
            return f"records of {first} numbers: {names}, then a mark for each"
    return f"records of {_many(first, 'number')}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
