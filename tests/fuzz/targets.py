"""Every decoder that reads what a peer made, with valid inputs to start from and the errors that it promises."""

import tomllib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from hushtune_common import config
from hushtune_common.adapter import load_adapter, save_adapter
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey, HybridPublicKey
from hushtune_common.errors import (
    ConfigError,
    DigestMismatch,
    InvalidEnvelope,
    MalformedUpdate,
    MissingPackage,
    NotYours,
    ProtocolFault,
    UntrustedSigner,
    VersionMismatch,
)
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import FrameReader
from hushtune_common.link.reception import Reception
from hushtune_common.messages import (
    Beat,
    Caller,
    Channel,
    ClientId,
    Completion,
    Conclusion,
    Digest,
    Directive,
    DirectiveKind,
    Listener,
    Receipt,
    ReceptionNotice,
    Role,
    RunId,
    Settlement,
    UpdateKey,
    Verdict,
)
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.revision import apply_revision, write_revision
from hushtune_common.model.weights import write_tensors
from hushtune_common.peft.checkpoint import read_checkpoint
from hushtune_common.peft.indices import NOTE_FILE, read_note
from hushtune_common.peft.patch import read_patch, read_replacements, write_patch
from hushtune_common.peft.settings import SETTINGS_FILE
from hushtune_common.release.container import parse_head, read_container
from hushtune_common.release.statement import canonical, parse_statement
from hushtune_common.release.trust import load_anchor, write_pin
from hushtune_common.secagg.messages import Upload
from hushtune_common.seeding import SeedTree
from hushtune_common.store.blobs import BlobName
from hushtune_common.units import Joule, PowerRatio, Second
from hushtune_common.wire import convert, faults
from hushtune_common.wire.about import read_about
from tests import bundles, codecs, loopback, radio
from tests.fakes import CURVE, report_of
from tests.fuzz import sums
from tests.fuzz.harness import Target
from tests.fuzz.mutate import extreme
from tests.models import tiny_bundle
from tests.secagg import terms_for

_CLIENT = ClientId("c1")
_CALLER = Caller(role=Role.CLIENT, name="c1")
_KEY = UpdateKey(run=RunId("run-1"), round_id=1, client=_CLIENT, attempt=1)
_DESIGN = radio.qpsk_design(codewords=1)
_CRC_BYTES = 4


def targets(folder: Path) -> list[Target]:
    """Return all targets; those that read files write them below ``folder``."""
    return [*_messages(), *_texts(), *_link(), *_sealed(), *_adapters(folder), *_releases(folder), *_files(folder)]


# --- protocol messages ------------------------------------------------------------------------------------------------


def _messages() -> Iterator[Target]:
    for name, (valid, decode) in (_wire() | sums.wire()).items():
        kind = type(valid)

        def parsed(data: bytes, kind: type[Message] = kind, decode: Callable[[Any], object] = decode) -> object:
            message = kind()
            message.ParseFromString(data)
            return decode(message)

        def made(rng: np.random.Generator, kind: type[Message] = kind, valid: Message = valid) -> bytes:
            return extreme(kind, rng, like=valid if rng.random() < 0.7 else None).SerializeToString()

        yield Target(
            name=f"wire-{name}",
            decode=parsed,
            # gRPC answers bytes that are no message at all before anything of ours is asked.
            refuses=(MalformedUpdate, NotYours, VersionMismatch, DecodeError),
            seeds=[valid.SerializeToString()],
            make=made,
        )


def _wire() -> dict[str, tuple[Message, Callable[[Any], object]]]:
    channel = Channel(at=Second(1.0), gain_main=PowerRatio(1e-9), gain_tap=PowerRatio(1e-12))
    assignment = replace(loopback.assignment_of(), channel=channel)
    directive = Directive(seq=3, kind=DirectiveKind.ASSIGNED, round_id=1, assignment=assignment)
    transmission = radio.transmission(b"frame", _DESIGN)
    notice = ReceptionNotice(
        seq=1,
        listener=Listener.MAIN,
        transmission=transmission,
        blocks=3,
        update_bytes=2000,
        fidelity="bit_exact",
        airtime=Second(1.0),
        acknowledged=False,
    )
    receipt = Receipt(key=_KEY, missing=(1, 5))
    completion = Completion(
        key=_KEY,
        uploaded=True,
        reason="",
        bytes_raw=1,
        bytes_uploaded=1,
        airtime=Second(1.0),
        train_seconds=Second(1.0),
        energy=Joule(1.0),
    )
    verdict = Verdict(key=_KEY, accepted=True, kept=True, reason="", score=None)
    return {
        "manifest": (convert.manifest_to_wire(loopback.manifest_of(b"x")), convert.manifest_from_wire),
        "verdict": (convert.verdict_to_wire(verdict), lambda m: convert.verdict_from_wire(m, client=_CLIENT)),
        "report": (
            convert.report_to_wire(report_of(_CLIENT, 1).on(channel)),
            lambda m: convert.report_from_wire(m, caller=_CALLER),
        ),
        "curve": (convert.curve_to_wire(CURVE), convert.curve_from_wire),
        "channel": (convert.new_channel_to_wire(channel, round_id=1), convert.new_channel_from_wire),
        "directive": (convert.directive_to_wire(directive), convert.directive_from_wire),
        "beat": (convert.beat_to_wire(Beat(last_seen_seq=1, phase="training", progress=3)), convert.beat_from_wire),
        "completion": (convert.completion_to_wire(completion), lambda m: convert.completion_from_wire(m, caller=_CALLER)),
        "settlement": (convert.settlement_to_wire(Settlement(key=_KEY, accepted=True)), convert.settlement_from_wire),
        "conclusion": (
            convert.conclusion_to_wire(Conclusion(run=RunId("run-1"), round_id=1, last=False, reason="")),
            convert.conclusion_from_wire,
        ),
        "transmission": (convert.transmission_to_wire(transmission), convert.transmission_from_wire),
        "notice": (convert.notice_to_wire(notice), convert.notice_from_wire),
        "receive": (convert.receive_to_wire(_KEY, first_chunk=2), convert.receive_from_wire),
        "receipt": (convert.receipt_to_ack(receipt), convert.receipt_from_ack),
        "outcome": (
            convert.receipt_to_transmit(receipt, airtime=Second(1.0)),
            lambda m: convert.receipt_from_transmit(m, key=_KEY),
        ),
    }


def _texts() -> Iterator[Target]:
    name = BlobName(prefix="frames/run-1/1/c1/1", digest=Digest.of(b"x"), size=1)
    yield Target(
        name="blob-name",
        decode=lambda data: BlobName.parse(data.decode("utf-8", "surrogateescape")),
        refuses=(MalformedUpdate,),
        seeds=[name.text.encode()],
    )
    yield Target(
        name="about",
        decode=_about,
        refuses=(),
        seeds=[b"2026-01-01T00:00:00.000+00:00\n2.2\n" + b"ab" * 32, b"0001-01-01T00:00:00+23:59\n\n"],
    )
    status = status_pb2.Status(code=3, message="no")
    yield Target(
        name="refusal",
        decode=_refusal,
        refuses=(),
        seeds=[status.SerializeToString(), b"\x08\x0b\x12\x02no\x1a\x04type"],
        make=lambda rng: extreme(status_pb2.Status, rng).SerializeToString(),
    )
    scenario = (Path(__file__).parents[2] / "scenarios" / "small.toml").read_bytes()
    yield Target(
        name="scenario",
        decode=lambda data: config.parse(_tree(data)),
        refuses=(ConfigError, tomllib.TOMLDecodeError, UnicodeDecodeError),
        seeds=[scenario],
    )


def _about(data: bytes) -> object:
    from hushtune_common.wire import about

    lines = [*data.decode("latin-1").split("\n"), "", "", ""]
    keys = [about._DATE, about._PROTOCOL, about._SCENARIO]  # pyright: ignore[reportPrivateUsage]
    return read_about(zip(keys, lines, strict=False))


def _refusal(data: bytes) -> object:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", data))
    error = grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), trailing, details="no")
    return faults.from_rpc_error(error)


def _tree(data: bytes) -> dict[str, Any]:
    return tomllib.loads(data.decode())


# --- what goes through the air ----------------------------------------------------------------------------------------


def _link() -> Iterator[Target]:
    update = radio.random_update(3 * _DESIGN.payload_bytes - 5)
    frames = [radio.frame_bytes(update, _DESIGN, fidelity=kind) for kind in Fidelity]
    yield Target(name="frame", decode=_frame, refuses=(MalformedUpdate,), seeds=frames, mend=_closed_again(26, 18))
    receptions = [_heard(frame) for frame in frames]
    yield Target(
        name="reception", decode=Reception.from_bytes, refuses=(MalformedUpdate,), seeds=receptions, mend=_reception_mended
    )


def _frame(data: bytes) -> object:
    reader = FrameReader(lambda offset, size: data[offset : offset + size], len(data))
    return [reader.chunk(number, design=_DESIGN) for number in range(reader.chunk_count(_DESIGN))]


def _heard(frame: bytes) -> bytes:
    chunk = radio.reader(frame).chunk(0, design=_DESIGN)
    coded = int(np.count_nonzero(chunk.coded))
    reception = Reception.of(
        chunk,
        listener=Listener.MAIN,
        heard=np.ones(chunk.count, dtype=np.bool_),
        snr_db=np.zeros(chunk.count, dtype=np.float32),
        gain_log2=2,
        soft=np.ones((coded, _DESIGN.codewords, _DESIGN.code_bits), dtype=np.int8),
    )
    return reception.to_bytes()


def _closed_again(header: int, count_at: int) -> Callable[[bytes], bytes]:
    """Return what makes the checksum over header and lists of a frame right again, where the announced count allows it."""

    def mend(data: bytes) -> bytes:
        count = int.from_bytes(data[count_at + 5 : count_at + 9], "little") if len(data) > header else 0
        end = header + 5 + 4 * count + -(-count // 8)
        if not header < end <= len(data) - _CRC_BYTES:
            return data
        return data[:end] + zlib.crc32(data[:end]).to_bytes(_CRC_BYTES, "little") + data[end + _CRC_BYTES :]

    return mend


def _reception_mended(data: bytes) -> bytes:
    """Make the checksum of a reception right again, found by trying every end near the lists of three blocks."""
    head = 4 + 5 + 8 + 7 * 4
    end = head + 3 * 4 + 3 * 4 + 2
    if len(data) < end + _CRC_BYTES:
        return data
    return data[:end] + zlib.crc32(data[:end]).to_bytes(_CRC_BYTES, "little") + data[end + _CRC_BYTES :]


# --- what is sealed, and what is in it --------------------------------------------------------------------------------


def _sealed() -> Iterator[Target]:
    private = HybridPrivateKey.generate()
    secret = bytes(range(32))
    sealings = [
        envelope.seal(b"payload" * 20, recipient=private.public, key=_KEY, emulator=Digest.of(b"e"), codec="some/1", secret=part)
        for part in (b"", secret)
    ]

    def opened(data: bytes) -> object:
        return envelope.open_sealed(envelope.from_bytes(data), private=private, codec="some/1", secret=secret)

    blobs = [envelope.to_bytes(sealing.update) for sealing in sealings]
    yield Target(name="envelope", decode=opened, refuses=(InvalidEnvelope,), seeds=blobs)
    yield Target(
        name="sealing-key",
        decode=HybridPublicKey.from_bytes,
        refuses=(ValueError, MalformedUpdate, InvalidEnvelope),
        seeds=[private.public.to_bytes()],
    )
    terms = terms_for(words=4)
    yield Target(
        name="secagg-upload",
        decode=lambda data: Upload.from_bytes(data, member=_CLIENT, terms=terms),
        refuses=(MalformedUpdate,),
        seeds=[Upload(member=_CLIENT, view=Digest.of(b"view"), words=bytes(8 * 4)).to_bytes()],
    )


def _adapters(folder: Path) -> Iterator[Target]:
    shipped = codecs.normal(1)
    schema = codecs.specs(shipped)
    state = codecs.plus(shipped, codecs.normal(2, scale=0.01))
    for kind in codecs.KINDS:
        codec = codecs.codec_of(kind, shipped=shipped)
        encoded = codec.encode(state, budget_bytes=codec.bytes_max)

        def decoded(data: bytes, codec: Any = codec) -> object:
            return codec.decode(data, schema)

        yield Target(
            name=f"codec-{kind}",
            decode=decoded,
            refuses=(MalformedUpdate, DigestMismatch),
            seeds=[encoded],
            mend=lambda data: codecs.signed(data[:-32]),
        )
    save_adapter(folder / "adapter.safetensors", shipped)
    yield _file_target(
        "adapter",
        folder,
        seeds=[(folder / "adapter.safetensors").read_bytes()],
        read=lambda path: load_adapter(path, schema),
        refuses=(MalformedUpdate,),
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _file_target(
    name: str, folder: Path, *, seeds: list[bytes], read: Callable[[Path], object], refuses: tuple[type[Exception], ...]
) -> Target:
    place = folder / f"fuzz-{name}"

    def decode(data: bytes) -> object:
        place.write_bytes(data)
        return read(place)

    return Target(name=name, decode=decode, refuses=refuses, seeds=seeds)


def _releases(folder: Path) -> Iterator[Target]:
    cast = bundles.Cast(folder / "cast")
    statements = [bundles.release_by(cast.owner), bundles.return_by(cast.client("c1"), client="c1")]
    yield Target(name="statement", decode=parse_statement, refuses=(MalformedUpdate,), seeds=[canonical(s) for s in statements])
    container = bundles.written(folder / "bundle", statements[0], by=cast.owner)
    yield _file_target(
        "container",
        folder,
        seeds=[(folder / "bundle").read_bytes()],
        read=read_container,
        refuses=(MalformedUpdate, ConfigError, UntrustedSigner, ProtocolFault),
    )
    yield Target(
        name="container-head",
        decode=lambda data: parse_head(data, path=folder / "bundle"),
        refuses=(MalformedUpdate,),
        seeds=[container.head()],
    )
    write_pin(folder / "pinned.keys", statements[0].signer)
    yield _file_target(
        "pin", folder, seeds=[(folder / "pinned.keys").read_bytes()], read=load_anchor, refuses=(ConfigError, MalformedUpdate)
    )


def _files(folder: Path) -> Iterator[Target]:
    emulator = tiny_bundle(folder, 2)
    other = folder / "other"
    other.mkdir()
    again = tiny_bundle(other, 2)
    yield _file_target(
        "emulator", folder, seeds=[emulator.read_bytes()], read=read_bundle, refuses=(MalformedUpdate, ConfigError, ProtocolFault)
    )
    write_revision(folder / "revision", base=emulator, result=again)
    yield _file_target(
        "revision",
        folder,
        seeds=[(folder / "revision").read_bytes()],
        read=lambda path: apply_revision(path, base=emulator, to=folder / "made"),
        refuses=(MalformedUpdate, DigestMismatch, ProtocolFault),
    )
    yield from _peft(folder)


def _peft(folder: Path) -> Iterator[Target]:
    rng = SeedTree(1).generator()
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    tensors = {f"{prefix}.lora_A.weight": (2, 8), f"{prefix}.lora_B.weight": (6, 2)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}
    about = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["up_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "x",
        "fan_in_fan_out": False,
    }
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    weights, settings = checkpoint / "adapter_model.safetensors", checkpoint / SETTINGS_FILE
    write_tensors(weights, shapes=tensors, tensor=arrays.__getitem__, metadata={"format": "pt"})
    settings.write_bytes(msgspec.json.encode(about))
    read_checkpoint(checkpoint)
    whole = {weights: weights.read_bytes(), settings: settings.read_bytes()}

    def read_with(place: Path) -> Callable[[bytes], object]:
        def decode(data: bytes) -> object:
            for path, content in whole.items():
                path.write_bytes(data if path == place else content)
            return read_checkpoint(checkpoint)

        return decode

    refused = (ConfigError, MalformedUpdate, MissingPackage)
    for name, place in (("peft-weights", weights), ("peft-settings", settings)):
        yield Target(name=name, decode=read_with(place), refuses=refused, seeds=[whole[place]])
    note = folder / "note"
    note.mkdir()

    def noted(data: bytes) -> object:
        (note / NOTE_FILE).write_bytes(data)
        return read_note(note)

    seed = b'{"indices":"short","base":"' + b"ab" * 32 + b'","blocks":[0,1],"adapter":[0],"layers_to_transform":[0]}'
    yield Target(name="peft-note", decode=noted, refuses=(ConfigError,), seeds=[seed])
    write_patch(folder / "patch", tensors=arrays, base=Digest.of(b"base"), plan=None)
    patch = (folder / "patch").read_bytes()
    for name, read in (("patch", read_patch), ("replacements", read_replacements)):
        yield _file_target(name, folder, seeds=[patch], read=read, refuses=(ConfigError, MalformedUpdate))
