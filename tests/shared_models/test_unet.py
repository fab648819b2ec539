"""The U-Net: one definition for pictures and volumes, private like the naive loop."""

import math

import pytest
import torch

from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import StudyError
from privacy.stream import Stream
from shared_models import sections
from shared_models.inputs import InputSpec
from shared_models.mask import Mask
from shared_models.unet import Unet, build_unet
from tests.privacy.networks import KEY, assert_close, naive_sum

SIZES = {2: (8, 12), 3: (4, 8, 4)}


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("outputs", [1, 3])
def test_there_is_an_answer_for_every_point(axes: int, outputs: int) -> None:
    kind = "image" if axes == 2 else "volume"
    section = sections.Unet(name="unet", channels=(4, 6, 8))
    network = build_unet(section, InputSpec(kind, (2, *SIZES[axes])), outputs)  # type: ignore[arg-type]
    assert network(torch.rand(3, 2, *SIZES[axes])).shape == (3, outputs, *SIZES[axes])
    assert network(torch.rand(0, 2, *SIZES[axes])).shape == (0, outputs, *SIZES[axes])


def test_the_parameters_are_those_of_the_paper_with_padding() -> None:
    """Counted by hand: two 3x3 convolutions a block with biases, and a norm after each."""

    def block(shallow: int, deep: int) -> int:
        return 9 * shallow * deep + deep + 9 * deep * deep + deep + 2 * 2 * deep

    wanted = block(3, 4) + block(4, 8) + (8 * 4 * 4 + 4) + block(8, 4) + (4 + 1)
    assert sum(p.numel() for p in Unet(3, 2, 1, (4, 8)).parameters()) == wanted


def test_coarse_maps_see_far_and_fine_ones_keep_the_place() -> None:
    """One changed point moves answers farther off than two convolutions see, near ones more."""
    torch.manual_seed(0)
    network, x = Unet(1, 2, 1, (4, 8, 8)), torch.rand(1, 1, 32, 32)
    changed = x.clone()
    changed[0, 0, 16, 16] += 1
    with torch.no_grad():
        moved = (network(changed) - network(x)).abs()[0, 0]
    assert moved[16, 24] > 0
    assert moved[14:19, 14:19].mean() > 3 * moved.mean()


@pytest.mark.parametrize("axes", [2, 3])
def test_a_private_step_is_the_naive_loop(axes: int) -> None:
    torch.manual_seed(axes)
    model = Unet(2, axes, 2, (4, 6))
    x = torch.randn(5, 2, *SIZES[axes])
    y = torch.randint(0, 3, (5, *SIZES[axes]), dtype=torch.uint8)
    losses = Mask(("a", "b"), SIZES[axes], (1.0,) * axes).losses
    for bound in (0.5, math.inf):
        step = PrivateStep(model, losses, Mechanism(bound, 0.0, 0.5, 1.0))
        assert step.fallback == ""  # every layer has a rule: no slow way
        got = step.clipped_sum(x, y, None, Stream(KEY))
        assert_close(got, naive_sum(model, x, y, bound, losses=losses))


@pytest.mark.parametrize("kind", ["features", "series", "tokens"])
def test_other_records_are_refused_by_name(kind: str) -> None:
    section = sections.Unet(name="unet")
    with pytest.raises(StudyError, match=f"'unet' expected pictures or volumes .* found {kind}"):
        build_unet(section, InputSpec(kind, (8, 8)), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 8, 10), (3, 6, 8), (1, 8, 8, 2)])
def test_sides_that_cannot_be_halved_are_refused_by_name(shape: tuple[int, ...]) -> None:
    kind = "image" if len(shape) == 3 else "volume"
    told = "x".join(map(str, shape[1:]))
    with pytest.raises(StudyError, match=f"model.channels: .* multiples of 4 .* found {told}"):
        build_unet(sections.Unet(name="unet"), InputSpec(kind, shape), 1)  # type: ignore[arg-type]


def test_a_network_of_one_size_is_refused() -> None:
    with pytest.raises(ValueError, match="channels"):
        sections.Unet(name="unet", channels=(16,))
