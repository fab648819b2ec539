"""The doctor's look at this machine: files, policy, versions, disk, memory, records, masks.

It changes nothing, but for a small file that it writes into the site's folder and removes.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from shlex import quote

from client import approval
from client import folder as names
from client.budget import verified_rows
from client.data.read import read_records
from client.finding import Finding, found
from client.hours import DAYS, is_open, opening
from client.in_force import read_in_force
from client.membership import Member
from client.policy import check, load_policy
from client.rehearsal import SITES, VALUES, rehearse
from privacy import keyfile
from privacy.accounting import Event
from privacy.errors import DataError
from privacy.keys import Identity
from shared_models.plan import code_digest, count_values
from shared_models.registry import count_parameters
from shared_models.strategies import moment_names
from shared_models.study import Study

FILES_S, LEDGER_S, DISK_S, RECORDS_S, MASKS_S = 10.0, 60.0, 30.0, 300.0, 30.0
TRIAL_BYTES = 1 << 20  # written and removed, to see that the disk takes it
SPARE_BYTES = 64 << 20  # on the disk, beyond what a study's files grow to
PROGRAM_BYTES = 512 << 20  # a site of 641 parameters at work in mode local had 480 MiB at most
EASY = 4  # times what is needed, below which a person should know
_OTHERS = 0o077
_MEMORY, _OWN = Path("/proc/meminfo"), Path("/proc/self/statm")


def folder_check(folder: Path) -> Finding:
    """Look at who may enter the folder and read its keys."""
    return found("files", FILES_S, lambda: _modes(folder))


def machine_checks(member: Member, identity: Identity, unhurried: bool) -> Iterator[Finding]:
    """Yield what was found on this machine for one study; each check ends in time.

    Args:
        member: an enrolled site.
        identity: of this site, whose approval is read.
        unhurried: the records alone may take as long as they take.
    """
    folder, study = member.folder, member.study
    checks: tuple[tuple[str, float | None, Callable[[], Finding]], ...] = (
        ("policy", LEDGER_S, lambda: _policy(folder, study)),
        ("versions", LEDGER_S, lambda: _versions(folder, study, identity)),
        ("disk", DISK_S, lambda: _disk(folder, study)),
        ("memory", FILES_S, lambda: _memory(study)),
        ("records", None if unhurried else RECORDS_S, lambda: _records(member)),
        ("masks", MASKS_S, lambda: _masks(study)),
    )
    for name, limit_s, one in checks:
        yield found(name, limit_s, one)


def disk_need(study: Study, parameters: int) -> int:
    """Return how many bytes a study's files may grow to in a site's folder.

    SQLite keeps two states and one vector, and as much again in its log; at the end come the last
    state and the model.
    """
    state = state_bytes_of(study, parameters)
    return 2 * (2 * state + 4 * count_values(study, parameters)) + 2 * state + SPARE_BYTES


def memory_need(study: Study, parameters: int) -> int:
    """Return how many bytes the program and the vectors of a round take at their peak, at most.

    Measured with four million parameters, in vectors of 8 bytes each: 5 to 13 while a site trains,
    the most with adaptive strategies in mode distributed. The rest is for masks, the store, and
    the next state. Records and what a network keeps of a batch come on top.
    """
    return PROGRAM_BYTES + 12 * 8 * parameters + 4 * state_bytes_of(study, parameters)


def state_bytes_of(study: Study, parameters: int) -> int:
    """Return the size of a state: the model, and what the strategy remembers, of 8 bytes each."""
    aggregation = study.aggregation
    vectors = 1 + len(moment_names(aggregation)) + (aggregation.average_last > 0)
    return 8 * parameters * vectors


def _modes(folder: Path) -> Finding:
    try:
        mode = folder.stat().st_mode
        if stat.S_IMODE(mode) & _OTHERS:
            text = f"{folder}: expected mode 0700, found one that others may enter"
            return Finding("files", "failed", text, f"chmod 700 {quote(str(folder))}")
        own = [
            name for name in (names.IDENTITY, names.NODE, names.SPLIT) if (folder / name).exists()
        ]
        for name in own:
            keyfile.read(folder / name)
        loose = [
            one.name
            for one in sorted(folder.iterdir())
            if one.is_file() and one.stat().st_uid != os.getuid()
        ]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    if loose:
        text = f"{folder}: {loose[0]} belongs to another user"
        return Finding("files", "warning", text, "start the program as the folder's owner")
    return Finding("files", "ok", f"only their owner may read the folder and its {len(own)} keys")


def _policy(folder: Path, study: Study) -> Finding:
    policy = load_policy(folder / names.POLICY)
    check(policy, study)
    if read_in_force(folder).differs:
        text = f"{names.POLICY} is not the policy that the ledger has"
        hint = "`fedward-site policy` shows what differs; `fedward-site start` writes it down"
        return Finding("policy", "warning", text, hint)
    now = datetime.now()
    if not is_open(policy.windows, now):
        again = opening(policy.windows, now)
        text = f"outside of its hours: works again from {DAYS[again.weekday()]} {again:%H:%M}"
        return Finding("policy", "warning", text, f"hours are {', '.join(policy.hours)}")
    return Finding("policy", "ok", f"allows the study; {policy.digest()[:12]} is in force")


def _versions(folder: Path, study: Study, identity: Identity) -> Finding:
    code = code_digest()
    packages = {name: version(name) for name in ("fedward", "flwr", "torch", "opacus")}
    text = f"{', '.join(f'{name} {one}' for name, one in packages.items())}; code {code[:12]}"
    given = approval.load(folder / names.APPROVAL, identity.public)
    if given is not None and given.code != code:
        return Finding(
            "versions",
            "warning",
            f"{text}, and {given.code[:12]} was approved",
            "install the approved version again, or let `fedward-site start` ask; the other "
            "hospitals must then approve the same code",
        )
    last = next(
        (
            row.entry.versions
            for row in reversed(verified_rows(folder))
            if isinstance(row.entry, Event) and row.entry.study == study.digest()
        ),
        {},
    )
    changed = [f"{name} {one}" for name, one in last.items() if packages.get(name, one) != one]
    if changed:
        text += f"; the study was debited under {', '.join(changed)}"
        hint = "another version may calibrate another noise, which the ledger then refuses"
        return Finding("versions", "warning", text, hint)
    return Finding("versions", "ok", text)


def _disk(folder: Path, study: Study) -> Finding:
    need = disk_need(study, count_parameters(study))
    hint = f"make room on the disk of {folder}, or move the folder to a larger one"
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        text = f"{folder}: {TRIAL_BYTES:,} bytes cannot be written ({error.strerror})"
        return Finding("disk", "failed", text, hint)
    return _room("disk", free, need, "free", hint)


def _memory(study: Study) -> Finding:
    need = memory_need(study, count_parameters(study))
    free = _available()
    if free is None:
        text = f"{_size(need)} are needed; what is free is not known"
        return Finding("memory", "warning", text, "see yourself that there is so much")
    hint = "close other programs, or use a larger machine"
    return replace(_room("memory", free, need, "available", hint), passes=True)


def _available() -> int | None:
    """Return what this program may have, in bytes: MemAvailable of Linux, and what it has already.

    None where the system does not say it.
    """
    try:
        lines = _MEMORY.read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        return free + _held()
    except (OSError, StopIteration):
        return None


def _held() -> int:
    """Return how much memory this process has, in bytes."""
    return int(_OWN.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _room(name: str, free: int, need: int, word: str, hint: str) -> Finding:
    text = f"{_size(free)} {word}, {_size(need)} needed"
    if free < need:
        return Finding(name, "failed", text, hint)
    if free < EASY * need:
        return Finding(name, "warning", text, hint)
    return Finding(name, "ok", text)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def _records(member: Member) -> Finding:
    records = read_records(member.study, Path(member.membership.data), leave_out=True)
    left, text = records.left_out.count, f"{len(records):,} keep the study's data contract"
    if not len(records):
        places = records.left_out.places
        first = f"; the first that does not: {places[0]}" if places else ""
        raise DataError(
            f"expected records that keep the study's data contract, found none{first}",
            f"is {member.membership.data} the right one? The coordinator says which columns and "
            "units are meant",
        )
    if left:
        hint = "correct the files; what is left out is not trained on"
        rest = f"{left:,} do not and are left out" if left > 1 else "1 does not and is left out"
        return Finding("records", "warning", f"{text}, {rest}", hint)
    return Finding("records", "ok", text)


def _masks(study: Study) -> Finding:
    began = time.monotonic()
    rehearse(study.aggregation.ring_bits)
    text = f"{VALUES:,} made numbers of {SITES} made sites were summed exactly under masks, in "
    return Finding("masks", "ok", f"{text}{time.monotonic() - began:.2f} s")
