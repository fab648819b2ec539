"""Real records that ship inside scikit-learn: 569 breast biopsies, 1,797 8x8 digits."""

import numpy as np
import numpy.typing as npt

from client.data.faults import Faults
from client.data.table import Cells, Table
from privacy.errors import StudyError
from shared_models.contract import Data


def read_builtin(data: Data, faults: Faults) -> Table:
    """Return the records that the study names; the target, whatever its name, is their class.

    Columns are those of scikit-learn: "mean radius" and 29 more, with the classes "malignant" and
    "benign"; "image" (8, 8) with values 0 to 16, with the classes "0" to "9".

    Raises:
        StudyError: the study names no built-in records, or a column that they do not have.
    """
    # Imported here: it takes a second, and most sites bring their own records.
    from sklearn import datasets

    if data.builtin is None:
        raise StudyError(
            "data.builtin: missing, expected when no path to records is given",
            "give --data PATH",
        )
    found: dict[str, Cells] = {}
    if data.builtin == "breast_cancer":
        bunch = datasets.load_breast_cancer()
        found = {str(name): bunch.data[:, i] for i, name in enumerate(bunch.feature_names)}
    else:
        bunch = datasets.load_digits()
        found = {"image": bunch.images}
    found[data.targets[0]] = _texts(bunch.target_names)[bunch.target]
    absent = [name for name in data.columns if name not in found]
    if absent:
        raise StudyError(
            f"data.columns.{absent[0]}: expected a column of the built-in {data.builtin} records"
        )
    return Table(
        length=len(bunch.target),
        columns={name: found[name] for name in data.columns},
        place=lambda row: f"built-in {data.builtin}: row {row + 1}",
        faults=faults,
    )


def _texts(names: npt.NDArray[np.generic]) -> npt.NDArray[np.object_]:
    texts = np.empty(len(names), dtype=object)
    texts[:] = [str(name) for name in names]
    return texts
