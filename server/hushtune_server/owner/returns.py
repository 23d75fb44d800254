"""What becomes of an adapter that came back in a file? Checked and screened as one from the air is, and stored beside those.

Each client's return of a round counts once: ``returns/`` in the owner's state folder remembers which bytes were taken for it, and
what the gate said. The same bytes again give the same answer and change nothing.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, require_matches
from hushtune_common.clock import Clock
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import Scenario
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import (
    ConfigError,
    DigestMismatch,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    Replayed,
    ScenarioMismatch,
)
from hushtune_common.messages import Digest
from hushtune_common.model.adapter import insert
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.release.acceptance import answered, lineage_of, release_in, require_same, return_in
from hushtune_common.release.container import Container, payload_of, read_container
from hushtune_common.release.inspection import SEALED
from hushtune_common.release.statement import ReturnStatement, moment
from hushtune_common.release.trust import Anchor, verify
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.gatekeeper.canary import Canaries, prompts
from hushtune_server.owner.gatekeeper.desk import Desk
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.gate import Gatekeeper
from hushtune_server.owner.gatekeeper.quarantine import FOLDER as QUARANTINE
from hushtune_server.owner.gatekeeper.quarantine import Quarantine
from hushtune_server.owner.gatekeeper.reach import reach
from hushtune_server.owner.gatekeeper.sketch import Sampler
from hushtune_server.owner.plugin import Plugin, perplexity
from hushtune_server.owner.releases import SEALING_KEY, Released, Telling, released, write_durably
from hushtune_server.owner.versions import FOLDER as VERSIONS
from hushtune_server.owner.versions import Version, Versions

RETURNS: Final = "returns"
ADAPTERS: Final = "adapters"


class Verdict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the gate said of an adapter that it took in as ``version``.

    Perplexities are on public text, of the model as it sits, without and with the adapter; absent when not finite. ``kept``: it
    did no harm there.
    """

    version: str
    kept: bool
    reason: str
    perplexity_before: float | None
    perplexity_after: float | None


class _Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: Literal["hushtune-returned/1"]
    update: str
    """Digest of the sealed bytes."""
    statement: str
    imported: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """Which return to take in; ``state`` and ``cache`` are folders.

    ``emulator`` is where the released emulator lies, if it is not where it was when it was exported.
    """

    scenario: Scenario
    file: Path
    state: Path
    cache: Path
    anchor: Anchor
    emulator: Path | None = None
    require_post_quantum: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A return that was taken in, now or ``before``."""

    statement: ReturnStatement
    adapter: Path
    verdict: Verdict
    before: bool

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "run": self.statement.run,
            "round_id": self.statement.round_id,
            "client": self.statement.client,
            "adapter": str(self.adapter),
            "protection": self.statement.protection,
            "imported_before": self.before,
            **msgspec.to_builtins(self.verdict),
        }

    def to_pairs(self) -> dict[str, str]:
        """Return it for people."""
        before, after = _shown(self.verdict.perplexity_before), _shown(self.verdict.perplexity_after)
        return {
            "client": f"{self.statement.client}, {self.statement.run}, round {self.statement.round_id}",
            "version": self.verdict.version,
            "adapter": str(self.adapter),
            "counted": "before; nothing was changed" if self.before else "now",
            "protection": SEALED,
            "perplexity on public text": f"{before} before, {after} with it",
            "gate": "does no harm there" if self.verdict.kept else self.verdict.reason,
        }


def import_return(order: Import, *, clock: Clock, telling: Telling) -> Imported:
    """Check a return, screen its adapter, try it in the model, and store it as a version; what sits in the model stays there.

    Raises, naming the field: `UntrustedSigner` (see `verify`), what `answered` raises for a return that answers no release of
    this owner, `Replayed` for a second return of the same client and round, `DigestMismatch` for damage, `NotYours` for an
    adapter that was sealed as somebody else's, `InvalidEnvelope` when it does not open, `MalformedUpdate` when it does not decode
    or is not finite, `LimitExceeded` for what the gatekeeper refuses (a copy then lies in quarantine), `ConfigError` while an
    owner runs on the same state. What is refused changes nothing else.
    """
    container = read_container(order.file)
    statement = return_in(container)
    verify(container, anchor=order.anchor, clock=clock, require_post_quantum=order.require_post_quantum)
    release = _answered(statement, order.state)
    slot = order.state / RETURNS / statement.run / str(statement.round_id) / f"{statement.client}.json"
    place = order.state / ADAPTERS / f"{statement.client}.safetensors"
    gate = order.scenario.owner.gate
    versions = Versions(order.state / VERSIONS, count_max=gate.versions_count_max, bytes_max=gate.versions_bytes_max, clock=clock)
    versions.hold()  # from here on nobody else takes anything in
    known = _known(slot, statement)
    if known is not None:
        return Imported(statement=statement, adapter=place, verdict=known.verdict, before=True)
    bundle, state = _decoded(order, container, release, telling=telling)
    bench = _bench(order, bundle, release, versions=versions, clock=clock, telling=telling)
    version = bench.judge(state, statement)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    versions.copy(version, place)
    record = _Record(
        format="hushtune-returned/1",
        update=statement.payload.digest,
        statement=container.digest.hex,
        imported=moment(clock),
        verdict=_verdict(version),
    )
    # Last: what was interrupted before this is done again, and a version that is there already stays what it is.
    write_durably(slot, msgspec.json.encode(record))
    return Imported(statement=statement, adapter=place, verdict=record.verdict, before=False)


def _answered(statement: ReturnStatement, state: Path) -> Released:
    known = released(state)
    found = answered(statement, [release.container for release in known])
    return next(release for release in known if release.container is found)


def _known(slot: Path, statement: ReturnStatement) -> _Record | None:
    """Return what was taken for this client and round; `Replayed` when that was something else."""
    try:
        record = msgspec.json.decode(slot.read_bytes(), type=_Record)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(str(slot), f"this record of a return is damaged ({error}); restore it from a backup") from error
    if record.update != statement.payload.digest:
        raise Replayed(
            f"payload.digest: {statement.client} already returned {record.update[:12]} for {statement.run}, round "
            f"{statement.round_id}, on {record.imported}; now {statement.payload.digest[:12]} came"
        )
    return record


def _decoded(order: Import, container: Container, release: Released, *, telling: Telling) -> tuple[Bundle, AdapterState]:
    """Return the emulator that was released, and the adapter out of its seal."""
    statement = return_in(container)
    telling.phase("checking the emulator that was released")
    bundle = _emulator(order.emulator or release.emulator, statement, telling=telling)
    terms = release_in(release.container).terms
    codec = make_codec(terms.settings, shipped=AdapterState(bundle.adapter_numpy()))
    if codec.id != statement.codec:
        raise ScenarioMismatch(f"codec: encoded as {statement.codec}, this program makes {codec.id} of the same settings")
    telling.phase("opening the seal")
    state = codec.decode(_unsealed(container, statement, codec, state=order.state), bundle.schema)
    require_matches(state, bundle.schema)
    return bundle, state


def _emulator(path: Path, statement: ReturnStatement, *, telling: Telling) -> Bundle:
    try:
        digest = Digest.from_hex(payload_of(path, progress=telling.progress).digest)
        bundle = read_bundle(path)
    except OSError as error:
        raise ConfigError("--emulator", f"the released emulator is not at {path} ({error.strerror}); say where it is") from error
    require_same(lineage_of(bundle, emulator=digest), said=statement.lineage, by="the return")
    return bundle


def _unsealed(container: Container, statement: ReturnStatement, codec: AdapterCodec, *, state: Path) -> bytes:
    """Return the encoded adapter; it has to be sealed as what the statement says it is."""
    size_max = codec.bytes_max + envelope.OVERHEAD_MAX
    if statement.payload.size > size_max:
        raise LimitExceeded(f"payload.size: {statement.payload.size} bytes, at most {size_max} are possible")
    update = envelope.from_bytes(container.payload())
    if update.key != statement.key:
        raise NotYours(f"payload: sealed as {update.key.text}, stated is {statement.key.text}")
    if update.emulator.hex != statement.lineage.emulator:
        raise DigestMismatch(f"payload: sealed for emulator {update.emulator.short}, stated is {statement.lineage.emulator[:12]}")
    if envelope.needs_secret(update):
        raise MalformedUpdate("protection: the seal asks for a secret of the wiretap code, which no file brings")
    private = HybridPrivateKey.load(state / SEALING_KEY)
    return envelope.open_sealed(update, private=private, codec=codec.id).payload


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """The full model, what sits in it, and the desk that screens for it."""

    plugin: Plugin
    desk: Desk

    def judge(self, state: AdapterState, statement: ReturnStatement) -> Version:
        """Screen an adapter and try it in; `LimitExceeded` when a screen refuses it."""
        self.desk.screen(state, key=statement.key, digest=Digest.from_hex(statement.payload.digest))
        return self.desk.accept(state, key=statement.key, trial=self.plugin.try_in(state))


def _bench(order: Import, bundle: Bundle, release: Released, *, versions: Versions, clock: Clock, telling: Telling) -> _Bench:
    """Set up the model as it sits, for updates that were made from the emulator ``bundle``."""
    scenario, gate = order.scenario, order.scenario.owner.gate
    telling.phase("loading the model")
    source = _source(order, bundle)
    windows = _public(order, source)
    torch.set_num_threads(scenario.compute.threads)
    model = source.load(scenario.compute)
    canaries = Canaries(prompts(gate, tokens=source.tokens, public=windows), loss=model.loss, gate=gate)
    _seat(model, versions, bundle)
    plugin = Plugin(model, schema=bundle.schema, windows=windows, increase_max=gate.public_loss_increase_max_nats)

    def watched(state: AdapterState) -> Sequence[Finding]:
        try:
            insert(model, state, expected=bundle.schema)
            return canaries.findings(loss=model.loss)
        finally:
            model.set_adapter(plugin.seated.tensors)

    desk = Desk(
        _gatekeeper(order, bundle, release),
        schema=bundle.schema,
        base=bundle.base_digest,
        versions=versions,
        quarantine=Quarantine(order.state / QUARANTINE, count_max=gate.quarantine_count_max, bytes_max=gate.quarantine_bytes_max),
        canaries=watched,
        clock=clock,
    )
    telling.phase("screening the adapter and trying it on public text")
    return _Bench(plugin=plugin, desk=desk)


def _gatekeeper(order: Import, bundle: Bundle, release: Released) -> Gatekeeper:
    statement, shipped = release_in(release.container), AdapterState(bundle.adapter_numpy())
    terms = statement.terms
    return Gatekeeper(
        order.scenario.owner.gate,
        shipped=shipped,
        reach=statement.round_id * reach(terms.training, windows=terms.train_windows),
        sampler=Sampler(shipped, rng=SeedTree(secrets.randbits(120)).generator()),
    )


def _source(order: Import, bundle: Bundle) -> ModelSource:
    source = open_source(order.scenario.model.source, cache=order.cache)
    if source.base_digest != bundle.base_digest:
        raise DigestMismatch(
            f"lineage.base: the return is for model {bundle.base_digest.short}, the scenario's is {source.base_digest.short}"
        )
    return source


def _public(order: Import, source: ModelSource) -> NDArray[np.int64]:
    data = order.scenario.data
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


def _verdict(version: Version) -> Verdict:
    about = version.about
    return Verdict(
        version=version.id,
        kept=about.kept,
        reason=about.reason,
        perplexity_before=_perplexity(about.loss_before),
        perplexity_after=_perplexity(about.loss_after),
    )


def _perplexity(loss: float | None) -> float | None:
    found = None if loss is None else perplexity(loss)
    return found if found is not None and isfinite(found) else None


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
