"""What does a server show to somebody who only looks? Name, connection, certificate, and whether it takes ours.

On a connection of its own, without gRPC, which keeps all of this to itself. What is found here explains; who gets in is decided
by gRPC and the servers' gatekeepers.
"""

import socket
import ssl
from dataclasses import dataclass
from typing import Final, Literal

from hushtune_common.messages import Role
from hushtune_common.units import Second
from hushtune_common.wire import der
from hushtune_common.wire.kit import Kit, server_name

_EXPIRED, _NOT_YET, _SELF_SIGNED, _SELF_IN_CHAIN, _NO_ISSUER, _NO_FIRST, _HOST = 10, 9, 18, 19, 20, 21, 62
_FOREIGN: Final = frozenset({_SELF_SIGNED, _SELF_IN_CHAIN, _NO_ISSUER, _NO_FIRST})
_ANSWER_S: Final = 2.0

Stage = Literal["name", "connection", "certificate", "ours", "done"]
"""How far it came: the host's name, a connection, its certificate, its answer to ours, everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How far a look came, and what stood in the way, with the remedy; ``leaf`` is the server's certificate where it was good."""

    stage: Stage
    problem: str = ""
    remedy: str = ""
    leaf: der.Leaf | None = None


def look(address: str, *, role: Role, kit: Kit, within_s: Second) -> Look:
    """Connect to the server of ``role`` at ``address`` and look at it; blocks for at most about ``within_s`` seconds.

    Never raises for what a server or network may do.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError) as error:
        return Look(
            stage="name",
            problem=f"the name {host!r} has no address ({error})",
            remedy="correct the address, or this machine's DNS",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=within_s) as raw:
            return _shake_hands(raw, role=role, kit=kit)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error.strerror or error)
        remedy = f"start the {role} there, correct the address, or open its port {port} in the firewalls between"
        return Look(stage="connection", problem=f"cannot connect to {address} ({reason})", remedy=remedy)


def _shake_hands(raw: socket.socket, *, role: Role, kit: Kit) -> Look:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=kit.ca.decode("ascii"))
        context.load_cert_chain(kit.directory / "tls.crt", kit.directory / "tls.key")
    except (OSError, ValueError) as error:
        return Look(stage="certificate", problem=f"our kit cannot be used ({error})", remedy="get a new kit")
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(raw, server_hostname=server_name(role)) as wrapped:
            shown = wrapped.getpeercert(binary_form=True)
            leaf = None if shown is None else der.read_certificate(shown)
            return _answer(wrapped, leaf)
    except ssl.SSLCertVerificationError as error:
        problem, remedy = _explained(error, role=role)
        return Look(stage="certificate", problem=problem, remedy=remedy)
    except (OSError, ValueError) as error:
        return Look(
            stage="certificate",
            problem=f"what answers there does not speak TLS as a server of ours does ({_short(error)})",
            remedy=f"if the {role} begins just now behind a published port, try again; else correct the address: another program "
            f"listens there, or a proxy stands between this machine and the {role}",
        )


def _answer(wrapped: ssl.SSLSocket, leaf: der.Leaf | None) -> Look:
    """Wait for the first byte: in TLS 1.3 a server looks at our certificate when the handshake is over for us."""
    wrapped.settimeout(_ANSWER_S)
    try:
        taken = bool(wrapped.recv(1))
    except (TimeoutError, ssl.SSLError, OSError):
        taken = False
    if taken:
        return Look(stage="done", leaf=leaf)
    return Look(
        stage="ours",
        problem="the server hangs up when it sees our certificate",
        remedy="it expects another authority, or its clock says that our certificate does not hold; compare the kits with "
        "`hushtune pki show`, and the clocks",
        leaf=leaf,
    )


def _explained(error: ssl.SSLCertVerificationError, *, role: Role) -> tuple[str, str]:
    code = error.verify_code
    if code in _FOREIGN:
        return "the server's certificate is of another authority", "check the address; else both need kits of one authority"
    if code == _EXPIRED:
        return "the server's certificate has expired", "its operator runs `hushtune pki renew`; check this machine's clock, too"
    if code == _NOT_YET:
        return "the server's certificate does not hold yet", "set the clock of this machine, or of the authority's"
    if code == _HOST:
        return f"the server there is no {role}", "correct the addresses: they may have been mixed up"
    return f"the server's certificate does not hold ({error.verify_message})", "its operator issues its kit again"


def _short(error: Exception) -> str:
    return str(error).partition(" (_ssl")[0][:120]
