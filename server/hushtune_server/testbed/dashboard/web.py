"""What does a browser get? One page, its script and style, and the state as it grows; nothing can be changed from there."""

from asyncio import create_task
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hushtune_server.testbed.dashboard.patches import Tree, difference
from hushtune_server.testbed.dashboard.watching import Watch

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_HEARTBEAT_S: Final = 10.0
_STATIC: Final[Mapping[str, str]] = {
    "index.html": "text/html",
    "style.css": "text/css",
    "main.js": "text/javascript",
    "parts.js": "text/javascript",
    "clients.js": "text/javascript",
    "drawings.js": "text/javascript",
    "dom.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
"""All that is served beside the state, by name."""


def application(watch: Watch, *, hosts: frozenset[str] | None) -> ASGIApp:
    """Return the web application about what ``watch`` follows.

    ``hosts`` are the names under which it may be called; anything else is refused, so that no foreign page can have a browser
    read the state by way of a name that it lets point here. `None` takes every name.
    """

    @asynccontextmanager
    async def following(_app: Starlette) -> AsyncGenerator[None]:
        task = create_task(watch.follow())
        try:
            yield
        finally:
            watch.stop()
            await task

    async def state(_request: Request) -> Response:
        return Response(msgspec.json.encode(watch.state), media_type="application/json")

    async def events(request: Request) -> Response:
        return StreamingResponse(_stream(watch, request.is_disconnected), media_type="text/event-stream")

    async def health(_request: Request) -> Response:
        return JSONResponse({"ok": True})

    routes = [Route("/state", state), Route("/events", events), Route("/health", health)]
    routes += [Route("/" if name == "index.html" else f"/{name}", _static(name)) for name in _STATIC]
    return _Guard(Starlette(routes=routes, lifespan=following), hosts=hosts)


def _static(name: str) -> Callable[[Request], Awaitable[Response]]:
    body = files("hushtune_server.testbed.dashboard").joinpath("static", name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(body, media_type=_STATIC[name])

    return answer


async def _stream(watch: Watch, gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    """Yield the whole state, then what changes; a viewer that is slow gets fewer, larger patches."""
    sent: Tree = watch.state
    yield b"retry: 1000\n" + _event("state", sent)
    while not (watch.stopped or await gone()):
        if watch.state is sent:
            await watch.changed(within_s=_HEARTBEAT_S)
        fresh = watch.state
        patch = difference(sent, fresh)
        sent = fresh
        yield _event("patch", patch) if patch else b": still here\n\n"


def _event(kind: str, tree: Tree) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(tree) + b"\n\n"


class _Guard:
    """Lets in requests for known hosts only, and puts the same headers on every answer."""

    def __init__(self, inner: ASGIApp, *, hosts: frozenset[str] | None) -> None:
        self._inner = inner
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *given]}
            await send(message)

        known = self._hosts is None or _host_of(scope) in self._hosts
        inner = self._inner if known else PlainTextResponse("this name is not served here\n", status_code=421)
        await inner(scope, receive, headed)


def _host_of(scope: Scope) -> str:
    """Return the name in the Host header, without its port."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    name, colon, port = given.rpartition(":")
    return name.lower() if colon and port.isdigit() else given.lower()
