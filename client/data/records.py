"""A site's records as arrays that keep the study's contract; what every reader returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Records:
    """N records, ready for a network.

    Attributes:
        inputs: (N, *shape) float32, or int64 token ids.
        targets: (N,) int64 class index, or float32 for a number.
        identities: N byte strings: the patient's id, or the canonical bytes of the inputs. Records
            with equal identities always fall on the same side of a hold-out.
        patients: (N,) int64 index of the patient within these records; None without patients.
        public: (N,) text values of every category column, and of "part" and "file" where there are.
    """

    inputs: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    identities: tuple[bytes, ...]
    patients: npt.NDArray[np.int64] | None = None
    public: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: npt.NDArray[np.int64]) -> "Records":
        """Return the records at ``rows``, in that order."""
        return Records(
            inputs=self.inputs[rows],
            targets=self.targets[rows],
            identities=tuple(self.identities[row] for row in rows),
            patients=None if self.patients is None else self.patients[rows],
            public={name: values[rows] for name, values in self.public.items()},
        )
