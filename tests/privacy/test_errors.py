"""The error tree: exit codes, and that no caller's bug is taken for the world's fault."""

import pytest

from privacy import errors
from privacy.errors import (
    AbsentError,
    DataError,
    FedwardError,
    PrivacyError,
    ProtocolError,
    StudyError,
)

CODES = {
    FedwardError: 1,
    StudyError: 2,
    DataError: 2,
    PrivacyError: 3,
    ProtocolError: 4,
    AbsentError: 5,
}


@pytest.mark.parametrize(("error", "code"), CODES.items())
def test_every_error_has_its_exit_code(error: type[FedwardError], code: int) -> None:
    assert error("x").exit_code == code


def test_no_error_is_without_a_documented_exit_code() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {value for value in found if issubclass(value, FedwardError)} == set(CODES)


@pytest.mark.parametrize("error", CODES)
def test_an_error_is_its_line_and_keeps_its_hint_apart(error: type[FedwardError]) -> None:
    raised = error("expected a, got b", hint="do c")
    assert (str(raised), raised.hint) == ("expected a, got b", "do c")


def test_a_hint_may_be_left_out() -> None:
    assert StudyError("expected a, got b").hint == ""


@pytest.mark.parametrize("error", CODES)
def test_a_fault_of_the_world_is_no_bug_of_a_caller(error: type[FedwardError]) -> None:
    assert not issubclass(error, ValueError)


@pytest.mark.parametrize("error", [k for k in CODES if k is not FedwardError])
def test_no_fault_is_another(error: type[FedwardError]) -> None:
    others = [other for other in CODES if other not in (error, FedwardError)]
    assert not issubclass(error, tuple(others))
