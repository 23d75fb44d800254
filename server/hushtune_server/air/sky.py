"""What is on air, what became of it, and what each listener may hear: carried once, remembered, and told to who waits."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from pathlib import Path
from typing import Any

from hushtune_common.clock import Clock
from hushtune_common.config import ClientConfig, Scenario
from hushtune_common.errors import DeadlineExceeded, LimitExceeded, MalformedUpdate, NotYours, PeerLost, Replayed
from hushtune_common.link.abstraction import Fading
from hushtune_common.link.wiretap import airtime
from hushtune_common.logs import log_event
from hushtune_common.messages import Caller, Listener, Receipt, Role, Transmission, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName, BlobStore
from hushtune_common.store.journal import Journal
from hushtune_common.units import PowerRatio, Second, to_db
from hushtune_common.wire.bell import Bell
from hushtune_server.air.fading import Geography
from hushtune_server.air.ledger import ACKNOWLEDGED, MARKED, OVERHEARD, TRANSMITTED, Ledger, Sent, key_body, receipt_body
from hushtune_server.air.medium import Medium, level, require_known
from hushtune_server.air.meter import Probe
from hushtune_server.air.permission import require_part_size
from hushtune_server.air.replay import FrameFile, Replay

_log = logging.getLogger(__name__)
_UNREAD_PER_CLIENT = 1
"""Frames of the largest size that wait for the tap alone."""
_MARK_S = 1.0
"""How much of the air's time a restart skips at most, so that it never runs backwards."""


class Sky:
    """What the servicers share: carries frames once, remembers outcomes, wakes listeners and lets each hear its own."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        medium: Medium,
        geography: Geography,
        store: BlobStore,
        journal: Journal,
        clock: Clock,
        seeds: SeedTree,
    ) -> None:
        """Fold the journal: outcomes of an earlier life of this process stay what they were."""
        self.scenario = scenario
        self.geography = geography
        self.ledger = Ledger()
        self.bell = Bell()
        self.draining = False
        self._medium = medium
        self._store = store
        self._journal = journal
        self._clock = clock
        self._seeds = seeds
        self._carrying: dict[UpdateKey, asyncio.Task[Sent]] = {}
        self._commit = asyncio.Lock()
        self._runs_written: dict[str, set[str]] = {}
        self._unread_bytes_max = _UNREAD_PER_CLIENT * len(scenario.clients) * scenario.limits.frame_bytes_max
        for event in journal.events():
            self.ledger.apply(event.kind, event.body)
        self._on_air = {name.prefix: name for sent in self.ledger.sent if (name := _frame_name(sent.transmission))}
        # An earlier life may have ended in the middle of an upload that its client has given up since.
        self._begun: dict[str, set[BlobName]] = {}
        for name in store.names():
            if name.prefix not in self._on_air and (client := writer_of(name)):
                self._begun.setdefault(client, set()).add(name)
        self._began_at = None if self.ledger.marked is None else clock.monotonic() - (self.ledger.marked + _MARK_S)

    def now(self) -> Second:
        """Return the air's time: from the first sounding on, while the air is up; 0 where channels do not change."""
        return Second(0.0 if self._began_at is None else self._clock.monotonic() - self._began_at)

    async def sound(self, client: ClientConfig, round_id: int) -> tuple[PowerRatio, Second]:
        """Return the client's gain to the owner and the moment for which it holds."""
        at = await self._mark() if self.scenario.air.changes else self.now()
        return self.geography.gain_main(client.id, round_id, at=at), at

    async def _mark(self) -> Second:
        """Return the air's time, which begins here, and remember that it has come so far."""
        async with self._commit:
            if self._began_at is None:
                self._began_at = self._clock.monotonic()
            at, marked = self.now(), self.ledger.marked
            if marked is None or at >= marked + _MARK_S:
                await self._record(MARKED, {"at": at}, key=f"mark/{at!r}")
            return at

    def client(self, caller: Caller) -> ClientConfig:
        """Return the scenario's entry of a calling client; `NotYours` for anyone else."""
        known = {c.id: c for c in self.scenario.clients}
        if caller.role is not Role.CLIENT or caller.name not in known:
            raise NotYours(f"{caller.uri} is no client of scenario {self.scenario.name!r}")
        return known[caller.name]

    async def send(self, transmission: Transmission) -> Sent:
        """Put a written frame on air, once: the same key again returns the stored outcome, also while it is being carried."""
        known = self.ledger.find(transmission)
        if known is not None:
            self._let_go(known)  # a client that restarted may have written it again
            return known
        self._require_known_run(transmission.key)
        task = self._carrying.get(transmission.key)
        if task is None:
            task = asyncio.create_task(self._carry(transmission))
            self._carrying[transmission.key] = task
            task.add_done_callback(lambda _: self._carrying.pop(transmission.key, None))
        # Shielded: a client that hangs up must not undo a transmission that a listener may already have heard.
        await asyncio.shield(task)
        sent = self.ledger.find(transmission)
        if sent is None:
            raise MalformedUpdate(f"{transmission.key.text} was not carried")
        return sent

    async def answered(self, key: UpdateKey) -> Receipt:
        """Wait for the owner's receipt, at most the time of a round."""
        try:
            async with asyncio.timeout(self.scenario.timing.round_s):
                while (receipt := self.ledger.receipt(key)) is None:
                    self.require_open()
                    await self.bell.wait()
                return receipt
        except TimeoutError as error:
            raise DeadlineExceeded(f"the owner has not acknowledged {key.text}") from error

    async def receptions(self, key: UpdateKey, listener: Listener, *, first: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield what ``listener`` hears of a transmission as numbered blobs, from chunk ``first`` on.

        One chunk is computed while the one before it is taken, never more. Who asks for the chunk after the last says that it
        has them all; from the tap that is what lets a frame go.

        Raises:
            StaleRound: this was never on air, or can no longer be heard.
            MalformedUpdate: there is no such chunk.
            PeerLost: the air is stopping.
        """
        sent = self.ledger.require_sent(key)
        with FrameFile(self._store.path(_frame_name(sent.transmission))) as file:
            replay = await asyncio.to_thread(self._replay, file, sent, listener)
            if first > replay.chunk_count:
                raise MalformedUpdate(f"first_chunk: {first}, but there are {replay.chunk_count} chunks")
            if first < replay.chunk_count:
                async with aclosing(self._stream(replay, sent, listener, first=first)) as stream:
                    async for number, blob in stream:
                        yield number, blob
            elif listener is Listener.TAP:
                await self._record(OVERHEARD, key_body(key), key=f"tap/{key.text}")
                self._let_go(sent)

    async def acknowledge(self, receipt: Receipt) -> None:
        """Record the owner's receipt, wake the sender, and forget a frame that nobody waits for."""
        sent = self.ledger.require_sent(receipt.key)
        await self._record(ACKNOWLEDGED, receipt_body(receipt), key=f"ack/{receipt.key.text}")
        self._let_go(sent)
        self.bell.ring()

    def client_writes(self, caller: Caller, name: BlobName) -> None:
        """Forget the frame that this client wrote before: it sends one at a time, and must not fill the disk of the others.

        `Replayed` when it writes another frame beside one that was sent; `LimitExceeded` for rounds, attempts and runs beyond the
        scenario's, each of which would leave a folder behind.
        """
        self._require_sendable(caller.name, name.prefix)
        if self._on_air.get(name.prefix, name) != name:
            raise Replayed(f"{name.prefix} was sent before with another frame; count the attempt up")
        for before in self._begun.get(caller.name, set[BlobName]()) - {name}:
            if before.prefix not in self._on_air:
                self._store.discard(before.prefix)
        self._begun[caller.name] = {name}

    def drain(self) -> None:
        """End every waiting call."""
        self.draining = True
        self.bell.ring()

    def require_open(self) -> None:
        """Raise `PeerLost` once the process is stopping, so that callers reconnect elsewhere or give up."""
        if self.draining:
            raise PeerLost("the air is stopping")

    def _replay(self, file: FrameFile, sent: Sent, listener: Listener) -> Replay:
        frame, key = file.reader(), sent.transmission.key
        gain = self.geography.gains(key.client, key.round_id, at=sent.at).of(listener)
        return Replay(frame, medium=self._medium, listener=listener, transmission=sent.transmission, gain=gain, seeds=self._seeds)

    async def _stream(
        self, replay: Replay, sent: Sent, listener: Listener, *, first: int
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        loop, started_s = asyncio.get_running_loop(), self._clock.monotonic()
        blocks = bytes_total = 0
        coming = loop.run_in_executor(None, replay.chunk, first)
        try:
            for number in range(first, replay.chunk_count):
                count, blob = await coming
                self.require_open()
                self._store.path(_frame_name(sent.transmission))  # stale once it had to make room for others
                if number + 1 < replay.chunk_count:
                    coming = loop.run_in_executor(None, replay.chunk, number + 1)
                blocks, bytes_total = blocks + count, bytes_total + len(blob)
                yield number, blob
        finally:
            coming.cancel()  # one that nobody will hear
        seconds, chunks = self._clock.monotonic() - started_s, replay.chunk_count - first
        _tell(
            "reception_streamed", sent, listener=listener, blocks=blocks, chunks=chunks, bytes_total=bytes_total, seconds=seconds
        )

    def _require_known_run(self, key: UpdateKey) -> None:
        runs = self.ledger.runs(key.client)
        self._require_few_runs(key.client, runs | {key.run})

    def _require_sendable(self, client: str, prefix: str) -> None:
        _, run, *rest, attempt = prefix.split("/")
        numbers = {"round": (rest[0], self.scenario.coordinator.rounds), "attempt": (attempt, self.scenario.limits.attempts_max)}
        for what, (text, most) in numbers.items():
            if not (text.isdigit() and 1 <= int(text) <= most):
                raise LimitExceeded(f"resource_name: {what} {text} of {prefix}; this scenario has 1 to {most}")
        written = self._runs_written.setdefault(client, set())
        self._require_few_runs(client, written | {run})
        written.add(run)

    def _require_few_runs(self, client: str, runs: Collection[str]) -> None:
        most = self.scenario.limits.runs_max
        if len(runs) > most:
            raise LimitExceeded(
                f"{client} sends in more than limits.runs_max = {most} runs; start the air with an empty state folder for more"
            )

    def _let_go(self, sent: Sent) -> None:
        """Forget the frame of a transmission that nobody waits for any more."""
        key = sent.transmission.key
        if not self.ledger.awaited(key):
            self._store.discard(f"frames/{key.text}")

    def _make_room(self) -> None:
        """Forget what could fill the disk of the others: frames that nobody waits for, and too many that only the tap does."""
        unread: list[BlobName] = []
        for sent in self.ledger.sent:
            if self._store.complete(name := _frame_name(sent.transmission)):
                self._let_go(sent)
                if self.ledger.awaited(sent.transmission.key) == frozenset({Listener.TAP}):
                    unread.append(name)
        excess = sum(name.size for name in unread) - self._unread_bytes_max
        for name in unread:
            if excess <= 0:
                break
            self._store.discard(name.prefix)
            log_event(_log, "reception_unread", level=logging.WARNING, reception=name.prefix, bytes_total=name.size)
            excess -= name.size

    async def _carry(self, transmission: Transmission) -> Sent:
        name = _frame_name(transmission)
        if not self._store.complete(name):
            raise MalformedUpdate(f"{name.text}: no such frame was written; write it before transmitting")
        self._on_air[name.prefix] = name
        try:
            at = await self._mark() if self.scenario.air.changes else self.now()
            sent = await asyncio.to_thread(self._inspect, transmission, self._store.path(name), at)
            async with self._commit:
                await self._record(TRANSMITTED, sent.to_body(), key=f"sent/{transmission.key.text}")
        except BaseException:
            del self._on_air[name.prefix]
            raise
        self._make_room()
        self.bell.ring()
        numbers = {"blocks": sent.blocks, "blocks_coded": sent.blocks_coded, "airtime_s": sent.airtime}
        _tell("frame_carried", sent, **numbers, fidelity=sent.fidelity)
        return sent

    def _inspect(self, transmission: Transmission, path: Path, at: Second) -> Sent:
        key, scenario = transmission.key, self.scenario
        gains = self.geography.gains(key.client, key.round_id, at=at)
        with FrameFile(path) as file:
            frame = file.reader()
            layout = frame.layout
            require_known(layout, transmission=transmission, scenario=scenario)
            require_part_size(layout, scenario)
            probe = Probe(
                transmission=transmission,
                gains=gains,
                fading=Fading.of(scenario.air),
                seeds=self._seeds,
                threads=scenario.compute.link_threads,
            )
            return Sent(
                transmission=transmission,
                blocks=layout.count,
                blocks_coded=layout.coded_count,
                update_bytes=layout.update_bytes,
                airtime=airtime(transmission.design, blocks=layout.count, bandwidth=transmission.bandwidth),
                fidelity=layout.fidelity.value,
                snr_main_db=to_db(level(transmission, gains.main)),
                snr_tap_db=to_db(level(transmission, gains.tap)),
                meter=probe.meter(frame, blocks=scenario.air.metered_blocks),
                constellation=probe.constellation(frame),
                at=at,
            )

    async def _record(self, kind: str, body: dict[str, Any], *, key: str) -> None:
        event = await self._journal.append(kind, body, key=key)
        self.ledger.apply(event.kind, event.body)


def writer_of(name: BlobName) -> str | None:
    """Return whose frame a name is of, ``frames/RUN/ROUND/CLIENT/ATTEMPT``; none for anything else."""
    match name.prefix.split("/"):
        case ["frames", _, _, client, _]:
            return client
        case _:
            return None


def _frame_name(transmission: Transmission) -> BlobName:
    return BlobName(prefix=f"frames/{transmission.key.text}", digest=transmission.frame, size=transmission.frame_bytes)


def _tell(event: str, sent: Sent, **fields: Any) -> None:
    key = sent.transmission.key
    about: dict[str, Any] = {
        "run": key.run,
        "client": key.client,
        "round_id": key.round_id,
        "attempt": key.attempt,
        "part": sent.transmission.part.value,
        "digest_frame": sent.transmission.frame,
    }
    log_event(_log, event, **about, **fields)
