"""Where a study stands, from the books and the checkpoint alone: for the table and for scripts.

It works while `start` runs and when it does not, and it changes nothing.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privacy.errors import DataError
from server.books import Page
from server.checkpoint import Checkpoint, load
from server.folder import CHECKPOINT, Folder
from shared_models.fingerprint import fingerprint
from shared_models.study import Study

HERE_S = 60.0  # two heartbeats: a site that has not been seen for so long is away
_TRIES = 3  # `start` may replace the checkpoint while it is read


@dataclass(frozen=True)
class Standing:
    """One moment of a study.

    Attributes:
        study: as given.
        page: of the books.
        checkpoint: after the last sum; None before the first.
        serving: whether `start` runs.
        seen: Unix time of each site's last valid request.
    """

    study: Study
    page: Page
    checkpoint: Checkpoint | None
    serving: bool
    seen: Mapping[str, float]

    @property
    def round(self) -> int:
        """Rounds that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.state.round

    @property
    def spent_attempts(self) -> int:
        """Attempts that ended without a sum."""
        return 0 if self.checkpoint is None else self.checkpoint.spent_attempts

    @property
    def released(self) -> tuple[int, Mapping[str, Any]]:
        """The last evaluation that was opened: the round of its model, and its figures."""
        return released(self.checkpoint)

    def online(self, site: str) -> bool:
        """Say whether a site is there just now."""
        return self.serving and time.time() - self.seen.get(site, 0.0) < HERE_S

    def document(self) -> dict[str, object]:
        """Return it as plain JSON."""
        number, figures = self.released
        found = released_subgroups(self.checkpoint)
        groups = {"subgroups": dict(found)} if found else {}
        states = {one.name: one.state for one in self.page.news()}
        known = {one.site: one for one in self.page.sites}
        return {
            "study": self.study.name,
            "study_digest": self.study.digest(),
            "state": self.page.state,
            "serving": self.serving,
            "ended": self.page.ended,
            "why": self.page.why,
            "plan": self.page.plan,
            "roster": None if self.page.roster is None else self.page.roster.version,
            "rounds": {"done": self.round, "planned": self.study.rounds},
            "attempts": {"spent": self.spent_attempts, "spare": self.study.spare_attempts},
            "released": {"round": number, "metrics": dict(figures), **groups} if figures else None,
            "epsilon": self.page.epsilon,
            "sites": [
                {
                    "name": name,
                    "state": state,
                    "fingerprint": fingerprint(known[name].public) if name in known else None,
                    "online": self.online(name),
                    "seen": self.seen.get(name),
                }
                for name, state in states.items()
            ],
        }


def released(checkpoint: Checkpoint | None) -> tuple[int, Mapping[str, Any]]:
    """Return the last evaluation that was opened: the round of its model, and its figures."""
    for row in reversed(() if checkpoint is None else checkpoint.history):
        figures = row.get("released")
        if isinstance(figures, Mapping) and figures:
            return int(str(row["round"])), figures
    return 0, {}


def released_subgroups(checkpoint: Checkpoint | None) -> Mapping[str, Any]:
    """Return the figures by group of the evaluation that `released` speaks of; None: too small."""
    for row in reversed(() if checkpoint is None else checkpoint.history):
        if row.get("released"):
            groups = row.get("subgroups")
            return groups if isinstance(groups, Mapping) else {}
    return {}


def read_standing(folder: Folder, page: Page, serving: bool) -> Standing:
    """Return where the study of a folder stands.

    Raises:
        DataError: the checkpoint is damaged.
    """
    seen = {one.site: one.seen for one in page.sites if one.seen is not None}
    return Standing(folder.study, page, read_checkpoint(folder), serving, seen)


def read_checkpoint(folder: Folder) -> Checkpoint | None:
    """Return the last checkpoint, also while another program replaces it; None before the first."""
    for left in reversed(range(_TRIES)):
        try:
            return load(folder / CHECKPOINT, folder.settings.parameters)
        except DataError:
            if not left:
                raise
            time.sleep(0.1)
    return None
