"""A record that breaks the contract: the first one is refused, or each is left out and counted.

What breaks the contract is found elsewhere; what is wrong with a whole file is never left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from privacy.errors import DataError

PLACES = 5  # of records that were left out
_REFUSED = "; no record was used"


@dataclass(frozen=True)
class LeftOut:
    """What the steward of a site may know of the records that were left out; it stays there.

    Attributes:
        count: records.
        places: of the first few that were found: where each is and what was expected, never what
            it holds.
    """

    count: int = 0
    places: tuple[str, ...] = ()


def fault(place: str, hint: str = "") -> DataError:
    """Return the error for one record: where it is and what was expected, never what it holds."""
    return DataError(f"{place}{_REFUSED}", hint)


class Faults:
    """All records of one reading that break the contract."""

    def __init__(self, leave_out: bool = False) -> None:
        self.leave_out = leave_out
        self._count = 0
        self._places: list[str] = []

    def add(self, errors: Iterable[DataError], count: int = 1) -> None:
        """Raise the first error, or count its record and the others, which then are not used.

        Args:
            errors: one a record; no more are made than are told.
            count: of these records.
        """
        room = PLACES - len(self._places) if self.leave_out else 1
        for error in islice(errors, room):
            if not self.leave_out:
                raise error
            self._places.append(str(error).removesuffix(_REFUSED))
        self._count += count

    def left_out(self) -> LeftOut:
        """Return how many records were left out, and the first places."""
        return LeftOut(self._count, tuple(self._places))
