"""examples/glucose: a record is what was known before a reading, and nothing written down with it.

With FEDWARD_DATA also the study's own promise: below the simplest forecasts.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared_models.study import load_study
from shared_models.tasks import target_of
from simulations.baselines import linear
from simulations.forecasts import simplest
from simulations.pool import gather, pool

EXAMPLE = Path(__file__).parents[2] / "examples" / "glucose"
DATA = os.environ.get("FEDWARD_DATA")

LOG = """\
04-21-1991\t8:00\t58\t100
04-21-1991\t8:00\t33\t009
04-21-1991\t8:00\t34\t013
04-21-1991\t18:00\t62\t250
04-21-1991\t18:00\t33\t007
06-31-1991\t18:00\t62\t119
04-22-1991\t22:00\t33\t004
04-22-1991\t7:30\t58\t0Hi
04-23-1991\t6:00\t58\t5
04-23-1991\t6:00\t65\t0
04-23-1991\t7:00\t48\t180
"""


def prepared(folder: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(folder), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_reading_is_asked_for_with_what_stood_before_it(tmp_path: Path) -> None:
    (tmp_path / "data-01").write_text(LOG)
    ended = prepared(tmp_path, tmp_path / "out.npz")
    assert ended.returncode == 0, ended.stderr
    # A date that is none, a value that is none, and one that no living patient has.
    assert ended.stderr.endswith("2 readings of 1 patients; 3 lines left out\n")
    with np.load(tmp_path / "out.npz") as arrays:
        visits, asked = arrays["visits"], arrays["next"]
        assert visits.shape == (2, 32, 6)
        assert asked.tolist() == [250, 180]  # the first reading has none before it
        assert arrays["slot"].tolist() == ["before supper", "unspecified"]
        assert arrays["hour"].tolist() == [18, 7]
        assert arrays["patient"].tolist() == ["data-01", "data-01"]
    assert np.isnan(visits[0, :31]).all()
    assert visits[0, 31].tolist() == [100, 9, 13, 0, 10, 10]
    # The dose that answered the reading of 18:00 is known now; one without a reading is a step too.
    np.testing.assert_array_equal(
        visits[1, 29:],
        [[100, 9, 13, 0, 47, 1], [250, 7, 0, 0, 37, 11], [np.nan, 4, 0, 0, 9, 9]],
    )


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    ended = prepared(tmp_path, tmp_path / "out.npz")
    assert ended.returncode == 2
    assert "expected data-01 and more, found none" in ended.stderr


@pytest.mark.skipif(DATA is None, reason="FEDWARD_DATA says where the real records are")
def test_patients_are_at_one_site_and_the_simplest_forecasts_are_what_the_readme_says(
    tmp_path: Path,
) -> None:
    assert prepared(Path(DATA or "") / "uci_diabetes", tmp_path / "g.npz").returncode == 0
    study = load_study(EXAMPLE / "study.toml")
    gathered = gather(study, tmp_path / "g.npz")
    patients = gathered.records.patients
    assert patients is not None
    homes = [set(patients[rows]) for _, rows in gathered.sites]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 70
    records = pool(study, gathered)
    held, target = records.held(), target_of(study)
    found = {
        name: target.exact_figures(held.targets.numpy(), answers)["rmse"].value
        for name, answers in simplest(study, records.train(), held).items()
    }
    found["linear"] = linear(study, records.train(), held)["rmse"].value
    assert found == pytest.approx(
        {"last_value": 88.92, "slot_mean": 72.68, "linear": 65.09}, abs=0.01
    )
