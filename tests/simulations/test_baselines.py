"""Models without federation: what they reach on easy records, and what they make of thin sites."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.training import Trainer, Update
from shared_models.metrics import METRICS
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.weights import vector_of
from simulations.baselines import Figures, baselines, linear, pooled
from simulations.pool import Pool, gather, pool


def separable(records: int) -> list[str]:
    """Records whose illness follows from the marker alone."""
    draw = random.Random(5)
    rows = []
    for _ in range(records):
        marker = draw.uniform(1, 4) * draw.choice((-1, 1))
        rows.append(
            f"{draw.randint(20, 90)},{marker:.3f},{draw.choice('abcd')},"
            f"{'yes' if marker > 0 else 'no'}"
        )
    return rows


def written(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["age,marker,ward,ill", *rows]) + "\n")
    return path


def computed(study: Study, records: Path) -> dict[str, Figures]:
    return baselines(study, pooled_records(study, records), vector_of(build_network(study, 1)))


def pooled_records(study: Study, records: Path) -> Pool:
    return pool(study, gather(study, records))


def test_easy_records_are_learnt_by_all_of_them(
    toy_study: Callable[..., Study], tmp_path: Path
) -> None:
    found = computed(toy_study(rounds=40), written(tmp_path / "easy.csv", separable(200)))
    assert set(found) == {"pooled", "local_only", "linear"}
    for name, figures in found.items():
        assert set(figures) == set(METRICS["binary"])
        auc = figures["auc"].value
        assert auc is not None
        assert auc > 0.99, name  # one marker with a gap separates the classes


def test_privacy_and_what_holds_many_sites_together_do_not_touch_them(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    plain = computed(toy_study(), toy_csv)
    for strategy in ("fedprox", "scaffold"):
        private = toy_study(True, **{"aggregation.strategy": strategy})
        assert computed(private, toy_csv) == plain


def test_pooled_training_takes_the_server_s_own_step(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    adam = {"aggregation.strategy": "fedadam", "aggregation.server_learning_rate": 0.05}
    one, other = computed(toy_study(), toy_csv), computed(toy_study(**adam), toy_csv)
    assert one["pooled"] != other["pooled"]
    assert one["local_only"] != other["local_only"]
    assert one["linear"] == other["linear"]


@pytest.mark.parametrize(
    ("training", "seen"),
    [({"local_steps": 2, "batch_size": 8}, 2 * 3 * 8), ({"local_epochs": 1, "batch_size": 8}, 0)],
)
def test_pooled_training_sees_as_many_records_a_round_as_all_sites_together(
    toy_study: Callable[..., Study],
    toy_csv: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, object],
    seen: int,
) -> None:
    rounds: list[int] = []

    class Counting(Trainer):
        def train(self, *given: Any) -> Update:
            update = super().train(*given)
            rounds.append(update.records)
            return update

    monkeypatch.setattr("simulations.baselines.Trainer", Counting)
    study = toy_study(training={"learning_rate": 0.5, **training})
    records = pooled_records(study, toy_csv)
    pooled(study, records, vector_of(build_network(study, 1)))
    assert rounds == [seen or len(records.train())] * study.rounds


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    def of(seed: int) -> dict[str, Figures]:
        return computed(toy_study(**{"simulation.seed": seed}), toy_csv)

    assert of(1) == of(1)
    assert of(1) != of(2)


def test_local_only_is_the_mean_of_the_sites_without_an_interval(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    figures = computed(toy_study(), toy_csv)["local_only"]
    assert all(figure.low is None and figure.high is None for figure in figures.values())
    assert figures["accuracy"].value is not None


@pytest.mark.parametrize("classes", [["yes"], ["no"]])
def test_records_of_one_class_leave_areas_undefined(
    toy_study: Callable[..., Study], tmp_path: Path, classes: list[str]
) -> None:
    rows = [row for row in separable(120) if row.rpartition(",")[2] in classes]
    found = computed(toy_study(), written(tmp_path / "one.csv", rows))
    for figures in found.values():
        assert figures["auc"].value is None
    assert found["linear"]["accuracy"].value == 1.0


def test_sites_with_one_class_one_record_or_none_are_lived_with(
    toy_study: Callable[..., Study], tmp_path: Path
) -> None:
    rows = separable(100)
    folder = tmp_path / "sites"
    folder.mkdir()
    written(folder / "large.csv", rows[:90])
    written(folder / "one-class.csv", [row for row in rows[90:] if row.endswith("no")])
    written(folder / "one-record.csv", rows[:1])
    written(folder / "empty.csv", [])
    found = computed(toy_study(**{"simulation.partition": "files"}), folder)
    for figures in found.values():
        value = figures["accuracy"].value
        assert value is not None
        assert np.isfinite(value)


def test_the_linear_model_knows_no_more_than_the_training_records(
    toy_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = toy_study()
    records = pooled_records(study, written(tmp_path / "easy.csv", separable(200)))
    held, train = records.held(), records.train()
    flipped = type(held)(held.inputs, 1 - held.targets)
    straight, reverse = linear(study, train, held), linear(study, train, flipped)
    assert straight["auc"].value == pytest.approx(1 - (reverse["auc"].value or 0))
    assert straight["auc"].value == 1.0


def test_a_number_target_has_a_linear_model(toy_study: Callable[..., Study], toy_csv: Path) -> None:
    found = computed(toy_study(**{"data.target": "marker"}), toy_csv)
    mae = found["linear"]["mae"].value
    assert mae is not None
    assert mae < 2.0  # markers are uniform in -4 to 4: their mean alone is off by 2


def test_many_classes_have_a_linear_model(toy_study: Callable[..., Study], toy_csv: Path) -> None:
    found = computed(toy_study(**{"data.target": "ward"}), toy_csv)
    assert found["linear"]["accuracy"].n == found["pooled"]["accuracy"].n > 0


@pytest.mark.parametrize(
    "column",
    [
        {"kind": "letters", "alphabet": "ab", "length": 6},  # few tokens: each place is a feature
        {"kind": "words", "buckets": 256, "length": 6},  # many: how often each occurs
    ],
    ids=["letters", "words"],
)
def test_texts_have_a_linear_model(
    toy_study: Callable[..., Study], tmp_path: Path, column: dict[str, object]
) -> None:
    draw = random.Random(3)
    rows = ["text,ill"]
    for _ in range(120):
        letters = "".join(draw.choice("ab") for _ in range(5))
        ill = draw.random() < 0.5
        text = ("a" if ill else "b") + letters if column["kind"] == "letters" else ""
        rows.append(f"{text or ('fever ' if ill else 'well ') + letters},{'yes' if ill else 'no'}")
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(rows) + "\n")
    ill_column = {"kind": "category", "values": ["no", "yes"]}
    study = toy_study(
        task="sequence",
        **{
            "data.target": "ill",
            "data.columns": {"text": column, "ill": ill_column},
            "model": {"name": "gru", "hidden": [4], "embedding": 2},
        },
    )
    records = pooled_records(study, path)
    auc = linear(study, records.train(), records.held())["auc"].value
    assert auc is not None
    assert auc > 0.95  # one letter, or one word, tells


def test_coloured_pictures_are_told_apart_by_their_colours(tmp_path: Path) -> None:
    """Classes of one mean everywhere: half grey, or black and white; only a histogram sees it."""
    draw = np.random.default_rng(2)
    classes = np.arange(80) % 2
    grey, extreme = draw.integers(100, 155, (2, 80, 4, 4, 3))
    extreme = np.where(extreme > 127, 255, 0)
    pictures = np.where(classes[:, None, None, None] == 1, extreme, grey)
    np.savez(tmp_path / "all.npz", picture=pictures.astype(np.uint8), y=classes)
    study = parse_study(
        {
            "name": "colours",
            "task": "image",
            "rounds": 1,
            "data": {
                "target": "y",
                "columns": {
                    "picture": {"kind": "image", "height": 4, "width": 4, "channels": 3},
                    "y": {"kind": "category", "values": ["0", "1"]},
                },
            },
            "model": {"name": "mlp", "hidden": []},
            "training": {"learning_rate": 0.1},
            "privacy": {"mode": "none"},
        }
    )
    records = pooled_records(study, tmp_path / "all.npz")
    assert linear(study, records.train(), records.held())["auc"].value == 1.0
