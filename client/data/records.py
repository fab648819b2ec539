"""A site's records as arrays that keep the study's contract; what every reader returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.faults import LeftOut


@dataclass(frozen=True)
class Records:
    """N records, ready for a network.

    Attributes:
        inputs: (N, *shape) float32, or int64 token ids.
        targets: (N,) int64 class index, or float32 for a number; (N, C) of several columns, where
            a missing class is -1 and a missing number NaN; of a mask (N, *sizes) uint8.
        identities: N byte strings: the patient's id, a molecule's scaffold, or the canonical bytes
            of the inputs. Records
            with equal identities always fall on the same side of a hold-out.
        patients: (N,) int64 index of the patient within these records; None without patients.
        public: (N,) text values of every category column, and of "part" and "file" where there are.
        left_out: the records that broke the contract, where those are not refused; known to what
            reads them, not to parts and unions of what was read.
    """

    inputs: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.uint8]
    identities: tuple[bytes, ...]
    patients: npt.NDArray[np.int64] | None = None
    public: Mapping[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

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


def join(parts: Sequence[Records]) -> Records:
    """Return the records of several files or sites as one, in order; patients stay distinct."""
    if not parts:
        raise ValueError("expected at least one part")
    patients = None
    if all(part.patients is not None for part in parts):
        # The same id at two sites is two patients: each site knows its own only.
        offsets = np.cumsum([0] + [int(_max(part.patients)) + 1 for part in parts])
        numbers = [part.patients for part in parts if part.patients is not None]
        patients = np.concatenate([n + o for n, o in zip(numbers, offsets, strict=False)])
    names = set(parts[0].public).intersection(*(part.public for part in parts))
    return Records(
        inputs=np.concatenate([part.inputs for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        identities=tuple(identity for part in parts for identity in part.identities),
        patients=patients,
        public={name: np.concatenate([part.public[name] for part in parts]) for name in names},
    )


def _max(patients: npt.NDArray[np.int64] | None) -> int:
    return -1 if patients is None or len(patients) == 0 else int(patients.max())
