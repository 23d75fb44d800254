"""What does the owner do with weights, one thing at a time? Judges updates, merges them, renews the emulator. Blocks."""

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path

import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.clock import Clock, SystemClock
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import Scenario
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import ConfigError, ProtocolFault
from hushtune_common.logs import log_event
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, Part, UpdateKey, UtilityCurve
from hushtune_common.model.adapter import insert
from hushtune_common.model.bundle import Bundle, bundle_notes, read_bundle
from hushtune_common.model.rates import allowed, furthest
from hushtune_common.model.revision import revise, write_revision
from hushtune_common.secagg.layout import payload_id
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.aggregate import mean
from hushtune_server.owner.book import Copy, Judgement, refusal
from hushtune_server.owner.copies import NO_COPIES
from hushtune_server.owner.emulators.realign import Alignment
from hushtune_server.owner.gatekeeper.canary import Canaries, prompts
from hushtune_server.owner.gatekeeper.desk import Desk
from hushtune_server.owner.gatekeeper.gate import Gatekeeper
from hushtune_server.owner.gatekeeper.quarantine import FOLDER as QUARANTINE
from hushtune_server.owner.gatekeeper.quarantine import Quarantine
from hushtune_server.owner.gatekeeper.sketch import Sampler
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.intake import Intake, Seals
from hushtune_server.owner.plugin import Plugin, Trial, finite
from hushtune_server.owner.ports import Bench, Merged, Renewal
from hushtune_server.owner.preparing import MIDDLES, Prepared
from hushtune_server.owner.sums import SumIntake, SumTable
from hushtune_server.owner.versions import AGGREGATE, About, Version, Versions
from hushtune_server.owner.versions import FOLDER as VERSIONS
from hushtune_server.owner.watched import WatchedSeat
from hushtune_server.owner.worth import worth

_log = logging.getLogger(__name__)


def _admitted(_bundle: Path) -> None:
    """Take an emulator for one that was released before."""


class Workshop:
    """The full model on the bench, with everything that updates are checked against.

    Laws: `judge` and `worth` leave the model as it was; a refused update leaves nothing behind but, if it could be read, a copy
    in quarantine; `merge` changes the model only when it keeps the mean, and done again, as after a restart, gives the same
    answer; `renew` writes an emulator whose adapter blocks are those that the model has.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        scenario: Scenario,
        bundle: Path,
        manifest: EmulatorManifest,
        private: HybridPrivateKey,
        state_dir: Path,
        accepted: Mapping[UpdateKey, Digest],
        admit: Callable[[Path], None] = _admitted,
        clock: Clock | None = None,
        copies: Mapping[ClientId, Copy] = NO_COPIES,
        sums: SumTable | None = None,
    ) -> None:
        """Set up the bench; ``accepted`` are the updates of an earlier life of this process, ``copies`` as for `take_up`.

        With ``sums`` updates are only added there, and what is judged is their mean.

        ``admit`` enters an emulator in the owner's ledger before anybody can have it, or refuses that. The current version is put
        into the model, if there is one. `ConfigError` when another process has the versions, or the current one is damaged or
        does not fit.
        """
        gate = scenario.owner.gate
        self._scenario = scenario
        self._prepared = prepared
        self._model = prepared.model
        self._schema = manifest.adapter
        self._private = private
        self._clock = clock or SystemClock()
        self._admit = admit
        self._state_dir = state_dir
        self._sums = sums
        self._next = state_dir / "next"
        self._adapters = state_dir / "adapters"
        self._adapters.mkdir(parents=True, exist_ok=True)
        watched = prompts(gate, tokens=prepared.source.tokens, public=prepared.windows)
        canaries = Canaries(watched, loss=prepared.model.loss, gate=gate)
        self._versions = Versions(
            state_dir / VERSIONS, count_max=gate.versions_count_max, bytes_max=gate.versions_bytes_max, clock=self._clock
        )
        self._versions.hold()
        self._quarantine = Quarantine(
            state_dir / QUARANTINE, count_max=gate.quarantine_count_max, bytes_max=gate.quarantine_bytes_max
        )
        self._seat_current(base=manifest.base)
        increase_max = gate.public_loss_increase_max_nats
        self._plugin = Plugin(prepared.model, schema=self._schema, windows=prepared.windows, increase_max=increase_max)
        self._seat = WatchedSeat(self._plugin, canaries=canaries, loss=prepared.model.loss)
        self._alignment = Alignment.of(scenario.owner, at=prepared.place, plan=prepared.plan, folder=state_dir / MIDDLES)
        self._middle: Mapping[str, Float32] | None = None
        self._serve(manifest, bundle, accepted=accepted, copies=copies)

    def take_up(self, manifest: EmulatorManifest, bundle: Path, *, copies: Mapping[ClientId, Copy] = NO_COPIES) -> None:
        """Judge updates against the emulator of another round from now on; those of clients with ``copies`` name these."""
        self._serve(manifest, bundle, accepted=self._intake.accepted, copies=copies)

    def _serve(
        self, manifest: EmulatorManifest, bundle: Path, *, accepted: Mapping[UpdateKey, Digest], copies: Mapping[ClientId, Copy]
    ) -> None:
        gate, training, data = self._scenario.owner.gate, self._scenario.training, self._scenario.data
        emulator = read_bundle(bundle)
        shipped = AdapterState(emulator.adapter_numpy())
        # Adapter blocks carry no mark, so whatever is in them decodes alike for everybody.
        emulators = {client: copy.emulator for client, copy in copies.items()}
        self._shipped = shipped
        reach = furthest(training, windows=data.train_windows, round_id=manifest.round_id)
        most = allowed(reach, reach_max=gate.reach_max)
        self._intake = self._made_intake(manifest, emulator, accepted=accepted, emulators=emulators, change_max=most)
        sampler = Sampler(shipped, rng=SeedTree(secrets.randbits(120)).generator())
        self._gatekeeper = Gatekeeper(gate, shipped=shipped, reach=reach, sampler=sampler)
        self._desk = Desk(
            self._gatekeeper,
            schema=self._schema,
            base=manifest.base,
            versions=self._versions,
            quarantine=self._quarantine,
            canaries=self._seat.findings,
            clock=self._clock,
        )
        self._manifest, self._bundle = manifest, bundle
        if self._alignment is not None and self._middle is not None:
            self._alignment.keep(self._middle, of=manifest.emulator)

    def _made_intake(
        self,
        manifest: EmulatorManifest,
        emulator: Bundle,
        *,
        accepted: Mapping[UpdateKey, Digest],
        emulators: Mapping[ClientId, Digest],
        change_max: float,
    ) -> Intake | SumIntake:
        if self._sums is None:
            shipped = AdapterState(emulator.adapter_numpy())
            codec = make_codec(self._scenario.codec, shipped=shipped, sensitivity=emulator.sensitivity, change_max=change_max)
            return Intake(manifest=manifest, private=self._private, codec=codec, accepted=accepted, emulators=emulators)
        seals = Seals(
            manifest=manifest,
            private=self._private,
            payload_id=payload_id(self._scenario, manifest.adapter),
            payload_bytes_max=self._sums.payload_bytes,
            accepted=accepted,
            emulators=emulators,
        )
        return SumIntake(seals, self._sums)

    def renew(self, round_id: int) -> Renewal | None:
        """Write the emulator that a round starts from, and the way to it from the present one; none when the seat did not change.

        Everything but the adapter blocks stays, unless ``owner.realign_steps`` has the middle aligned with the model as it is.
        """
        shipped, seated = read_bundle(self._bundle), self._plugin.seated.tensors
        if all(np.array_equal(seated[name], tensor) for name, tensor in shipped.adapter_numpy().items()):
            return None
        changed, notes = dict(seated), dict[str, str]()
        if self._alignment is not None:
            aligned = self._alignment.aligned(self._plugin.seated, after=self._manifest.emulator, round_id=round_id)
            self._middle = aligned.trained
            changed, notes = changed | self._alignment.stored(aligned), bundle_notes(aligned)
        self._next.mkdir(exist_ok=True)
        bundle, revision = self._next / "emulator.safetensors", self._next / "revision.bin"
        revise(bundle, base=shipped.stored, changed=changed, notes=notes)
        self._admit(bundle)
        write_revision(revision, base=self._bundle, result=bundle)
        return Renewal(bundle=bundle, revision=revision)

    def worth(self) -> UtilityCurve:
        """Measure what updates of the present emulator are worth, as before the first round; blocks for as long."""
        place = self._prepared.place
        return worth(self._scenario, bundle=self._bundle, place=place, state_dir=self._state_dir, clock=self._clock)

    @property
    def bytes_max(self) -> int:
        """Largest sealed update that can be genuine, known from the shapes alone."""
        return self._intake.bytes_max

    def judge(self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], secret: bytes) -> Judgement:
        """Check a whole sealed update, screen its adapter, try it in the model, and store it; or have it counted unseen."""
        if isinstance(self._intake, SumIntake):
            return self._intake.judge(blob, key=key, links=links, secret=secret)
        digest = Digest.of(blob)
        screen = partial(self._desk.screen, key=key, digest=digest)
        try:
            state = self._intake.accept(blob, key=key, links=links, secret=secret, screen=screen)
        except ProtocolFault as fault:
            return refusal(key, fault, digest=digest)
        trial = self._plugin.try_in(state)
        version = self._desk.accept(state, key=key, trial=trial)
        self._versions.copy(version, self._path(key.client))
        log_event(
            _log,
            "adapter_stored",
            client=key.client,
            round_id=key.round_id,
            digest_sealed=digest,
            digest_adapter=version.digest,
            version=version.id,
            bytes_adapter=version.size,
        )
        return Judgement(
            key=key,
            accepted=True,
            kept=trial.kept,
            reason=trial.reason,
            digest=digest,
            perplexity_before=finite(trial.perplexity_before),
            perplexity_after=finite(trial.perplexity_after),
        )

    def merge(self, clients: Sequence[ClientId]) -> Merged:
        """Average the last adapters of ``clients``, each counting the same, and keep the mean in the model or roll back.

        Those that do not go with the others of their round are left out. Where updates are only added, the sum of those of
        ``clients`` is taken from the table: raises what `SumTable.mean` does.
        """
        if self._sums is not None:
            return self._merge_sum(self._sums, clients)
        given = {client: self._last(client) for client in clients}
        before = self._merged_before(given)
        if before is not None:
            return before
        misfits = self._desk.company(given)
        parts = {client: version for client, version in given.items() if client not in misfits}
        merged = mean([(self._versions.load(version, self._schema), 1.0) for version in parts.values()])
        trial = self._seat.keep(merged)
        version = self._desk.merged(merged, parts=parts, trial=trial)
        self._versions.copy(version, self._path(AGGREGATE))
        log_event(
            _log,
            "adapters_averaged",
            round_id=self._manifest.round_id,
            clients=list(parts),
            versions=[part.id for part in parts.values()],
            digest_adapter=version.digest,
            version=version.id,
        )
        return _merged(trial, clients=parts, left_out={client: finding.text for client, finding in misfits.items()})

    def _merge_sum(self, sums: SumTable, clients: Sequence[ClientId]) -> Merged:
        """Screen the mean of updates that nobody has seen, and keep it in the model or roll back."""
        run, round_id = sums.run, self._manifest.round_id
        before = self._versions.latest(AGGREGATE)
        known = before is not None and (before.about.run, before.about.round_id) == (run, round_id)
        if before is not None and known and (not before.about.kept or before == self._versions.current):
            return _merged(_remembered(before.about), clients=clients, left_out={})
        state = sums.mean(round_id, shipped=self._shipped).state
        findings = self._gatekeeper.screen(state, client=ClientId(AGGREGATE), others={}, earlier=()).findings
        trial = self._seat.refused(state, findings) if findings else self._seat.keep(state)
        version = self._desk.summed(state, run=run, round_id=round_id, trial=trial)
        self._versions.copy(version, self._path(AGGREGATE))
        log_event(
            _log,
            "adapters_averaged",
            round_id=round_id,
            clients=list(clients),
            versions=[],
            digest_adapter=version.digest,
            version=version.id,
        )
        return _merged(trial, clients=clients, left_out={})

    def _seat_current(self, *, base: Digest) -> None:
        version = self._versions.current
        if version is None:
            return
        if version.about.base != base:
            other = f"belongs to model {version.about.base.short}, this is {base.short}"
            raise ConfigError(version.id, f"{other}; promote one that fits, `hushtune owner adapters list` shows all")
        # Without asking public text: what the gate kept, round by round, may add up, and a person may promote what they want.
        insert(self._model, self._versions.load(version, self._schema), expected=self._schema)

    def _last(self, client: ClientId) -> Version:
        version = self._versions.latest(client)
        if version is None:
            raise ConfigError(str(self._adapters.parent / VERSIONS), f"the accepted adapter of {client} is gone")
        return version

    def _merged_before(self, given: Mapping[ClientId, Version]) -> Merged | None:
        """Return what averaging these gave in an earlier life of the process, which may have ended before it told anybody."""
        version, now = self._versions.latest(AGGREGATE), self._versions.current
        by_id = {v.id: client for client, v in given.items()}
        if version is None or not {*version.about.parents} <= {*by_id} or (version.about.kept and version != now):
            return None
        trial, parts = _remembered(version.about), [by_id[parent] for parent in version.about.parents]
        left_out = {client: "left out when it was averaged" for client in given if client not in parts}
        return _merged(trial, clients=parts, left_out=left_out)

    def _path(self, name: str) -> Path:
        return self._adapters / f"{name}.safetensors"


def _remembered(about: About) -> Trial:
    """Return what was found out about a version when it was made."""
    before, after = (inf if loss is None else loss for loss in (about.loss_before, about.loss_after))
    return Trial(loss_before=before, loss_after=after, kept=about.kept, reason=about.reason)


def _merged(trial: Trial, *, clients: Iterable[ClientId], left_out: Mapping[ClientId, str]) -> Merged:
    return Merged(
        loss_before=trial.loss_before,
        loss_after=trial.loss_after,
        kept=trial.kept,
        reason=trial.reason,
        clients=tuple(clients),
        left_out=left_out,
    )


_conforms: type[Bench] = Workshop
