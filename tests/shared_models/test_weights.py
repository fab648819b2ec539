"""Parameters as one vector: shared memory, order, sizes, names."""

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from shared_models.mlp import Mlp
from shared_models.weights import flatten_in_place, load_vector, safetensors_of, vector_of, views


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))


def by_hand(module: nn.Module) -> list[float]:
    return [float(v) for p in module.parameters() for v in p.detach().reshape(-1)]


def test_the_vector_is_the_parameters_one_after_the_other() -> None:
    module = network()
    vector = vector_of(module)
    assert vector.dtype == np.float32
    assert vector.tolist() == by_hand(module)


def test_flattening_changes_no_value() -> None:
    module = network()
    before = vector_of(module)
    assert flatten_in_place(module).numpy().tolist() == before.tolist()
    assert vector_of(module).tolist() == before.tolist()


def test_writing_into_the_flat_tensor_changes_the_network() -> None:
    module = network()
    flat = flatten_in_place(module)
    flat.copy_(torch.arange(flat.numel(), dtype=torch.float32))
    assert by_hand(module) == list(range(flat.numel()))


def test_changing_the_network_changes_the_flat_tensor() -> None:
    module = network()
    flat = flatten_in_place(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    assert flat.tolist() == [7.0] * flat.numel()


def test_a_flat_network_computes_what_the_plain_one_does() -> None:
    module, inputs = network(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    expected = module(inputs).tolist()
    flatten_in_place(module)
    assert module(inputs).tolist() == expected


def test_gradients_reach_the_views() -> None:
    module = network()
    flatten_in_place(module)
    module(torch.ones(2, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


def test_a_network_without_parameters_has_an_empty_vector() -> None:
    assert flatten_in_place(nn.ReLU()).numel() == 0


def test_views_share_the_memory_of_the_vector_and_have_the_parameters_shapes() -> None:
    module = network()
    flat = torch.zeros(vector_of(module).size)
    pieces = views(flat, module)
    flat.fill_(1.0)
    assert [p.shape for p in pieces] == [p.shape for p in module.parameters()]
    assert all(bool((piece == 1.0).all()) for piece in pieces)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_vector_of_another_size_has_no_views(wrong: int) -> None:
    module = network()
    with pytest.raises((ValueError, RuntimeError)):
        views(torch.zeros(vector_of(module).size + wrong), module)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_vector_of_another_size_is_not_loaded(wrong: int) -> None:
    module = network()
    before = vector_of(module)
    with pytest.raises((ValueError, RuntimeError)):
        load_vector(module, np.zeros(before.size + wrong, dtype=np.float32))
    assert vector_of(module).tolist() == before.tolist()


def test_a_vector_is_loaded_as_it_was_taken() -> None:
    one, two = network(), network()
    vector = np.arange(vector_of(one).size, dtype=np.float32)
    load_vector(two, vector)
    assert vector_of(two).tolist() == vector.tolist()


def test_loading_copies() -> None:
    module = network()
    vector = np.zeros(vector_of(module).size, dtype=np.float32)
    load_vector(module, vector)
    vector += 1
    assert vector_of(module).tolist() == [0.0] * vector.size


def test_taking_a_vector_copies() -> None:
    module = network()
    flat = flatten_in_place(module)
    vector = vector_of(module)
    before = vector.tolist()
    flat.zero_()
    assert vector.tolist() == before


def test_the_file_holds_every_parameter_under_its_name_and_the_metadata() -> None:
    module = Mlp(4, 2, hidden=(3,))
    blob = safetensors_of(module, {"study_digest": "ab"})
    found = safetensors.numpy.load(blob)
    named = dict(module.named_parameters())
    assert list(found) == sorted(named) or set(found) == set(named)
    assert all(found[k].tolist() == named[k].tolist() for k in named)
    assert b'"study_digest":"ab"' in blob


def test_the_file_of_a_flat_network_is_that_of_the_plain_one() -> None:
    module = network()
    before = safetensors_of(module, {})
    flatten_in_place(module)
    assert safetensors_of(module, {}) == before
