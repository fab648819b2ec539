"""Facts about the convolutional network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.cnn import Cnn, build_cnn
from shared_models.inputs import InputSpec

SECTION = sections.Cnn(name="cnn")


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("image", "classes", "expected"),
    [
        ((1, 28, 28), 10, 421_642),
        ((3, 32, 32), 10, 545_098),
        ((1, 8, 8), 10, 53_002),
    ],
)
def test_has_the_known_number_of_parameters(
    image: tuple[int, int, int], classes: int, expected: int
) -> None:
    assert count(build_cnn(SECTION, InputSpec("image", image), classes)) == expected


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    depth=st.integers(1, 4),
    height=st.integers(4, 20),
    width=st.integers(4, 20),
    channels=st.lists(st.integers(1, 12), min_size=1, max_size=2),
    norm=st.sampled_from(["none", "group"]),
    outputs=st.integers(1, 4),
)
def test_any_picture_that_can_be_halved_gives_logits(
    batch: int, depth: int, height: int, width: int, channels: list[int], norm: str, outputs: int
) -> None:
    section = sections.Cnn.model_validate(
        {"name": "cnn", "channels": tuple(channels), "norm": norm, "hidden": 5}
    )
    network = build_cnn(section, InputSpec("image", (depth, height, width)), outputs)
    assert network(torch.zeros(batch, depth, height, width)).shape == (batch, outputs)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_record_does_not_feel_its_neighbours(norm: str) -> None:
    section = sections.Cnn.model_validate({"name": "cnn", "norm": norm})
    network = build_cnn(section, InputSpec("image", (1, 8, 8)), 3)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    # 1e-5: one picture and six take different routes through the convolution, in float32.
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), atol=1e-5, rtol=1e-5)


def test_group_norm_is_there_when_asked_for() -> None:
    network = Cnn((1, 8, 8), 3, group_norm=True)
    groups = [m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [8, 8]


@pytest.mark.parametrize("image", [(1, 3, 28), (1, 28, 3), (1, 1, 1)])
def test_a_picture_too_small_for_the_poolings_is_refused(image: tuple[int, int, int]) -> None:
    with pytest.raises(StudyError, match=r"model\.channels: expected at least 4 pixels"):
        build_cnn(SECTION, InputSpec("image", image), 2)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(4, 20),
    vocabulary=st.integers(2, 9),
    channels=st.lists(st.integers(1, 12), min_size=1, max_size=2),
    norm=st.sampled_from(["none", "group"]),
)
def test_any_tokens_that_can_be_halved_give_logits(
    batch: int, length: int, vocabulary: int, channels: list[int], norm: str
) -> None:
    section = sections.Cnn.model_validate(
        {"name": "cnn", "channels": tuple(channels), "norm": norm, "hidden": 5}
    )
    network = build_cnn(section, InputSpec("tokens", (length,), vocabulary=vocabulary), 3)
    assert network(torch.zeros(batch, length, dtype=torch.int64)).shape == (batch, 3)


def test_what_padding_would_embed_to_changes_nothing() -> None:
    network = Cnn((4, 8), 2, vocabulary=5, channels=(6,), hidden=5)
    tokens = torch.tensor([[1, 2, 3, 4, 1, 0, 0, 0]])
    before = network(tokens)
    assert network.embedding is not None
    with torch.no_grad():
        network.embedding.weight[0] += 100.0
    assert torch.equal(network(tokens), before)


def test_a_token_record_does_not_feel_its_neighbours() -> None:
    network = Cnn((4, 8), 2, vocabulary=5, group_norm=True)
    x = torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["features", "series"])
def test_what_is_neither_picture_nor_tokens_is_refused(kind: str) -> None:
    with pytest.raises(StudyError, match=rf"expected pictures or tokens as input, found {kind}"):
        build_cnn(SECTION, InputSpec(kind, (30, 30)), 2)  # type: ignore[arg-type]
