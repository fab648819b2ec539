"""The pictures of a report: each function returns one SVG element, ready to stand inside HTML.

It computes no metric. The same values always give the same bytes: no date, fixed identifiers. Text
stays text, so that it can be searched, copied and read aloud, in the font of the page.
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito 2008: told apart with every common colour blindness; line styles differ as well.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, "#E69F00", "#56B4E9", "#332288", "#666666")
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#1f2933", "#d9dee4"
ROC_CLASSES_MAX = 8
STRUCTURES_MAX = 8

Rows = Sequence[Mapping[str, Any]]
Json = Mapping[str, Any]


def learning_svg(
    rounds: Sequence[float],
    values: Sequence[float],
    label: str,
    lines: Mapping[str, float | None],
    name: str,
) -> str:
    """Draw one metric over the rounds; ``lines`` are baselines, drawn as dashed levels."""
    with _style():
        figure, axes = _canvas(4.4, 3.2)
        axes.plot(rounds, values, color=BLUE, marker="o", markersize=4, label="this run")
        for k, (title, level) in enumerate(lines.items()):
            if level is not None:
                colour, dash = COLOURS[k + 1], DASHES[k % 3 + 1]
                axes.axhline(level, color=colour, linestyle=dash, linewidth=1.5, label=title)
        axes.set_xlabel("Round")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if lines:
            axes.legend(loc="best")
        return _svg(figure, name, f"{label} after each evaluated round, {_trend(values)}")


def epsilon_svg(rounds: Sequence[float], spent: Sequence[float], total: float | None) -> str:
    """Draw epsilon over the rounds, with the study's budget as a level."""
    with _style():
        figure, axes = _canvas(4.4, 3.2)
        axes.plot(rounds, spent, color=VERMILION, marker="o", markersize=4, label="spent so far")
        if total is not None:
            axes.axhline(total, color=INK, linestyle="--", linewidth=1.2, label="study's limit")
            axes.legend(loc="lower right")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("Round")
        axes.set_ylabel("Epsilon")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, "epsilon", f"Privacy spent over the rounds, {_trend(spent)}")


def roc_svg(rocs: Rows) -> str:
    """Draw one ROC curve for each class, at most ROC_CLASSES_MAX of them."""
    with _style():
        figure, axes = _canvas(4.4, 4.2)
        axes.plot([0, 1], [0, 1], color="#7b8794", linewidth=1, linestyle=":")
        for k, roc in enumerate(rocs[:ROC_CLASSES_MAX]):
            label = f"{roc['class']} ({roc['auc']:.3f})"
            dash = DASHES[k // 2 % len(DASHES)]
            axes.plot(roc["fpr"], roc["tpr"], color=COLOURS[k], linestyle=dash, label=label)
        if len(rocs) == 1:
            axes.fill_between(rocs[0]["fpr"], rocs[0]["tpr"], color=BLUE, alpha=0.08, linewidth=0)
        _unit_square(axes)
        axes.set_xlabel("False alarms (1 − specificity)")
        axes.set_ylabel("Found (sensitivity)")
        axes.legend(loc="lower right", title="Class (area)", title_fontsize=11)
        areas = ", ".join(f"{roc['class']} {roc['auc']:.3f}" for roc in rocs[:ROC_CLASSES_MAX])
        return _svg(figure, "roc", f"ROC curve; area under it: {areas}")


def hours_svg(areas: Sequence[Sequence[float]]) -> str:
    """Draw the area under the ROC curve of what was known after each hour, pairs (hour, area)."""
    with _style():
        figure, axes = _canvas(4.4, 4.2)
        hours, values = zip(*areas, strict=True)
        axes.plot(hours, values, color=BLUE)
        axes.set_xlabel("Hours known")
        axes.set_ylabel("AUC")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, "hours", f"AUC by hours known, {_trend(values)}")


def calibration_svg(bins: Rows) -> str:
    """Draw observed rate against predicted probability, with 95 % limits, and how many records."""
    with _style():
        figure = Figure(figsize=(4.4, 4.2), layout="constrained")
        axes, counts = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        scores = np.array([row["score"] for row in bins], dtype=float)
        rates = np.array([row["rate"] for row in bins], dtype=float)
        limits = np.array([[row["low"], row["high"]] for row in bins], dtype=float).T
        axes.plot([0, 1], [0, 1], color="#7b8794", linewidth=1, linestyle=":")
        axes.errorbar(
            scores,
            rates,
            yerr=np.abs(limits - rates),
            color=BLUE,
            marker="o",
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
        )
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylabel("Observed rate")
        counts.bar(scores, [row["n"] for row in bins], width=0.05, color="#9aa5b1")
        counts.set_ylabel("Records")
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        counts.set_xlabel("Predicted probability")
        gap = float(np.average(np.abs(scores - rates), weights=[row["n"] for row in bins]))
        return _svg(
            figure,
            "calibration",
            "Observed rate against predicted probability in ten bins; "
            f"they differ by {gap:.3f} on average",
        )


def survival_svg(groups: Rows, unit: str) -> str:
    """Draw the share without the event over time, of groups by predicted risk (Kaplan-Meier)."""
    with _style():
        figure, axes = _canvas(4.4, 4.2)
        for k, group in enumerate(groups):
            label = f"{group['group']} risk ({group['events']} of {group['n']})"
            times, shares = [0, *group["times"]], [1, *group["shares"]]
            axes.step(
                times, shares, where="post", color=COLOURS[k], linestyle=DASHES[k], label=label
            )
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"Time{unit}")
        axes.set_ylabel("Share without the event")
        axes.legend(loc="lower left", title="Events", title_fontsize=11)
        ends = ", ".join(
            f"{one['group']} {one['shares'][-1]:.3f}" for one in groups if one["shares"]
        )
        return _svg(
            figure, "survival", f"Share without the event by predicted risk, at last: {ends}"
        )


def dice_svg(dice: Json) -> str:
    """Draw how many records have which Dice, one outline a structure."""
    with _style():
        figure, axes = _canvas(4.4, 3.8)
        rows = dice["rows"][:STRUCTURES_MAX]
        for k, row in enumerate(rows):
            axes.stairs(
                row["counts"],
                dice["edges"],
                fill=len(rows) == 1,
                color=COLOURS[k],
                linestyle=DASHES[k % len(DASHES)],
                label=row["structure"],
            )
        axes.set_xlabel("Dice of a record")
        axes.set_ylabel("Records")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left")
        return _svg(figure, "dice", "Histogram of the Dice of single records, by structure")


def baselines_svg(values: Mapping[str, float], label: str, low: float, high: float) -> str:
    """Draw one dot a training on a common scale; the first is this run, with its 95 % limits."""
    with _style():
        figure, axes = _canvas(6.8, 0.46 * len(values) + 0.8)
        names, places = list(values), list(values.values())
        axes.hlines(names[0], low, high, color=BLUE, linewidth=2.5, alpha=0.45)
        axes.plot(places[:1], names[:1], "o", color=BLUE, markersize=9)
        axes.plot(places[1:], names[1:], "D", color=INK, markersize=7, markerfacecolor="white")
        for name, place in values.items():
            axes.annotate(
                f"{place:.3f}",
                (place, name),
                (0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
        axes.set_ylim(len(values) - 0.6, -0.8)  # the first on top
        axes.margins(x=0.12)
        axes.set_xlabel(label)
        told = ", ".join(f"{name} {place:.3f}" for name, place in values.items())
        return _svg(figure, "baselines", f"{label}: {told}")


def errors_svg(errors: Json, unit: str) -> str:
    """Draw the histogram of prediction minus truth."""
    with _style():
        figure, axes = _canvas(4.4, 3.8)
        axes.stairs(errors["counts"], errors["edges"], fill=True, color=BLUE, alpha=0.85)
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        axes.set_xlabel(f"Predicted − true{unit}")
        axes.set_ylabel("Records")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, "errors", "Histogram of the errors, predicted minus true")


def grid_svg(grid: Json, unit: str) -> str:
    """Draw how many records fall on each pair of true and predicted value."""
    with _style():
        figure, axes = _canvas(4.4, 3.8)
        edges, counts = np.array(grid["edges"]), np.array(grid["counts"], dtype=float)
        true, guess = np.nonzero(counts)
        middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
        size = counts[true, guess] / max(counts.max(), 1.0)
        axes.plot(edges[[0, -1]], edges[[0, -1]], color="#7b8794", linewidth=1, linestyle=":")
        # A dot's area is its count: a picture of cells would need a raster image or 576 squares.
        axes.scatter(middle[true], middle[guess], s=8 + 70 * size, color=BLUE, alpha=0.6, lw=0)
        axes.set_xlim(edges[0] - width / 2, edges[-1] + width / 2)
        axes.set_ylim(edges[0] - width / 2, edges[-1] + width / 2)
        axes.set_xlabel(f"True value{unit}")
        axes.set_ylabel(f"Predicted value{unit}")
        return _svg(figure, "grid", "Predicted against true values; larger dots are more records")


def _style() -> AbstractContextManager[None]:
    """Return the style of every picture, for as long as one is drawn."""
    return rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "fedward",
            "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
            "font.family": "DejaVu Sans",  # of matplotlib; the page replaces it
            "font.size": 12,
            "text.color": INK,
            "axes.edgecolor": "#7b8794",
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "grid.linewidth": 0.7,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
            "legend.fontsize": 11,
            "lines.linewidth": 2,
        }
    )


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _trend(values: Sequence[float]) -> str:
    return f"from {values[0]:.3g} to {values[-1]:.3g}"


def _svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an <svg> element without prologue, links or shared identifiers."""
    file = io.StringIO()
    figure.patch.set_alpha(0.0)
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', "", text)
    text = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg \1 {_label(description)}>", text, count=1
    )
    # Several pictures share one page, and so one space of identifiers.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(r"\n\s*", "\n", text).strip()


def _label(description: str) -> str:
    safe = (
        description.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
    )
    return f'role="img" aria-label="{safe}"'.replace("\\", "\\\\")
