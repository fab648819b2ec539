"""The table of a study: what it says of sites, rounds and privacy, and to whom it is shown."""

import io
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from privacy.errors import DataError
from server import standing as standings
from server.books import Enrolment, Page
from server.checkpoint import Checkpoint
from server.live import live_table, show_standing
from server.standing import Standing
from shared_models.fingerprint import fingerprint
from shared_models.strategies import State
from shared_models.study import parse_study
from tests.server.conftest import DOCUMENT
from tests.server.members import key, pem

STUDY = parse_study(DOCUMENT)
AUC = {"value": 0.812, "low": 0.75, "high": 0.875, "n": 96}
EMPTY = Page((), (), None, None, None, None, None, {})


def enrolment(site: str, state: Any, seen: float | None = None) -> Enrolment:
    return Enrolment(site, key(site).public, pem(site), 1, state, seen, False)


def checkpoint(rounds: int) -> Checkpoint:
    state = State(rounds, np.zeros(2), {})
    history = ({"round": rounds, "sites": 3, "released": {"auc": AUC}},)
    return Checkpoint(STUDY.digest(), state, history, spent_attempts=1)


def shown(page: Page, at: Checkpoint | None = None, **seen: float) -> str:
    """What a screen of eighty columns has."""
    screen = io.StringIO()
    serving = Standing(STUDY, page, at, True, seen)
    show_standing(serving, Console(file=screen, width=80))
    return screen.getvalue()


def row(text: str, site: str) -> str:
    return next(line for line in text.splitlines() if line.split()[:1] == [site])


def test_before_anybody_is_invited_it_says_so() -> None:
    assert "nobody is invited yet" in shown(EMPTY)


def test_each_site_has_its_state_whether_it_is_there_and_its_six_words() -> None:
    now = time.time()
    sites = (enrolment("bonn", "approved"), enrolment("ulm", "enrolled"), enrolment("jena", "left"))
    text = shown(replace(EMPTY, sites=sites, invited=("graz",)), bonn=now, ulm=now - 7300)
    for site in ("bonn", "ulm", "jena"):
        assert fingerprint(key(site).public) in row(text, site)
    assert row(text, "bonn").split()[1:5] == ["approved", "yes", "just", "now"]
    assert row(text, "ulm").split()[1:6] == ["enrolled", "no", "2", "h", "ago"]
    assert row(text, "jena").split()[1:3] == ["left", "no"]
    assert row(text, "graz").split() == ["graz", "invited", "no"]


def test_a_site_that_was_not_seen_for_a_minute_is_away() -> None:
    page = replace(EMPTY, sites=(enrolment("bonn", "approved"),))
    for ago, said in ((standings.HERE_S - 5, "yes"), (standings.HERE_S + 5, "no")):
        assert row(shown(page, bonn=time.time() - ago), "bonn").split()[2] == said


def test_it_fits_eighty_columns_with_the_longest_name_that_is_usual() -> None:
    page = replace(EMPTY, sites=(enrolment("saarbruecken", "approved", time.time()),))
    text = shown(page, saarbruecken=time.time())
    assert fingerprint(key("saarbruecken").public) in row(text, "saarbruecken")
    assert max(map(len, text.splitlines())) <= 80


def test_round_metric_and_epsilon_are_below_it() -> None:
    page = replace(EMPTY, ended="stopped", why="too few", plan="ab" * 32, epsilon=1.234)
    text = shown(page, checkpoint(2))
    assert f"plan {'ab' * 32}" in text
    assert "round 2 of 3, attempts spent 1 of 2 spare" in text
    assert "after round 2: AUC 0.812 (0.750 to 0.875)" in text
    assert "epsilon 1.24 at most so far, of each record" in text  # rounded up
    assert "too few" in text


def test_whoever_watches_sees_it_and_a_pipe_sees_nothing() -> None:
    standing = Standing(STUDY, EMPTY, None, True, {})
    for terminal, seen in ((True, True), (False, False)):
        screen = io.StringIO()
        with live_table(Console(file=screen, force_terminal=terminal), lambda: standing):
            pass
        assert ("nobody is invited yet" in screen.getvalue()) == seen


def test_a_damaged_checkpoint_does_not_end_the_table() -> None:
    def damaged() -> Standing:
        raise DataError("checkpoint: expected a checkpoint, found none")

    screen = io.StringIO()
    with live_table(Console(file=screen, force_terminal=True), damaged):
        pass
    assert "expected a checkpoint" in screen.getvalue()


@pytest.mark.parametrize("ago", [0, 59, 60, 3600, 86400 * 3])
def test_how_long_ago_is_told_roughly(ago: int) -> None:
    page = replace(EMPTY, sites=(enrolment("bonn", "approved"),))
    words = {0: "just now", 59: "just now", 60: "1 min ago", 3600: "1 h ago", 259200: "3 d ago"}
    assert words[ago] in row(shown(page, bonn=time.time() - ago), "bonn")
