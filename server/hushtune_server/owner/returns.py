"""What becomes of an adapter that came back in a file? Checked and screened as one from the air is, and stored beside those.

Each client's return of a round counts once: ``returns/`` in the owner's state folder remembers which bytes were taken for it, and
what the gate said. The same bytes again give the same answer and change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

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
from hushtune_common.messages import ClientId, Digest, RunId, UpdateKey
from hushtune_common.model.bundle import Bundle
from hushtune_common.model.rates import allowed, furthest
from hushtune_common.release.acceptance import answered, release_in, return_in
from hushtune_common.release.container import Container, read_container
from hushtune_common.release.inspection import SEALED
from hushtune_common.release.statement import ReturnStatement, moment
from hushtune_common.release.trust import Anchor, verify
from hushtune_server.owner.offline_bench import OfflineBench, Place, emulator_at
from hushtune_server.owner.plugin import finite, perplexity
from hushtune_server.owner.releases import SEALING_KEY, Released, Telling, released, write_durably
from hushtune_server.owner.versions import Version

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
    emulator: str = ""
    """Digest of the emulator that it was trained from."""


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

    @property
    def at(self) -> Place:
        """Where it is judged."""
        return Place(scenario=self.scenario, state=self.state, cache=self.cache)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A return that was taken in: whose, of which run and round, what the gate said, and the digest of its emulator.

    The digest is empty in records of earlier programs.
    """

    key: UpdateKey
    emulator: str
    verdict: Verdict


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
    versions = order.at.versions(clock=clock)  # held: from here on nobody else takes anything in
    known = _known(slot, statement)
    if known is not None:
        return Imported(statement=statement, adapter=place, verdict=known.verdict, before=True)
    bundle, state = _decoded(order, container, release, telling=telling)
    telling.phase("loading the model")
    bench = OfflineBench(order.at, bundle=bundle, release=release_in(release.container), versions=versions, clock=clock)
    telling.phase("screening the adapter and trying it on public text")
    version = bench.judge(state, key=statement.key, digest=Digest.from_hex(statement.payload.digest))
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    versions.copy(version, place)
    record = _Record(
        format="hushtune-returned/1",
        update=statement.payload.digest,
        statement=container.digest.hex,
        imported=moment(clock),
        verdict=_verdict(version),
        emulator=statement.lineage.emulator,
    )
    # Last: what was interrupted before this is done again, and a version that is there already stays what it is.
    write_durably(slot, msgspec.json.encode(record))
    return Imported(statement=statement, adapter=place, verdict=record.verdict, before=False)


def taken(state: Path) -> Sequence[Taken]:
    """Return every return that was taken in, by run, round and client; `ConfigError` names a record that is damaged."""
    found: list[Taken] = []
    for path in sorted((state / RETURNS).glob("*/*/*.json")):
        record = _record(path)
        key = UpdateKey(run=RunId(path.parts[-3]), round_id=int(path.parts[-2]), client=ClientId(path.stem), attempt=1)
        found.append(Taken(key=key, emulator=record.emulator, verdict=record.verdict))
    return found


def _answered(statement: ReturnStatement, state: Path) -> Released:
    known = released(state)
    found = answered(statement, [release.container for release in known])
    return next(release for release in known if release.container is found)


def _known(slot: Path, statement: ReturnStatement) -> _Record | None:
    """Return what was taken for this client and round; `Replayed` when that was something else."""
    if not slot.exists():
        return None
    record = _record(slot)
    if record.update != statement.payload.digest:
        raise Replayed(
            f"payload.digest: {statement.client} already returned {record.update[:12]} for {statement.run}, round "
            f"{statement.round_id}, on {record.imported}; now {statement.payload.digest[:12]} came"
        )
    return record


def _record(slot: Path) -> _Record:
    try:
        return msgspec.json.decode(slot.read_bytes(), type=_Record)
    except ValueError as error:
        raise ConfigError(str(slot), f"this record of a return is damaged ({error}); restore it from a backup") from error


def _decoded(order: Import, container: Container, release: Released, *, telling: Telling) -> tuple[Bundle, AdapterState]:
    """Return the emulator that was released, and the adapter out of its seal."""
    statement = return_in(container)
    telling.phase("checking the emulator that was released")
    bundle = _emulator(order.emulator or release.emulator, statement, telling=telling)
    said = release_in(release.container)
    terms, gate = said.terms, order.at.scenario.owner.gate
    reach = furthest(terms.training, windows=terms.train_windows, round_id=said.round_id)
    codec = make_codec(
        terms.settings,
        shipped=AdapterState(bundle.adapter_numpy()),
        sensitivity=bundle.sensitivity,
        change_max=allowed(reach, reach_max=gate.reach_max),
    )
    if codec.id != statement.codec:
        raise ScenarioMismatch(f"codec: encoded as {statement.codec}, this program makes {codec.id} of the same settings")
    telling.phase("opening the seal")
    state = codec.decode(_unsealed(container, statement, codec, state=order.state), bundle.schema)
    require_matches(state, bundle.schema)
    return bundle, state


def _emulator(path: Path, statement: ReturnStatement, *, telling: Telling) -> Bundle:
    return emulator_at(path, lineage=statement.lineage, by="the return", telling=telling)


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
    return None if loss is None else finite(perplexity(loss))


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
