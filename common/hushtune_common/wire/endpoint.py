"""How does a process listen, and how does it reach another? TLS, limits, keepalive, health, graceful stop."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Sequence
from errno import EADDRINUSE
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hushtune_common.clock import Clock, SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import AddressInUse, ConfigError, PeerLost
from hushtune_common.logs import log_event
from hushtune_common.messages import Digest, Role
from hushtune_common.metrics.watch import Calls, Watch
from hushtune_common.units import Second
from hushtune_common.wire import faults, probe
from hushtune_common.wire.about import about
from hushtune_common.wire.calls import ServerCalls, client_calls
from hushtune_common.wire.interceptors import CALLS_MAX, Gatekeeper
from hushtune_common.wire.kit import Kit, require_valid, server_name
from hushtune_common.wire.renewal import Renewals
from hushtune_common.wire.revocation import Revocations
from hushtune_common.wire.v1 import air_pb2, blobs_pb2, coordinator_pb2, owner_pb2

__all__ = ["Kit", "Server", "connect", "ready", "serve"]

_logger = logging.getLogger(__name__)
_SYSTEM_CLOCK = SystemClock()
_STATUS = health_pb2.HealthCheckResponse.ServingStatus
_CALLS_MAX = 1024
"""Concurrent calls of one connection; a stream counts as one."""
_CLOSED = "Socket closed"
_REFUSALS = 2
_LOOK_S_MAX = 5.0
_LOOKS_PER_IDLE = 6
"""How often a server looks at its revocation list for the sake of calls that run already."""


def _service_config() -> str:
    # Retries and waiting for a connection are for unary calls: a stream is resumed by its own loop, which must see the fault.
    # No ``timeout`` here: each call passes its own, because the one of the service config fires early.
    unary = [
        {"service": service.full_name, "method": method.name}
        for module in (air_pb2, blobs_pb2, coordinator_pb2, owner_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    ]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": unary, "waitForReady": True, "retryPolicy": retry}]})


class Server:
    """A listening server with health entries; made by ``serve``."""

    def __init__(
        self, server: grpc.aio.Server, *, address: str, names: Sequence[str], entries: Any, watch: "asyncio.Task[None]"
    ) -> None:
        """Take the started ``server``, where it listens, its health servicer with the service ``names``, and its ``watch``."""
        self._server = server
        self._names = tuple(names)
        self._entries = entries
        self._watch = watch
        self.address = address

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, refuse new calls, let running ones finish for ``grace_s`` seconds, then cut them."""
        self._watch.cancel()
        for name in ("", *self._names):
            await self._entries.set(name, _STATUS.NOT_SERVING)
        # A shutdown that hangs in the library must not hang the process: the grace is its own bound, this one is ours.
        try:
            async with asyncio.timeout(grace_s + 5.0):
                await self._server.stop(grace_s)
        except TimeoutError:
            log_event(_logger, "stop_abandoned", level=logging.WARNING, address=self.address, grace_s=grace_s)

    async def wait(self) -> None:
        """Wait until the server has stopped."""
        await self._server.wait_for_termination()


async def serve(
    registrations: Sequence[Callable[[grpc.aio.Server], None]],
    *,
    names: Sequence[str],
    listen: str,
    kit: Kit,
    clock: Clock,
    timing: TimingConfig,
    scenario: Digest | None = None,
    calls_max: int = CALLS_MAX,
    watched: Watch | None = None,
) -> Server:
    """Listen on ``listen`` (``HOST:PORT``, port 0 picks a free one) with mutual TLS, and log ``serving_started``.

    ``names`` are the full gRPC service names that the health service answers for; ``scenario`` is what a doctor is told; one
    caller has at most ``calls_max`` calls at the same time. Who looks at ``watched`` hears of every call. A renewed certificate
    and a new revocation list are taken from the kit's folder while serving. Raises ``AddressInUse`` when the port is taken,
    ``ConfigError`` when the address is not one of this machine, the kit's certificate is not valid, or its
    revocation list is not the authority's or expired, and ``CertificateRevoked`` when the list names the kit itself.
    """
    require_valid(kit, clock=clock)
    revocations, renewals = Revocations(kit, clock=clock), Renewals(kit, clock=clock)
    host = _host(listen)
    gatekeeper = Gatekeeper(revocations, about=lambda: about(clock=clock, scenario=scenario), calls_max=calls_max)
    interceptors: list[grpc.aio.ServerInterceptor] = [gatekeeper]
    if watched is not None:
        watched.offer("hushtune_certificate_remaining_seconds", lambda: renewals.remaining_s)
        if watched.calls is not None:
            interceptors.insert(0, ServerCalls(watched.calls, clock=clock))
    server = grpc.aio.server(interceptors=interceptors, options=_server_options(timing))
    for register in registrations:
        register(server)
    entries = cast(Any, health).aio.HealthServicer()  # defined, but hidden from type checkers
    health_pb2_grpc.add_HealthServicer_to_server(entries, server)
    for name in ("", *names):
        await entries.set(name, _STATUS.SERVING)
    credentials = grpc.dynamic_ssl_server_credentials(
        renewals.certificates(),
        renewals.renewed,  # pyright: ignore[reportArgumentType] - None says "no change", which the stubs do not know
        require_client_authentication=True,
    )
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise _bind_error(listen, error) from None
    await server.start()
    address = f"{host}:{port}"
    log_event(_logger, "serving_started", address=address, caller=kit.caller.uri, services=list(names))
    watch = asyncio.create_task(_watch(revocations, gatekeeper, every_s=min(_LOOK_S_MAX, timing.idle_s / _LOOKS_PER_IDLE)))
    return Server(server, address=address, names=names, entries=entries, watch=watch)


async def _watch(revocations: Revocations, gatekeeper: Gatekeeper, *, every_s: float) -> None:
    """Look at the list from time to time: calls ask for it themselves, but a stream that runs does not call again."""
    while True:
        await asyncio.sleep(every_s)
        revocations.refresh()
        gatekeeper.end_revoked()


def connect(
    address: str, *, role: Role, kit: Kit, timing: TimingConfig, clock: Clock = _SYSTEM_CLOCK, calls: Calls | None = None
) -> grpc.aio.Channel:
    """Return a channel to the server of ``role`` at ``address``; dials lazily, so follow with ``ready``.

    A server whose certificate is not for ``role`` is refused, whatever its address; ``calls`` are told of every call. Raises
    ``ConfigError`` when our own certificate is not valid by ``clock``.
    """
    require_valid(kit, clock=clock)
    credentials = grpc.ssl_channel_credentials(kit.ca, kit.key, kit.certificate)
    interceptors = client_calls(calls, clock=clock)
    return grpc.aio.secure_channel(address, credentials, options=_channel_options(timing, role=role), interceptors=interceptors)


async def ready(channel: grpc.aio.Channel, *, address: str, role: Role, timing: TimingConfig, kit: Kit | None = None) -> None:
    """Wait up to ``connect_s`` for a usable connection; raises ``PeerLost`` with the cause, or the likely causes without ``kit``.

    A peer that is not up yet is waited for; one whose certificate or ours is refused ends the wait at once. With ``kit``, the one
    of ``channel``, who refuses whom is found out by looking (`probe`), since gRPC does not say.
    """
    stub: Any = health_pb2_grpc.HealthStub(channel)
    problem, refused = "no answer", 0
    try:
        async with asyncio.timeout(timing.connect_s):
            while True:
                state = channel.get_state(try_to_connect=True)
                try:
                    await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=False, timeout=timing.connect_s)
                except grpc.aio.AioRpcError as error:
                    if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND):
                        return  # someone who speaks gRPC has answered, which is all that is asked
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise faults.from_rpc_error(error) from error
                    problem = error.details() or problem
                    if _is_refusal(problem):
                        break
                    if kit is not None and _CLOSED in problem:
                        looked = await asyncio.to_thread(probe.look, address, role=role, kit=kit, within_s=Second(1.0))
                        refused = refused + 1 if looked.stage == "ours" else 0
                        if refused == _REFUSALS:  # once may be a connection that was cut at the wrong moment
                            break
                else:
                    return
                # A connection that was made and lost meanwhile leaves the channel idle, as it was, until it is told to dial.
                now = channel.get_state(try_to_connect=True)
                await channel.wait_for_state_change(now if now is grpc.ChannelConnectivity.IDLE else state)
    except TimeoutError:
        pass
    if kit is not None:
        looked = await asyncio.to_thread(probe.look, address, role=role, kit=kit, within_s=Second(1.0))
        if looked.stage != "done":
            raise PeerLost(f"{role} at {address}: {looked.problem}; {looked.remedy} ({problem})")
    raise PeerLost(_lost(problem, address=address, role=role, connect_s=timing.connect_s))


def _is_refusal(problem: str) -> bool:
    # A connection that broke in the middle of a handshake ("handshake read failed") is no refusal: its peer may be starting.
    text = problem.lower()
    return any(mark in text for mark in ("handshake failed", "certificate", "peer name", "hostname"))


def _lost(problem: str, *, address: str, role: Role, connect_s: float) -> str:
    if _is_refusal(problem):
        return (
            f"the server at {address} was refused or refused us: it is no {role} of our certificate authority, or a "
            f"certificate has expired; compare the kits with `hushtune pki show` ({problem})"
        )
    return (
        f"no {role} answers at {address} within {connect_s:g} s: it is not running, the address is wrong, or it refuses our "
        f"certificate (another authority, or expired); compare the kits with `hushtune pki show` ({problem})"
    )


def _keepalive(timing: TimingConfig) -> list[tuple[str, int]]:
    # The larger part is for the answer, which waits behind what is on its way; transfers keep that short (`pace`).
    ping_ms, answer_ms = int(timing.idle_s * 1000 / 3), int(timing.idle_s * 2000 / 3)
    return [
        # Unknown names are ignored silently, so these are tested by their effect. A connection ends when a ping is not answered
        # within ping_timeout_ms (a minute by default), also while bytes arrive; what ends with keepalive_timeout_ms is one
        # whose bytes TCP cannot get acknowledged.
        ("grpc.keepalive_time_ms", ping_ms),
        ("grpc.keepalive_timeout_ms", answer_ms),
        ("grpc.http2.ping_timeout_ms", answer_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _server_options(timing: TimingConfig) -> list[tuple[str, int]]:
    return [
        *_keepalive(timing),
        ("grpc.http2.min_ping_interval_without_data_ms", int(timing.idle_s * 1000 / 6)),
        ("grpc.server_handshake_timeout_ms", int(timing.connect_s * 1000)),
        ("grpc.max_concurrent_streams", _CALLS_MAX),
        ("grpc.so_reuseport", 0),
    ]


def _channel_options(timing: TimingConfig, *, role: Role) -> list[tuple[str, int | str]]:
    return [
        *_keepalive(timing),
        ("grpc.ssl_target_name_override", server_name(role)),
        ("grpc.service_config", _service_config()),
        ("grpc.enable_retries", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.min_reconnect_backoff_ms", int(timing.connect_s * 1000)),
        # One connection per channel: two channels of one process do not share a backoff or a flow-control window.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def _host(listen: str) -> str:
    host, colon, port = listen.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ConfigError("--listen", f"use HOST:PORT, such as 127.0.0.1:0 for a free port, got {listen!r}")
    return host


def _bind_error(listen: str, error: RuntimeError) -> AddressInUse | ConfigError:
    # gRPC gives no reason in a form that can be read; asking the operating system again does.
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)
    except OSError as reason:
        if reason.errno != EADDRINUSE:
            return ConfigError("--listen", f"cannot listen on {listen}: {reason.strerror}; use an address of this machine")
    remedy = "stop the process that listens there, choose another port, or use port 0 for a free one"
    return AddressInUse(f"{listen} is taken: {remedy} ({error})" if not port else f"{listen} is taken: {remedy}")
