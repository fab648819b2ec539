"""The pictures of an explanation as PNG: over the picture, the series, the text, the columns.

It computes no attribution. Equal values give equal bytes.
"""

import io
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from client.explain.explanation import Explanation, Told
from client.explain.layout import Part
from client.explain.permutation import Importance

Floats = npt.NDArray[np.float64]

# Okabe and Ito 2008: told apart with every common colour blindness.
AGAINST, FOR = "#0072B2", "#D55E00"
INK, FAINT = "#1f2933", "#d9dee4"
SIGNED = LinearSegmentedColormap.from_list("signed", [AGAINST, "#ffffff", FOR])
TITLES = {
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "attention": "Attention",
    "permutation_importance": "Permutation importance",
}
COLUMNS_MAX = 16  # columns or variables in one picture: those that weigh most
LABELS_MAX = 80  # places with a letter or word each; of more, numbers are written


def record_pngs(explanation: Explanation, told: Told) -> dict[str, bytes]:
    """Draw what speaks for and against in one record: "" -> picture, or part -> picture.

    A part that the record lacks is not drawn.
    """
    layout, absent = explanation.layout, explanation.absent(told)
    if not layout.parts:
        return {"": _drawn(explanation, told)}
    return {
        part.name: _drawn(replace(explanation, layout=part.layout), _of_part(told, part))
        for part in layout.parts
        if part.name not in absent
    }


def _drawn(explanation: Explanation, told: Told) -> bytes:
    draw = {
        "features": _columns,
        "series": _series,
        "image": _image,
        "tokens": _places,
        "molecule": _places,
    }
    with _style():
        return draw[explanation.layout.kind](explanation, told)


def _of_part(told: Told, part: Part) -> Told:
    """Return a record as if it had that part alone."""
    return replace(
        told,
        inputs=told.inputs[part.numbers].reshape(part.shape),
        cells=told.cells if part.name == "static" else (),
        values={name: one[part.cells] for name, one in told.values.items()},
    )


def importance_png(explanation: Explanation, importance: Importance) -> bytes:
    """Draw how much the loss rises when columns, variables, places or squares are shuffled."""
    layout, rises = explanation.layout, importance.rises
    with _style():
        if layout.kind == "image":
            grid = np.zeros(layout.regions.shape[1])
            for group, rise in zip(layout.groups, rises, strict=True):
                grid[group.cells] = rise
            figure, axes = _canvas(4.2, 3.6)
            _heat(figure, axes, grid.reshape(layout.shape), "rise of the mean loss")
            axes.set_axis_off()
            return _png(figure)
        if layout.kind == "tokens":
            figure, axes = _canvas(9, 2.8)
            starts = [int(group.cells[0]) + 1 for group in layout.groups]
            width = 0.8 * len(layout.groups[0].cells)
            axes.bar(starts, rises, width, color=INK, yerr=importance.deviations, ecolor="#7b8794")
            axes.set_xlabel("Place")
            axes.set_ylabel("Rise of the mean loss")
            return _png(figure)
        order = np.argsort(-rises, kind="stable")[:COLUMNS_MAX]
        figure, axes = _canvas(7, 0.32 * len(order) + 0.9)
        names = [_short(importance.groups[k]) for k in order]
        places = np.arange(len(order))
        axes.barh(
            places, rises[order], color=INK, xerr=importance.deviations[order], ecolor="#7b8794"
        )
        _name_rows(axes, names)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("Rise of the mean loss when it is shuffled among records")
        return _png(figure)


def _columns(explanation: Explanation, told: Told) -> bytes:
    gradients, hidden = told.values["integrated_gradients"], told.values["occlusion"]
    order = np.argsort(-np.maximum(abs(gradients), abs(hidden)), kind="stable")[:COLUMNS_MAX]
    figure, axes = _canvas(7, 0.34 * len(order) + 1.3)
    places = np.arange(len(order))
    axes.axvline(0, color=INK, linewidth=1)
    colours = [FOR if one > 0 else AGAINST for one in gradients[order]]
    axes.barh(places, gradients[order], color=colours, label=TITLES["integrated_gradients"])
    axes.plot(
        hidden[order],
        places,
        "D",
        color=INK,
        markerfacecolor="white",
        markersize=6,
        label=TITLES["occlusion"],
    )
    names = explanation.layout.names
    written = [f": {_short(told.cells[k])}" if told.cells else "" for k in order]
    _name_rows(axes, [_short(names[k]) + own for k, own in zip(order, written, strict=True)])
    axes.set_xlabel(f"Adds to the score ({explanation.unit})")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return _png(figure)


def _image(explanation: Explanation, told: Told) -> bytes:
    figure = Figure(figsize=(9.6, 4.2), layout="compressed")
    first, *panels = figure.subplots(1, 3)
    picture = np.moveaxis(told.inputs, 0, 2)  # (C, H, W) -> (H, W, C)
    colour = picture.shape[2] == 3
    grey = picture.mean(axis=2)
    if colour:
        first.imshow(picture.clip(0, 1))
    else:
        mesh = first.imshow(grey, cmap="gray", vmin=0, vmax=1)
        figure.colorbar(mesh, ax=first, label="scaled value", location="bottom", fraction=0.05)
    first.set_title("Record")
    for axes, name in zip(panels, ("integrated_gradients", "occlusion"), strict=True):
        values = told.values[name].reshape(explanation.layout.shape)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
        _heat(figure, axes, values, explanation.unit, over=True)
        axes.set_title(TITLES[name])
    for axes in (first, *panels):
        axes.set_axis_off()
    return _png(figure)


def _series(explanation: Explanation, told: Told) -> bytes:
    steps, width = shape = explanation.layout.shape
    maps = {
        name: told.values[name].reshape(shape) for name in ("integrated_gradients", "occlusion")
    }
    weight = sum(abs(one).sum(axis=0) / max(abs(one).sum(), 1e-12) for one in maps.values())
    rows = np.argsort(-np.asarray(weight), kind="stable")[:COLUMNS_MAX]
    names = [_short(explanation.layout.names[v]) for v in rows]
    inputs = np.zeros(steps * width)
    # A category's values and a missing mark share a cell: the first number of each cell is shown.
    cells, places = np.unique(explanation.layout.cell_of, return_index=True)
    inputs[cells] = told.inputs.reshape(-1)[places]
    attention = told.values.get("attention")
    heights = [1.0] * 3 + ([0.45] if attention is not None else [])
    tall = 0.24 * len(rows) + 0.8
    figure = Figure(figsize=(9, tall * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    shown = inputs.reshape(shape)[:, rows].T  # (rows, T)
    mesh = panels[0].imshow(
        shown, cmap="viridis", aspect="auto", vmin=-1, vmax=1, extent=_extent(steps, rows)
    )
    figure.colorbar(mesh, ax=panels[0], label="scaled value")
    panels[0].set_title("Record (its public range scaled to −1 to 1)", loc="left")
    for axes, (name, values) in zip(panels[1:3], maps.items(), strict=True):
        _heat(figure, axes, values[:, rows].T, explanation.unit, extent=_extent(steps, rows))
        axes.set_title(TITLES[name], loc="left")
    for axes in panels[:3]:
        axes.grid(visible=False)
        axes.set_yticks(range(len(rows)), names, fontsize=9)
    if attention is not None:
        panels[3].bar(np.arange(1, steps + 1), attention, color=INK, width=0.85)
        panels[3].set_title(TITLES["attention"], loc="left")
    panels[-1].set_xlabel("Step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure)


def _places(explanation: Explanation, told: Told) -> bytes:
    count = len(told.cells)
    figure = Figure(figsize=(10, 1.5 * len(told.values) + 0.8), layout="constrained")
    panels = figure.subplots(len(told.values), 1, sharex=True, squeeze=False)[:, 0]
    places = np.arange(1, count + 1)
    for axes, (name, values) in zip(panels, told.values.items(), strict=True):
        own = values[:count]
        signed = name != "attention"
        colours = [(FOR if one > 0 else AGAINST) if signed else INK for one in own]
        axes.bar(places, own, color=colours, width=0.85)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_title(TITLES[name], loc="left")
        axes.set_ylabel(explanation.unit if signed else "share")
    letters = all(len(cell) == 1 for cell in told.cells)
    if 0 < count <= LABELS_MAX:
        panels[-1].set_xticks(
            places,
            [_short(cell) for cell in told.cells],
            rotation=0 if letters else 90,
            fontsize=9 if letters else 8,
        )
    else:
        panels[-1].set_xlabel("Place")
    panels[-1].set_xlim(0.3, max(count, 1) + 0.7)
    return _png(figure)


def _heat(
    figure: Figure,
    axes: Axes,
    values: Floats,
    label: str,
    *,
    over: bool = False,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Draw signed values, white at zero; ``over`` a picture, clear at zero."""
    most = max(float(abs(values).max()), 1e-12)
    key = ScalarMappable(Normalize(-most, most), SIGNED)
    aspect: Literal["equal", "auto"] = "equal" if extent is None else "auto"
    if over:
        colours = np.where((values > 0)[..., None], to_rgba(FOR), to_rgba(AGAINST))  # (H, W, 4)
        colours[..., 3] = 0.85 * abs(values) / most
        axes.imshow(colours, aspect=aspect)
        ticks = MaxNLocator(3)
        figure.colorbar(key, ax=axes, label=label, location="bottom", fraction=0.05, ticks=ticks)
        return
    axes.imshow(values, cmap=SIGNED, vmin=-most, vmax=most, aspect=aspect, extent=extent)
    figure.colorbar(key, ax=axes, label=label)


def _extent(steps: int, rows: Floats | npt.NDArray[np.int64]) -> tuple[float, float, float, float]:
    """Return the edges of steps that are counted from 1, and of rows from the top."""
    return 0.5, steps + 0.5, len(rows) - 0.5, -0.5


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.grid(visible=False, axis="y")


def _short(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:27]}…"


def _style() -> AbstractContextManager[None]:
    """Return the style of every picture, for as long as one is drawn."""
    return rc_context(
        {
            "text.parse_math": False,  # a dollar sign in a text is a dollar sign
            "font.family": "DejaVu Sans",
            "font.size": 11,
            "text.color": INK,
            "axes.edgecolor": "#7b8794",
            "axes.labelcolor": INK,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.frameon": False,
        }
    )


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, metadata={"Software": None})
    return file.getvalue()
