"""What a study's target asks of a model, as every program sees it: losses, predictions, figures.

Each kind of target is one file that has a class of these methods, and one entry in `tasks`. It
reads no file and trains nothing. Torch comes in only with losses and predictions: programs
that have none ask for lanes and figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from privacy.cell_noise import CellNoise
    from shared_models.metrics import Figure

Array = npt.NDArray[Any]
Answers = npt.NDArray[np.float64]  # predictions: (N, ...), the meaning is the target's
Cells = npt.NDArray[np.int64]
Figures = dict[str, "Figure"]


@dataclass(frozen=True)
class Words:
    """One record's answer, as an explanation writes it.

    Attributes:
        explained: which of the answers is explained; "" where there is but one.
        said: what the model says.
        own: what is known of the record; "" where it is not.
    """

    explained: str
    said: str
    own: str


class Target(Protocol):
    """One kind of answer."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the answers' columns; () where there are none."""

    @property
    def outputs(self) -> int:
        """K: how many numbers the network gives for a record."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures, in the order in which they are shown."""

    @property
    def headline(self) -> str:
        """The figure that a report leads with."""

    def told(self, *, exact: bool) -> tuple[str, ...]:
        """Return the names of the figures that an evaluation tells; ``exact``: without noise.

        A figure that is not told has no value, whatever the records are.
        """

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return (B,) losses; none depends on another record.

        Args:
            outputs: (B, K) float32, as the network returned them.
            targets: (B, ...) as the site's reader made them.
        """

    def predictions(self, outputs: torch.Tensor) -> Answers:
        """Return what (B, K) outputs mean to a person."""

    def cell_names(self) -> tuple[str, ...]:
        """Return the name of every cell of an exact evaluation, in order."""

    def count_cells(self, targets: Array, predictions: Answers) -> Cells:
        """Count one site's held-out records; the cells of a union are the sum of the cells.

        Raises:
            DataError: a prediction is not finite.
        """

    def figures_from_cells(self, cells: Cells) -> Figures:
        """Return the metrics of a sum of cells.

        Raises:
            ValueError: ``cells`` is no such vector.
        """

    def noised_cell_names(self) -> tuple[str, ...]:
        """Return the name of every cell of an evaluation under privacy: few, each with noise."""

    @property
    def cell_sensitivity(self) -> float:
        """The largest L2 norm of one unit's noised cells, in counts."""

    def count_noised_cells(
        self, targets: Array, predictions: Answers, units: npt.NDArray[np.int64] | None, step: int
    ) -> Cells:
        """Count one site's held-out units in steps of ``step`` a count, before noise.

        Args:
            targets: (N, ...).
            predictions: (N, ...).
            units: (N,) patient of each row where the unit is the patient, else None.
            step: steps of one count.

        Returns:
            (L,) int64. One unit moves them by a vector of norm cell_sensitivity x step at most; a
            prediction that is not finite counts nowhere, in silence.
        """

    def figures_from_noised_cells(self, cells: Cells, noise: CellNoise, shares: int) -> Figures:
        """Return the metrics of a noisy sum of ``shares`` sites; intervals bear the noise."""

    def exact_figures(self, targets: Array, predictions: Answers) -> Figures:
        """Return the metrics of the predictions themselves.

        Raises:
            DataError: a prediction is not finite.
            ValueError: shapes or values are not what the target asks for.
        """

    def curves(self, targets: Array, predictions: Answers) -> dict[str, Any]:
        """Return what a report draws of held-out predictions, as JSON: counts and rates."""

    def linear(self, inputs: Any, targets: Array, unseen: Any) -> Answers:
        """Return what a linear model, fitted to (N, F) inputs, answers for (M, F) unseen ones."""

    # What `fedward-site explain` asks: one number of each record, and how it is called.

    @property
    def score_unit(self) -> str:
        """Unit of the scores."""

    def asked(self, predictions: Answers) -> Cells:
        """Return (N,) which of its answers is explained of each record."""

    def scores(self, outputs: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Return the (B,) numbers that are explained, each of its own record.

        Args:
            outputs: (B, K) float32, with a gradient or without.
            asked: (B,) int64, as `asked` has them.
        """

    def words(self, asked: int, prediction: Answers, answer: Array | None) -> Words:
        """Return how one record's prediction, and its own answer where it is known, are called."""


def log_odds(logs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return (B,) log(p / (1 - p)) of one class of each record.

    Args:
        logs: (B, C) of the classes' chances, up to a constant a record.
        places: (B,) int64.
    """
    import torch

    own = logs.gather(1, places[:, None])  # (B, C) -> (B, 1)
    others = logs.scatter(1, places[:, None], -torch.inf)  # (B, C)
    return own[:, 0] - others.logsumexp(dim=1)  # (B,)


def percent(share: float) -> str:
    """Return a share in percent; one that only looks like all of it as what it is."""
    return "more than 99.9 %" if 0.9995 < share < 1 else f"{100 * share:.1f} %"
