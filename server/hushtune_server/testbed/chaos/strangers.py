"""Who calls a server that has to refuse it, and what do both ends say? A TLS client of its own, which shows what it is told.

The programs check their own certificates before they dial. So whether the servers check them too is seen only by a caller that
does not.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import NotYours
from hushtune_common.messages import Role
from hushtune_common.wire import faults
from hushtune_common.wire.endpoint import Kit, connect
from hushtune_common.wire.kit import server_name

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""How every HTTP/2 client begins, with empty settings: whom a server lets in, it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """What came of showing a certificate, or none: whether the server let us in or hung up, and after how long."""

    let_in: bool
    hung_up: bool
    seconds: float


async def knock(address: str, *, role: Role, authority: Path, showing: Path | None, within_s: float, clock: Clock) -> Knock:
    """Shake hands with the server of ``role`` at ``address``, trusting ``authority``, and show the kit in ``showing`` or nothing.

    Takes at most about ``within_s``; a server that says nothing for so long has not let us in, nor refused us.
    """
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2"])
    if showing is not None:
        context.load_cert_chain(showing / "tls.crt", showing / "tls.key")
    return await asyncio.to_thread(_knock, address, server_name(role), context, within_s, clock)


def _knock(address: str, name: str, context: ssl.SSLContext, within_s: float, clock: Clock) -> Knock:
    host, _, port = address.rpartition(":")
    began_s = clock.monotonic()
    let_in = hung_up = False
    try:
        with (
            socket.create_connection((host, int(port)), timeout=within_s) as raw,
            context.wrap_socket(raw, server_hostname=name) as wrapped,
        ):
            wrapped.sendall(_PREFACE)
            let_in = wrapped.recv(1) != b""
            hung_up = not let_in
    except TimeoutError:
        pass
    except OSError:  # so is what TLS has to say
        hung_up = True
    return Knock(let_in=let_in, hung_up=hung_up, seconds=clock.monotonic() - began_s)


_FORBIDDEN: Mapping[Role, str] = {
    Role.COORDINATOR: "/hushtune.v1.Coordinator/Join",
    Role.AIR: "/hushtune.v1.Air/Acknowledge",
    Role.OWNER: "/hushtune.v1.Owner/GetManifest",
}
"""At each server a call that an eavesdropper may not make, whatever is in it."""


async def overstep(address: str, *, role: Role, kit: Kit, timing: TimingConfig) -> str:
    """Make a call at the server of ``role`` as the eavesdropper of ``kit``; return the refusal, or nothing if there was none."""
    channel: Any = connect(address, role=role, kit=kit, timing=timing)
    try:
        with faults.translated():
            await channel.unary_unary(_FORBIDDEN[role])(b"", timeout=timing.connect_s)
    except NotYours as error:
        return str(error)
    finally:
        await channel.close()
    return ""
