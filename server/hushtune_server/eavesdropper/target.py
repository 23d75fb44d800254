"""Everything the eavesdropper has on one part of one client's update, chunk by chunk."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import chunk_blocks
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener, ReceptionNotice
from hushtune_common.seeding import SeedTree
from hushtune_common.store.files import write_durably
from hushtune_server.eavesdropper import distinguish
from hushtune_server.eavesdropper.control import Control
from hushtune_server.eavesdropper.decode import BlockDecoder
from hushtune_server.eavesdropper.distinguish import DistinguishResult, Trial
from hushtune_server.eavesdropper.evidence import Evidence
from hushtune_server.eavesdropper.guess import GuessFile
from hushtune_server.eavesdropper.knowledge import PublicKnowledge
from hushtune_server.eavesdropper.looks import look_at
from hushtune_server.eavesdropper.tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What outlives the process: which part, what was sent and heard of it, and what came of it.

    ``sent`` has the blocks of each attempt that was announced, ``finished`` the attempts heard to their end; ``tally`` counts
    what these gave.
    """

    public: PublicKnowledge
    round_id: int
    fidelity: Fidelity
    update_bytes: int
    sent: dict[int, int]
    finished: tuple[int, ...] = ()
    tally: Tally = field(default_factory=Tally)
    trials: tuple[DistinguishResult, ...] = ()

    @property
    def tried(self) -> bool:
        """Whether telling messages apart has been tried to the end."""
        return any(not result.control for result in self.trials)


class Target:
    """One part under attack.

    Laws: the same chunks with the same seeds give the same evidence, whatever other parts are attacked meanwhile; a chunk that
    does not belong changes nothing; memory holds one chunk and two flags per block; after ``save`` the same files go on with
    what was finished, and a transmission that was not is heard anew.
    """

    def __init__(self, record: Record, *, stem: Path, control: Control, decoder: BlockDecoder, seeds: SeedTree) -> None:
        """Attack the part of ``record`` with guesses at ``stem``; ``seeds`` are for samples and for blocks of her own."""
        self.record = record
        self.control: Final = control
        self._stem, self._decoder, self._seeds = stem, decoder, seeds
        self._guess = GuessFile(stem, update_bytes=record.update_bytes, block_bytes=record.public.design.payload_bytes)
        self._now: Tally = record.tally
        self._code: BlockCode | None = None
        self._next_chunk = self._chunks = 0
        self._evidence: Evidence | None = None

    def begin(self, notice: ReceptionNotice) -> None:
        """Await the chunks of a transmission; `MalformedUpdate` when it is not of this part, which then stays as it was."""
        sent = notice.transmission
        found, known = (sent.design, notice.update_bytes, notice.fidelity), self.record
        if found != (known.public.design, known.update_bytes, known.fidelity.value):
            raise MalformedUpdate("a transmission of another design, size or fidelity does not belong to this part")
        self._code = BlockCode(sent.design, toeplitz=sent.seed.toeplitz)
        self._next_chunk, self._chunks = 0, -(-notice.blocks // chunk_blocks(sent.design))
        self._now, self._evidence = known.tally, None
        self.record = replace(known, sent={**known.sent, sent.key.attempt: notice.blocks})

    def take(self, reception: Reception, *, attempt: int) -> None:
        """Attack the next chunk; `MalformedUpdate` when it is not that. Blocks for the computation.

        The last chunk of a transmission is kept for good at once: whoever was heard to the end need not say it again.
        """
        code = self._code
        if code is None or reception.chunk != self._next_chunk:
            raise MalformedUpdate(f"chunk {reception.chunk} was not awaited")
        self._require_belongs(reception)
        reading = self._decoder.read(reception, code=code, seeds=self._seeds.child("sample", str(attempt), str(reception.chunk)))
        self._guess.put(reading.indices, reading.payloads, sound=reading.sound, decoded=True)
        bare = reading.bare_indices
        self._guess.put(bare, reading.bare_payloads, sound=bare == bare, decoded=False)
        self._now = self._now.plus(reading, snr_db=reception.snr_db)
        self._next_chunk += 1
        self._evidence = None
        if self._next_chunk == self._chunks:
            self._code = None
            self.record = replace(self.record, tally=self._now, finished=(*self.record.finished, attempt))
            self.save()

    def trials(self, public: tuple[bytes, bytes], *, blocks: int, threads: int) -> tuple[Trial, ...]:
        """Return the attacks that are due on blocks of her own making, ``blocks`` each: none before or after the first time.

        They are played with the seed and dither of the transmission in white noise, at her mean SNR or at the design's, whichever
        is better for her.
        """
        design, tally = self.record.public.design, self._now
        test = blocks // 3
        if not design.secret or not tally.coded or self.record.tried or blocks - test < 4 or test < 1:
            return ()
        self.record = replace(self.record, trials=())
        mean_db = self.evidence().snr_mean_db
        snr_db = max(float(design.snr_tap_design_db), design.snr_tap_design_db if mean_db is None else mean_db)
        return distinguish.trials(
            design,
            snr_db=snr_db,
            seeds=self._seeds.child("distinguish"),
            train=blocks - test,
            test=test,
            public=public,
            threads=threads,
        )

    def told(self, result: DistinguishResult) -> None:
        """Take the outcome of one of the trials."""
        self.record = replace(self.record, trials=(*self.record.trials, result))
        self._evidence = None

    def evidence(self) -> Evidence:
        """Return what may be said now, in the middle of a transmission too."""
        if self._evidence is None:
            record = self.record
            self._evidence = Evidence(
                public=record.public,
                fidelity=record.fidelity,
                transmissions=len(record.sent),
                blocks_sent=sum(record.sent.values()),
                bytes_total=record.update_bytes,
                bytes_known=self._guess.bytes_known,
                tally=self._now,
                control=self.control,
                trials=record.trials,
                looks=look_at(self._guess.known_bytes()),
            )
        return self._evidence

    def save(self) -> None:
        """Write bitmaps and record."""
        self._guess.save()
        write_durably(self._stem.with_name(f"{self._stem.name}.json"), [msgspec.json.encode(self.record)], mode=0o644)

    def _require_belongs(self, reception: Reception) -> None:
        record = self.record
        found = reception.listener, reception.part, reception.update_bytes, reception.fidelity
        if found != (Listener.TAP, record.public.part, record.update_bytes, record.fidelity):
            raise MalformedUpdate("a reception of another part, size or fidelity does not belong to this part")
        reception.require_design(record.public.design)
