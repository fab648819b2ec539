"""init: a new coordinator's folder with its identity, its certificates and the first model.

The folder is made aside and put in place whole. It invites nobody and opens no connection.
"""

import ipaddress
import os
import re
import shutil
from pathlib import Path
from tempfile import mkdtemp

import tomli_w

from privacy import identity
from privacy.errors import DataError
from server.books import Books
from server.certificates import Certificates, adopt, fingerprint, issue
from server.folder import (
    BOOKS,
    FIRST,
    KEY,
    SETTINGS,
    STUDY,
    TLS,
    Adopted,
    Folder,
    Settings,
    open_folder,
)
from shared_models.deployable import check_deployable
from shared_models.durable import sync_folder, write_durably
from shared_models.registry import build_network
from shared_models.ring import planned_noise
from shared_models.strategies import first_state, state_bytes, state_hash
from shared_models.study import Study
from shared_models.weights import vector_of

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1123, section 2.1
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def found(
    study: Study,
    path: Path,
    host: str,
    port: int,
    given: Certificates | None = None,
    *,
    model_seed: int | None = None,
) -> tuple[Folder, str]:
    """Make the folder of a study.

    Args:
        study: as its author wrote it.
        path: new, or an empty folder.
        host: the name or address by which sites reach the coordinator.
        port: on that host.
        given: the network's certificates; None makes an authority of the study's own.
        model_seed: draws the first weights; simulations only.

    Returns:
        The folder, and the SHA-256 of the authority that sites will pin.

    Raises:
        PrivacyError: the study is none between hospitals, or no noise is enough for it.
        StudyError: its network cannot do its task.
        DataError: the folder holds something, or cannot be written; the certificates do not fit.
    """
    check_deployable(study, study.document())
    _check_host(host)
    planned_noise(study)
    # Public, and different each time: the first weights protect nothing.
    seed = int.from_bytes(os.urandom(8), "little") >> 1 if model_seed is None else model_seed
    network = build_network(study, seed)
    first = first_state(study.aggregation, vector_of(network))
    try:
        if path.exists() and any(path.iterdir()):
            raise DataError(
                f"{path}: expected a new or empty folder, found another; nothing was made",
                "give another --dir",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(dir=path.parent, prefix=f".{path.name}."))  # mode 0700
    except OSError as error:
        raise DataError(f"{path}: cannot be made ({error.strerror}); nothing was made") from error
    try:
        authority = _fill(aside, study, host, port, given, state_bytes(first), first.model.size)
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be made ({error.strerror}); nothing was made") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return open_folder(path), authority


def _fill(
    folder: Path,
    study: Study,
    host: str,
    port: int,
    given: Certificates | None,
    first: bytes,
    parameters: int,
) -> str:
    identity.create(folder / KEY)
    if given is None:
        authority, adopted = issue(folder / TLS, [host]).authority, None
    else:
        authority = adopt(given.authority, given.chain, given.key, [host]).authority
        places = (one.resolve() for one in (given.authority, given.chain, given.key))
        adopted = Adopted(**dict(zip(Adopted.model_fields, map(str, places), strict=True)))
    write_durably(folder / FIRST, first)
    write_durably(folder / STUDY, tomli_w.dumps(study.document()).encode())
    Books(folder / BOOKS).close()
    settings = Settings(
        study=study.digest(),
        host=host,
        port=port,
        parameters=parameters,
        first_model=state_hash(first).hex(),
        certificates=adopted,
    )
    write_durably(folder / SETTINGS, settings.model_dump_json(indent=1).encode())
    return fingerprint(authority)


def _check_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):  # it goes into a certificate and into tokens
            raise DataError(
                f"--host: expected a name or address, found {host!r}; nothing was made",
                "as hospitals reach this machine, without https:// and without a port",
            ) from None
