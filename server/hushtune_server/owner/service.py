"""What may a client ask of the owner? The emulator of a round, and the verdict on its own update."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import grpc

from hushtune_common.config import Scenario
from hushtune_common.errors import DeadlineExceeded, NotYours, PeerLost, ScenarioMismatch, StaleRound
from hushtune_common.messages import Caller, ClientId, EmulatorManifest, Role, RunId, Verdict
from hushtune_common.wire import convert, convert_sums
from hushtune_common.wire.bell import Bell
from hushtune_common.wire.interceptors import caller_of
from hushtune_common.wire.v1 import owner_pb2 as pb
from hushtune_common.wire.v1 import owner_pb2_grpc
from hushtune_server.owner.book import Book
from hushtune_server.owner.copies import manifest_for
from hushtune_server.owner.sums import SumTable

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

_SHARE_WAITED = 0.9
"""A long poll answers before the caller gives up, so that it gets our words and not a bare timeout."""


class Desk:
    """Where emulators and verdicts wait to be fetched."""

    def __init__(self, book: Book, *, clients: frozenset[ClientId]) -> None:
        """Hand out what ``book`` says to the ``clients`` of the scenario."""
        self.book = book
        self._clients = clients
        self._bell = Bell()
        self._fetched: set[tuple[RunId, int, ClientId]] = set()
        self._closing = False
        self.waiting_count = 0
        """Calls that wait for an emulator or a verdict."""

    def client(self, caller: Caller) -> ClientId:
        """Return the id of a calling client; `NotYours` for anyone else."""
        if caller.role is not Role.CLIENT or caller.name not in self._clients:
            raise NotYours(f"{caller.uri} is no client of this scenario")
        return ClientId(caller.name)

    def ring(self) -> None:
        """Wake everyone who waits: the book has changed."""
        self._bell.ring()

    def close(self) -> None:
        """End every waiting call."""
        self._closing = True
        self.ring()

    async def manifest(self, run: RunId, round_id: int, client: ClientId, *, within_s: float) -> EmulatorManifest:
        """Wait for a client's emulator of a round, at most ``within_s``; `DeadlineExceeded` says to ask again."""
        waited_for = f"the emulator of round {round_id}"
        manifest = await self._found(lambda: self.book.manifest(run, round_id), within_s=within_s, waited_for=waited_for)
        return manifest_for(manifest, self.book.copies(run, round_id).get(client))

    async def verdict(self, run: RunId, round_id: int, client: ClientId, *, within_s: float) -> Verdict:
        """Wait for the client's verdict, at most ``within_s``; `DeadlineExceeded` says to ask again."""
        find = partial(self.book.verdict, run, round_id, client)
        verdict = await self._found(find, within_s=within_s, waited_for="a verdict")
        self._fetched.add((run, round_id, client))
        self.ring()
        return verdict

    async def _found(self, find: Callable[[], T | None], *, within_s: float, waited_for: str) -> T:
        self.waiting_count += 1
        try:
            async with asyncio.timeout(max(0.0, within_s)):
                while (found := find()) is None:
                    if self._closing:
                        raise PeerLost("the owner is stopping")
                    await self._bell.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"not yet: {waited_for}; ask again") from error
        finally:
            self.waiting_count -= 1
        return found

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds``, looked at whenever the bell rings."""
        while not holds():
            await self._bell.wait()

    async def all_fetched(self, run: RunId, round_id: int, clients: frozenset[ClientId], *, within_s: float) -> bool:
        """Wait until each of ``clients`` has its verdict; return false when ``within_s`` was not enough."""
        wanted = {(run, round_id, client) for client in clients}
        try:
            async with asyncio.timeout(within_s):
                while not wanted <= self._fetched:
                    await self._bell.wait()
        except TimeoutError:
            return False
        return True


class OwnerService(owner_pb2_grpc.OwnerServicer):
    """The calls of ``hushtune.v1.Owner``."""

    def __init__(self, scenario: Scenario, *, desk: Desk) -> None:
        """Hand out what lies on ``desk``, once it is known of which run: see `run`."""
        self._scenario = scenario
        self._desk = desk
        self.run: RunId | None = None
        self.sums: SumTable | None = None

    async def GetManifest(self, request: pb.GetManifestRequest, context: Context) -> pb.GetManifestResponse:
        """Wait for the emulator of a round, for clients of the same scenario."""
        client = self._desk.client(caller_of(context))
        if request.scenario_digest != self._scenario.digest.value:
            raise ScenarioMismatch(f"this owner runs scenario {self._scenario.name!r}, digest {self._scenario.digest.short}")
        run = self._require_ours(request.run, request.round_id)
        manifest = await self._desk.manifest(run, request.round_id, client, within_s=self._patience(context))
        return convert.manifest_to_wire(manifest)

    async def GetVerdict(self, request: pb.GetVerdictRequest, context: Context) -> pb.GetVerdictResponse:
        """Wait for the verdict on the caller's own update; whose it is, the certificate says."""
        client = self._desk.client(caller_of(context))
        run = self._require_ours(request.run, request.round_id)
        verdict = await self._desk.verdict(run, request.round_id, client, within_s=self._patience(context))
        return convert.verdict_to_wire(verdict)

    async def Open(self, request: pb.OpenRequest, context: Context) -> pb.OpenResponse:
        """Take the caller's shares for the sum of a round; whose they are, the certificate says."""
        client = self._desk.client(caller_of(context))
        self._require_ours(request.run, request.round_id)
        if self.sums is None:
            raise StaleRound("nothing is opened here: owner.aggregation.kind is mean")
        opening = convert_sums.opening_from_wire(request, caller=client)
        await asyncio.to_thread(self.sums.open, request.round_id, opening)
        self._desk.ring()
        return pb.OpenResponse()

    def _require_ours(self, run: str, round_id: int) -> RunId:
        if self.run is None:
            raise PeerLost("the owner has not joined the run yet; ask again")
        if run != self.run or not 1 <= round_id <= self._scenario.coordinator.rounds:
            raise StaleRound(f"round {round_id} of run {run!r} is not one of ours")
        return self.run

    def _patience(self, context: Context) -> float:
        """Return how many seconds a call may wait."""
        idle_s = self._scenario.timing.idle_s
        remaining_s = cast(float | None, context.time_remaining())  # the stubs forget calls without a deadline
        return _SHARE_WAITED * (idle_s if remaining_s is None else min(idle_s, remaining_s))


def register_owner(service: OwnerService) -> Callable[[grpc.aio.Server], None]:
    """Return the function that adds ``service`` to a server."""

    def register(server: grpc.aio.Server) -> None:
        owner_pb2_grpc.add_OwnerServicer_to_server(service, server)

    return register
