"""How does an emulator leave its owner without a network? As a signed file, entered in the ledger and written down first.

``releases/`` in the owner's state folder keeps the head of everything that was exported: a return has to answer one of them.
"""

import importlib.metadata
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from hushtune_common.aggregation import SecureConfig
from hushtune_common.clock import Clock
from hushtune_common.codec.pipeline import codec_id
from hushtune_common.config import Scenario
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.sources import open_source
from hushtune_common.release.acceptance import lineage_of
from hushtune_common.release.container import (
    Container,
    Progress,
    file_pieces,
    parse_head,
    payload_of,
    signed_container,
    write_container,
)
from hushtune_common.release.identity import signatory
from hushtune_common.release.statement import FORMAT, Provenance, ReleaseStatement, Terms, moment, require_line, without_folders
from hushtune_server.owner.ledger import LEDGER, admit, release_of

RELEASES: Final = "releases"
SEALING_KEY: Final = "sealing.key"
"""The key that returns are sealed to; the one that updates from the air are sealed to as well."""
_PACKAGES: Final = ("hushtune-server", "torch", "safetensors", "cryptography")
RUN_PREFIX: Final = "offline-"
"""How the runs of exchanged files begin: a client may be in one of those and in one over the air."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """Whom to tell what is being done, and how many bytes of how many are done."""

    phase: Callable[[str], None]
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What to release, to whom and in whose name; ``kit``, ``state`` and ``cache`` are folders.

    Without an ``emulator`` it is the one that the state folder's owner published last; without ``recipients`` it is for every
    client of the scenario; without a ``run`` its name is made of the emulator's digest.
    """

    scenario: Scenario
    state: Path
    kit: Path
    out: Path
    cache: Path
    emulator: Path | None = None
    recipients: Sequence[str] = ()
    run: str | None = None
    round_id: int = 1
    licence: str = ""

    def __post_init__(self) -> None:
        """Refuse words that no statement can carry, and runs that might be taken for one over the air."""
        require_line(self.licence, of="--licence")
        if self.run is not None and not self.run.startswith(RUN_PREFIX):
            raise ConfigError("--run", f"begins with {RUN_PREFIX!r}, as in {RUN_PREFIX}{self.run}; others come over the air")


class _Record(Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["hushtune-released/1"]
    head: bytes
    emulator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A release as it was written down: its head, and where its emulator lay then."""

    container: Container
    emulator: Path


def export_release(order: Export, *, clock: Clock, telling: Telling) -> Container:
    """Write a signed release to ``order.out`` and return its head.

    What it shows of the model is entered in the owner's ledger before the file appears. Raises `ConfigError` naming the option,
    `MalformedUpdate` for a file that is no emulator, `ExposureExceeded` for one that shows too much.
    """
    if isinstance(order.scenario.owner.aggregation, SecureConfig):
        raise ConfigError("owner.aggregation.kind", "secure needs everybody at the same time; a return by file takes kind mean")
    by = signatory(order.kit, clock=clock)
    order.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = order.emulator or _published(order.state)
    bundle = _bundle(file)
    telling.phase("hashing the emulator")
    payload = payload_of(file, progress=telling.progress)
    telling.phase("entering the release in the exposure ledger")
    recipients = _admit(order, bundle, date=clock.wall().date().isoformat())
    statement = ReleaseStatement(
        format=FORMAT,
        created=moment(clock),
        signer=by.signer,
        run=order.run or RUN_PREFIX + payload.digest[:12],
        round_id=order.round_id,
        lineage=lineage_of(bundle, emulator=Digest.from_hex(payload.digest)),
        payload=payload,
        codec=codec_id(order.scenario.codec),
        licence=order.licence,
        provenance=_provenance(order.scenario),
        terms=_terms(order, recipients),
    )
    telling.phase("writing the release")
    container = signed_container(statement, by=by, path=order.out)
    # Written down first: a return to a release that nobody remembers would be refused.
    record = _Record(format="hushtune-released/1", head=container.head(), emulator=str(file.resolve()))
    write_durably(order.state / RELEASES / f"{container.digest.hex}.json", msgspec.json.encode(record))
    write_container(container, payload=file_pieces(file), progress=telling.progress)
    return container


def released(state: Path) -> tuple[Released, ...]:
    """Return every release written down in ``state``, by date; `ConfigError` names a record that is damaged."""
    found = [_released(path) for path in sorted((state / RELEASES).glob("*.json"))]
    return tuple(sorted(found, key=lambda r: r.container.statement.created))


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that it is there, as a whole, after a loss of power; readable by its user only."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _admit(order: Export, bundle: Bundle, *, date: str) -> tuple[str, ...]:
    scenario = order.scenario
    recipients = tuple(sorted({scenario.client(name).id for name in order.recipients} or {c.id for c in scenario.clients}))
    source = open_source(scenario.model.source, cache=order.cache)
    if source.base_digest != bundle.base_digest:
        made = f"the emulator was made of model {bundle.base_digest.short}"
        raise ConfigError("model.source", f"is model {source.base_digest.short}, {made}; give the scenario that it was made by")
    release = release_of(bundle, base=source.weights, recipients=recipients, date=date)
    admit(order.state / LEDGER, release, config=scenario.owner.exposure)
    return recipients


def _terms(order: Export, recipients: tuple[str, ...]) -> Terms:
    scenario = order.scenario
    return Terms(
        recipients=recipients,
        training=scenario.training,
        window_tokens=scenario.data.window_tokens,
        train_windows=scenario.data.train_windows,
        settings=scenario.codec,
        sealing_key=_sealing_key(order.state / SEALING_KEY).public.to_bytes(),
    )


def _provenance(scenario: Scenario) -> Provenance:
    return Provenance(
        model=without_folders(scenario.model.source),
        datasets=(without_folders(scenario.data.public),),
        software={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def _published(state: Path) -> Path:
    """Return the emulator that the owner of ``state`` published in its last run."""
    remedy = "make one with 'hushtune emulator build' and give it with --emulator"
    try:
        about: dict[str, Any] = json.loads((state / "owner.json").read_text(encoding="utf-8"))
        return Path(about["bundle"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("--emulator", f"no run of this owner has published one ({state / 'owner.json'}); {remedy}") from error


def _bundle(file: Path) -> Bundle:
    try:
        return read_bundle(file)
    except OSError as error:
        raise ConfigError("--emulator", f"{file} cannot be read ({error.strerror})") from error


def _sealing_key(path: Path) -> HybridPrivateKey:
    if path.exists():
        return HybridPrivateKey.load(path)
    private = HybridPrivateKey.generate()
    private.save(path)
    return private


def _released(path: Path) -> Released:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
        container = parse_head(record.head, path=path)
    except (ValueError, MalformedUpdate) as error:
        raise ConfigError(str(path), f"this record of a release is damaged ({error}); restore it from a backup") from error
    return Released(container=container, emulator=Path(record.emulator))
