"""Which blocks of one client's update are still missing, and the sealed bytes once none is."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hushtune_common.crypto import envelope
from hushtune_common.errors import AbstractionContradicted, InvalidEnvelope, LimitExceeded, MalformedUpdate, NotYours
from hushtune_common.link.abstraction import CONTRADICTION_P, consistent
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import CHUNK_SOFT_BYTES
from hushtune_common.link.mcs import CodingPoint, point_of
from hushtune_common.link.modular import BlockCode, Decoded
from hushtune_common.link.reception import Decibels, Reception, bare_payloads
from hushtune_common.logs import log_event
from hushtune_common.messages import BLOCKS_MAX, ClientId, Listener, Part, Protection, Receipt, ReceptionNotice, Transmission
from hushtune_server.owner.incoming import Link, PartFile

_log = logging.getLogger(__name__)
_SNR_MOST_DB = 300.0
"""Beyond this every table says the same; bounds the work on levels that no receiver has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an update may take: bytes of the sealed update, transmissions of all its parts, threads to decode with."""

    update_bytes_max: int
    attempts_max: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """What became of one transmission: its blocks, how many travelled coded, how many of all came out sound.

    ``iterations_mean`` is per codeword, zero where none was decoded.
    """

    blocks: int
    blocks_coded: int
    blocks_sound: int
    iterations_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeUpdate:
    """A sealed update of which nothing is missing, and how its parts travelled; ``secret`` is what the key part brought."""

    blob: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    links: Mapping[Part, Link]

    @property
    def protection(self) -> Protection:
        """What the physical layer did for it, by the codes that were used and not by what was assigned."""
        if self.links[Part.PAYLOAD].design.secret:
            return Protection.PAYLOAD
        key = self.links.get(Part.KEY)
        return Protection.KEY if key is not None and key.design.secret and _needs_secret(self.blob) else Protection.CRYPTO_ONLY


class UpdateReception:
    """Collects what is heard of one client's update in one round, over all transmissions of all its parts.

    Laws: a concluded attempt gives the same receipt for ever, also after the process was killed; chunks may come in any order
    and repeatedly, and attempts in any order; what does not belong is refused before anything is kept. Memory is a few chunks
    and a few bytes per block, whatever arrives. Methods block for disk and decoder, and run in a thread, one at a time.
    """

    def __init__(self, folder: Path, *, client: ClientId, round_id: int, bounds: Bounds) -> None:
        """Expect an update of ``client`` in ``round_id``, of which an earlier life may have left something in ``folder``."""
        self._folder = folder
        self._client, self._round_id = client, round_id
        self._bounds = bounds
        found = {part: PartFile.resume(_file(folder, part)) for part in Part}
        self._parts = {part: _Incoming(file) for part, file in found.items() if file is not None}

    @property
    def attempts(self) -> int:
        """How many transmissions have been concluded."""
        return sum(incoming.file.attempts for incoming in self._parts.values())

    def receipt(self, transmission: Transmission) -> Receipt | None:
        """Return what was answered to ``transmission``, if it was concluded before."""
        incoming = self._parts.get(transmission.part)
        missing = None if incoming is None else incoming.file.answer(transmission.key.attempt)
        return None if missing is None else Receipt(key=transmission.key, missing=missing)

    def take(self, chunk: Reception, *, notice: ReceptionNotice) -> None:
        """Decode one chunk of the announced transmission and keep the blocks that are sound.

        Raises ``NotYours``, ``LimitExceeded`` or ``MalformedUpdate`` before anything is kept.
        """
        transmission = notice.transmission
        incoming = self._admit(notice)
        _require_belongs(chunk, notice)
        if self.receipt(transmission) is None:
            incoming.take(chunk, tally=incoming.tally(transmission.key.attempt), threads=self._bounds.threads)

    def conclude(self, notice: ReceptionNotice) -> tuple[Receipt, Decoding]:
        """End a transmission: what was not heard of it is missing. The receipt is durable when it is returned.

        ``AbstractionContradicted``, with nothing concluded, when the sampled blocks of a hybrid transmission do not fail as the
        tables say; other errors as for `take`.
        """
        key = notice.transmission.key
        incoming = self._admit(notice)
        tally = incoming.tally(key.attempt)
        if notice.fidelity == Fidelity.HYBRID:
            _require_consistent(tally, notice)
        receipt = Receipt(key=key, missing=incoming.file.conclude(key.attempt))
        incoming.tallies.pop(key.attempt, None)
        return receipt, tally.decoding

    def whole(self) -> WholeUpdate | None:
        """Return the update once everything that its seal needs is there; reads it into memory."""
        whole = {part: incoming.file for part, incoming in self._parts.items() if incoming.file.whole}
        if Part.PAYLOAD not in whole:
            return None
        blob = whole[Part.PAYLOAD].data()
        if Part.KEY not in whole and _needs_secret(blob):
            return None
        secret = whole[Part.KEY].data() if Part.KEY in whole else b""
        return WholeUpdate(blob=blob, secret=secret, links={part: file.link for part, file in whole.items()})

    def _admit(self, notice: ReceptionNotice) -> "_Incoming":
        """Return where the blocks of a transmission belong, a new place for the first of its part."""
        transmission, key = notice.transmission, notice.transmission.key
        if (key.client, key.round_id) != (self._client, self._round_id):
            raise NotYours(f"a transmission of {key.text} does not belong to {self._client} in round {self._round_id}")
        if key.attempt > self._bounds.attempts_max:
            raise LimitExceeded(f"attempt {key.attempt} of at most {self._bounds.attempts_max}")
        link = Link(design=transmission.design, seed=transmission.seed)
        incoming = self._parts.get(transmission.part)
        if incoming is None:
            _require_possible(notice, update_bytes_max=self._bounds.update_bytes_max)
            file = PartFile(_file(self._folder, transmission.part), link=link, total_bytes=notice.update_bytes)
            incoming = self._parts[transmission.part] = _Incoming(file)
        if incoming.file.link != link:
            raise MalformedUpdate(f"{key.text}: {transmission.part} began with another design or another public seed")
        if incoming.file.total_bytes != notice.update_bytes:
            raise MalformedUpdate(f"{key.text}: {notice.update_bytes} bytes, but it began with {incoming.file.total_bytes}")
        return incoming


@dataclass(slots=True, eq=False)
class _Tally:
    """Counts of one transmission while it arrives; ``chunks`` are the numbers of those taken."""

    chunks: set[int] = field(default_factory=set[int])
    blocks: int = 0
    bare_sound: int = 0
    coded_sound: int = 0
    codewords: int = 0
    iterations: int = 0
    coded_snr_db: list[Decibels] = field(default_factory=list[Decibels])

    @property
    def blocks_coded(self) -> int:
        """Coded blocks so far."""
        return sum(snr_db.size for snr_db in self.coded_snr_db)

    @property
    def decoding(self) -> Decoding:
        """The counts, for people."""
        return Decoding(
            blocks=self.blocks,
            blocks_coded=self.blocks_coded,
            blocks_sound=self.bare_sound + self.coded_sound,
            iterations_mean=self.iterations / self.codewords if self.codewords else 0.0,
        )


class _Incoming:
    """One part on its way: its file, its code, and what was counted of transmissions that have not ended."""

    def __init__(self, file: PartFile) -> None:
        self.file = file
        self.point: CodingPoint = point_of(file.link.design)
        self.tallies: dict[int, _Tally] = {}
        self._code: BlockCode | None = None

    def tally(self, attempt: int) -> _Tally:
        return self.tallies.setdefault(attempt, _Tally())

    def take(self, chunk: Reception, *, tally: _Tally, threads: int) -> None:
        """Keep the sound blocks of ``chunk`` and count them, once."""
        if chunk.chunk in tally.chunks:
            return
        indices, payloads = bare_payloads(chunk)
        self.file.put(indices, payloads)
        tally.bare_sound += indices.size
        if len(chunk.soft):
            decoded = self._decode(chunk, threads=threads)
            # Whether a word converges depends on the noise alone; a checksum that holds without would tell of the word as well.
            good = decoded.sound & decoded.converged
            self.file.put(chunk.coded_indices[good], decoded.payloads[good])
            tally.coded_sound += int(np.count_nonzero(good))
            tally.codewords += decoded.iterations.size
            tally.iterations += int(np.abs(decoded.iterations.astype(np.int64)).sum())
            tally.coded_snr_db.append(chunk.snr_db[chunk.coded])
        tally.blocks += chunk.count
        tally.chunks.add(chunk.chunk)

    def _decode(self, chunk: Reception, *, threads: int) -> Decoded:
        if self._code is None:
            self._code = BlockCode(self.file.link.design, toeplitz=self.file.link.seed.toeplitz)
        return self._code.decode(chunk.soft, iterations=self.point.iterations, threads=threads)


def _file(folder: Path, part: Part) -> Path:
    return folder / f"{part.value}.blocks"


def _needs_secret(blob: bytes) -> bool:
    try:
        return envelope.needs_secret(envelope.from_bytes(blob))
    except InvalidEnvelope:
        return False  # refused by whoever opens it


def _require_possible(notice: ReceptionNotice, *, update_bytes_max: int) -> None:
    """Refuse what would take more room than a genuine part can, before any is made."""
    design, total_bytes = notice.transmission.design, notice.update_bytes
    if notice.transmission.part is Part.KEY and total_bytes != envelope.SECRET_BYTES:
        raise MalformedUpdate(f"a key of {total_bytes} bytes, expected {envelope.SECRET_BYTES}")
    if total_bytes > update_bytes_max:
        raise LimitExceeded(f"an update of {total_bytes} bytes, at most {update_bytes_max} are allowed")
    if total_bytes > BLOCKS_MAX * design.payload_bytes:
        raise LimitExceeded(f"{total_bytes} bytes in blocks of {design.payload_bytes}: more than {BLOCKS_MAX} blocks")
    if design.codewords * design.code_bits > CHUNK_SOFT_BYTES:
        raise LimitExceeded(f"hash blocks of {design.codewords * design.code_bits} bits, at most {CHUNK_SOFT_BYTES} are decoded")
    try:
        point_of(design)
    except ValueError as error:
        raise MalformedUpdate(f"design: {error}") from None


def _require_belongs(chunk: Reception, notice: ReceptionNotice) -> None:
    transmission = notice.transmission
    if chunk.listener is not Listener.MAIN:
        raise MalformedUpdate("a reception of the other listener")
    found, announced = (chunk.part, chunk.fidelity), (transmission.part, notice.fidelity)
    if found != announced:
        raise MalformedUpdate(f"a chunk of {' and '.join(found)}, announced was {' and '.join(announced)}")
    if chunk.update_bytes != notice.update_bytes:
        raise MalformedUpdate(f"a chunk of a part of {chunk.update_bytes} bytes, announced were {notice.update_bytes}")
    chunk.require_design(transmission.design)


def _require_consistent(tally: _Tally, notice: ReceptionNotice) -> None:
    """Compare the blocks that travelled bit by bit with the tables that the others were drawn from; never silently."""
    if not tally.blocks_coded:
        return
    snr_db = np.clip(np.concatenate(tally.coded_snr_db), -_SNR_MOST_DB, _SNR_MOST_DB)
    failed, of = tally.blocks_coded - tally.coded_sound, tally.blocks_coded
    p_value = consistent(notice.transmission.design, snr_db=snr_db, failed=failed, of=of)
    if p_value >= CONTRADICTION_P:
        return
    key, mean_db = notice.transmission.key, float(snr_db.mean())
    log_event(
        _log,
        "abstraction_contradicted",
        level=logging.ERROR,
        client=key.client,
        round_id=key.round_id,
        attempt=key.attempt,
        part=notice.transmission.part,
        blocks_coded=of,
        blocks_failed=failed,
        snr_mean_db=mean_db,
        p_value=p_value,
        p_least=CONTRADICTION_P,
    )
    raise AbstractionContradicted(
        f"{failed} of {of} sampled blocks failed at {mean_db:.3g} dB; as long as the block error tables hold, the "
        f"probability of that is {p_value:.1e}"
    )
