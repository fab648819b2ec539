"""The report of a run as one HTML file without links or scripts, from the results alone.

It computes no metric and no guarantee. Equal results give equal bytes: a report can be made again.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from privacy.errors import DataError
from shared_models import wording
from simulations import plots
from simulations.report_groups import groups_table
from simulations.wording import (
    BASELINES,
    COVERS,
    exposures,
    headline,
    reading,
    release_words,
    result,
    warnings,
)

Json = Mapping[str, Any]
Rows = Sequence[Json]

SITES_MAX = 60  # rows of the table of sites; of more sites the quantiles are shown
# Metrics that are not in [0, 1] by nature get no bar.
UNBOUNDED = frozenset(
    {"alarms_a_day", "brier", "ef1", "lead_hours", "loss", "mae", "rmse", "surface_distance"}
)
SITE_METRICS = (
    "dice",
    "iou",
    "surface_distance",
    "auc",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "brier",
    "mae",
    "rmse",
    "loss",
)


def write_report(results: Json, history: Rows, path: Path) -> None:
    """Write the report of one run.

    Args:
        results: what results.json holds; its "curves" are those of the target.
        history: rows of metrics.csv: round, epsilon and metrics by name; texts are read as numbers.
        path: of the HTML file; written beside it first, then renamed.

    Raises:
        DataError: the file cannot be written.
    """
    text = render_report(results, history)
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); the results themselves are kept"
        ) from error


def render_report(results: Json, history: Rows) -> str:
    """Return the report as HTML; the arguments are those of `write_report`."""
    rooms = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(wording.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rooms.filters["show"] = wording.show
    rooms.filters["show_epsilon"] = wording.show_epsilon
    rooms.filters["label"] = wording.label
    curves = results.get("curves")
    main = _main_metric(results)
    baselines = _baselines(results, main)
    released = results.get("released")
    rows = _metric_rows(results["metrics"], released)
    return rooms.get_template("report.html.j2").render(
        name=results["study"]["name"],
        digest=results["study_digest"],
        warnings=warnings(results),
        private=wording.is_private(results),
        headline=headline(results),
        sharing=wording.sharing(results),
        result=result(main, results["metrics"][main]) if main else "",
        main=main,
        reading=reading(curves),
        metrics=rows,
        bars=any(row["bar"] for row in rows),
        released=bool(released),
        release=release_words(results),
        tiles=_tiles(results, main),
        learning=_learning(results, history, main),
        pictures=_pictures(results, curves),
        confusion=_confusion(curves),
        groups=groups_table(results, main, SITE_METRICS),
        sites=_sites(results.get("sites_metrics")),
        baselines=baselines,
        baselines_picture=_baselines_picture(results, baselines, main),
        privacy=results["privacy"],
        trusted=_lines(results["privacy"].get("trusted")),
        epsilon_words=wording.epsilon_words(results["privacy"], COVERS),
        noise_words=wording.noise_words(results["privacy"]),
        exposures=exposures(results),
        costs=_costs(results.get("costs") or {}),
        versions=results.get("versions") or {},
        engine=results.get("engine", ""),
        seed=results.get("seed"),
        study=tomli_w.dumps(_without_none(results["study"])),
    )


def _main_metric(results: Json) -> str:
    """Return the name of the metric that the report leads with."""
    metrics, wanted = results["metrics"], str(results["headline"])
    return wanted if wanted in metrics else next(iter(metrics), "")


def _tiles(results: Json, main: str) -> list[tuple[str, str, str]]:
    """Return (figure, what it is, a note) of the four figures at the top."""
    privacy = results["privacy"]
    tiles = []
    if main:
        figure = results["metrics"][main]
        limits = ""
        if figure["low"] is not None and figure["high"] is not None:
            limits = f"{wording.show(figure['low'])} to {wording.show(figure['high'])}"
        tiles.append((wording.show(figure["value"]), wording.label(main), limits))
    if wording.is_private(results) and privacy["epsilon"] is not None:
        note = f"delta {privacy['delta']:g}, each {privacy['unit']}"
        tiles.append((wording.show_epsilon(privacy["epsilon"]), "epsilon spent", note))
    else:
        tiles.append(("none", "differential privacy", "nothing bounds what is told"))
    masked = "masked: only sums opened" if wording.is_masked(results) else "not masked"
    tiles.append((f"{wording.site_count(results):,}", "virtual sites", masked))
    tiles.append((f"{results['rounds']:,}", "rounds", ""))
    return tiles


def _metric_rows(metrics: Json, released: Json | None) -> list[dict[str, Any]]:
    rows = []
    for name, figure in metrics.items():
        title, meaning = wording.LABELS.get(name, (wording.label(name), ""))
        told = (released or {}).get(name)
        bounded = name not in UNBOUNDED and None not in (figure["value"], figure["low"])
        rows.append(
            {
                "name": name,
                "title": title,
                "meaning": meaning,
                "figure": figure,
                "bar": bounded and figure["high"] is not None,
                "released": told["value"] if isinstance(told, Mapping) else told,
                "told": _interval(told),
            }
        )
    return rows


def _interval(figure: object) -> str:
    if not isinstance(figure, Mapping) or None in (figure["low"], figure["high"]):
        return ""
    return f"{wording.show(figure['low'])} – {wording.show(figure['high'])}"


def _learning(results: Json, history: Rows, main: str) -> list[Markup]:
    levels = {
        BASELINES[name][0].lower(): _value((values or {}).get(main))
        for name, values in (results.get("baselines") or {}).items()
        if name in {"pooled", "local_only"}
    }
    pictures = []
    for name in dict.fromkeys((main, "loss")):
        rounds, values = _series(history, name)
        if len(values) > 1:
            lines = levels if name == main else {}
            pictures.append(plots.learning_svg(rounds, values, wording.label(name), lines, name))
    rounds, spent = _series(history, "epsilon")
    if wording.is_private(results) and len(spent) > 1:
        limit = _value(results["study"]["privacy"].get("epsilon"))
        pictures.append(plots.epsilon_svg(rounds, spent, limit))
    return [Markup(picture) for picture in pictures]  # noqa: S704 - drawn by plots, which escapes


def _pictures(results: Json, curves: Json | None) -> list[tuple[str, str, Markup]]:
    """Return (title, how to read it, picture) of the final model's curves."""
    if curves is None:
        return []
    found = []
    if curves.get("roc"):
        words = "Up and to the left is better; the dotted diagonal is guessing."
        if len(curves["roc"]) > plots.ROC_CLASSES_MAX:
            words += f" The first {plots.ROC_CLASSES_MAX} of {len(curves['roc'])} classes."
        found.append(("ROC curve", words, plots.roc_svg(curves["roc"])))
    if curves.get("hours"):
        words = "How well records are ranked by what was known after so many hours."
        found.append(("AUC by hour", words, plots.hours_svg(curves["hours"])))
    if curves.get("calibration"):
        words = "On the dotted diagonal, a predicted 70\u00a0% comes true in 70 of 100 records."
        found.append(("Calibration", words, plots.calibration_svg(curves["calibration"])))
    target = results["study"]["data"]["target"]
    first = target if isinstance(target, str) else target[0]
    column = results["study"]["data"].get("columns", {}).get(first, {})
    unit = f" ({column['unit']})" if column.get("unit") else ""
    if curves.get("dice"):
        words = "Far to the right is better; of each structure, the records that have it."
        found.append(("Dice of single records", words, plots.dice_svg(curves["dice"])))
    if curves.get("groups"):
        words = "Far apart is better: those of higher predicted risk should have the event first."
        picture = plots.survival_svg(curves["groups"], unit)
        found.append(("Kaplan-Meier by predicted risk", words, picture))
    if "errors" in curves:
        words = "Centred on zero and narrow is better."
        found.append(("Errors", words, plots.errors_svg(curves["errors"], unit)))
        words = "On the dotted diagonal, prediction and truth agree; counts of records only."
        found.append(("Predicted and true", words, plots.grid_svg(curves["grid"], unit)))
    return [(title, words, Markup(svg)) for title, words, svg in found]  # noqa: S704 - as above


def _confusion(curves: Json | None) -> dict[str, Any] | None:
    if curves is None or "confusion" not in curves:
        return None
    rows = []
    for name, counts in zip(curves["classes"], curves["confusion"], strict=True):
        total = sum(counts)
        cells = [(count, count / total if total else 0.0) for count in counts]
        rows.append({"name": name, "cells": cells, "total": total})
    return {"classes": curves["classes"], "rows": rows}


def _sites(sites: Json | None) -> dict[str, Any] | None:
    """Return the table of sites, or of their quantiles when there are many."""
    if not sites:
        return None
    present = {name for values in sites.values() for name in values}
    names = [name for name in SITE_METRICS if name in present]
    names = names or sorted(present - {"n", "records"})
    table = [(site, [_value(values.get(n)) for n in names]) for site, values in sites.items()]
    if len(table) > SITES_MAX:
        columns = [
            sorted(v for v in column if v is not None)
            for column in zip(*(r for _, r in table), strict=True)
        ]
        table = [
            (title, [_quantile(column, share) for column in columns])
            for title, share in (("lowest", 0.0), ("median", 0.5), ("highest", 1.0))
        ]
    elif "n" in present:
        counts = [values.get("n") for values in sites.values()]
        return {"names": names, "rows": table, "count": len(sites), "records": counts}
    return {"names": names, "rows": table, "count": len(sites), "records": None}


def _baselines(results: Json, main: str) -> dict[str, Any] | None:
    given = {name: values for name, values in (results.get("baselines") or {}).items() if values}
    if not given:
        return None
    names = [
        name
        for name in dict.fromkeys((main, *SITE_METRICS))
        if name in results["metrics"] and any(name in values for values in given.values())
    ]
    rows = [("This run", "", [results["metrics"][name]["value"] for name in names])]
    for name, values in given.items():
        title, meaning = BASELINES.get(name, (wording.label(name), ""))
        rows.append((title, meaning, [_value(values.get(metric)) for metric in names]))
    return {"names": names, "rows": rows}


def _baselines_picture(results: Json, baselines: Json | None, main: str) -> Markup | None:
    if baselines is None or main not in baselines["names"]:
        return None
    place = baselines["names"].index(main)
    values = {title: row[place] for title, _, row in baselines["rows"] if row[place] is not None}
    figure = results["metrics"][main]
    if figure["value"] is None or figure["low"] is None or len(values) < 2:
        return None
    svg = plots.baselines_svg(values, wording.label(main), figure["low"], figure["high"])
    return Markup(svg)  # noqa: S704 - drawn by plots, which escapes


def _costs(costs: Json) -> list[tuple[str, str]]:
    rows = []
    for name, value in costs.items():
        if value is None:
            continue
        if name == "wall_s":
            rows.append(("Time", f"{value:.1f} s"))
        elif name == "site_rounds_per_s":
            rows.append(("Site-rounds a second", f"{value:,.1f}"))
        elif name == "peak_rss_mb":
            rows.append(("Peak memory", f"{value:,.0f} MB"))
        elif name in {"bytes_up", "bytes_down"}:
            way = "Sent by all sites" if name == "bytes_up" else "Received by all sites"
            rows.append((way, _bytes(value)))
        else:
            rows.append((name.replace("_", " "), str(value)))
    return rows


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def _series(history: Rows, name: str) -> tuple[list[float], list[float]]:
    """Return the rounds at which a metric has a value, and its values."""
    pairs = [(_value(row.get("round")), _value(row.get(name))) for row in history]
    kept = [(r, v) for r, v in pairs if r is not None and v is not None]
    return [r for r, _ in kept], [v for _, v in kept]


def _value(found: object) -> float | None:
    """Return a number, a figure's value or a number in a text; None for what is undefined."""
    if isinstance(found, Mapping):
        found = found.get("value")
    if not isinstance(found, int | float | str) or found == "":
        return None
    try:
        number = float(found)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[round(share * (len(ordered) - 1))] if ordered else None


def _lines(trusted: object) -> list[str]:
    if trusted is None:
        return []
    return [trusted] if isinstance(trusted, str) else [str(line) for line in trusted]  # type: ignore[attr-defined]


def _without_none(value: Any) -> Any:
    """Return a document as TOML can hold it: it has no null."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(v) for v in value if v is not None]
    return value
