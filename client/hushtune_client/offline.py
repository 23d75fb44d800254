"""How does a data owner take part without a network? A signed emulator comes in as a file, a sealed adapter goes out as one.

Nothing here opens a connection. The adapter is protected by its seal alone, and the statement around it says so.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from hushtune_client.allowance import change_max
from hushtune_common.adapter import AdapterState, require_matches
from hushtune_common.clock import Clock
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.config import ComputeConfig, DpConfig, TrainingConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPublicKey
from hushtune_common.errors import BudgetTooSmall, ConfigError, MalformedUpdate, ScenarioMismatch, TrainerFailed
from hushtune_common.messages import ClientId, Digest, Role, RunId, TensorSpec, UpdateKey
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.rates import furthest
from hushtune_common.noise import Statement as NoiseStatement
from hushtune_common.release.acceptance import lineage_of, release_in, require_recipient, require_same
from hushtune_common.release.container import Container, Progress, read_container, signed_container, writable, write_container
from hushtune_common.release.identity import Signatory, signatory
from hushtune_common.release.statement import (
    FORMAT,
    Payload,
    Private,
    Provenance,
    ReleaseStatement,
    ReturnStatement,
    Training,
    moment,
    require_line,
)
from hushtune_common.release.trust import Anchor, verify
from hushtune_common.seeding import SeedTree

if TYPE_CHECKING:  # torch is imported when training begins
    from collections.abc import Generator

    from hushtune_client.own_training import OwnTraining
    from hushtune_common.model.finetune import Progress as Step

DEFAULT_COMPUTE: Final = ComputeConfig()
Learning = Callable[[Bundle], tuple[AdapterState, Training | None]]
"""Makes the adapter of an emulator, and says how; nothing where that was elsewhere."""
_PACKAGES: Final = ("hushtune-client", "torch", "safetensors", "cryptography")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """Whom to tell: what is being done, bytes done of all bytes, training steps."""

    phase: Callable[[str], None]
    progress: Progress
    step: "Callable[[Step], None]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to train on what. ``release`` and ``out`` are files, ``kit`` a folder, ``data`` a source such as ``txt:FILE``.

    With ``own`` in place of ``data`` nothing is trained here: what the client trained elsewhere is returned.
    ``share`` is how much of a full update's bytes to use; ``epochs`` and ``dp`` take the place of what the release asks for.
    ``described`` is what the statement says of the text; nothing by default. The emulator lies in ``work`` while training lasts,
    beside ``out`` by default.
    """

    release: Path
    data: str | None = None
    own: "OwnTraining | None" = None
    out: Path
    kit: Path
    anchor: Anchor
    require_post_quantum: bool = False
    share: float = 1.0
    epochs: int | None = None
    dp: DpConfig | None = None
    compute: ComputeConfig = DEFAULT_COMPUTE
    seed: int = 0
    work: Path | None = None
    licence: str = ""
    described: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no training has or would look at, and words that no statement can carry."""
        if (self.data is None) == (self.own is None):
            raise ConfigError("--data, --adapter-from", "give one of them: text to train on, or what was trained elsewhere")
        for option, value in (("--epochs", self.epochs), ("--epsilon", self.dp)):
            if self.own is not None and value is not None:
                raise ConfigError(option, "is for a training here, and --adapter-from brings one that is over")
        if not 0.0 < self.share <= 1.0:
            raise ConfigError("--share", f"lies above 0 and is at most 1, got {self.share}")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError("--epochs", f"counts from 1, got {self.epochs}")
        require_line(self.licence, of="--licence")
        for line in self.described:
            require_line(line, of="--describe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """A return that was written: its head, and the sizes on the way."""

    container: Container
    bytes_raw: int
    bytes_encoded: int


def train(order: Order, *, clock: Clock, telling: Telling) -> Returned:
    """Verify a release, train its adapter blocks on one's own text, and write them sealed and signed to ``order.out``.

    With ``order.own`` they are those of a training elsewhere, and the statement says nothing of how it was done. The emulator is
    copied out of the release into ``order.work`` for as long as it takes. Raises `UntrustedSigner` (see `verify`), `NotYours`
    when the release is for others, `DigestMismatch` naming what of the emulator is not as stated, `ScenarioMismatch` for a codec
    that this program does not make, `TrainerFailed`, and `ConfigError` naming the option.
    """
    _require_room(order.out)
    by = _client(order.kit, clock=clock)
    container, release = _opened(order.release, order.anchor, of=by, clock=clock, post_quantum=order.require_post_quantum)
    recipient = HybridPublicKey.from_bytes(release.terms.sealing_key)
    make = _learning(order, release, clock=clock, telling=telling)
    with _emulator_of(container, order.work or order.out.parent, telling=telling) as path:
        bundle = _checked(path, release)
        _codec(bundle, release)  # before hours of training, not after
        state, training = make(bundle)
        codec = _codec(bundle, release, trained=state)
        if (noise := release.terms.settings.noise) is not None:
            said = NoiseStatement.of(noise.promise, counts=[spec.count for spec in bundle.schema], rounds=1)
            telling.phase(f"hiding the update in noise: {said.words}")
        telling.phase("encoding, sealing and signing")
        encoded = _encoded(state, codec, release, schema=bundle.schema, share=order.share, telling=telling)
    sealed = _sealed(encoded, release, to=recipient, client=by.caller.name)
    answer = _answer(order, container, release, by=by, sealed=sealed, training=training, clock=clock)
    written = signed_container(answer, by=by, path=order.out)
    write_container(written, payload=[sealed])
    return Returned(container=written, bytes_raw=state.bytes_raw, bytes_encoded=len(encoded))


def write_emulator(
    release: Path, *, out: Path, kit: Path, anchor: Anchor, clock: Clock, telling: Telling, require_post_quantum: bool = False
) -> Bundle:
    """Verify a release and write its emulator to ``out``, whole or not at all, to train on it elsewhere; errors as `train`."""
    _require_room(out)
    by = _client(kit, clock=clock)
    container, said = _opened(release, anchor, of=by, clock=clock, post_quantum=require_post_quantum)
    with _emulator_of(container, out.parent, telling=telling) as path:
        _checked(path, said)
        path.replace(out)
    return read_bundle(out)


def _opened(
    release: Path, anchor: Anchor, *, of: Signatory, clock: Clock, post_quantum: bool
) -> tuple[Container, ReleaseStatement]:
    """Read a release and believe it, or say why not."""
    container = read_container(release)
    said = release_in(container)
    verify(container, anchor=anchor, clock=clock, require_post_quantum=post_quantum)
    require_recipient(said, of.caller.name)
    return container, said


def _learning(order: Order, release: ReleaseStatement, *, clock: Clock, telling: Telling) -> Learning:
    """Return what makes the adapter of an emulator; what can be refused without the emulator is refused here."""
    if order.own is not None:
        from hushtune_client.own_training import require_allowed

        require_allowed(order.own, training=release.terms.training)
        return partial(_brought, order.own, release=release, telling=telling)
    records = load_records(order.data or "")
    training = _training(order, release.terms.training)
    return partial(_learnt, records, order=order, release=release, training=training, clock=clock, telling=telling)


def _brought(own: "OwnTraining", bundle: Bundle, *, release: ReleaseStatement, telling: Telling) -> tuple[AdapterState, None]:
    from hushtune_client.own_training import import_adapter

    imported = import_adapter(own, bundle=bundle, round_id=release.round_id)
    telling.phase(f"your own training: {imported.summary}")
    return imported.state, None


def _learnt(
    records: Sequence[str],
    bundle: Bundle,
    *,
    order: Order,
    release: ReleaseStatement,
    training: TrainingConfig,
    clock: Clock,
    telling: Telling,
) -> tuple[AdapterState, Training]:
    windows = _windows(records, bundle, release)
    telling.phase("loading torch and the emulator")
    state, last = _trained(bundle.file.path, windows, order=order, training=training, clock=clock, telling=telling)
    _require_usable(state, bundle)
    return state, _said(training, last, windows=len(windows))


def _require_room(out: Path) -> None:
    """Find out that nothing can be written to ``out`` before hours of training, not after."""
    with writable(out):
        if out.is_dir():
            raise ConfigError("--out", f"{out} is a folder; give the name of a file")
        trial = out.with_name(out.name + ".partial")
        trial.touch()
        trial.unlink()


def _client(kit: Path, *, clock: Clock) -> Signatory:
    by = signatory(kit, clock=clock)
    if by.caller.role is not Role.CLIENT:
        raise ConfigError("--kit", f"is of {by.caller.uri}; a return is signed with the kit of a client")
    return by


def _training(order: Order, asked: TrainingConfig) -> TrainingConfig:
    epochs = asked.epochs if order.epochs is None else order.epochs
    if epochs > asked.epochs:
        problem = f"the release asks for {asked.epochs}; its owner's gate refuses weights that moved farther than that allows"
        raise ConfigError("--epochs", f"{problem}, got {epochs}")
    return msgspec.structs.replace(asked, epochs=epochs, dp=order.dp or asked.dp)


@contextmanager
def _emulator_of(container: Container, work: Path, *, telling: Telling) -> "Generator[Path]":
    """Copy the emulator out of its release; what is yielded is whole and as signed."""
    telling.phase("copying the emulator out of the release")
    try:
        work.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=work, prefix=".hushtune-")
    except OSError as error:
        raise ConfigError("--work", f"cannot write into {work} ({error.strerror})") from error
    with folder as name:
        path = Path(name) / "emulator.safetensors"
        with path.open("wb") as file:
            for piece in container.pieces(progress=telling.progress):
                file.write(piece)
        yield path


def _checked(path: Path, release: ReleaseStatement) -> Bundle:
    bundle = read_bundle(path)
    # The digest of the file was compared while it was copied.
    found = lineage_of(bundle, emulator=Digest.from_hex(release.payload.digest))
    require_same(found, said=release.lineage, by="the release")
    return bundle


def _windows(records: Sequence[str], bundle: Bundle, release: ReleaseStatement) -> NDArray[np.int64]:
    length = release.terms.window_tokens
    windows = bundle.tokens.windows(records, length=length, limit=release.terms.train_windows)
    if not len(windows):
        raise ConfigError("--data", f"{len(records)} records do not fill one window of {length} tokens; give more text")
    return windows


def _codec(bundle: Bundle, release: ReleaseStatement, *, trained: AdapterState | None = None) -> AdapterCodec:
    """Return the codec of a release, which moves no weight of ``trained`` further than training can or did."""
    shipped, terms = AdapterState(bundle.adapter_numpy()), release.terms
    gate = furthest(terms.training, windows=terms.train_windows, round_id=release.round_id)
    limit = inf if trained is None else change_max(trained, shipped=shipped, gate=gate)
    codec = make_codec(terms.settings, shipped=shipped, sensitivity=bundle.sensitivity, change_max=limit)
    if codec.id != release.codec:
        raise ScenarioMismatch(f"codec: the release decodes {release.codec}, this program makes {codec.id}; use the same version")
    return codec


def _trained(
    path: Path,
    windows: NDArray[np.int64],
    *,
    order: Order,
    training: TrainingConfig,
    clock: Clock,
    telling: Telling,
) -> "tuple[AdapterState, Step]":
    from hushtune_client.finetune import finetune

    steps: list[Step] = []

    def report(step: "Step") -> None:
        steps[:] = [step]
        telling.step(step)

    state = finetune(
        path,
        windows,
        config=training,
        compute=order.compute,
        seeds=SeedTree(order.seed).child("offline", "training"),
        governor=Unpaced(clock=clock),
        report=report,
    )
    return state, steps[-1]


def _require_usable(state: AdapterState, bundle: Bundle) -> None:
    try:
        require_matches(state, bundle.schema)
    except MalformedUpdate as error:
        raise TrainerFailed(
            f"the trained adapter cannot be used: {error}; ask for a release with a lower learning rate"
        ) from error


def _encoded(
    state: AdapterState,
    codec: AdapterCodec,
    release: ReleaseStatement,
    *,
    schema: Sequence[TensorSpec],
    share: float,
    telling: Telling,
) -> bytes:
    """Return the adapter in the bytes that ``share`` grants, or in the fewest that it takes: files have no such limits."""
    budget = budget_bytes(schema, config=release.terms.settings, share=share)
    try:
        return codec.encode(state, budget_bytes=budget)
    except BudgetTooSmall as error:
        telling.phase(f"--share grants {budget:,} bytes; the shortest encoding has {error.least_bytes:,}, which is taken")
        return codec.encode(state, budget_bytes=error.least_bytes)


def _sealed(encoded: bytes, release: ReleaseStatement, *, to: HybridPublicKey, client: str) -> bytes:
    """Return the adapter sealed to the owner's key: with that key alone, since no wiretap code brings a second secret."""
    sealing = envelope.seal(
        encoded,
        recipient=to,
        key=UpdateKey(run=RunId(release.run), round_id=release.round_id, client=ClientId(client), attempt=1),
        emulator=Digest.from_hex(release.lineage.emulator),
        codec=release.codec,
    )
    return envelope.to_bytes(sealing.update)


def _said(training: TrainingConfig, last: "Step", *, windows: int) -> Training:
    spent = last.privacy
    return Training(
        windows=windows,
        tokens=last.tokens,
        epochs=training.epochs,
        steps=last.steps,
        lora_rank=None if training.lora is None else training.lora.rank,
        privacy=None if spent is None else Private(epsilon=spent.epsilon, delta=spent.delta, clip_norm=spent.clip_norm),
    )


def _answer(
    order: Order,
    container: Container,
    release: ReleaseStatement,
    *,
    by: Signatory,
    sealed: bytes,
    training: Training | None,
    clock: Clock,
) -> ReturnStatement:
    return ReturnStatement(
        format=FORMAT,
        created=moment(clock),
        signer=by.signer,
        run=release.run,
        round_id=release.round_id,
        lineage=release.lineage,
        payload=Payload(digest=Digest.of(sealed).hex, size=len(sealed)),
        codec=release.codec,
        licence=order.licence,
        provenance=Provenance(
            model=release.provenance.model,
            datasets=order.described,
            software={name: importlib.metadata.version(name) for name in _PACKAGES},
        ),
        client=by.caller.name,
        release=container.digest.hex,
        protection="crypto_only",
        training=training,
    )
