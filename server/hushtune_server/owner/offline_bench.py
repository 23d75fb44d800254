"""What judges adapters that come in files, while no owner runs? The full model as it sits, and the same desk as in a run."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError, DigestMismatch
from hushtune_common.messages import ClientId, Digest, UpdateKey
from hushtune_common.model.adapter import insert
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.rates import furthest
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.release.acceptance import lineage_of, require_same
from hushtune_common.release.container import payload_of
from hushtune_common.release.statement import Lineage, ReleaseStatement
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.aggregate import mean
from hushtune_server.owner.gatekeeper.canary import Canaries, prompts
from hushtune_server.owner.gatekeeper.desk import Desk
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.gate import Gatekeeper
from hushtune_server.owner.gatekeeper.quarantine import FOLDER as QUARANTINE
from hushtune_server.owner.gatekeeper.quarantine import Quarantine
from hushtune_server.owner.gatekeeper.sketch import Sampler
from hushtune_server.owner.plugin import Plugin, Trial
from hushtune_server.owner.releases import Telling
from hushtune_server.owner.versions import FOLDER as VERSIONS
from hushtune_server.owner.versions import Version, Versions
from hushtune_server.owner.watched import WatchedSeat


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose model it is and where the owner keeps things: ``state`` and ``cache`` are folders."""

    scenario: Scenario
    state: Path
    cache: Path

    def versions(self, *, clock: Clock) -> Versions:
        """Return the owner's versions, held for this process; `ConfigError` while an owner runs on them."""
        gate = self.scenario.owner.gate
        folder = self.state / VERSIONS
        versions = Versions(folder, count_max=gate.versions_count_max, bytes_max=gate.versions_bytes_max, clock=clock)
        versions.hold()
        return versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """An average as a version, what its trial said, and whose adapters were left out of it and why."""

    version: Version
    trial: Trial
    left_out: Mapping[ClientId, Finding]


class OfflineBench:
    """The full model with what sits in it, for adapters that were trained from one released emulator.

    Laws: `judge` leaves the model as it was; what is refused is in quarantine and nowhere else; `average` lets the mean sit
    in the model from the owner's next start on if, and only if, its trial kept it.
    """

    def __init__(self, place: Place, *, bundle: Bundle, release: ReleaseStatement, versions: Versions, clock: Clock) -> None:
        """Load the model, which takes seconds to minutes. `DigestMismatch` when the scenario's is another one."""
        scenario, gate = place.scenario, place.scenario.owner.gate
        source = _source(place, bundle)
        windows = _public(place, source)
        torch.set_num_threads(scenario.compute.threads)
        model = source.load(scenario.compute)
        canaries = Canaries(prompts(gate, tokens=source.tokens, public=windows), loss=model.loss, gate=gate)
        _seat(model, versions, bundle)
        self._versions = versions
        self._schema = bundle.schema
        self._plugin = Plugin(model, schema=bundle.schema, windows=windows, increase_max=gate.public_loss_increase_max_nats)
        self._seat = WatchedSeat(self._plugin, canaries=canaries, loss=model.loss)
        self._desk = Desk(
            _gatekeeper(place, bundle, release),
            schema=bundle.schema,
            base=bundle.base_digest,
            versions=versions,
            quarantine=Quarantine(
                place.state / QUARANTINE, count_max=gate.quarantine_count_max, bytes_max=gate.quarantine_bytes_max
            ),
            canaries=self._seat.findings,
            clock=clock,
        )

    def judge(self, state: AdapterState, *, key: UpdateKey, digest: Digest) -> Version:
        """Screen an adapter that came in sealed bytes of ``digest``, and try it in; `LimitExceeded` when a screen refuses it."""
        self._desk.screen(state, key=key, digest=digest)
        return self._desk.accept(state, key=key, trial=self._plugin.try_in(state))

    def average(self, given: Mapping[ClientId, Version]) -> Mean:
        """Average a round's accepted adapters, each counting the same, and keep the mean or roll back, as in a run.

        Those that do not go with the others are left out.
        """
        misfits = self._desk.company(given)
        parts = {client: version for client, version in given.items() if client not in misfits}
        merged = mean([(self._versions.load(version, self._schema), 1.0) for version in parts.values()])
        trial = self._seat.keep(merged)
        return Mean(version=self._desk.merged(merged, parts=parts, trial=trial), trial=trial, left_out=misfits)


def emulator_at(path: Path, *, lineage: Lineage, by: str, telling: Telling) -> Bundle:
    """Read a released emulator; `DigestMismatch` when it is not the one that ``by`` names, `ConfigError` when it is gone."""
    try:
        digest = Digest.from_hex(payload_of(path, progress=telling.progress).digest)
        bundle = read_bundle(path)
    except OSError as error:
        raise ConfigError("--emulator", f"the released emulator is not at {path} ({error.strerror}); say where it is") from error
    require_same(lineage_of(bundle, emulator=digest), said=lineage, by=by)
    return bundle


def _gatekeeper(place: Place, bundle: Bundle, release: ReleaseStatement) -> Gatekeeper:
    shipped, terms = AdapterState(bundle.adapter_numpy()), release.terms
    return Gatekeeper(
        place.scenario.owner.gate,
        shipped=shipped,
        reach=furthest(terms.training, windows=terms.train_windows, round_id=release.round_id),
        sampler=Sampler(shipped, rng=SeedTree(secrets.randbits(120)).generator()),
    )


def _source(place: Place, bundle: Bundle) -> ModelSource:
    source = open_source(place.scenario.model.source, cache=place.cache)
    if source.base_digest != bundle.base_digest:
        raise DigestMismatch(
            f"lineage.base: the return is for model {bundle.base_digest.short}, the scenario's is {source.base_digest.short}"
        )
    return source


def _public(place: Place, source: ModelSource) -> NDArray[np.int64]:
    data = place.scenario.data
    windows = source.tokens.spread_windows(load_records(data.public), length=data.window_tokens, count=data.public_windows)
    if not len(windows):
        raise ConfigError("data.public", f"holds fewer than {data.window_tokens} tokens; give more public text")
    return windows


def _seat(model: LanguageModel, versions: Versions, bundle: Bundle) -> None:
    """Put into the model what the owner has in it, so that the adapter is held against the model as it is."""
    current = versions.current
    if current is None:
        return
    if current.about.base != bundle.base_digest:
        other = f"sits in the model and belongs to {current.about.base.short}, the return to {bundle.base_digest.short}"
        raise ConfigError(current.id, f"{other}; promote one that fits: hushtune owner adapters list")
    insert(model, versions.load(current, bundle.schema), expected=bundle.schema)
