"""The report: complete, closed in itself, honest, and the same bytes every time."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from scipy.special import expit

from privacy.errors import DataError
from shared_models.cells import count_cells
from shared_models.curves import curves
from shared_models.metrics import HEADLINE, METRICS, exact_metrics, metrics_from_cells
from shared_models.tasks import target_of
from shared_models.wording import LABELS, epsilon_words, show, show_epsilon
from simulations.report import render_report, write_report
from simulations.summary import print_summary
from simulations.wording import COVERS
from tests.shared_models.studies import better_answers, made_targets, task_study

CLASSES = {
    "binary": ("malignant", "benign"),
    "multiclass": ("a", "b", "<c> & $d$", "e"),
    "regression": (),
}


def predictions(kind, size=120):
    rng = np.random.default_rng(5)
    if kind == "regression":
        truth = rng.uniform(0, 30, size)
        return truth, np.clip(truth + rng.normal(0, 4, size), 0, 30)
    count = len(CLASSES[kind])
    truth = rng.integers(0, count, size)
    if kind == "binary":
        score = expit(rng.normal(3 * (truth - 0.5), 1))
        return truth, np.stack((1 - score, score), axis=1)
    odds = np.exp(rng.normal(size=(size, count)) + 2 * np.eye(count)[truth])
    return truth, odds / odds.sum(axis=1, keepdims=True)


def run(kind="binary", mode="local", masking="fsa1", name="heart-2026", sites=5):
    """Return (results, history) of a made-up run."""
    truth, guesses = predictions(kind)
    figures = exact_metrics(kind, CLASSES[kind], truth, guesses)
    values = {key: figure.value for key, figure in figures.items()}
    private = mode != "none"
    results = {
        "study": {
            "name": name,
            "rounds": 20,
            "data": {"target": "outcome", "columns": {}},
            "model": {"name": "mlp", "hidden": [64, 32]},
            "privacy": {"mode": mode} | ({"epsilon": 2.0, "delta": 1e-5} if private else {}),
            "aggregation": {"masking": masking, "min_sites": 3, "cohort": 0},
        },
        "study_digest": "ab" * 32,
        "versions": {"fedward": "0.1.0"},
        "engine": "local",
        "seed": 7,
        "sites": [f"site-{k}" for k in range(sites)],
        "rounds": 20,
        "headline": HEADLINE[kind],
        "metrics": {key: dataclasses.asdict(figure) for key, figure in figures.items()},
        "released": None,
        "sites_metrics": {f"site-{k}": {"n": 24} | values for k in range(sites)},
        "baselines": {"pooled": values, "local_only": values, "linear": None},
        "privacy": {
            "mode": mode,
            "unit": "record",
            "adjacency": "add or remove one record",
            "epsilon": 1.987 if private else None,
            "delta": 1e-5 if private else None,
            "rdp_epsilon": 2.2 if private else None,
            "accountant": "PLD" if private else None,
            "trusted": ["Four of the five sites."],
        },
        "curves": curves(kind, CLASSES[kind], truth, guesses, bounds=(0.0, 30.0)),
        "costs": {"wall_s": 3.2, "peak_rss_mb": 400, "bytes_up": 12_345_678, "bytes_down": None},
    }
    history = [{"round": k, "epsilon": str(0.4 * k) if private else ""} | values for k in (1, 2, 5)]
    return results, history


RUNS = [("binary", "local"), ("multiclass", "none"), ("regression", "distributed")]


@pytest.mark.parametrize(("kind", "mode"), RUNS)
def test_every_metric_is_in_the_report_with_its_interval(kind, mode):
    results, history = run(kind, mode)
    page = render_report(results, history)
    for name in METRICS[kind]:
        figure = results["metrics"][name]
        assert LABELS[name][0] in page
        assert f"{show(figure['low'])} – {show(figure['high'])}" in page


def test_groups_are_shown_with_intervals_and_small_ones_as_left_out():
    results, history = run("binary", "local")
    told = results["metrics"] | {"auc": {"value": 0.71, "low": 0.65, "high": 0.77, "n": 61}}
    noisy = results["metrics"] | {"auc": {"value": 0.68, "low": 0.51, "high": 0.84, "n": 66}}
    results["subgroups"] = {
        "column": "s<e>x",
        "smallest": 20,
        "metrics": {"female": told, "male": None},
        "released": {"female": noisy, "male": None},
    }
    page = render_report(results, history)
    assert "Group by group" in page
    assert "s&lt;e&gt;x" in page
    rows = page[page.index("Group by group") :]
    assert "0.650 – 0.770" in rows
    assert "0.510 – 0.840" in rows
    assert rows.index("male</th>") < rows.index("too few records")
    assert "Group by group" not in render_report(*run("binary", "local"))


@pytest.mark.parametrize(("kind", "mode"), RUNS)
def test_nothing_is_fetched_or_executed(kind, mode):
    page = render_report(*run(kind, mode))
    assert "://" not in page
    for tag in ("<script", "<link", "<img", "<iframe", "@import", "<object", "javascript:"):
        assert tag not in page
    # Every reference stays inside the page.
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert not re.search(r"\son\w+=", page)


@pytest.mark.parametrize(("kind", "mode"), RUNS)
def test_identifiers_are_unique_and_references_resolve(kind, mode):
    page = render_report(*run(kind, mode))
    known = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(known)) == len(known)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|labelledby="([^"]+)"', page)
    assert {name for group in used for name in group if name} <= set(known)


@pytest.mark.parametrize(("kind", "mode"), RUNS)
def test_the_same_results_give_the_same_small_file(kind, mode, tmp_path):
    for name in ("a.html", "b.html"):
        write_report(*run(kind, mode), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    assert len(first) < 400_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


@pytest.mark.parametrize(
    ("mode", "masking", "expected"),
    [
        ("local", "fsa1", []),
        ("none", "fsa1", ["No differential privacy"]),
        ("local", "none", ["No masking of updates"]),
        ("none", "none", ["No differential privacy", "No masking of updates"]),
    ],
)
def test_a_missing_protection_is_told_at_every_section_and_on_every_printed_page(
    mode, masking, expected
):
    page = render_report(*run("binary", mode, masking))
    sections = page.count("<section")
    for warning in ("No differential privacy", "No masking of updates"):
        badges = page.count(f'<span class="badge">{warning}</span>')
        assert badges == (sections if warning in expected else 0)
        assert (warning in page[page.index("<body>") : page.index("<header")]) == (
            warning in expected
        )
    assert ("@top-center" in page) == bool(expected)
    assert ("not differentially private" in page) == (mode == "none")


def test_a_hostile_name_is_escaped_everywhere():
    hostile = "<script>alert('x')</script>\"&amp;"
    results, history = run("multiclass", "local", name=hostile)
    results["sites_metrics"] = {hostile: {"accuracy": 1.0}}
    results["versions"] = {hostile: hostile}
    results["privacy"]["trusted"] = hostile
    results["baselines"][hostile] = {"accuracy": 0.5}
    shapes = results["curves"]
    shapes["classes"][0] = shapes["roc"][0]["class"] = hostile
    results["metrics"][hostile] = {"value": 1, "low": None, "high": None, "n": 1}
    page = render_report(results, history)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_dollar_in_a_class_name_is_no_mathematics():
    assert "&lt;c&gt; &amp; $d$ (" in render_report(*run("multiclass", "none"))


def test_an_undefined_figure_is_told_so_and_never_drawn_as_a_number():
    results, history = run()
    for figure in results["metrics"].values():
        figure.update(value=None, low=None, high=None)
    results["baselines"] = None
    results["curves"]["roc"] = []
    page = render_report(results, history)
    rows = re.findall(r'<td class="num undefined">undefined</td>', page)
    assert len(rows) == len(METRICS["binary"])
    assert "nan" not in re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL).lower().split()


@pytest.mark.parametrize("text", ["exact figures", "only a simulation may know"])
def test_exact_figures_are_marked_as_a_simulations(text):
    assert text in " ".join(render_report(*run()).split())


def test_what_a_real_run_would_have_released_is_told():
    results, history = run()
    page = " ".join(render_report(results, history).split())
    assert "would have released: nothing; no evaluation was opened" in page
    results["released"] = {"accuracy": {"value": 0.123, "low": 0.045, "high": 0.216, "n": 120}}
    results["privacy"]["evaluation"] = {
        "release": "noised",
        "epsilon": 1.0,
        "cells": 20,
        "deviation": 7.25,
    }
    page = " ".join(render_report(results, history).split())
    assert '<td class="num">0.123</td>' in page
    assert "0.045 – 0.216" in page
    assert "from 20 counts, each with noise of standard deviation 7.2 added" in page
    assert "cost a held-out record at most epsilon 1.00" in page


def test_an_exact_release_under_privacy_is_told_for_what_it_is():
    results, history = run()
    results["released"] = {"accuracy": {"value": 0.123, "low": 0.045, "high": 0.216, "n": 120}}
    results["privacy"]["evaluation"] = {"release": "exact", "epsilon": None}
    page = " ".join(render_report(results, history).split())
    assert "protected by that sum alone, and not by differential privacy" in page


def test_a_run_of_which_little_is_known_still_makes_a_report():
    results, _ = run()
    for name in ("baselines", "sites_metrics", "released", "costs"):
        results[name] = None
    results["sites"] = 1000
    del results["curves"]
    page = render_report(results, [])
    assert "1000 virtual sites" in page or "1,000 virtual sites" in page
    assert "<svg" not in page


def test_of_many_sites_the_quantiles_are_shown():
    results, history = run(sites=61)
    for k, values in enumerate(results["sites_metrics"]):
        results["sites_metrics"][values] = {"accuracy": k / 100}
    page = render_report(results, history)
    assert "site-30" not in page
    rows = [
        re.search(rf">{row}</th>\s*<td class=\"num\">([\d.]+)", page).group(1)
        for row in ("lowest", "median", "highest")
    ]
    assert rows == ["0.000", "0.300", "0.600"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        write_report(*run(), tmp_path / "absent" / "report.html")


def test_epsilon_is_never_shown_smaller_than_it_is():
    assert [show_epsilon(x) for x in (1.981, 2.0, 0.7, 0.0431, 4.0001)] == [
        "1.99",
        "2.00",
        "0.70",
        "0.044",
        "4.01",
    ]


def test_the_bet_is_the_best_tests_accuracy():
    words = " ".join(epsilon_words({"epsilon": np.log(3), "delta": 1e-5, "unit": "record"}, COVERS))
    assert "factor of 3.00" in words
    assert "75.0\u00a0% of the time" in words
    words = " ".join(epsilon_words({"epsilon": 50.0, "delta": 1e-5, "unit": "patient"}, COVERS))
    assert "more than 99.9\u00a0%" in words


def test_the_words_about_epsilon_say_what_it_covers():
    words = " ".join(epsilon_words({"epsilon": 1.0, "delta": 1e-5, "unit": "patient"}, COVERS))
    for said in (
        "covers this run: every attempt that was debited, of the site that paid most",
        "all studies on a dataset have cost together, the ledger of its site says",
        "whom two hospitals know is protected at each",
        "chosen by looking at real results is a run too, and is debited",
    ):
        assert said in words


def test_the_roc_of_the_curves_has_the_area_of_the_metric():
    truth, scores = predictions("binary", 5000)
    roc = curves("binary", CLASSES["binary"], truth, scores)["roc"][0]
    exact = exact_metrics("binary", CLASSES["binary"], truth, scores)["auc"].value
    assert roc["auc"] == pytest.approx(exact, abs=1e-6)
    assert (roc["fpr"][0], roc["tpr"][0], roc["fpr"][-1], roc["tpr"][-1]) == (0, 0, 1, 1)
    # Thinned to 150 points: the polygon is this close to the full curve.
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(exact, abs=2e-3)
    assert len(roc["fpr"]) <= 152


def test_confusion_and_calibration_count_every_record_once():
    for kind in ("binary", "multiclass"):
        truth, scores = predictions(kind)
        found = curves(kind, CLASSES[kind], truth, scores)
        assert sum(map(sum, found["confusion"])) == len(truth)
        assert sum(row["n"] for row in found["calibration"]) == len(truth)
    found = curves("regression", (), *predictions("regression"), bounds=(0.0, 30.0))
    assert sum(found["errors"]["counts"]) == sum(map(sum, found["grid"]["counts"])) == 120


def test_curves_of_no_records_draw_nothing():
    results, history = run()
    results["curves"] = curves("binary", CLASSES["binary"], np.zeros(0, int), np.zeros((0, 2)))
    assert "ROC curve</h3>" not in render_report(results, history)


def reported(task, path, count=90):
    """Return the page, the figures and the curves of a made-up run of ``task``."""
    results, history = run()
    study = task_study(task)
    target, truth = target_of(study), made_targets(target_of(study), count)
    answers = better_answers(target, truth, 0.2)
    figures = target.exact_figures(truth.numpy(), answers)
    drawn = target.curves(truth.numpy(), answers)
    results["study"]["data"] = study.document()["data"]
    results |= {"headline": target.headline, "curves": drawn, "baselines": {}, "sites_metrics": {}}
    results["metrics"] = {name: dataclasses.asdict(figure) for name, figure in figures.items()}
    write_report(results, history, path)
    return path.read_text(), figures, drawn


def test_survival_is_drawn_by_predicted_risk_in_the_unit_of_its_time(tmp_path):
    page, figures, drawn = reported("survival", tmp_path / "report.html")
    assert "Kaplan-Meier by predicted risk</h3>" in page
    ends = [f"{one['group']} {one['shares'][-1]:.3f}" for one in drawn["groups"]]
    assert (
        f'aria-label="Share without the event by predicted risk, at last: {", ".join(ends)}"'
        in page
    )
    for one in drawn["groups"]:
        assert f"{one['group']} risk ({one['events']} of {one['n']})" in page
    assert "Time (days)" in page
    assert "Calibration</h3>" in page
    assert show(figures["c_index"].value) in page


def test_warnings_are_drawn_by_the_hours_that_were_known(tmp_path):
    page, figures, drawn = reported("warning", tmp_path / "report.html")
    assert "AUC by hour</h3>" in page
    first, last = drawn["hours"][0][1], drawn["hours"][-1][1]
    assert f"{first:.3g}" != f"{last:.3g}"
    assert f'aria-label="AUC by hours known, from {first:.3g} to {last:.3g}"' in page
    assert "Hours known" in page
    assert "ROC curve</h3>" in page
    assert all(f"{one['class']} ({one['auc']:.3f})" in page for one in drawn["roc"])
    for name in ("auc_2", "auc_4", "sensitivity", "false_alarms", "alarms_a_day", "lead_hours"):
        assert show(figures[name].value) in page


def test_the_report_can_be_made_again_from_its_files():
    results, history = run()
    again = json.loads(json.dumps(results, allow_nan=False))
    assert render_report(again, history) == render_report(results, history)


@pytest.mark.parametrize(("kind", "mode"), RUNS)
def test_the_summary_names_every_metric_and_the_privacy(kind, mode):
    results, _ = run(kind, mode)
    results["study"]["name"] = "[bold]odd[/]"
    text = io.StringIO()
    print_summary(results, Console(file=text, width=120))
    told = text.getvalue()
    assert "[bold]odd[/]" in told
    assert all(LABELS[name][0] in told for name in METRICS[kind])
    assert ("epsilon 1.99" in told) == (mode != "none")
    assert ("No differential privacy" in told) == (mode == "none")


def test_figures_from_cells_make_a_report_too():
    truth, scores = predictions("binary")
    results, history = run()
    cells = count_cells("binary", CLASSES["binary"], truth, scores)
    figures = metrics_from_cells("binary", CLASSES["binary"], cells)
    results["metrics"] = {name: dataclasses.asdict(figure) for name, figure in figures.items()}
    assert show(figures["auc"].value) in render_report(results, history)
