"""The doctor's look at the way to the server: proxy, name, port, certificate, clock, echo, code.

No record is read and no study is moved: one signed letter with made numbers goes there and back.
"""

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from client.channel import CONNECT_S, Address, Channel, Proxy, Reply, UntrustedError, proxy_of
from client.finding import Finding, failed, found, within
from client.fleet import FAST_S, SLOW_S
from client.membership import Member
from client.post import LETTER_S
from privacy.errors import AbsentError, DataError, FedwardError, ProtocolError
from privacy.keys import Identity
from shared_models import letters
from shared_models.plan import code_digest

NAME_S = 10.0
MADE_VALUES = 1000  # of the echo
_NEAR_S = 2.0  # a Date header is good to a second or two
_NAMES = ("name", "port", "certificate", "clock", "echo", "code")


def line_checks(member: Member, identity: Identity) -> Iterator[Finding]:
    """Yield what was found on the way to the server; each check ends in time.

    Args:
        member: says where the server is, and which key it has.
        identity: of this site, which signs the echo.
    """
    try:
        address = member.address()
        proxy = proxy_of(address)
    except DataError as error:
        yield failed("proxy", error)
        yield from _not_tried(_NAMES)
        return
    yield _proxy(address, proxy)
    host, port = (proxy.host, proxy.port) if proxy else (address.host, address.port)
    checks: tuple[Callable[[], Finding], ...] = (
        lambda: found("name", NAME_S, lambda: _name(host, port), remote=True),
        lambda: found("port", CONNECT_S + NAME_S, lambda: _port(host, port, address), remote=True),
    )
    for place, one in enumerate(checks):
        finding = one()
        yield finding
        if finding.verdict == "failed":
            yield from _not_tried(_NAMES[place + 1 :])
            return
    yield from _letter(member, identity, address)


def _not_tried(names: tuple[str, ...]) -> Iterator[Finding]:
    for name in names:
        text = "not tried: the check before failed"
        yield Finding(name, "warning", text, "do what is said there, and look again")


def _proxy(address: Address, proxy: Proxy | None) -> Finding:
    where = f"{address.host}:{address.port}"
    if proxy is None:
        return Finding("proxy", "ok", f"none stands between here and {where}")
    return Finding("proxy", "ok", f"{proxy.host}:{proxy.port} is asked to connect to {where}")


def _name(host: str, port: int) -> Finding:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return Finding(
            "name",
            "failed",
            f"{host} is not known here",
            "check the name with the coordinator, and this machine's DNS; behind a proxy, set "
            "HTTPS_PROXY",
            absent=True,
            passes=True,
        )
    addresses = dict.fromkeys(str(answer[4][0]) for answer in answers)
    return Finding("name", "ok", f"{host} is {', '.join(addresses)}")


def _port(host: str, port: int, address: Address) -> Finding:
    began = time.monotonic()
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return Finding(
            "port",
            "failed",
            f"{host}:{port} cannot be reached ({why})",
            f"is the coordinator started? The firewall must let TCP out to "
            f"{address.host}:{address.port}",
            absent=True,
            passes=True,
        )
    return Finding("port", "ok", f"{host}:{port} answers in {time.monotonic() - began:.3f} s")


def _letter(member: Member, identity: Identity, address: Address) -> Iterator[Finding]:
    """Send one echo; TLS and the clock show on the way."""
    values = tuple(secrets.randbelow(1 << 31) for _ in range(MADE_VALUES))
    letter = letters.Echo(
        study=member.membership.study,
        site=member.membership.site,
        nonce=secrets.token_hex(16),
        values=values,
    )
    question, channel = letters.write(identity, letter), None
    began = time.monotonic()
    try:
        channel = Channel(address, letters.ANSWER_BYTES_MAX)
        line = channel
        reply = within(LETTER_S + NAME_S, lambda: line.post(letters.PATH, dict, question, LETTER_S))
        fingerprint = _fingerprint(address)
    except (FedwardError, TimeoutError) as error:
        yield _no_reply(error)
        yield from _not_tried(_NAMES[3:])
        return
    finally:
        if channel is not None:
            channel.close()
    took = time.monotonic() - began
    text = f"TLS 1.3, signed by the pinned authority, SHA-256 {fingerprint}"
    yield Finding("certificate", "ok", text)
    yield _clock(reply)
    try:
        echoed = _echoed(member, question, values, reply)
    except FedwardError as error:
        yield failed("echo", error)
        yield from _not_tried(_NAMES[5:])
        return
    text = f"{len(values):,} made numbers went there and back, signed, in {took:.2f} s"
    yield Finding("echo", "ok", text)
    yield _code(echoed)


def _no_reply(error: FedwardError | TimeoutError) -> Finding:
    if isinstance(error, FedwardError):
        return failed("certificate", error)
    absent = AbsentError("no answer in time", "something answers there, and is it the coordinator?")
    return failed("certificate", absent)


def _fingerprint(address: Address) -> str:
    try:
        authority = x509.load_pem_x509_certificate(address.authority)
    except ValueError as error:
        raise UntrustedError("the pinned authority is no certificate", "enrol again") from error
    return authority.fingerprint(hashes.SHA256()).hex()


def _clock(reply: Reply) -> Finding:
    skew = reply.skew_s
    if skew is None:
        text = "the server does not tell its time"
        return Finding("clock", "warning", text, "compare this machine's with another; run NTP")
    how = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's"
    hint = "set it, best by NTP; the server's may be the wrong one"
    if not -SLOW_S < skew < FAST_S:
        limits = f"at most {FAST_S:g} s ahead or {SLOW_S:g} s behind is let in"
        return Finding("clock", "failed", f"this machine's is {how}: {limits}", hint, passes=True)
    if not -SLOW_S / 5 < skew < _NEAR_S:
        return Finding("clock", "warning", f"this machine's is {how}", hint)
    return Finding("clock", "ok", f"this machine's is within {max(abs(skew), _NEAR_S):.0f} s")


def _echoed(
    member: Member, question: bytes, values: tuple[int, ...], reply: Reply
) -> letters.Echoed:
    if reply.status != 200:
        raise AbsentError(
            f"expected the echo of {len(values):,} made numbers, got HTTP status {reply.status}",
            "is it the coordinator that answers there? A busy one answers 503: try again",
        )
    answer = letters.read_answer(reply.body, member.server, question)
    if isinstance(answer, letters.Refused):
        raise DataError(
            f"the coordinator refuses this site's letters: {letters.REASONS[answer.reason]}",
            "ask the coordinator",
        )
    if not isinstance(answer, letters.Echoed) or answer.values != values:
        raise ProtocolError(
            "expected the made numbers back, got others",
            "the coordinator runs another version, or another program: call it",
        )
    return answer


def _code(echoed: letters.Echoed) -> Finding:
    """Compare the coordinator's program with this site's: another one makes another plan."""
    own, ours = version("fedward"), code_digest()
    theirs = f"fedward {echoed.version}, code {echoed.code[:12]}"
    if echoed.code == ours:
        return Finding("code", "ok", f"the coordinator runs the same: {theirs}")
    text = f"the coordinator runs {theirs}; here is fedward {own}, code {ours[:12]}"
    hint = f"install fedward {echoed.version} as the coordinator has it; all must run the same code"
    return Finding("code", "failed", text, hint, passes=True)
