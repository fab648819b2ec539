"""Certificates: what is made, what a site accepts, and what of a network's own is refused."""

import shutil
import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from privacy.errors import DataError
from server.certificates import (
    AUTHORITY_DAYS,
    RENEW_DAYS,
    SERVER_DAYS,
    Certificates,
    adopt,
    fingerprint,
    issue,
)

HOSTS = ["study.example", "192.0.2.7", "2001:db8::7"]


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    return issue(tmp_path / "tls", HOSTS)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_another_library_accepts_what_is_made(made: Certificates) -> None:
    """The verifier of `cryptography` follows the CA/Browser Forum's profile, strictly."""
    store = Store([certificate(made.authority)])
    names: list[x509.DNSName | x509.IPAddress] = [x509.DNSName("study.example")]
    import ipaddress

    names += [x509.IPAddress(ipaddress.ip_address(host)) for host in HOSTS[1:]]
    for name in names:
        verifier = PolicyBuilder().store(store).build_server_verifier(name)
        assert verifier.verify(certificate(made.chain), [])


def test_a_site_accepts_it_for_each_host(made: Certificates) -> None:
    assert adopt(made.authority, made.chain, made.key, HOSTS) == made


def test_private_keys_have_mode_0600(made: Certificates) -> None:
    keys = [made.key, made.key.with_name("authority.key")]
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600, 0o600]


def test_lifetimes_are_as_said(made: Certificates) -> None:
    for path, days in {made.authority: AUTHORITY_DAYS, made.chain: SERVER_DAYS}.items():
        found = certificate(path)
        left = found.not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=days - 1) < left <= timedelta(days=days)
        assert found.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=30)


def test_a_second_call_changes_nothing(made: Certificates, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    assert issue(tmp_path / "tls", HOSTS[:2]) == made
    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == before
    assert sorted(before) == ["authority.key", "authority.pem", "server.key", "server.pem"]


@pytest.mark.parametrize("days", [SERVER_DAYS - RENEW_DAYS + 1, SERVER_DAYS + 100])
def test_a_certificate_that_is_nearly_over_is_made_anew_under_the_same_authority(
    made: Certificates, tmp_path: Path, days: int
) -> None:
    old, pinned = made.chain.read_bytes(), fingerprint(made.authority)
    issue(tmp_path / "tls", HOSTS, datetime.now(UTC) + timedelta(days=days))
    assert made.chain.read_bytes() != old
    assert fingerprint(made.authority) == pinned


def test_another_host_gets_another_certificate(made: Certificates, tmp_path: Path) -> None:
    old = made.chain.read_bytes()
    issue(tmp_path / "tls", ["other.example"])
    assert made.chain.read_bytes() != old
    assert adopt(made.authority, made.chain, made.key, ["other.example"])


def test_a_lost_key_of_the_server_is_replaced(made: Certificates, tmp_path: Path) -> None:
    made.key.unlink()
    issue(tmp_path / "tls", HOSTS)
    assert adopt(made.authority, made.chain, made.key, HOSTS)


def test_a_lost_key_of_the_authority_is_told_and_not_replaced(
    made: Certificates, tmp_path: Path
) -> None:
    (tmp_path / "tls" / "authority.key").unlink()
    with pytest.raises(DataError, match=r"authority.key: cannot be read"):
        issue(tmp_path / "tls", HOSTS)


def test_an_authority_with_another_ones_key_is_refused(made: Certificates, tmp_path: Path) -> None:
    other = issue(tmp_path / "other", HOSTS)
    shutil.copy(other.authority, made.authority)
    with pytest.raises(DataError, match=r"expected the key of .*authority\.pem, found another"):
        issue(tmp_path / "tls", HOSTS)


def test_no_host_is_a_callers_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one host"):
        issue(tmp_path / "tls", [])


def test_openssl_prints_the_same_fingerprint(made: Certificates) -> None:
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(made.authority)]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except FileNotFoundError:
        pytest.skip("no openssl program on this machine")
    assert shown.stdout.strip().split("=")[1].replace(":", "").lower() == fingerprint(
        made.authority
    )


@pytest.mark.parametrize("content", [b"", b"nothing", b"twice"])
def test_an_authority_is_exactly_one_certificate(made: Certificates, content: bytes) -> None:
    if content == b"twice":
        content = made.authority.read_bytes() * 2
    made.authority.write_bytes(content)
    with pytest.raises(DataError, match=r"expected one certificate in PEM, found [02]"):
        fingerprint(made.authority)


# --- a network's own -----------------------------------------------------------------------------


def refused(authority: Path, chain: Path, key: Path, host: str = "study.example") -> str:
    with pytest.raises(DataError) as caught:
        adopt(authority, chain, key, [host])
    return str(caught.value)


def test_a_certificate_for_another_name_is_refused(made: Certificates) -> None:
    words = refused(made.authority, made.chain, made.key, "other.example")
    assert "expected a certificate for other.example" in words
    assert "Hostname mismatch" in words


def test_a_certificate_of_another_authority_is_refused(made: Certificates, tmp_path: Path) -> None:
    other = issue(tmp_path / "other", HOSTS)
    assert "a site would refuse it" in refused(other.authority, made.chain, made.key)


def test_a_certificate_that_expired_is_refused(tmp_path: Path) -> None:
    old = issue(tmp_path / "old", HOSTS, datetime.now(UTC) - timedelta(days=SERVER_DAYS + 1))
    assert "certificate has expired" in refused(old.authority, old.chain, old.key)


def test_a_key_of_another_certificate_is_refused(made: Certificates, tmp_path: Path) -> None:
    other = issue(tmp_path / "other", HOSTS)
    assert "expected a certificate and its key" in refused(made.authority, made.chain, other.key)


def test_a_key_that_others_may_read_is_refused(made: Certificates) -> None:
    made.key.chmod(0o644)
    assert "expected mode 0600" in refused(made.authority, made.chain, made.key)


def test_files_that_are_no_certificates_are_refused(made: Certificates) -> None:
    made.chain.write_bytes(b"nothing")
    assert "expected a certificate and its key" in refused(made.authority, made.chain, made.key)
    made.chain.unlink()
    assert "No such file" in refused(made.authority, made.chain, made.key)


def test_a_locked_key_is_refused_and_asks_nobody(made: Certificates) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(made.key.read_bytes(), None)
    locked = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a word")
    )
    made.key.write_bytes(locked)
    assert "without a password" in refused(made.authority, made.chain, made.key)


def test_the_pinned_authority_may_be_an_intermediate_one(tmp_path: Path) -> None:
    """A network's root signs its authority, that one the server; sites pin the one between."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    made = issue(tmp_path / "tls", HOSTS)
    between = certificate(made.authority)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(between.subject)
        .issuer_name(root_name)
        .public_key(between.public_key())
        .serial_number(7)
        .not_valid_before(between.not_valid_before_utc)
        .not_valid_after(between.not_valid_after_utc)
    )
    for extension in between.extensions:
        if not isinstance(extension.value, x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    crossed = builder.sign(root_key, hashes.SHA256())
    from cryptography.hazmat.primitives.serialization import Encoding

    made.authority.write_bytes(crossed.public_bytes(Encoding.PEM))
    assert adopt(made.authority, made.chain, made.key, HOSTS)


def test_tls_below_1_3_is_not_spoken(made: Certificates) -> None:
    from shared_models.transport import server_context, site_context

    assert server_context(made.chain, made.key).minimum_version == ssl.TLSVersion.TLSv1_3
    assert site_context(made.authority.read_bytes()).minimum_version == ssl.TLSVersion.TLSv1_3
