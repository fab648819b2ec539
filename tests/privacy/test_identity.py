"""The site's key is made once, told to nobody, and not used when others could have read it."""

import logging
import os
import stat
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from privacy.errors import DataError
from privacy.identity import create, load
from privacy.keys import verify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "identity.pem"


@contextmanager
def umask(taken: int) -> Iterator[None]:
    before = os.umask(taken)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def secret_of(path: Path) -> bytes:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes_raw()


def put(path: Path, content: bytes, rights: int = 0o600) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content)
    path.chmod(rights)
    return path


def pem(key: Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    how = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


# --- made ----------------------------------------------------------------------------------------


def test_a_key_that_was_made_is_read_again(path: Path) -> None:
    assert create(path).public == load(path).public


def test_a_key_that_was_read_signs_what_its_public_half_verifies(path: Path) -> None:
    public = create(path).public
    assert verify(public, b"header", b"body", load(path).sign(b"header", b"body"))


def test_two_sites_have_two_keys(tmp_path: Path) -> None:
    assert create(tmp_path / "a" / "key").public != create(tmp_path / "b" / "key").public


def test_the_file_has_mode_0600_under_any_open_umask(path: Path) -> None:
    with umask(0):
        create(path)
    assert mode(path) == 0o600


def test_the_file_has_mode_0600_before_anything_is_in_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(os, "fchmod", lambda file, rights: seen.append(os.fstat(file)))
    with umask(0):
        create(path)
    assert [(stat.S_IMODE(one.st_mode), one.st_size) for one in seen] == [(0o600, 0)]


def test_the_folder_has_mode_0700(path: Path) -> None:
    with umask(0):
        create(path)
    assert mode(path.parent) == 0o700


def test_a_umask_that_takes_the_owners_rights_does_not_matter(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with umask(0o777):
        create(path)
    assert mode(path) == 0o600


@pytest.mark.parametrize("rights", [0o750, 0o705, 0o711, 0o755, 0o777])
def test_no_key_is_made_in_a_folder_that_others_may_enter(path: Path, rights: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(rights)
    with pytest.raises(DataError, match="mode 0700") as caught:
        create(path)
    assert (path.exists(), caught.value.hint) == (False, f"chmod 700 {path.parent}")


@pytest.mark.parametrize("content", [b"", b"something"])
def test_a_file_is_never_overwritten(path: Path, content: bytes) -> None:
    put(path, content)
    with pytest.raises(DataError, match="found one; it was left as it is"):
        create(path)
    assert path.read_bytes() == content


def test_a_second_key_does_not_replace_the_first(path: Path) -> None:
    first = create(path)
    with pytest.raises(DataError, match="left as it is"):
        create(path)
    assert load(path).public == first.public


def test_a_link_to_nowhere_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="left as it is"):
        create(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_could_not_be_filled_is_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        create(path)
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written; no key was kept"):
        create(tmp_path / "file" / "identity.pem")


def test_openssl_reads_the_file(path: Path) -> None:
    public = create(path).public
    try:
        shown = subprocess.run(
            ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"],
            capture_output=True,
            timeout=30,
        )
    except FileNotFoundError:
        pytest.skip("no openssl program on this machine")
    assert shown.stdout.endswith(public)


# --- read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rights", [0o640, 0o604, 0o660, 0o606, 0o644, 0o620, 0o601, 0o777])
def test_a_key_on_which_others_have_rights_is_refused(path: Path, rights: int) -> None:
    create(path)
    path.chmod(rights)
    with pytest.raises(DataError, match="others than its owner") as caught:
        load(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_the_hint_of_a_path_with_a_blank_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "a site" / "key"
    create(path)
    path.chmod(0o644)
    with pytest.raises(DataError) as caught:
        load(path)
    assert caught.value.hint == f"chmod 600 '{path}'"


def test_what_the_hint_says_helps(path: Path) -> None:
    public = create(path).public
    path.chmod(0o644)
    with pytest.raises(DataError) as caught:
        load(path)
    subprocess.run(caught.value.hint.split(), check=True)
    assert load(path).public == public


def test_a_key_that_only_its_owner_may_read_and_nobody_write_is_fine(path: Path) -> None:
    public = create(path).public
    path.chmod(0o400)
    assert load(path).public == public


@pytest.mark.parametrize("rights", [0o720, 0o702, 0o777])
def test_a_folder_into_which_others_may_write_is_refused(path: Path, rights: int) -> None:
    create(path)
    path.parent.chmod(rights)
    with pytest.raises(DataError, match="only its owner may change") as caught:
        load(path)
    assert caught.value.hint == f"chmod 700 {path.parent}"


def test_a_link_out_of_the_folder_is_refused(path: Path, tmp_path: Path) -> None:
    create(tmp_path / "other" / "key")
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "other" / "key")
    with pytest.raises(DataError, match="a link to elsewhere"):
        load(path)


def test_a_link_to_a_folder_with_a_longer_name_is_out_of_the_folder(
    path: Path, tmp_path: Path
) -> None:
    create(tmp_path / "site-2" / "key")
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "site-2" / "key")
    with pytest.raises(DataError, match="a link to elsewhere"):
        load(path)


def test_a_link_within_the_folder_is_followed(path: Path) -> None:
    public = create(path).public
    (path.parent / "current").symlink_to(path.name)
    assert load(path.parent / "current").public == public


def test_a_linked_key_on_which_others_have_rights_is_refused(path: Path) -> None:
    create(path)
    (path.parent / "current").symlink_to(path.name)
    path.chmod(0o644)
    with pytest.raises(DataError, match="others than its owner"):
        load(path.parent / "current")


def test_links_in_a_ring_are_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(path)
    with pytest.raises(DataError, match="cannot be read"):
        load(path)


def test_a_missing_key_is_named(path: Path) -> None:
    with pytest.raises(DataError, match=r"identity\.pem: cannot be read \(No such file"):
        load(path)


def test_a_folder_is_no_key(path: Path) -> None:
    path.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o700)
    with pytest.raises(DataError, match="expected a file"):
        load(path)


def test_a_pipe_is_refused_and_does_not_hang(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.mkfifo(path, 0o600)
    with pytest.raises(DataError, match="expected a file"):
        load(path)


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: bytes(range(32)), id="32 raw bytes"),
        pytest.param(lambda: pem(KEY)[:-40], id="cut"),
        pytest.param(lambda: pem(KEY, b"password"), id="encrypted"),
        pytest.param(lambda: pem(KEY) + b"\n" * 4096, id="too long"),
        pytest.param(
            lambda: KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            id="public half",
        ),
        pytest.param(
            lambda: generate_private_key(SECP256R1()).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            ),
            id="key of another kind",
        ),
        pytest.param(
            lambda: KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            id="DER",
        ),
    ],
)
def test_what_is_not_a_key_is_refused(path: Path, content: Callable[[], bytes]) -> None:
    put(path, content())
    with pytest.raises(DataError, match="expected an Ed25519 private key"):
        load(path)


# --- told to nobody ------------------------------------------------------------------------------


def forms(secret: bytes, path: Path) -> set[str]:
    """The shapes in which a key shows in texts."""
    body = path.read_text().splitlines()[1]
    return {secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1], body, body[22:]}


def test_the_key_is_in_no_repr(path: Path) -> None:
    create(path)
    text = repr(load(path)) + str(load(path)) + f"{load(path)!r:>9}"
    assert not any(form in text for form in forms(secret_of(path), path))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.chmod(0o644), id="rights"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-30]), id="cut"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b"PRIVATE", b"PUBLIC")),
            id="wrong label",
        ),
        pytest.param(lambda path: path.parent.chmod(0o777), id="folder"),
    ],
)
def test_the_key_is_in_no_error_and_no_log(
    path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object]
) -> None:
    create(path)
    shapes = forms(secret_of(path), path)
    spoil(path)
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
        load(path)
    told = "".join(traceback.format_exception(caught.value)) + caught.value.hint + caplog.text
    assert not any(shape in told for shape in shapes)


def test_making_a_key_logs_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        create(path)
    assert caplog.text == ""
