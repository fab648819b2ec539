"""Pictures turned, shifted and mirrored: each by its own draws, in training only."""

from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch

from client.augment import augment
from client.training import Keys, Tensors, Trainer
from privacy.errors import StudyError
from shared_models.debits import planned_mechanism
from shared_models.registry import build_network
from shared_models.sections import Augment
from shared_models.strategies import State, first_state
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of

STILL = [0.5, 0.5, 0.5, 0.9]  # neither turned nor shifted nor mirrored
MODES: dict[str, dict[str, Any]] = {
    "none": {"privacy": {"mode": "none"}, "training": {"local_epochs": 2, "batch_size": 4}},
    "local": {
        "privacy": {"mode": "local", "sampling_rate": 0.5},
        "training": {"local_steps": 2},
    },
    "distributed": {
        "privacy": {"mode": "distributed", "sampling_rate": 0.5, "records_max": 20},
        "training": {},
    },
}
HOW = {"rotate_degrees": 20, "shift_pixels": 2, "flip": True}


def study(mode: str = "none", task: str = "image", how: dict[str, Any] | None = None) -> Study:
    own = MODES[mode]
    common = {"noise_multiplier": 1.0, "delta": 1e-5, "clipping_norm": 1.0, "expected_batch": 8}
    privacy = own["privacy"] | ({} if mode == "none" else common)
    column = {"kind": "image", "height": 8, "width": 8} if task == "image" else NUMBER
    return parse_study(
        {
            "name": "s",
            "task": task,
            "rounds": 3,
            "data": {
                "target": "ill",
                "columns": {"picture": column, "ill": {"kind": "category", "values": ["n", "y"]}},
            },
            "model": {"name": "mlp", "hidden": [3]},
            "training": {"learning_rate": 0.1, "augment": HOW if how is None else how}
            | own["training"],
            "privacy": privacy,
            "aggregation": {"masking": "none"},
        }
    )


NUMBER = {"kind": "number", "low": 0, "high": 1}


def pictures(count: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand((count, 1, height, width), generator=torch.Generator().manual_seed(3))


def records(count: int) -> Tensors:
    return Tensors(pictures(count), torch.arange(count) % 2)


def keys(seed: str = "a") -> Keys:
    return lambda purpose, step: sha256(f"{seed} {purpose} {step}".encode()).digest()


def begin(given: Study) -> State:
    return first_state(given.aggregation, vector_of(build_network(given, 4)))


def drawn(*draws: list[float]) -> torch.Tensor:
    return torch.tensor(draws, dtype=torch.float64)


# atol: bilinear weights of float32 coordinates of a few pixels


def test_the_middle_of_every_range_leaves_a_picture_as_it_is() -> None:
    given = pictures(2, 6, 9)
    how = Augment(rotate_degrees=90, shift_pixels=3, flip=True)
    torch.testing.assert_close(augment(given, drawn(STILL, STILL), how), given, rtol=0, atol=1e-5)


def test_a_mirrored_picture_is_its_mirror_image() -> None:
    given = pictures(1, 6, 9)
    found = augment(given, drawn([0.5, 0.5, 0.5, 0.1]), Augment(flip=True))
    torch.testing.assert_close(found, given.flip(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_shift_is_in_pixels_and_repeats_the_edge(shape: tuple[int, int]) -> None:
    given = pictures(1, *shape)
    found = augment(given, drawn([0.5, 0.75, 0.0, 0.9]), Augment(shift_pixels=2))
    rows = (torch.arange(shape[0]) - 2).clamp(min=0)  # 0: two pixels the one way
    columns = (torch.arange(shape[1]) + 1).clamp(max=shape[1] - 1)  # .75: one the other way
    torch.testing.assert_close(found, given[:, :, rows][..., columns], rtol=0, atol=1e-5)


def test_a_quarter_turn_is_that_of_the_pixels() -> None:
    given = pictures(1)
    found = augment(given, drawn([0.0, 0.5, 0.5, 0.9]), Augment(rotate_degrees=90))
    torch.testing.assert_close(found, given.rot90(-1, (2, 3)), rtol=0, atol=1e-5)


def test_a_turn_of_an_oblong_picture_keeps_its_scale() -> None:
    given = torch.zeros((1, 1, 5, 11))
    given[0, 0, 2, 7] = 1.0  # two pixels right of the middle
    found = augment(given, drawn([0.0, 0.5, 0.5, 0.9]), Augment(rotate_degrees=90))
    assert found[0, 0].argmax() == 4 * 11 + 5  # two below it
    assert found[0, 0, 4, 5] == pytest.approx(1.0, abs=1e-5)


def test_a_picture_is_the_same_in_any_company() -> None:
    given, draws = pictures(5), torch.rand((5, 4), dtype=torch.float64)
    how = Augment.model_validate(HOW)
    found = augment(given, draws, how)
    alone = torch.cat([augment(given[i : i + 1], draws[i : i + 1], how) for i in range(5)])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


def seen(given: Study, found: Tensors, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return the pictures of every step, as the private step or the gradient got them."""
    trainer, taken = Trainer(given, planned_mechanism(given)), list[torch.Tensor]()

    def zeros(x: torch.Tensor, *rest: object) -> torch.Tensor:
        taken.append(x)
        return torch.zeros(trainer.parameters)

    if trainer._private is not None:
        monkeypatch.setattr(trainer._private, "gradient", zeros)
        monkeypatch.setattr(trainer._private, "fixed_point_sum", zeros)
    else:
        real = trainer._gradient

        def watch(inputs: torch.Tensor, targets: torch.Tensor) -> Any:
            taken.append(inputs)
            return real(inputs, targets)

        monkeypatch.setattr(trainer, "_gradient", watch)
    if given.privacy.mode == "distributed":
        trainer.fixed_point_sum(begin(given), found, keys(), 1, 1.0)
    else:
        trainer.train(begin(given), found, keys())
    return taken


@pytest.mark.parametrize("mode", MODES)
def test_what_befalls_a_record_does_not_hang_on_the_others(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The even records are others; what is trained on of the odd ones stays the same."""
    given, one, other = study(mode), records(12), records(12)
    other.inputs[::2] = 1 - other.inputs[::2]
    pairs = zip(seen(given, one, monkeypatch), seen(given, other, monkeypatch), strict=True)
    same = torch.cat([(a == b).flatten(1).all(dim=1) for a, b in pairs])
    assert 0 < same.sum() < len(same)
    if mode == "none":  # every record is in every epoch
        assert same.sum() == len(same) / 2


def test_what_befalls_a_record_does_not_hang_on_the_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = study("distributed")
    document = given.document()
    document["privacy"]["sampling_rate"] = 1.0
    (some,) = seen(given, records(12), monkeypatch)
    (everyone,) = seen(parse_study(document), records(12), monkeypatch)
    assert 0 < len(some) < len(everyone) == 12
    together = {row.numpy().tobytes() for row in everyone}
    assert {row.numpy().tobytes() for row in some} < together


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_training_are_changed_anew_at_every_step(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = records(4)
    before = found.inputs.clone()
    steps = seen(study(mode), found, monkeypatch)
    assert torch.equal(found.inputs, before)
    rows = [row.numpy().tobytes() for step in steps for row in step]
    assert len(set(rows)) == len(rows) > 0
    assert not set(rows) & {row.numpy().tobytes() for row in before}


def test_held_out_pictures_are_left_as_they_are() -> None:
    plain, given = study(how={}), study()
    found = records(6)
    state = begin(given)
    expected = Trainer(plain, None).predict(state, found.inputs)
    assert np.array_equal(Trainer(given, None).predict(state, found.inputs), expected)


def test_changed_pictures_follow_the_keys() -> None:
    given, found = study(), records(12)
    one, again, other = (
        Trainer(given, None).train(begin(given), found, keys(seed)).change.tobytes()
        for seed in "aab"
    )
    assert one == again != other


def test_a_task_without_pictures_is_refused() -> None:
    with pytest.raises(StudyError, match=r"training\.augment: expected only with task = 'image'"):
        study(task="tabular")
