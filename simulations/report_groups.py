"""The table of a report that shows figures by group of records, from the results alone.

It computes no figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared_models import wording

Json = Mapping[str, Any]


def groups_table(results: Json, main: str, metrics: Sequence[str]) -> dict[str, Any] | None:
    """Return the table, or None of a study without groups.

    Args:
        results: of results.json.
        main: the metric with an interval, exact and as released.
        metrics: others that are shown where there are any.

    Returns:
        column, smallest, names of the other metrics, whether anything was released, and rows: name,
        the main figure, its interval, the others' values, the released value and its interval. The
        main figure of a group that is too small is None; what was released of it is shown apart.
    """
    asked = results.get("subgroups")
    if not asked:
        return None
    exact, released = asked["metrics"], asked["released"] or {}
    present = {name for figures in exact.values() for name in figures or {}}
    others = [name for name in metrics if name in present and name != main]
    rows = []
    for group, figures in exact.items():
        told = (released.get(group) or {}).get(main)
        rows.append(
            {
                "name": group,
                "figure": figures and figures[main],
                "interval": _interval(figures and figures[main]),
                "others": [figures[name]["value"] for name in others] if figures else [],
                "released": told and told["value"],
                "told": _interval(told),
            }
        )
    return {
        "column": asked["column"],
        "smallest": asked["smallest"],
        "names": others,
        "released": bool(released),
        "rows": rows,
    }


def _interval(figure: Json | None) -> str:
    if figure is None or None in (figure["low"], figure["high"]):
        return ""
    return f"{wording.show(figure['low'])} – {wording.show(figure['high'])}"
