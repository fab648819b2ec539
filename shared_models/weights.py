"""A network's parameters as one flat vector, and as a safetensors file with their names.

The order is that of ``module.parameters()``: the same on every machine for the same study.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from torch import nn

Vector32 = npt.NDArray[np.float32]  # (P,) one network's parameters


def flatten_in_place(module: nn.Module) -> torch.Tensor:
    """Move all parameters into one (P,) float32 tensor and leave them as views of it.

    Writing into the returned tensor changes the network; no copy is made at any step.
    """
    parameters = list(module.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]) if parameters else torch.empty(0)
    for parameter, view in zip(parameters, views(flat, module), strict=True):
        parameter.data = view
    return flat


def views(flat: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    """Return the pieces of a (P,) tensor in the shapes of the module's parameters."""
    pieces, start = [], 0
    for parameter in module.parameters():
        count = parameter.numel()
        pieces.append(flat[start : start + count].view(parameter.shape))
        start += count
    if start != flat.numel():
        raise ValueError(f"expected a vector of {start} values, got {flat.numel()}")
    return pieces


def vector_of(module: nn.Module) -> Vector32:
    """Return a copy of the parameters, (P,) float32."""
    return np.concatenate([p.detach().numpy().reshape(-1) for p in module.parameters()])


def load_vector(module: nn.Module, vector: Vector32) -> None:
    """Copy a (P,) vector into the parameters."""
    source = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), views(source, module), strict=True):
            parameter.copy_(value)


def safetensors_of(module: nn.Module, metadata: Mapping[str, str]) -> bytes:
    """Return the named parameters as a safetensors file."""
    tensors = {name: p.detach().numpy() for name, p in module.named_parameters()}
    return safetensors.numpy.save(tensors, dict(metadata))
