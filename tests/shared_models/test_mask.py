"""Masks: each record's loss is its own, overlaps and outlines are those of known shapes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.cell_noise import fit_cells
from privacy.errors import DataError, StudyError
from privacy.stream import Stream
from shared_models.mask import Mask, surface_distance
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.tasks import target_of
from tests.privacy.networks import KEY

ONE = Mask(("nucleus",), (4, 6), (1.0, 1.0))
TWO = Mask(("liver", "lesion"), (4, 6), (2.0, 0.5))
STEP = 1 << 10


def drawn(target: Mask, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    names = len(target.names)
    truth = draw.integers(0, names + 1, (count, *target.sizes)).astype(np.uint8)
    truth[draw.random(count) < 0.2] = 0  # records without any structure
    logits = draw.normal(0, 2, (count, names, *target.sizes))
    return truth, target.predictions(torch.from_numpy(logits))


def certain(target: Mask, found: np.ndarray) -> np.ndarray:
    """Predictions that say ``found``, (N, *sizes), and nothing else."""
    return np.stack([(found == k + 1) for k in range(len(target.names))], axis=1).astype(float)


# The loss


def test_the_loss_is_entropy_and_soft_dice_by_hand() -> None:
    target = Mask(("n",), (1, 2), (1.0, 1.0))
    outputs = torch.tensor([[[[math.log(3.0), 0.0]]]])  # chances 3/4, 1/2
    truth = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    entropy = (-math.log(0.75) - math.log(0.5)) / 2
    dice = (2 * 0.75 + 1) / (1.25 + 1 + 1)
    assert float(target.losses(outputs, truth)) == pytest.approx(entropy + 1 - dice)


@pytest.mark.parametrize("target", [ONE, TWO])
def test_no_record_has_a_part_in_the_loss_of_another(target: Mask) -> None:
    torch.manual_seed(1)
    outputs = torch.randn(4, target.outputs, *target.sizes)
    truth = torch.randint(0, target.outputs + 1, (4, *target.sizes), dtype=torch.uint8)
    together = target.losses(outputs, truth)
    alone = [target.losses(outputs[i : i + 1], truth[i : i + 1])[0] for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone))
    changed = outputs.clone()
    changed[1:] *= -1
    assert target.losses(changed, truth)[0] == together[0]


@pytest.mark.parametrize("target", [ONE, TWO])
def test_the_loss_of_the_figures_is_that_of_training(target: Mask) -> None:
    draw = torch.Generator().manual_seed(2)
    outputs = torch.randn(5, target.outputs, *target.sizes, generator=draw)
    truth = torch.randint(0, target.outputs + 1, (5, *target.sizes), generator=draw)
    told = target.exact_figures(truth.numpy(), target.predictions(outputs))["loss"].value
    assert told == pytest.approx(float(target.losses(outputs, truth).mean()), rel=1e-5)


def test_a_record_without_the_structure_can_be_right() -> None:
    outputs, truth = torch.full((1, 1, 4, 6), -40.0), torch.zeros(1, 4, 6, dtype=torch.uint8)
    assert float(ONE.losses(outputs, truth)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("target", [ONE, TWO])
def test_chances_and_the_background_add_up(target: Mask) -> None:
    _, chances = drawn(target, 3, 4)
    assert chances.shape == (3, target.outputs, *target.sizes)
    assert (chances >= 0).all()
    assert (chances.sum(axis=1) <= 1).all()
    extreme = target.predictions(torch.full((1, target.outputs, *target.sizes), 1e4))
    assert np.isfinite(extreme).all()


# Overlap


def test_dice_and_iou_are_those_of_counted_points() -> None:
    truth = np.zeros((3, 4, 6), dtype=np.uint8)
    found = np.zeros((3, 4, 6), dtype=np.uint8)
    truth[0, 0, :4] = 1
    found[0, 0, 2:6] = 1  # 2 shared of 4 and 4: Dice 1/2, IoU 1/3
    truth[1, 1, :2] = found[1, 1, :2] = 1  # all
    figures = ONE.exact_figures(truth, certain(ONE, found))  # the third has none: left out
    assert figures["dice"].value == pytest.approx(0.75)
    assert figures["iou"].value == pytest.approx((1 / 3 + 1) / 2)
    assert figures["dice"].n == figures["iou"].n == figures["surface_distance"].n == 2
    assert figures["dice_points"].value == pytest.approx(2 * 4 / (6 + 6))
    assert figures["iou_points"].value == pytest.approx(4 / 8)
    assert figures["loss"].n == 3
    assert tuple(figures) == ONE.metrics


def test_a_structure_that_is_missed_or_made_up_has_a_dice_of_nothing() -> None:
    some = np.zeros((1, 4, 6), dtype=np.uint8)
    some[0, 1, 1] = 1
    none = np.zeros_like(some)
    for truth, found in ((some, none), (none, some)):
        figures = ONE.exact_figures(truth, certain(ONE, found))
        assert figures["dice"].value == figures["iou"].value == 0
        assert figures["surface_distance"].value == pytest.approx(math.hypot(4, 6))
    nothing = ONE.exact_figures(none, certain(ONE, none))
    assert nothing["dice"].value is nothing["surface_distance"].value is None
    assert nothing["loss"].value is not None


def test_of_several_structures_each_has_its_dice_and_the_mean_is_theirs() -> None:
    truth = np.zeros((1, 4, 6), dtype=np.uint8)
    truth[0, 0], truth[0, 2] = 1, 2
    found = truth.copy()
    found[0, 2, :3] = 0
    figures = TWO.exact_figures(truth, certain(TWO, found))
    assert figures["dice_liver"].value == 1
    assert figures["dice_lesion"].value == pytest.approx(2 * 3 / 9)
    assert figures["dice"].value == pytest.approx((1 + 2 / 3) / 2)
    assert tuple(figures) == TWO.metrics


# Outlines


def ball(sizes: tuple[int, ...], middle: tuple[float, ...], radius: float) -> np.ndarray:
    places = np.indices(sizes).astype(float)
    away = sum((axis - at) ** 2 for axis, at in zip(places, middle, strict=True))
    return np.asarray(away <= radius**2)


def test_balls_of_two_radii_are_as_far_apart_as_their_radii() -> None:
    """The outlines of concentric balls of 12 and 8 are 4 apart, to less than a voxel's half."""
    small, large = (ball((32, 32, 32), (15.5, 15.5, 15.5), radius) for radius in (8, 12))
    assert surface_distance(small, large, (1, 1, 1)) == pytest.approx(4, abs=0.3)
    assert surface_distance(small, large, (2, 2, 2)) == pytest.approx(8, abs=0.6)
    assert surface_distance(large, large, (1, 1, 1)) == 0


def test_a_distance_is_that_of_the_naive_loop_over_outlines() -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        one, other = draw.random((2, 5, 7)) < 0.3
        outlines = [np.argwhere(_outline(shape)) * (2.0, 0.5) for shape in (one, other)]
        if min(map(len, outlines)) == 0:
            continue
        away = np.linalg.norm(outlines[0][:, None] - outlines[1][None], axis=2)
        wanted = (away.min(1).sum() + away.min(0).sum()) / sum(map(len, outlines))
        assert surface_distance(one, other, (2.0, 0.5)) == pytest.approx(wanted)


def _outline(shape: np.ndarray) -> np.ndarray:
    padded = np.pad(shape, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return shape & ~inner


def test_a_square_moved_by_one_is_less_than_one_away() -> None:
    truth, found = np.zeros((2, 1, 8, 8), dtype=np.uint8)
    truth[0, 2:6, 2:6], found[0, 2:6, 3:7] = 1, 1
    target = Mask(("n",), (8, 8), (1.0, 3.0))
    told = target.exact_figures(truth, certain(target, found))["surface_distance"].value
    assert told is not None
    assert 0 < told <= 3


def test_without_one_of_the_two_there_is_no_distance() -> None:
    some = ball((4, 4), (1, 1), 1)
    assert surface_distance(some, some & False, (1, 1)) is None


# Cells


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.sampled_from([ONE, TWO]), st.integers(0, 99))
def test_the_cells_of_a_union_are_the_sum_of_the_cells(
    one: int, other: int, target: Mask, seed: int
) -> None:
    truth, chances = drawn(target, one + other, seed)
    parts = [(truth[:one], chances[:one]), (truth[one:], chances[one:]), (truth, chances)]
    counts = [target.count_cells(*part) for part in parts]
    assert len(counts[0]) == len(target.cell_names()) == len(set(target.cell_names()))
    np.testing.assert_array_equal(counts[0] + counts[1], counts[2])
    few = [target.count_noised_cells(*part, None, STEP) for part in parts]
    names = target.noised_cell_names()
    assert len(few[0]) == len(names) == len(set(names))
    np.testing.assert_array_equal(few[0] + few[1], few[2])


@pytest.mark.parametrize("target", [ONE, TWO])
def test_cells_tell_what_the_predictions_tell(target: Mask) -> None:
    truth, chances = drawn(target, 30, 5)
    exact = target.exact_figures(truth, chances)
    counted = target.figures_from_cells(target.count_cells(truth, chances))
    assert tuple(exact) == tuple(counted)
    for name, one in exact.items():
        assert counted[name].n == one.n
        # 30 records, each rounded to 2^-24.
        for limit in ("value", "low", "high"):
            assert getattr(counted[name], limit) == pytest.approx(getattr(one, limit), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([ONE, TWO]),
    st.integers(0, 99),
)
def test_a_unit_moves_the_noised_cells_by_the_sensitivity_at_most(
    owners: list[int], by_patient: bool, target: Mask, seed: int
) -> None:
    truth, chances = drawn(target, len(owners), seed)
    chances = certain(target, truth) if seed % 2 else chances  # Dice and IoU of 1: the most
    units = np.array(owners) if by_patient else np.arange(len(owners))
    whole = target.count_noised_cells(truth, chances, units if by_patient else None, STEP)
    for unit in np.unique(units):
        kept = units != unit
        own = units[kept] if by_patient else None
        part = target.count_noised_cells(truth[kept], chances[kept], own, STEP)
        assert np.linalg.norm(whole - part) <= target.cell_sensitivity * STEP


@pytest.mark.parametrize("target", [ONE, TWO])
def test_noised_figures_are_near_the_exact_ones_where_there_are_many_records(target: Mask) -> None:
    truth, chances = drawn(target, 2000, 6)
    noise = fit_cells(5.0, target.cell_sensitivity, len(target.noised_cell_names()), 3, 3)
    cells = target.count_noised_cells(truth, chances, None, noise.step)
    told = target.figures_from_noised_cells(noise.encode(cells, Stream(KEY)), noise, 1)
    exact = target.exact_figures(truth, chances)
    assert tuple(told) == target.metrics
    for name in ("dice", "iou"):
        one, other = told[name], exact[name].value
        assert one.value == pytest.approx(other, abs=0.02)
        assert one.low is not None
        assert one.high is not None
        assert other is not None
        assert one.low < other < one.high
    assert told["surface_distance"].value is told["loss"].value is None


def test_a_few_records_within_the_noise_have_no_figures() -> None:
    truth, chances = drawn(ONE, 4, 7)
    noise = fit_cells(5.0, ONE.cell_sensitivity, 3, 3, 3)
    cells = ONE.count_noised_cells(truth, chances, None, noise.step)
    told = ONE.figures_from_noised_cells(noise.encode(cells, Stream(KEY)), noise, 1)
    assert told["dice"].value is None


def test_what_is_not_finite_is_refused_and_under_noise_left_in_silence() -> None:
    truth, chances = drawn(ONE, 2, 1)
    truth[:] = 1
    chances[0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="finite"):
        ONE.count_cells(truth, chances)
    with pytest.raises(DataError, match="finite"):
        ONE.exact_figures(truth, chances)
    assert ONE.count_noised_cells(truth, chances, None, STEP)[0] == STEP


@pytest.mark.parametrize(
    ("truth", "chances"),
    [((2, 4, 6), (2, 1, 6, 4)), ((2, 6, 4), (2, 1, 6, 4)), ((2, 4, 6), (2, 2, 4, 6))],
)
def test_other_shapes_are_refused(truth: tuple[int, ...], chances: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ONE.count_cells(np.zeros(truth, dtype=np.uint8), np.zeros(chances))


def test_other_numbers_and_other_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        ONE.count_cells(np.full((1, 4, 6), 2, dtype=np.uint8), np.zeros((1, 1, 4, 6)))
    with pytest.raises(ValueError, match="cells"):
        ONE.figures_from_cells(np.zeros(3, dtype=np.int64))


def test_the_histogram_of_a_report_has_the_records_with_the_structure() -> None:
    truth, chances = drawn(TWO, 20, 8)
    curves = TWO.curves(truth, chances)
    counts = [sum(row["counts"]) for row in curves["dice"]["rows"]]
    assert max(counts) == TWO.exact_figures(truth, chances)["dice"].n
    assert curves["classes"] == []


# The linear counterpart


def test_a_linear_model_finds_bright_points() -> None:
    draw = np.random.default_rng(9)
    truth = (draw.random((12, 4, 6)) < 0.3).astype(np.uint8)
    values = 0.3 * draw.random((12, 4, 6)) + 0.5 * truth
    chances = ONE.linear(values[:8].reshape(8, -1), truth[:8], values[8:].reshape(4, -1))
    assert chances.shape == (4, 1, 4, 6)
    assert (ONE.decided(chances) == truth[8:]).mean() > 0.95


def test_a_linear_model_of_one_value_says_that_value() -> None:
    inputs, full = np.random.default_rng(1).random((2, 24)), np.ones((2, 4, 6), dtype=np.uint8)
    assert (ONE.decided(ONE.linear(inputs, full, inputs)) == 1).all()
    assert (ONE.decided(ONE.linear(inputs, full * 0, inputs)) == 0).all()


# Studies

IMAGE: dict[str, Any] = {"kind": "image", "height": 8, "width": 12}
MASK: dict[str, Any] = {"kind": "mask", "values": ["ground", "nucleus"]}
WARD: dict[str, Any] = {"kind": "category", "values": ["a", "b"]}
COLUMNS = {"picture": IMAGE, "nuclei": MASK}


def study(task: str = "segmentation", model: str = "unet", **columns: Any) -> Study:
    return parse_study(
        {
            "name": "where",
            "task": task,
            "rounds": 1,
            "data": {"target": "nuclei", "columns": {**COLUMNS, **columns}},
            "model": {"name": model},
            "training": {"learning_rate": 0.1},
            "privacy": {"mode": "none"},
        }
    )


def test_the_target_follows_from_the_contract() -> None:
    found = target_of(study())
    assert found == Mask(("nucleus",), (8, 12), (1.0, 1.0))
    deep = study(picture={**IMAGE, "depth": 4}, nuclei={**MASK, "spacing": [2.2, 2, 2]})
    assert target_of(deep) == Mask(("nucleus",), (4, 8, 12), (2.2, 2.0, 2.0))
    assert build_network(deep)(torch.rand(2, 1, 4, 8, 12)).shape == (2, 1, 4, 8, 12)


@pytest.mark.parametrize(
    "columns",
    [
        {"other": IMAGE},
        {"other": MASK},
        {"ward": WARD},
        {"nuclei": WARD},
        {"picture": {"kind": "number", "low": 0, "high": 1}},
    ],
)
def test_anything_but_an_image_and_its_mask_is_refused(columns: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"data\.columns: expected one image, and one mask"):
        study(**columns)


def test_columns_that_are_no_inputs_may_be_there() -> None:
    assert study(ward={**WARD, "input": False}, name={"kind": "id"}).data.image.sizes == (8, 12)


def test_a_mask_of_another_task_is_refused_by_name() -> None:
    with pytest.raises(StudyError, match=r"data\.columns\.nuclei: expected with task = 'segment"):
        study(task="image", model="cnn")


def test_a_network_of_another_task_is_refused_by_name() -> None:
    with pytest.raises(StudyError, match=r"model\.name: task 'segmentation' expected unet"):
        build_network(study(model="cnn"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"spacing": [1.0]}, "spacing: expected 2 numbers"),
        ({"spacing": [1.0, 0.0]}, "spacing"),
        ({"levels": [0]}, "expected 2 levels"),
        ({"levels": [7, 7]}, "no two alike"),
        ({"values": ["ground"]}, "values"),
        ({"values": ["a", "a"]}, "without repetition"),
    ],
)
def test_a_mask_that_contradicts_itself_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(nuclei={**MASK, **keys})
