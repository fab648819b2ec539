"""The last table on the screen: a run's metrics and its privacy, for people.

It prints to the console that it is given, which is stderr; machines read results.json.
"""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared_models.wording import is_private, label, show, show_epsilon, site_count
from simulations.wording import BASELINES, warnings

COLUMNS = 3  # baselines that stand in the table


def print_summary(results: Mapping[str, Any], console: Console) -> None:
    """Print what ``results`` (of results.json) say, as a table and two or three lines."""
    study = escape(str(results["study"]["name"]))
    table = Table(
        title=f"{study}: {site_count(results)} sites, {results['rounds']} rounds",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # Headings of two lines, and no wrapping: with three baselines it just fits 80 columns.
    table.add_column("held-out records,\nall sites", no_wrap=True)
    beside, below = _trainings(results)[:COLUMNS], _trainings(results)[COLUMNS:]
    for title in ("value", "95 % interval", "records", *beside):
        table.add_column(title.replace("_", "\n"), justify="right", no_wrap=True)
    for name, figure in results["metrics"].items():
        table.add_row(
            escape(label(name)),
            show(figure["value"]),
            _interval(figure),
            f"{figure['n']:,}",
            *(_baseline(results["baselines"][title], name) for title in beside),
        )
    console.print(table)
    main = str(results["headline"])
    for title in below:
        value = _baseline(results["baselines"][title], main)
        console.print(f"{label(main)} of {BASELINES[title][1]}: {value}")
    console.print(_privacy_line(results))
    for warning in warnings(results):
        console.print(f"[bold red]{warning}:[/] a simulation only, never with patients' records")


def _privacy_line(results: Mapping[str, Any]) -> str:
    privacy = results["privacy"]
    if not is_private(results) or privacy["epsilon"] is None:
        return "Exact figures of a simulation. Privacy: none."
    return (
        "Exact figures, known to a simulation only. "
        f"Privacy: epsilon {show_epsilon(privacy['epsilon'])} at delta {privacy['delta']:g}, "
        f"each {privacy['unit']}, mode {privacy['mode']}."
    )


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return "undefined"
    return f"{show(figure['low'])} – {show(figure['high'])}"


def _trainings(results: Mapping[str, Any]) -> list[str]:
    return [name for name, values in (results.get("baselines") or {}).items() if values]


def _baseline(values: Mapping[str, Any], name: str) -> str:
    found = values.get(name)
    value = found.get("value") if isinstance(found, Mapping) else found
    return "" if name not in values else show(value)
