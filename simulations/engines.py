"""The engines by name, and the runs that each of them cannot do. It starts none."""

from pathlib import Path

from privacy.errors import DataError, PrivacyError, StudyError
from shared_models.deployable import check_deployable
from shared_models.study import Study
from simulations.folder import DEPLOY

ENGINES = ("local", "deploy")
_OTHER = "--engine local runs it"


def check_engine(engine: str, study: Study, workers: int, device: str) -> None:
    """Refuse what an engine cannot do, before anything is made.

    Raises:
        StudyError: there is no such engine, or it has no such workers or device.
        PrivacyError: the study is none for a deployment.
    """
    if engine not in ENGINES:
        raise StudyError(f"--engine: expected {' or '.join(ENGINES)}, found {engine!r}")
    if engine == "local":
        return
    if device != "cpu":
        raise StudyError(f"--device: expected cpu with --engine deploy, found {device!r}", _OTHER)
    if workers != 1:
        raise StudyError(
            f"--workers: expected none with --engine deploy, where each site is a process of its "
            f"own, found {workers}",
            _OTHER,
        )
    try:
        check_deployable(study)  # folds too: they are of mode none alone
    except PrivacyError as error:
        raise PrivacyError(str(error), _OTHER) from error


def check_same(engine: str, out: Path) -> None:
    """Refuse to go on with the run of another engine; DataError says so."""
    local, deployed = (out / "checkpoint").exists(), (out / DEPLOY).exists()
    if local if engine == "deploy" else deployed:
        began = "local" if local else "deploy"
        raise DataError(
            f"{out}: expected a run of --engine {engine}, found one of {began}; nothing was run",
            f"go on with --engine {began}, or give another --out folder",
        )
