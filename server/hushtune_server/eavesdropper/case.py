"""What has the eavesdropper gathered so far, over all clients, and where is it kept?"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec

from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError, LimitExceeded, MalformedUpdate
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.reception import Reception
from hushtune_common.logs import log_event
from hushtune_common.messages import ReceptionNotice, SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.store.files import write_durably
from hushtune_server.eavesdropper.control import Control, positive_control
from hushtune_server.eavesdropper.decode import BlockDecoder
from hushtune_server.eavesdropper.distinguish import Trial
from hushtune_server.eavesdropper.evidence import Evidence, summary
from hushtune_server.eavesdropper.knowledge import PublicKnowledge
from hushtune_server.eavesdropper.target import Record, Target

_log = logging.getLogger(__name__)
_TARGETS_MAX: Final = 1024
_CODEWORDS_MAX: Final = 16

Slot = tuple[str, int, str]
"""Client, round and part."""


class Case:
    """All targets, their files in ``guesses``, and ``evidence.json``.

    Laws: `write` may be called while another thread attacks, and waits for its chunk; what another process had finished in the
    same folder is not attacked again, and stays in the evidence; what is held is bounded, whatever the air announces.
    """

    def __init__(self, scenario: Scenario, *, state_dir: Path, seeds: SeedTree) -> None:
        """Keep everything in ``state_dir``; ``seeds`` are the tap's own."""
        self._scenario = scenario
        self._seeds = seeds.child("eavesdropper")
        self._guesses = state_dir / "guesses"
        self._guesses.mkdir(parents=True, exist_ok=True)
        settings = scenario.eavesdropper
        threads = scenario.compute.link_threads
        self._decoder = BlockDecoder(iterations=settings.iterations, threads=threads, share=settings.decode_share)
        self._controls: dict[tuple[SecrecyDesign, Fidelity], Control] = {}
        self._lock = Lock()  # an attack goes on in its thread when the process is told to stop and writes its last file
        self.path: Final = state_dir / "evidence.json"
        self._targets = {_slot(r): self._target(r) for r in map(_read, sorted(self._guesses.glob("*.json")))}

    @property
    def evidence(self) -> Sequence[Evidence]:
        """The latest evidence about each part."""
        return tuple(self._targets[slot].evidence() for slot in sorted(self._targets))

    def begin(self, notice: ReceptionNotice) -> bool:
        """Prepare for a transmission; False when it has been attacked before.

        Raises:
            MalformedUpdate: it contradicts what is known of its part, or is of no known code.
            LimitExceeded: it is larger or more than the scenario allows.
        """
        with self._lock:
            self._require_allowed(notice)
            key = notice.transmission.key
            target = self._targets.get(slot := slot_of(notice)) or self._target(self._record(notice))
            if key.attempt in target.record.finished:
                return False
            target.begin(notice)
            self._targets[slot] = target
            return True

    def take(self, notice: ReceptionNotice, reception: Reception) -> None:
        """Attack with one more chunk; `MalformedUpdate` when it does not belong. Blocks for the computation."""
        with self._lock:
            self._targets[slot_of(notice)].take(reception, attempt=notice.transmission.key.attempt)

    def trials(self, notice: ReceptionNotice) -> tuple[Trial, ...]:
        """Return the attacks on blocks of her own making that are due now."""
        seed, settings = notice.transmission.seed, self._scenario.eavesdropper
        with self._lock:
            return self._targets[slot_of(notice)].trials(
                (seed.toeplitz, seed.dither), blocks=settings.distinguish_blocks, threads=self._scenario.compute.link_threads
            )

    def play(self, notice: ReceptionNotice, trial: Trial) -> None:
        """Run one of them. Blocks for the computation, but no other thread."""
        result = trial.run()
        with self._lock:
            self._targets[slot_of(notice)].told(result)

    def conclude(self, notice: ReceptionNotice) -> None:
        """Write everything down after the last chunk and the trials."""
        key = notice.transmission.key
        with self._lock:
            target = self._targets[slot_of(notice)]
            target.save()
            self._write()
            found = target.evidence()
        heard = found.tally.heard
        log_event(
            _log,
            "reception_attacked",
            run=key.run,
            client=key.client,
            round_id=key.round_id,
            attempt=key.attempt,
            part=notice.transmission.part.value,
            digest_frame=notice.transmission.frame,
            blocks=found.blocks_sent,
            blocks_heard=heard.count if heard else 0,
            blocks_decoded=found.tally.decoded,
            crc_passes=found.tally.crc_passes,
            fidelity=found.fidelity.value,
            snr_mean_db=found.snr_mean_db,
            snr_bound_db=found.public.snr_bound_db,
            valid=found.valid,
        )

    def write(self) -> None:
        """Replace ``evidence.json`` as a whole, with what an attack in another thread has found up to its last chunk."""
        with self._lock:
            for target in self._targets.values():
                target.save()
            self._write()

    def _write(self) -> None:
        found = self.evidence
        rounds = [round_id for _, round_id, _ in sorted(self._targets)]
        body = {
            "fidelity": self._scenario.air.fidelity,
            "summary": summary(found, fidelity=self._scenario.air.fidelity),
            "updates": [{"round_id": round_id, **e.to_json()} for round_id, e in zip(rounds, found, strict=True)],
        }
        write_durably(self.path, [json.dumps(body, indent=1).encode(), b"\n"], mode=0o644)

    def _require_allowed(self, notice: ReceptionNotice) -> None:
        limits, sent = self._scenario.limits, notice.transmission
        if notice.update_bytes > limits.update_bytes_max or sent.key.attempt > limits.attempts_max:
            raise LimitExceeded(f"attempt {sent.key.attempt} at {notice.update_bytes} bytes is more than the scenario allows")
        if slot_of(notice) not in self._targets and len(self._targets) >= _TARGETS_MAX:
            raise LimitExceeded(f"{_TARGETS_MAX} parts are under attack, no more are taken")
        if sent.design.codewords > _CODEWORDS_MAX or notice.update_bytes < 1 or notice.blocks < 1:
            raise MalformedUpdate(f"a hash block of {sent.design.codewords} codewords, or nothing sent")

    def _record(self, notice: ReceptionNotice) -> Record:
        sent = notice.transmission
        try:
            fidelity = Fidelity(notice.fidelity)
        except ValueError as error:
            raise MalformedUpdate(f"notice: {error}") from error
        return Record(
            public=PublicKnowledge.of(self._scenario, client=sent.key.client, part=sent.part, design=sent.design),
            round_id=sent.key.round_id,
            fidelity=fidelity,
            update_bytes=notice.update_bytes,
            sent={},
        )

    def _target(self, record: Record) -> Target:
        name = "-".join(str(word) for word in _slot(record))
        return Target(
            record,
            stem=self._guesses / name,
            control=self._control(record.public.design, record.fidelity),
            decoder=self._decoder,
            seeds=self._seeds.child(*(str(word) for word in _slot(record))),
        )

    def _control(self, design: SecrecyDesign, fidelity: Fidelity) -> Control:
        if (design, fidelity) not in self._controls:
            try:
                seeds = self._seeds.child("positive-control")
                control = positive_control(design, fidelity=fidelity, decoder=self._decoder, seeds=seeds)
            except ValueError as error:
                raise MalformedUpdate(f"design: {error}") from error
            self._controls[design, fidelity] = control
        return self._controls[design, fidelity]


def slot_of(notice: ReceptionNotice) -> Slot:
    """Return whose part of which round a notice announces."""
    sent = notice.transmission
    return str(sent.key.client), sent.key.round_id, sent.part.value


def _slot(record: Record) -> Slot:
    return record.public.client, record.round_id, record.public.part.value


def _read(path: Path) -> Record:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, ValueError) as error:
        beside = f"{path.stem}.bin, .known and .decoded"
        raise ConfigError(str(path), f"this record is damaged ({error}); delete it with {beside} to begin anew") from error
