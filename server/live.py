"""The table of a study: sites and how far they are, round, metric, epsilon; once, or as it goes.

It reads nothing itself and decides nothing; what it shows is `server.standing`'s.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from privacy.errors import FedwardError
from server.standing import Standing
from shared_models.fingerprint import fingerprint
from shared_models.wording import label, show, show_epsilon

REFRESHES_A_S = 2
_STYLES = {"approved": "green", "enrolled": "yellow", "invited": "dim", "left": "red"}
_WORDS = {
    "inviting": "sites enrol; `seal` closes the roster",
    "approving": "sites approve the plan",
    "running": "running",
    "ended": "ended",
    "stopped": "stopped",
}
_MAIN = ("auc", "accuracy", "rmse")  # one of them is in every evaluation
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def show_standing(standing: Standing, console: Console) -> None:
    """Print the table once."""
    console.print(render(standing))


@contextmanager
def live_table(console: Console, read: Callable[[], Standing]) -> Iterator[None]:
    """Show the table while the context lasts; nothing when nobody watches."""
    if not console.is_terminal:
        yield
        return

    def look() -> RenderableType:
        try:
            return render(read())
        except FedwardError as error:  # the program itself tells it, when it cannot go on
            return Text(str(error), style="red")

    with Live(
        get_renderable=look,
        console=console,
        refresh_per_second=REFRESHES_A_S,
        transient=False,
    ):
        yield


def render(standing: Standing) -> Group:
    """Return the table with its lines above and below."""
    page = standing.page
    # One space: then six words beside a name of thirteen letters fit into eighty columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("site", "state", "online", "last seen", "fingerprint"):
        table.add_column(title, no_wrap=title != "fingerprint")
    known = {one.site: one for one in page.sites}
    for one in page.news():
        public = known[one.name].public if one.name in known and one.state != "invited" else None
        table.add_row(
            Text(one.name),
            Text(one.state, style=_STYLES.get(one.state, "red")),
            "yes" if standing.online(one.name) else "no" if standing.serving else "",
            _ago(standing.seen.get(one.name)),
            "" if public is None else fingerprint(public),
        )
    if not page.news():
        table.add_row(Text("nobody is invited yet", style="dim"))
    return Group(_head(standing), table, *_lines(standing))


def _head(standing: Standing) -> Text:
    text = Text(f"{standing.study.name}: ", style="bold")
    text.append(_WORDS[standing.page.state])
    if not standing.serving and standing.page.ended is None:
        text.append(" (not served: `fedward-server start`)", style="yellow")
    return text


def _lines(standing: Standing) -> list[Text]:
    """Return what there is to say of plan, rounds, metric and privacy."""
    page, study = standing.page, standing.study
    lines = []
    if page.plan is not None:
        lines.append(Text(f"plan {page.plan}"))
    if page.state in ("running", "ended", "stopped"):
        words = f"round {standing.round} of {study.rounds}"
        words += f", attempts spent {standing.spent_attempts} of {study.spare_attempts} spare"
        lines.append(Text(words))
    number, figures = standing.released
    main = next((name for name in _MAIN if name in figures), None)
    if main is not None:
        one = figures[main]
        limits = f"{show(one['low'])} to {show(one['high'])}"
        lines.append(Text(f"after round {number}: {label(main)} {show(one['value'])} ({limits})"))
    if page.epsilon is not None:
        privacy = study.privacy
        words = f"epsilon {show_epsilon(page.epsilon)} at most so far"
        lines.append(Text(f"{words}, of each {getattr(privacy, 'unit', 'record')}"))
    if page.why:
        lines.append(Text(page.why, style="red"))
    return lines


def _ago(seen: float | None) -> str:
    """Return how long ago that was, roughly."""
    if seen is None:
        return ""
    seconds = max(0.0, time.time() - seen)
    if seconds < _MINUTE_S:
        return "just now"
    for size, name in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} ago"
    return ""
