"""An explanation as files: one HTML page without links or scripts, its pictures, and the figures.

It computes no attribution and writes nothing: `client.explain.folder` does.
"""

from base64 import b64encode
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table

from client.explain.explanation import ALIKE, SEEDS, Explanation, Told
from client.explain.folder import IMPORTANCE, PAGE, SUMMARY, record_name
from client.explain.layout import CALLED, Layout
from client.explain.permutation import REPEATS, Floats, Importance
from client.explain.pictures import TITLES, importance_png, record_pngs
from shared_models import wording
from shared_models.model_file import json_bytes

VERDICTS = {
    True: "depends on what was learnt",
    False: "says nearly the same of random weights: do not rely on it",
    None: "cannot be told",
}
ROWS_MAX = 10
SHUFFLED = {
    "features": "one column",
    "series": "one variable",
    "image": "one square of the picture",
    "tokens": "one place of the sequence",
    "molecule": "the number of one run of symbols, with those hashed into the same bucket,",
    "parts": "one column, one variable or the whole picture",
}
_MIDDLE = "Every number in the middle of its public range, no category, nothing missing"
_FLAT = "a flat picture of the same mean brightness"
NOTHING = {
    "features": f"{_MIDDLE}.",
    "series": f"{_MIDDLE}.",
    "image": f"{_FLAT.capitalize()}.",
    "tokens": "The same length, with letters or words whose embedding is zero.",
    "molecule": "A molecule without symbols.",
    "parts": f"{_MIDDLE}; {_FLAT}. A part that the record lacks stays so.",
}


def files_of(explanation: Explanation) -> dict[str, bytes]:
    """Return every file of an explanation by its name."""
    pictures = {
        record_name(told.number, part): picture
        for told in explanation.records
        for part, picture in record_pngs(explanation, told).items()
    }
    if explanation.importance is not None:
        pictures[IMPORTANCE] = importance_png(explanation, explanation.importance)
    page = _page(explanation, pictures)
    return {SUMMARY: json_bytes(summary(explanation)), **pictures, PAGE: page.encode()}


def summary(explanation: Explanation) -> dict[str, object]:
    """Return the figures for machines; what stands in a record is not among them."""
    layout, importance = explanation.layout, explanation.importance
    return {
        "study": explanation.study.name,
        "study_digest": explanation.study.digest(),
        "kind": layout.kind,
        "shape": list(layout.shape),
        "names": list(layout.names),
        "unit": explanation.unit,
        "records_read": explanation.count,
        "records": [
            {
                "record": told.number,
                "prediction": told.prediction.tolist(),
                "explained": told.words.explained or None,
                "score": told.score,
                "baseline_score": told.baseline,
                "completeness_gap": told.gap,
                "attributions": {
                    name: _shaped(layout, values) for name, values in told.values.items()
                },
            }
            for told in explanation.records
        ],
        "permutation_importance": importance
        and {
            "records": importance.records,
            "loss": importance.loss,
            "groups": list(importance.groups),
            "rise": importance.rises.tolist(),
            "deviation": importance.deviations.tolist(),
        },
        "no_permutation_importance_because": explanation.why or None,
        "sanity": [
            {"method": one.method, "rank_correlation": one.correlation, "passed": one.passed}
            for one in explanation.checks
        ],
    }


def show_checks(explanation: Explanation, console: Console) -> None:
    """Print how alike each method's answers are for random weights."""
    table = Table("method", "rank correlation with random weights", "verdict", box=box.SIMPLE_HEAD)
    for one in explanation.checks:
        table.add_row(TITLES[one.method], wording.show(one.correlation), VERDICTS[one.passed])
    console.print(table)
    if explanation.importance is None:
        words = f"no permutation importance, since answers cannot be read: {explanation.why}"
        console.print(words, markup=False, highlight=False, soft_wrap=True)


def _page(explanation: Explanation, pictures: dict[str, bytes]) -> str:
    rooms = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(wording.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rooms.filters["show"] = wording.show
    sources = {
        name: f"data:image/png;base64,{b64encode(one).decode()}" for name, one in pictures.items()
    }
    return rooms.get_template("report.html.j2").render(
        found=explanation,
        digest=explanation.study.digest(),
        explained=_explained(explanation),
        failed=[TITLES[one.method] for one in explanation.checks if one.passed is False],
        titles=TITLES,
        verdicts=VERDICTS,
        alike=ALIKE,
        randoms=len(SEEDS),
        repeats=REPEATS,
        records=[
            (told, _sources(explanation, told, sources), _lines(explanation, told))
            for told in explanation.records
        ],
        importance=explanation.importance,
        rows=[] if explanation.importance is None else _largest(explanation.importance),
        importance_source=sources.get(IMPORTANCE, ""),
        letters=any(
            column.kind in {"letters", "molecule"}
            for column in explanation.study.data.inputs.values()
        ),
        shuffled=SHUFFLED,
        nothing=NOTHING,
        hidden=_hidden(explanation.layout),
        called=CALLED,
        attention=any(one.method == "attention" for one in explanation.checks),
    )


def _hidden(layout: Layout) -> str:
    """Say what occlusion hides at a time."""
    if layout.parts:
        return "; ".join(_hidden(part.layout) for part in layout.parts)
    if layout.kind == "series":
        steps = int(layout.regions[0].sum())
        return f"a variable says nothing for {steps} step{'s' if steps != 1 else ''}"
    return {
        "features": "a column says nothing",
        "image": "a square is made flat; a pixel shows the mean over the squares that cover it",
        "tokens": "a place says nothing",
        "molecule": "what fell into one bucket is taken out; its symbols share that",
    }[layout.kind]


def _largest(importance: Importance) -> list[tuple[str, float, float]]:
    """Return what matters most: its name, the rise of the loss and its deviation."""
    return [
        (importance.groups[k], float(importance.rises[k]), float(importance.deviations[k]))
        for k in np.argsort(-importance.rises, kind="stable")[:ROWS_MAX]
    ]


def _lines(explanation: Explanation, told: Told) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return a text once a method, each letter or word with its colour."""
    if explanation.layout.kind not in {"tokens", "molecule"}:
        return []
    lines = []
    for name, values in told.values.items():
        own = values[: len(told.cells)]
        most = max(float(abs(own).max(initial=0)), 1e-12)
        colours = [_colour(float(one) / most, signed=name != "attention") for one in own]
        lines.append((TITLES[name], list(zip(told.cells, colours, strict=True))))
    return lines


def _colour(share: float, *, signed: bool) -> str:
    """Return the colour of a share in [-1, 1] of the largest value, as the pictures have it."""
    red = "31,41,51" if not signed else "213,94,0" if share > 0 else "0,114,178"
    return f"rgba({red},{0.75 * abs(share):.2f})"


def _shaped(layout: Layout, values: Floats) -> object:
    """Return a record's values in the shape of its cells, part by part; attention's as they are."""
    if layout.parts:
        return {part.name: _shaped(part.layout, values[part.cells]) for part in layout.parts}
    return (
        values.reshape(layout.shape) if values.size == np.prod(layout.shape) else values
    ).tolist()


def _explained(explanation: Explanation) -> str:
    """Return what attributions of these records speak for."""
    names = {told.words.explained for told in explanation.records}
    if len(names) > 1:
        return "the answer that is named with each record"
    (name,) = names
    return f"“{name}”" if name else f"a higher answer ({explanation.unit})"


def _sources(
    explanation: Explanation, told: Told, sources: dict[str, str]
) -> list[tuple[str, str]]:
    """Return a record's pictures, each with the part that it is of."""
    parts = [part.name for part in explanation.layout.parts] or [""]
    names = {part: record_name(told.number, part) for part in parts}
    return [(part, sources[name]) for part, name in names.items() if name in sources]
