"""Whole studies of masks: known shapes are found, and the model says at home what it said."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from client.explain.layout import layout_of
from client.predict import predict, write_predictions
from privacy.errors import StudyError
from shared_models.study import Study, parse_study
from shared_models.tasks import target_of
from simulations.outcome import Outcome, write_outcome
from simulations.report import write_report
from simulations.run import simulate

DATA = Path(os.environ.get("FEDWARD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
PRIVATE = {
    "mode": "distributed",
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 8,
    "records_max": 50,
}


def study(sizes: tuple[int, ...], **sections: Any) -> Study:
    names = ("height", "width") if len(sizes) == 2 else ("depth", "height", "width")
    image = {"kind": "image", **dict(zip(names, sizes, strict=True)), "high": 1.0}
    columns = {"picture": image, "ball": {"kind": "mask", "values": ["ground", "ball"]}}
    data = {"target": "ball", "columns": columns, **sections.pop("data", {})}
    return parse_study(
        {
            "name": "balls",
            "task": "segmentation",
            "rounds": 2,
            "model": {"name": "unet", "channels": [4, 8]},
            "training": {
                "optimizer": "adam",
                "learning_rate": 0.01,
                "local_epochs": 3,
                "batch_size": 4,
            },
            "privacy": {"mode": "none"},
            "evaluation": {"every": 100},
            "simulation": {"sites": 3},
            **sections,
            "data": data,
        }
    )


def balls(
    sizes: tuple[int, ...], count: int, seed: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey pictures, their balls, and the balls' radii: centres and radii are known."""
    draw = np.random.default_rng(seed)
    places = np.indices(sizes).astype(float)
    radii = draw.uniform(2, max(2.5, min(sizes) / 3), count)
    truth = np.zeros((count, *sizes), dtype=bool)
    for row, radius in enumerate(radii):
        middle = [draw.uniform(radius, size - 1 - radius) for size in sizes]
        away = sum((axis - at) ** 2 for axis, at in zip(places, middle, strict=True))
        truth[row] = away <= radius**2
    values = np.clip(0.35 + 0.3 * truth + draw.normal(0, 0.08, truth.shape), 0, 1)
    return values.astype(np.float32), truth, radii


def archive(path: Path, values: np.ndarray, truth: np.ndarray) -> Path:
    np.savez(path, picture=values, ball=truth)
    return path


def value(outcome: Outcome, name: str) -> float:
    found = outcome.figures()[name].value
    assert found is not None
    return found


# Known truth


@pytest.mark.parametrize("sizes", [(32, 24), (16, 12, 8)], ids=["2-D", "3-D"])
def test_made_balls_are_found_by_one_network_in_pictures_and_volumes(
    sizes: tuple[int, ...], tmp_path: Path
) -> None:
    values, truth, _ = balls(sizes, 60)
    data = archive(tmp_path / "all.npz", values, truth)
    outcome = simulate(study(sizes, rounds=12), data, tmp_path / "run")
    assert value(outcome, "dice") > 0.95
    assert value(outcome, "surface_distance") < 0.5
    assert outcome.predictions.shape[1:] == (1, *sizes)


def test_the_volume_of_a_found_ball_is_that_of_its_radius(tmp_path: Path) -> None:
    values, truth, _ = balls((16, 16, 16), 60)
    data = archive(tmp_path / "all.npz", values, truth)
    outcome = simulate(study((16, 16, 16), rounds=12), data, tmp_path / "run")
    write_outcome(outcome, tmp_path / "run")
    unseen, _, radii = balls((16, 16, 16), 10, seed=9)
    np.savez(tmp_path / "new.npz", picture=unseen)
    found = predict(tmp_path / "run", tmp_path / "new.npz").masks()
    assert found is not None
    counted, whole = (found == 1).sum(axis=(1, 2, 3)), 4 / 3 * np.pi * radii**3
    large = radii > 3  # of a smaller ball, most voxels are at its surface
    assert large.sum() >= 6
    np.testing.assert_allclose(counted[large], whole[large], rtol=0.2)


def test_the_nifti_sample_is_read_and_its_head_found(tmp_path: Path) -> None:
    """Slabs of a real scan; the truth is made: what stays bright when smoothed is head."""
    nibabel = pytest.importorskip("nibabel", reason="reading NIfTI wants nibabel")
    path = DATA / "nifti" / "example4d.nii.gz"
    if not path.exists():
        pytest.skip(f"the NIfTI sample is not here: {path} (set FEDWARD_DATA)")
    scan = nibabel.load(path)
    values = np.asarray(scan.dataobj)  # (128, 96, 24, 2): W, H, D, time
    head = (uniform_filter(values.astype(float), (5, 5, 5, 1)) > 200).astype(np.uint8)
    for name, whole in (("picture", values), ("ball", head)):
        (tmp_path / "slabs" / name).mkdir(parents=True)
        for x, y, z, time in np.ndindex(4, 3, 3, 2):  # every fourth column, every third row
            slab = whole[x::4, y::3, 8 * z : 8 * z + 8, time]
            image = nibabel.Nifti1Image(slab, scan.affine @ np.diag([4, 3, 1, 1]))
            nibabel.save(image, tmp_path / "slabs" / name / f"{x}-{y}-{z}-{time}.nii.gz")
    columns = {
        "picture": {"kind": "image", "depth": 8, "height": 32, "width": 32, "high": 1200.0},
        "ball": {"kind": "mask", "values": ["air", "head"], "spacing": [2.2, 6.0, 8.0]},
    }
    given = study((8, 32, 32), rounds=4, data={"columns": columns, "format": "nifti"})
    outcome = simulate(given, tmp_path / "slabs", tmp_path / "run")
    assert value(outcome, "dice") > 0.9
    assert value(outcome, "surface_distance") < 6.0  # millimetres: one row


# Sites as they come


@pytest.mark.parametrize("privacy", [{"mode": "none"}, PRIVATE], ids=["none", "private"])
def test_sites_with_one_class_one_record_or_none_train(
    tmp_path: Path, privacy: dict[str, Any]
) -> None:
    values, truth, _ = balls((8, 16), 40)
    folder = tmp_path / "sites"
    folder.mkdir()
    rows = {"all": (0, 20), "one": (20, 21), "none": (21, 21), "more": (21, 30)}
    for name, (first, last) in rows.items():
        archive(folder / f"{name}.npz", values[first:last], truth[first:last])
    archive(folder / "ground.npz", values[30:35], truth[30:35] & False)
    archive(folder / "filled.npz", values[35:], truth[35:] | True)
    training = {"learning_rate": 1.0}
    given = study((8, 16), privacy=privacy, training=training, simulation={"partition": "files"})
    outcome = simulate(given, folder, tmp_path / "run", with_baselines=True)
    assert np.isfinite(outcome.checkpoint.state.model).all()
    assert outcome.slow == ""
    assert 0 <= value(outcome, "dice") <= 1
    results = write_outcome(outcome, tmp_path / "run")
    assert results["released"] is not None
    sites: Any = results["sites_metrics"]
    assert sites["none"]["dice"] is None
    assert set(results["baselines"]) == {"pooled", "local_only", "linear"}  # type: ignore[arg-type]
    write_report(results, [], tmp_path / "run" / "report.html")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Dice of single records" in page
    assert "Surface distance" in page


def test_a_shape_that_the_network_cannot_halve_is_refused_by_name(tmp_path: Path) -> None:
    values, truth, _ = balls((9, 15), 12)
    data = archive(tmp_path / "all.npz", values, truth)
    with pytest.raises(StudyError, match=r"model\.channels: .* found 9x15"):
        simulate(study((9, 15)), data, tmp_path / "run")


def test_a_structure_s_share_of_the_points_is_explained_and_a_volume_s_is_refused() -> None:
    target = target_of(study((8, 16)))
    outputs = torch.full((1, target.outputs, 8, 16), -30.0)
    outputs[0, 0, :4] = 30
    asked = target.asked(target.predictions(outputs))
    score = target.scores(outputs, torch.from_numpy(asked))
    assert (asked.tolist(), round(float(score[0]), 4)) == ([0], 0.5)
    with pytest.raises(StudyError, match="found volumes"):
        layout_of(study((8, 8, 8)))


# The model taken home

BARE = """
import json, sys
import numpy as np
import torch
from shared_models.registry import build_network
from shared_models.study import parse_study
from shared_models.tasks import target_of
from shared_models.weights import load_vector

folder, records = sys.argv[1:]
study = parse_study(json.load(open(f"{folder}/model.json"))["study"])
raw = open(f"{folder}/model.safetensors", "rb").read()
size = int.from_bytes(raw[:8], "little")
header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
network = build_network(study)
parts = [np.frombuffer(body[slice(*header[name]["data_offsets"])], "<f4")
         for name, _ in network.named_parameters()]
load_vector(network, np.concatenate(parts))
inputs = torch.from_numpy(np.load(records))
with torch.no_grad():
    np.save(sys.stdout.buffer, target_of(study).predictions(network.eval()(inputs)))
ours = {"client", "server", "simulations", "flwr", "sklearn", "opacus"}
assert not ours & {name.split(".")[0] for name in sys.modules}, sys.modules
"""


@pytest.mark.parametrize("sizes", [(16, 24), (8, 8, 12)], ids=["2-D", "3-D"])
def test_the_exported_model_says_what_the_run_said(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """In a process of its own, with numpy, torch and shared_models."""
    values, truth, _ = balls(sizes, 30)
    data = archive(tmp_path / "all.npz", values, truth)
    outcome = simulate(study(sizes), data, tmp_path / "run")
    write_outcome(outcome, tmp_path / "run")
    # The run keeps its held-out records by site: find each of them among the records.
    rows = [int(np.argmax((truth == one).reshape(30, -1).all(1))) for one in outcome.targets]
    np.save(tmp_path / "inputs.npy", values[rows][:, None])
    said = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path / "run"), str(tmp_path / "inputs.npy")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    )
    found = np.load(io.BytesIO(said.stdout))
    np.testing.assert_allclose(found, outcome.predictions, atol=1e-6)
    np.testing.assert_allclose(
        predict(tmp_path / "run", data).values[rows], outcome.predictions, atol=1e-6
    )


def test_predictions_are_points_a_record_and_masks_in_an_archive(tmp_path: Path) -> None:
    values, truth, _ = balls((8, 16), 20)
    data = archive(tmp_path / "all.npz", values, np.where(truth, 255, 0))
    columns = {
        "picture": {"kind": "image", "height": 8, "width": 16, "high": 1.0},
        "ball": {"kind": "mask", "values": ["ground", "ball"], "levels": [0, 255]},
    }
    outcome = simulate(study((8, 16), data={"columns": columns}), data, tmp_path / "run")
    write_outcome(outcome, tmp_path / "run")
    found = predict(tmp_path / "run", data)
    assert found.figures is not None
    write_predictions(found, tmp_path / "masks.npz")
    with np.load(tmp_path / "masks.npz") as packed:
        masks = packed["masks"]
    assert masks.shape == (20, 8, 16)
    assert set(np.unique(masks)) <= {0, 255}
    np.testing.assert_array_equal(masks == 255, found.values[:, 0] > 0.5)
    write_predictions(found, tmp_path / "points.csv")
    lines = (tmp_path / "points.csv").read_text().splitlines()
    assert lines[0] == "record,points(ball)"
    counts = [int(line.split(",")[1]) for line in lines[1:]]
    assert counts == (masks == 255).sum(axis=(1, 2)).tolist()
    assert found.document()["predictions"] == [[count] for count in counts]
