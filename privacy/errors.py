"""The errors that fedward raises for the world's faults, as one tree; a bug stays ValueError.

FedwardError                exit 1
├── StudyError              exit 2   the study file or an option is wrong
├── DataError               exit 2   records, files or folders are not what the study says
├── PrivacyError            exit 3   refused by a privacy rule, a site's policy or its ledger
├── ProtocolError           exit 4   an attempt of the protocol ended; nothing was opened
└── AbsentError             exit 5   a peer was not there in time

A message says what was expected, what was found and what became of the data, on one line. It never
holds a patient's value, a weight or a key.
"""

from typing import ClassVar


class FedwardError(Exception):
    """An error that a program shows as one line, with a hint and an exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class StudyError(FedwardError):
    """The study file, or an option that overrides it, cannot be accepted."""

    exit_code = 2


class DataError(FedwardError):
    """Records or files break the study's data contract, or cannot be read or written."""

    exit_code = 2


class PrivacyError(FedwardError):
    """Refused because a privacy guarantee, a policy or a ledger would not hold."""

    exit_code = 3


class ProtocolError(FedwardError):
    """The aggregation protocol ended this attempt; no sum was opened."""

    exit_code = 4


class AbsentError(FedwardError):
    """Too few peers answered before the deadline."""

    exit_code = 5
