"""The server's certificate: from an authority of its own that sites pin, or from the network's.

It opens no connection; which addresses the server has is the caller's to say.
"""

import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privacy import keyfile
from privacy.errors import DataError
from shared_models.transport import server_context, site_context

AUTHORITY_DAYS = 3650  # longer than a study: a new authority would mean enrolling again
SERVER_DAYS = 398  # what browsers allow (CA/Browser Forum ballot SC-31)
RENEW_DAYS = 30
EARLY = datetime.timedelta(hours=1)  # a site's clock may be slow; the server refuses it kindly
Clock = datetime.datetime


@dataclass(frozen=True)
class Certificates:
    """Where they lie.

    Attributes:
        authority: PEM of the one certificate that sites pin.
        chain: PEM of the server's certificate, and of those between it and the authority.
        key: PEM of the server's private key, mode 0600.
    """

    authority: Path
    chain: Path
    key: Path


def issue(folder: Path, hosts: Sequence[str], now: Clock | None = None) -> Certificates:
    """Return the certificates in ``folder``; make what is missing, of other hosts, or nearly over.

    The authority is made once and its key stays in ``folder`` (authority.key): sites pin it. The
    server's certificate can be made anew at any time, and no site notices.

    Args:
        folder: of mode 0700; made when it is missing.
        hosts: the names and addresses by which sites reach the server; >= 1.
        now: the time; None: the machine's.

    Raises:
        DataError: a file cannot be written or read, or is not what it should be.
        ValueError: there are no hosts.
    """
    if not hosts:
        raise ValueError("expected at least one host")
    now = now or datetime.datetime.now(datetime.UTC)
    made = Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    secret = folder / "authority.key"
    if not made.authority.exists():
        _put(made.authority, _authority(_key(secret), now))
    authority, authority_key = _certificate(made.authority), _kept(secret)
    if authority.public_key() != authority_key.public_key():
        raise DataError(
            f"{secret}: expected the key of {made.authority}, found another; nothing was signed",
            "restore both from the same copy",
        )
    key = _key(made.key)
    if not made.chain.exists() or _stale(_certificate(made.chain), key, hosts, now):
        _put(made.chain, _server(key, hosts, authority, authority_key, now))
    return made


def adopt(authority: Path, chain: Path, key: Path, hosts: Sequence[str]) -> Certificates:
    """Return the certificates that a hospital's network gave, once a site would accept them.

    What is tried is the very handshake that a site makes, for each of ``hosts``.

    Raises:
        DataError: a file is missing or not what it should be, the key belongs to another
            certificate or others may read it, or a site would refuse: expired, wrong name, or
            signed by somebody else.
    """
    keyfile.read(key)
    fingerprint(authority)
    try:
        theirs, ours = server_context(chain, key), site_context(authority.read_bytes())
    except (ssl.SSLError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{chain}: expected a certificate and its key in PEM, without a password; got {reason}"
        ) from None
    for host in hosts:
        try:
            _shake_hands(theirs, ours, host)
        except ssl.SSLCertVerificationError as error:
            raise DataError(
                f"{chain}: expected a certificate for {host} that the authority in {authority} "
                f"vouches for; a site would refuse it ({error.verify_message})"
            ) from None
    return Certificates(authority, chain, key)


def fingerprint(authority: Path) -> str:
    """Return the SHA-256 of the authority's certificate (its DER), 64 hexadecimal digits.

    `openssl x509 -noout -fingerprint -sha256` prints the same, with colons.

    Raises:
        DataError: ``authority`` does not hold exactly one certificate.
    """
    return _certificate(authority).fingerprint(hashes.SHA256()).hex()


def _authority(key: ec.EllipticCurvePrivateKey, now: Clock) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedward study authority")])
    return (
        _draft(name, name, key.public_key(), key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: Clock,
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedward server")])
    signer = authority_key.public_key()
    return (
        _draft(name, authority.subject, key.public_key(), signer, now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        .sign(authority_key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    now: Clock,
    days: int,
) -> x509.CertificateBuilder:
    """Return what all certificates have (RFC 5280, sections 4.1 and 4.2.1)."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _stale(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    now: Clock,
) -> bool:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        certificate.not_valid_after_utc - now < datetime.timedelta(days=RENEW_DAYS)
        or certificate.public_key() != key.public_key()
        or not {_name(host) for host in hosts} <= set(names)
    )


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in ``path``, made when there is none."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        keyfile.keep(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return _kept(path)


def _kept(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        kept = load_pem_private_key(keyfile.read(path) or b"", None)
    except (ValueError, TypeError):
        kept = None
    if not isinstance(kept, ec.EllipticCurvePrivateKey):
        raise DataError(f"{path}: expected a private key in PEM, found something else")
    return kept


def _certificate(path: Path) -> x509.Certificate:
    """Return the one certificate in ``path``."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        found = []
    if len(found) != 1:
        raise DataError(f"{path}: expected one certificate in PEM, found {len(found)}")
    return found[0]


def _put(path: Path, text: bytes) -> None:
    """Replace ``path``, whole or not at all."""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _shake_hands(server: ssl.SSLContext, site: ssl.SSLContext, host: str) -> None:
    """Let a server and a site greet each other in memory; raise what the site would raise."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        site.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    )
    left = set(ends)
    while left:
        for end in tuple(left):
            try:
                end.do_handshake()
                left.discard(end)
            except ssl.SSLWantReadError:
                continue
