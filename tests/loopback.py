"""The three counterparts of a client in one process, scripted by a test, and the values that such tests start from."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from hushtune_client.ports import (
    AirPort,
    Cleared,
    CoordinatorPort,
    Fetched,
    FrameOutcome,
    OwnerPort,
    Ports,
    Progress,
    Sounding,
    Welcome,
)
from hushtune_common.config import TimingConfig
from hushtune_common.errors import DigestMismatch, MalformedUpdate, NotYours, Replayed, ScenarioMismatch, StaleRound
from hushtune_common.link.frame import FrameReader, checksums
from hushtune_common.link.modular import BlockCode
from hushtune_common.messages import (
    Assignment,
    Beat,
    Channel,
    ClientId,
    ClientReport,
    Completion,
    Digest,
    Directive,
    EmulatorManifest,
    Gate,
    GateDecision,
    LinkSeed,
    Protection,
    RunId,
    SecrecyDesign,
    TensorSpec,
    Transmission,
    UpdateKey,
    Verdict,
)
from hushtune_common.secagg.messages import Advertisement, Deal, Opening, Vow
from hushtune_common.units import Decibel, FlopPerSecond, Hertz, PowerRatio, Second, Watt

Word = TypeVar("Word", Advertisement, Deal, Vow, Opening)

RUN = RunId("run-1")
CLIENT = ClientId("c1")
SCENARIO = Digest.of(b"scenario")
GAIN = PowerRatio(1e-10)
EMULATOR = b"an emulator" * 1000

DESIGN = SecrecyDesign(
    modulation="qpsk",
    code_bits=10_240,
    info_bits=8448,
    codewords=4,
    message_bits=8224,
    random_bits=4 * 8448 - 8224,
    snr_tap_design_db=Decibel(-5.0),
    log2_delta=-64.0,
    rho=0.5,
    rate=0.4,
)
CARRIER = replace(
    DESIGN,
    message_bits=4 * 8448,
    random_bits=0,
    snr_tap_design_db=Decibel(0.0),
    log2_delta=0.0,
    rho=0.0,
    rate=4 * 8448 / (4 * 10_240 / 2),
)
GRANTED = Gate(
    decision=GateDecision.GRANTED,
    reason="",
    snr_main_db=Decibel(8.0),
    snr_tap_bound_db=Decibel(-5.0),
    block_error_rate=1e-3,
    rate_coded=0.4,
    rate_gaussian=1.5,
)
REFUSED = replace(
    GRANTED,
    decision=GateDecision.EXCLUDED,
    reason="the tap hears better than the owner",
    snr_main_db=Decibel(float("-inf")),
)


def assignment_of(
    round_id: int = 1,
    *,
    gate: Gate = GRANTED,
    client: ClientId = CLIENT,
    protection: Protection = Protection.PAYLOAD,
    budget_bytes: int = 1_000_000,
) -> Assignment:
    granted = gate.decision is GateDecision.GRANTED
    return Assignment(
        client=client,
        round_id=round_id,
        gate=gate,
        adapter_share=1.0,
        budget_bytes=budget_bytes,
        bandwidth=Hertz(5e6),
        power=Watt(1e-4),
        clock=FlopPerSecond(2.0e12),
        secrecy_rate_bps=1e6,
        deadline=Second(100.0),
        protection=protection if granted else None,
        design=DESIGN if granted and protection is not Protection.CRYPTO_ONLY else None,
        carrier=CARRIER if granted and protection is not Protection.PAYLOAD else None,
    )


def link_seed(design: SecrecyDesign = DESIGN, *, fill: int = 0x5A) -> LinkSeed:
    """Return public parameters of the lengths that ``design`` asks for, with a tag that nobody can check."""
    return LinkSeed(toeplitz=bytes([fill]) * design.toeplitz_bytes, dither=bytes([fill]) * design.coded_bytes, tag=bytes(32))


def reader_of(frame: bytes) -> FrameReader:
    """Return a reader of a frame in memory."""
    return FrameReader(lambda offset, size: frame[offset : offset + size], len(frame))


def payloads_of(frame: bytes, *, design: SecrecyDesign, toeplitz: bytes) -> dict[int, bytes]:
    """Return what a receiver without noise makes of a frame: payloads by block index, the last with its padding."""
    reader, code = reader_of(frame), BlockCode(design, toeplitz=toeplitz)
    found: dict[int, bytes] = {}
    for number in range(reader.chunk_count(design)):
        chunk = reader.chunk(number, design=design)
        bits = np.unpackbits(chunk.rows, axis=1, bitorder="little").astype(np.int8)
        soft = (127 - 254 * bits.astype(np.int16)).astype(np.int8)
        decoded = code.decode(soft.reshape(-1, design.codewords, design.code_bits), iterations=2)
        assert decoded.sound.all()
        found |= zip(chunk.indices[chunk.coded].tolist(), (row.tobytes() for row in decoded.payloads), strict=True)
        bare = chunk.bare
        assert (checksums(bare[:, :-4]) == bare[:, -4:]).all()
        found |= zip(chunk.indices[~chunk.coded].tolist(), (row.tobytes() for row in bare[:, :-4]), strict=True)
    return found


def message_of(payloads: dict[int, bytes], *, size: int) -> bytes:
    """Return the message of ``size`` bytes that lies in these blocks, all of them."""
    assert sorted(payloads) == list(range(len(payloads)))
    return b"".join(payloads[index] for index in range(len(payloads)))[:size]


def manifest_of(emulator: bytes) -> EmulatorManifest:
    return EmulatorManifest(
        emulator=Digest.of(emulator),
        size_bytes=len(emulator),
        base=Digest.of(b"base"),
        plan=Digest.of(b"plan"),
        tokenizer=Digest.of(b"tokenizer"),
        adapter=(TensorSpec(name="model.layers.0.mlp.up_proj.weight", shape=(2, 3), dtype="F32", block=0),),
        sealing_key=b"key",
        codec="delta-b64-zstd/2",
    )


def nothing_missing(_: UpdateKey, __: tuple[int, ...]) -> tuple[int, ...]:
    return ()


@dataclass(slots=True)
class World:
    """What the counterparts know, and what they have been told.

    ``published`` are the rounds that have an emulator, by default the same one; ``revisions`` are what else can be fetched, by
    prefix. ``lost`` names the blocks of an attempt that do not arrive; ``tampered`` is what comes instead of the emulator;
    with ``cuts_streams`` the coordinator ends every stream after one directive; while ``silent`` the owner gives no receipts;
    while it ``keeps_quiet`` the coordinator does not say whether to send; it refuses what was ``given_away``;
    ``sounding`` is what the air says in every round, if given.
    """

    emulator: bytes = EMULATOR
    tampered: bytes | None = None
    manifest: EmulatorManifest = field(default_factory=lambda: manifest_of(EMULATOR))
    scenario: Digest = SCENARIO
    timing: TimingConfig = field(default_factory=lambda: TimingConfig(connect_s=10.0, idle_s=3.0, round_s=60.0))
    lost: Callable[[UpdateKey, tuple[int, ...]], tuple[int, ...]] = nothing_missing
    cuts_streams: bool = False
    silent: bool = False
    keeps_quiet: bool = False
    given_away: bool = False
    questions: list[int] = field(default_factory=list[int])
    sounding: Sounding | None = None
    published: dict[int, EmulatorManifest | None] = field(default_factory=lambda: {1: None})
    emulators: dict[Digest, bytes] = field(default_factory=dict[Digest, bytes])
    revisions: dict[Digest, bytes] = field(default_factory=dict[Digest, bytes])
    open_rounds: set[int] = field(default_factory=lambda: {1})
    directives: list[Directive] = field(default_factory=list[Directive])
    beats: list[Beat] = field(default_factory=list[Beat])
    reports: dict[tuple[ClientId, int], ClientReport] = field(default_factory=dict[tuple[ClientId, int], ClientReport])
    channels: list[tuple[ClientId, int, Channel]] = field(default_factory=list[tuple[ClientId, int, Channel]])
    completions: dict[UpdateKey, Completion] = field(default_factory=dict[UpdateKey, Completion])
    verdicts: dict[tuple[RunId, int, ClientId], Verdict] = field(default_factory=dict[tuple[RunId, int, ClientId], Verdict])
    frames: dict[Digest, bytes] = field(default_factory=dict[Digest, bytes])
    sent: dict[UpdateKey, tuple[Transmission, FrameOutcome]] = field(
        default_factory=dict[UpdateKey, tuple[Transmission, FrameOutcome]]
    )
    left: list[str] = field(default_factory=list[str])
    advertisements: dict[tuple[ClientId, int], Advertisement] = field(default_factory=dict[tuple[ClientId, int], Advertisement])
    deals: dict[tuple[ClientId, int], Deal] = field(default_factory=dict[tuple[ClientId, int], Deal])
    vows: dict[tuple[ClientId, int], Vow] = field(default_factory=dict[tuple[ClientId, int], Vow])
    openings: dict[tuple[ClientId, int], Opening] = field(default_factory=dict[tuple[ClientId, int], Opening])
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds; it is looked at after every change."""
        while not condition():
            await self._changed.wait()

    def post(self, directive: Directive) -> None:
        """Push a directive."""
        self.directives.append(directive)
        self.ring()

    def judge(self, verdict: Verdict) -> None:
        """Give a verdict."""
        key = verdict.key
        self.verdicts[key.run, key.round_id, key.client] = verdict
        self.ring()

    def require_scenario(self, digest: Digest) -> None:
        """Refuse a client of another experiment."""
        if digest != self.scenario:
            raise ScenarioMismatch("another scenario")

    async def manifest_for(self, round_id: int) -> EmulatorManifest:
        """Wait for the emulator of a round."""
        await self.until(lambda: round_id in self.published)
        return self.published[round_id] or replace(self.manifest, round_id=round_id)

    def publish(self, manifest: EmulatorManifest, emulator: bytes, *, revision: bytes = b"") -> None:
        """Have another emulator for a round, and the way to it."""
        self.published[manifest.round_id] = manifest
        self.emulators[Digest.of(emulator)] = emulator
        self.revisions[Digest.of(revision)] = revision
        self.ring()

    async def verdict(self, run: RunId, round_id: int, client: ClientId) -> Verdict:
        """Wait for a verdict."""
        key = (run, round_id, client)
        await self.until(lambda: key in self.verdicts)
        return self.verdicts[key]

    async def directives_after(self, seq: int) -> AsyncIterator[Directive]:
        """Yield directives above ``seq``, for ever."""
        while True:
            fresh = [d for d in self.directives if d.seq > seq]
            if not fresh:
                await self._changed.wait()
                continue
            yield fresh[0]
            seq = fresh[0].seq

    def heard(self, beat: Beat) -> None:
        """Take a beat."""
        self.beats.append(beat)
        self.ring()

    def sounded(self, round_id: int) -> Sounding:
        """Return what the air says."""
        return self.sounding or Sounding(gain_main=PowerRatio(GAIN * round_id), at=Second(0.0))

    def report(self, report: ClientReport, *, advertisement: Advertisement | None = None) -> None:
        """Take a report once, and keys."""
        if report.round_id not in self.open_rounds:
            raise StaleRound(f"round {report.round_id} is not open")
        if advertisement is not None:
            self.said(self.advertisements, (advertisement.member, report.round_id), advertisement)
        if self.reports.setdefault((report.client, report.round_id), report) != report:
            raise Replayed("another report for the same round")
        self.ring()

    def change_channel(self, client: ClientId, round_id: int, channel: Channel) -> None:
        """Take a new channel once."""
        if (client, round_id, channel) not in self.channels:
            self.channels.append((client, round_id, channel))
        self.ring()

    async def asked(self, round_id: int) -> None:
        """Answer whether something may be sent, unless the world keeps quiet about it."""
        self.questions.append(round_id)
        self.ring()
        await self.until(lambda: not self.keeps_quiet)
        if self.given_away:
            raise StaleRound("its band was given to others")

    def answer(self) -> None:
        """Let the coordinator say whether to send."""
        self.keeps_quiet = False
        self.ring()

    def said(self, among: dict[tuple[ClientId, int], Word], key: tuple[ClientId, int], word: Word) -> None:
        """Take a word on a sum once."""
        if among.setdefault(key, word) != word:
            raise Replayed("another word on the same sum")
        self.ring()

    def dealt(self, round_id: int, deal: Deal) -> None:
        """Take parcels once."""
        self.said(self.deals, (deal.dealer, round_id), deal)

    def vowed(self, round_id: int, vow: Vow) -> None:
        """Take a vow once."""
        self.said(self.vows, (vow.member, round_id), vow)

    def opened(self, client: ClientId, round_id: int, opening: Opening) -> None:
        """Take shares once."""
        if opening.member != client:
            raise NotYours("shares of somebody else")
        self.said(self.openings, (client, round_id), opening)

    def complete(self, completion: Completion) -> None:
        """Take a completion once."""
        if self.completions.setdefault(completion.key, completion) != completion:
            raise Replayed("another completion for the same key")
        self.ring()

    def leave(self, reason: str) -> None:
        """Take a goodbye."""
        self.left.append(reason)
        self.ring()

    def transmit(self, transmission: Transmission, frame: bytes | None) -> FrameOutcome:
        """Carry a frame once; the same key again gives the stored outcome."""
        known = self.sent.get(transmission.key)
        if known is not None:
            if known[0] != transmission:
                raise Replayed("another transmission for the same key")
            return known[1]
        if frame is None:
            raise MalformedUpdate("no such frame was written")
        reader = reader_of(frame)
        reader.require_design(transmission.design)
        if (reader.layout.part, len(frame)) != (transmission.part, transmission.frame_bytes):
            raise MalformedUpdate("another part, or another size, than the frame that was written")
        indices = tuple(int(i) for i in reader.layout.indices)
        outcome = FrameOutcome(airtime=Second(0.25 * len(indices)), missing=self.lost(transmission.key, indices))
        self.sent[transmission.key] = (transmission, outcome)
        self.frames[transmission.frame] = frame
        self.ring()
        return outcome

    async def receipts(self) -> None:
        """Wait until the owner answers."""
        await self.until(lambda: not self.silent)

    def speak(self) -> None:
        """Let the owner answer."""
        self.silent = False
        self.ring()


class LoopbackOwner:
    """The owner in process."""

    def __init__(self, world: World, *, folder: Path, scenario: Digest = SCENARIO, client: ClientId = CLIENT) -> None:
        self._world, self._folder, self._scenario, self._client = world, folder, scenario, client

    async def manifest(self, run: RunId, round_id: int) -> EmulatorManifest:
        self._world.require_scenario(self._scenario)
        return await self._world.manifest_for(round_id)

    async def fetch(self, manifest: EmulatorManifest, *, progress: Progress | None = None) -> Fetched:
        if self._world.tampered is not None:
            raise DigestMismatch("other bytes than the name announces")
        path = self._folder / manifest.emulator.hex
        known, way = path.exists(), manifest.revision
        path.write_bytes(self._world.emulators.get(manifest.emulator, self._world.emulator))
        if progress:
            progress(manifest.size_bytes, manifest.size_bytes)
        if way is not None and not known and (self._folder / way.base.hex).exists():
            return Fetched(path=path, bytes_fetched=way.size_bytes, revised=True)
        return Fetched(path=path, bytes_fetched=0 if known else manifest.size_bytes)

    async def verdict(self, run: RunId, round_id: int) -> Verdict:
        return await self._world.verdict(run, round_id, self._client)

    async def open(self, run: RunId, round_id: int, opening: Opening) -> None:
        self._world.opened(self._client, round_id, opening)


class LoopbackCoordinator:
    """The coordinator in process."""

    def __init__(self, world: World, *, scenario: Digest = SCENARIO) -> None:
        self._world, self._scenario = world, scenario

    async def join(self) -> Welcome:
        self._world.require_scenario(self._scenario)
        return Welcome(run=RUN, timing=self._world.timing)

    async def follow(self, beat: Callable[[], Beat]) -> AsyncIterator[Directive]:
        while True:
            first = beat()
            self._world.heard(first)
            async for directive in self._world.directives_after(first.last_seen_seq):
                yield directive
                if self._world.cuts_streams:
                    break
                self._world.heard(beat())

    async def report(self, report: ClientReport, *, advertisement: Advertisement | None = None) -> None:
        self._world.report(report, advertisement=advertisement)

    async def deal(self, round_id: int, deal: Deal) -> None:
        self._world.dealt(round_id, deal)

    async def vow(self, round_id: int, vow: Vow) -> None:
        self._world.vowed(round_id, vow)

    async def ask_to_send(self, round_id: int) -> None:
        await self._world.asked(round_id)

    async def report_channel(self, round_id: int, channel: Channel) -> None:
        self._world.change_channel(CLIENT, round_id, channel)

    async def complete(self, completion: Completion) -> None:
        self._world.complete(completion)

    async def leave(self, reason: str) -> None:
        self._world.leave(reason)


class LoopbackAir:
    """The air in process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._written: dict[Digest, bytes] = {}

    async def sound(self, round_id: int) -> Sounding:
        return self._world.sounded(round_id)

    async def write_frame(self, key: UpdateKey, frame: Path, *, progress: Progress | None = None) -> Digest:
        data = await asyncio.to_thread(frame.read_bytes)
        self._written[Digest.of(data)] = data
        if progress:
            progress(len(data), len(data))
        return Digest.of(data)

    async def transmit(self, transmission: Transmission, *, cleared: Cleared) -> FrameOutcome:
        await cleared()
        outcome = self._world.transmit(transmission, self._written.get(transmission.frame))
        await self._world.receipts()
        return outcome


def loopback_ports(world: World, *, folder: Path, scenario: Digest = SCENARIO) -> Ports:
    """Return ports to ``world`` that need no network."""
    return Ports(
        owner=LoopbackOwner(world, folder=folder, scenario=scenario),
        coordinator=LoopbackCoordinator(world, scenario=scenario),
        air=LoopbackAir(world),
    )


_owner: type[OwnerPort] = LoopbackOwner
_coordinator: type[CoordinatorPort] = LoopbackCoordinator
_air: type[AirPort] = LoopbackAir
