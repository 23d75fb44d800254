"""What does the owner do with weights, one thing at a time? Loads, plans, judges updates, merges them. Blocks while it works."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import Clock, SystemClock
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import Scenario
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import ConfigError, ProtocolFault
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, Part, UpdateKey
from hushtune_common.model.adapter import insert
from hushtune_common.model.bundle import emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.aggregate import mean
from hushtune_server.owner.book import Judgement, refusal
from hushtune_server.owner.emulators.engine import Built, Telling, Workplace, build
from hushtune_server.owner.emulators.fidelity import Fidelity, fidelity
from hushtune_server.owner.emulators.method import EmulatorRequest
from hushtune_server.owner.emulators.planning import request_of, shipped_plan
from hushtune_server.owner.emulators.text import public_text
from hushtune_server.owner.gatekeeper.canary import Canaries, prompts
from hushtune_server.owner.gatekeeper.desk import Desk
from hushtune_server.owner.gatekeeper.finding import Finding, told
from hushtune_server.owner.gatekeeper.gate import Gatekeeper
from hushtune_server.owner.gatekeeper.quarantine import FOLDER as QUARANTINE
from hushtune_server.owner.gatekeeper.quarantine import Quarantine
from hushtune_server.owner.gatekeeper.reach import reach
from hushtune_server.owner.gatekeeper.sketch import Sampler
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.intake import Intake
from hushtune_server.owner.plugin import Plugin, Trial
from hushtune_server.owner.ports import Bench
from hushtune_server.owner.versions import AGGREGATE, Version, Versions
from hushtune_server.owner.versions import FOLDER as VERSIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The owner's model in memory, the plan of its emulator, and the public windows (N, T) it is judged on."""

    source: ModelSource
    model: LanguageModel
    plan: Plan
    windows: NDArray[np.int64]
    fidelity: Fidelity


def prepare(scenario: Scenario, *, cache: Path, bundle: Path, seeds: SeedTree, telling: Telling) -> Prepared:
    """Load the model, find or make the plan, write the emulator to ``bundle``. Minutes for a large model.

    A plan that was made for another model or another request is refused before anything is loaded or written.
    """
    torch.set_num_threads(scenario.compute.threads)
    telling.phase("loading the model")
    source = open_source(scenario.model.source, cache=cache)
    request = request_of(scenario.model, source=source)
    plan = _shipped(scenario, request)
    public = load_records(scenario.data.public)
    windows = source.tokens.spread_windows(public, length=scenario.data.window_tokens, count=scenario.data.public_windows)
    if not len(windows):
        raise ConfigError("data.public", f"holds fewer than {scenario.data.window_tokens} tokens; give more public text")
    place = Workplace(
        source=source,
        model=source.load(scenario.compute),
        text=public_text(public, tokens=source.tokens, length=scenario.data.window_tokens),
        compute=scenario.compute,
        seeds=seeds,
        work=cache / "emulators",
        telling=telling,
    )
    built = build(scenario.owner.emulator, request, at=place, plan=plan)
    telling.phase("writing the emulator")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(bundle, source=source, plan=built.plan, refinement=built.refinement)
    telling.phase("comparing gradients with the model's")
    alike = _fidelity(place, built, scenario, probe=windows[: scenario.data.public_windows // 3 or 1])
    return Prepared(source=source, model=place.model, plan=built.plan, windows=windows, fidelity=alike)


def _fidelity(place: Workplace, built: Built, scenario: Scenario, *, probe: NDArray[np.int64]) -> Fidelity:
    """Return how alike the adapter blocks' gradients are on a few public windows."""
    tensors = emulator_tensors(place.source, plan=built.plan, refinement=built.refinement)
    emulator = LanguageModel.build(place.source.config, tensors, slots=built.plan.slots, compute=scenario.compute)
    return fidelity(place.model, emulator, probe, adapter=built.plan.adapter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(Trial):
    """What an average did, whose blocks are in it, and who was left out of it and why."""

    clients: tuple[ClientId, ...]
    left_out: Mapping[ClientId, str]


class Workshop:
    """The full model on the bench, with everything that updates are checked against.

    Laws: `judge` leaves the model as it was; a refused update leaves nothing behind but, if it could be read, a copy in
    quarantine; `merge` changes the model only when it keeps the mean, and done again, as after a restart, gives the same answer.
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
        clock: Clock | None = None,
    ) -> None:
        """Set up the bench; ``accepted`` are the updates of an earlier life of this process.

        The current version is put into the model, if there is one. `ConfigError` when another process has the versions, or the
        current one is damaged or does not fit.
        """
        gate, time = scenario.owner.gate, clock or SystemClock()
        shipped = AdapterState(read_bundle(bundle).adapter_numpy())
        self._model = prepared.model
        self._schema = manifest.adapter
        self._adapters = state_dir / "adapters"
        self._adapters.mkdir(parents=True, exist_ok=True)
        self._intake = Intake(
            manifest=manifest,
            private=private,
            codec=make_codec(scenario.codec, shipped=shipped),
            accepted=accepted,
        )
        watched = prompts(gate, tokens=prepared.source.tokens, public=prepared.windows)
        self._canaries = Canaries(watched, loss=prepared.model.loss, gate=gate)
        self._versions = Versions(
            state_dir / VERSIONS, count_max=gate.versions_count_max, bytes_max=gate.versions_bytes_max, clock=time
        )
        self._versions.hold()
        self._seat_current(base=manifest.base)
        increase_max = gate.public_loss_increase_max_nats
        self._plugin = Plugin(prepared.model, schema=self._schema, windows=prepared.windows, increase_max=increase_max)
        # What encoding took off the updates of earlier rounds may come on top of what this one's training moves.
        furthest = manifest.round_id * reach(scenario.training, windows=scenario.data.train_windows)
        sampler = Sampler(shipped, rng=SeedTree(secrets.randbits(120)).generator())
        self._desk = Desk(
            Gatekeeper(gate, shipped=shipped, reach=furthest, sampler=sampler),
            schema=self._schema,
            base=manifest.base,
            versions=self._versions,
            quarantine=Quarantine(
                state_dir / QUARANTINE, count_max=gate.quarantine_count_max, bytes_max=gate.quarantine_bytes_max
            ),
            canaries=self._watched,
            clock=time,
        )

    @property
    def bytes_max(self) -> int:
        """Largest sealed update that can be genuine, known from the shapes alone."""
        return self._intake.bytes_max

    def judge(self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], secret: bytes) -> Judgement:
        """Check a whole sealed update, screen its adapter, try it in the model, and store it."""
        digest = Digest.of(blob)
        screen = partial(self._desk.screen, key=key, digest=digest)
        try:
            state = self._intake.accept(blob, key=key, links=links, secret=secret, screen=screen)
        except ProtocolFault as fault:
            return refusal(key, fault, digest=digest)
        trial = self._plugin.try_in(state)
        version = self._desk.accept(state, key=key, trial=trial)
        self._versions.copy(version, self._path(key.client))
        return Judgement(
            key=key,
            accepted=True,
            kept=trial.kept,
            reason=trial.reason,
            digest=digest,
            perplexity_before=_finite(trial.perplexity_before),
            perplexity_after=_finite(trial.perplexity_after),
        )

    def merge(self, clients: Sequence[ClientId]) -> Merged:
        """Average the last adapters of ``clients``, each counting the same, and keep the mean in the model or roll back.

        Those that do not go with the others of their round are left out.
        """
        given = {client: self._last(client) for client in clients}
        before = self._merged_before(given)
        if before is not None:
            return before
        misfits = self._desk.company(given)
        parts = {client: version for client, version in given.items() if client not in misfits}
        merged = mean([(self._versions.load(version, self._schema), 1.0) for version in parts.values()])
        trial = self._keep(merged)
        version = self._desk.merged(merged, parts=parts, trial=trial)
        self._versions.copy(version, self._path(AGGREGATE))
        return _merged(trial, clients=parts, left_out={client: finding.text for client, finding in misfits.items()})

    def _seat_current(self, *, base: Digest) -> None:
        version = self._versions.current
        if version is None:
            return
        if version.about.base != base:
            other = f"belongs to model {version.about.base.short}, this is {base.short}"
            raise ConfigError(version.id, f"{other}; promote one that fits, `hushtune owner adapters list` shows all")
        # Without asking public text: what the gate kept, round by round, may add up, and a person may promote what they want.
        insert(self._model, self._versions.load(version, self._schema), expected=self._schema)

    def _watched(self, state: AdapterState) -> Sequence[Finding]:
        """Return what the owner's prompts say about the model with ``state`` in it; then it is as it was."""
        try:
            insert(self._model, state, expected=self._schema)
            return self._canaries.findings(loss=self._model.loss)
        finally:
            self._model.set_adapter(self._plugin.seated.tensors)

    def _keep(self, state: AdapterState) -> Trial:
        findings = self._watched(state)
        if findings:
            return replace(self._plugin.try_in(state), kept=False, reason=told(findings))
        return self._plugin.keep(state)

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
        about, parts = version.about, [by_id[parent] for parent in version.about.parents]
        before, after = (inf if loss is None else loss for loss in (about.loss_before, about.loss_after))
        trial = Trial(loss_before=before, loss_after=after, kept=about.kept, reason=about.reason)
        left_out = {client: "left out when it was averaged" for client in given if client not in parts}
        return _merged(trial, clients=parts, left_out=left_out)

    def _path(self, name: str) -> Path:
        return self._adapters / f"{name}.safetensors"


def _shipped(scenario: Scenario, request: EmulatorRequest) -> Plan | None:
    try:
        return shipped_plan(scenario.owner.emulator, request=request)
    except ConfigError as error:
        if error.field != "owner.emulator.plan":
            raise
        advice = "recompute it with: hushtune emulator plan SCENARIO --out PLAN"
        raise ConfigError(error.field, f"{error.problem}; {advice}") from error


def _merged(trial: Trial, *, clients: Iterable[ClientId], left_out: Mapping[ClientId, str]) -> Merged:
    return Merged(
        loss_before=trial.loss_before,
        loss_after=trial.loss_after,
        kept=trial.kept,
        reason=trial.reason,
        clients=tuple(clients),
        left_out=left_out,
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


_conforms: type[Bench] = Workshop
