"""What does a bundle say about itself? The statement that its signer signs, as JSON that can be written in one way only.

Everything that a recipient relies on is inside: who signs and with which keys, what the emulator was made of, the payload's
digest and size. What is not said here is not signed.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from hushtune_common.clock import Clock
from hushtune_common.config import CodecConfig, TrainingConfig
from hushtune_common.crypto.keys import PUBLIC_BYTES
from hushtune_common.crypto.signing import VerifyingKey
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Caller, ClientId, Digest, RunId, TensorSpec, UpdateKey
from hushtune_common.schema import Count, Name

STATEMENT_MAX: Final = 65_536
"""Most bytes of a statement."""
LINE_MAX: Final = 400
"""Most characters of a text for people."""
FORMAT: Final[Literal["hushtune-statement/1"]] = "hushtune-statement/1"

Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Line = Annotated[str, Meta(max_length=LINE_MAX)]
"""Text for people, on one line; `_require_printable` keeps out what would steer a terminal."""
Moment = Annotated[str, Meta(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
Epsilon = Annotated[float, Meta(gt=0.0, le=1e9)]
Size = Annotated[int, Meta(ge=1, le=2**50)]
Total = Annotated[int, Meta(ge=0, le=2**62)]
Round = Annotated[int, Meta(ge=1, le=2**62)]
_FILES: Final = frozenset({"txt", "jsonl", "csv", "dir", "gguf"})
"""Kinds of sources that name a place on somebody's disk."""


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a statement: every field is written, unknown ones are refused."""


class Signer(Part, frozen=True):
    """Who signs, and with which keys: the list of algorithms and all keys are among what is signed."""

    identity: Annotated[str, Meta(max_length=100)]
    """``hushtune://ROLE/NAME``, as in the signer's certificate."""
    algorithms: Annotated[tuple[Literal["ed25519", "ml-dsa-65"], ...], Meta(min_length=1, max_length=2)]
    ed25519: bytes
    ml_dsa_65: bytes | None

    def __post_init__(self) -> None:
        """Keys have their lengths, the list names exactly them, and the identity is one of ours."""
        Caller.from_uri(self.identity)
        if self.algorithms != self.key.algorithms:
            raise ValueError(f"algorithms: says {', '.join(self.algorithms)}, the keys are {', '.join(self.key.algorithms)}")

    @staticmethod
    def of(caller: Caller, key: VerifyingKey) -> "Signer":
        """Return the signer who is ``caller`` and signs with ``key``."""
        names = msgspec.convert(key.algorithms, tuple[Literal["ed25519", "ml-dsa-65"], ...])
        return Signer(identity=caller.uri, algorithms=names, ed25519=key.ed25519, ml_dsa_65=key.ml_dsa_65)

    @property
    def caller(self) -> Caller:
        """The identity, parsed."""
        return Caller.from_uri(self.identity)

    @property
    def key(self) -> VerifyingKey:
        """The public keys."""
        try:
            return VerifyingKey(ed25519=self.ed25519, ml_dsa_65=self.ml_dsa_65)
        except MalformedUpdate as error:
            raise ValueError(str(error)) from error


class Lineage(Part, frozen=True):
    """What the emulator is, and what it was made of; SHA-256 digests in hexadecimal."""

    base: Hex
    """The full model."""
    tokenizer: Hex
    plan: Hex
    schema: Hex
    """Of the adapter's tensors, see `schema_digest`."""
    emulator: Hex
    """Of the emulator's file."""


class Payload(Part, frozen=True):
    """The bytes that follow the statement."""

    digest: Hex
    size: Size


class Provenance(Part, frozen=True):
    """Where it comes from, in words; nothing here is checked against anything."""

    model: Line
    datasets: Annotated[tuple[Line, ...], Meta(max_length=64)]
    software: Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=64)]], Meta(max_length=32)]

    def __post_init__(self) -> None:
        """Refuse what is not plain text."""
        _require_printable(self.model, *self.datasets, *self.software, *self.software.values())


class Terms(Part, frozen=True):
    """What a client needs besides the emulator: for whom it is, how to train, how to encode, whom to seal to."""

    recipients: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=1024)]
    training: TrainingConfig
    window_tokens: Annotated[int, Meta(ge=2, le=65_536)]
    train_windows: Count
    """Most windows of a client's text that are trained on."""
    settings: CodecConfig
    """How the adapter is encoded; its id is in the statement's ``codec``."""
    sealing_key: bytes
    """The owner's public key that returns are sealed to."""

    def __post_init__(self) -> None:
        """Recipients are named once, in order, and the key has its length."""
        if list(self.recipients) != sorted(set(self.recipients)):
            raise ValueError("recipients: are named once, in order")
        if len(self.sealing_key) != PUBLIC_BYTES:
            raise ValueError(f"sealing_key: has {PUBLIC_BYTES} bytes, got {len(self.sealing_key)}")


class Private(Part, frozen=True):
    """What DP-SGD spent at most; the unit is one window of tokens."""

    epsilon: Epsilon
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)]
    clip_norm: Annotated[float, Meta(gt=0.0)]
    unit: Literal["window"] = "window"


class Training(Part, frozen=True):
    """How the adapter came about. Losses are not told: they would say something about the text."""

    windows: Count
    tokens: Total
    """Tokens that passed through the emulator; where privacy draws windows at random, those that were drawn."""
    epochs: Count
    steps: Count
    lora_rank: Count | None
    privacy: Private | None
    """Absent when nothing bounds what the adapter shows of the text."""


class _Statement(Part, frozen=True, tag_field="kind"):
    format: Literal["hushtune-statement/1"]
    created: Moment
    """By the signer's clock, in UTC."""
    signer: Signer
    run: Name
    round_id: Round
    lineage: Lineage
    payload: Payload
    codec: Annotated[str, Meta(max_length=200)]
    licence: Line
    """Terms of use, such as an SPDX expression; empty when nothing was said."""
    provenance: Provenance

    def __post_init__(self) -> None:
        """The date exists, and text is text."""
        _ = self.created_at
        _require_printable(self.codec, self.licence)

    @property
    def created_at(self) -> datetime:
        """The date, parsed."""
        return datetime.fromisoformat(self.created).astimezone(UTC)


class ReleaseStatement(_Statement, frozen=True, tag="release"):
    """An owner's word about an emulator; the payload is the emulator's file."""

    terms: Terms

    def __post_init__(self) -> None:
        """The payload is the emulator."""
        _Statement.__post_init__(self)
        if self.payload.digest != self.lineage.emulator:
            raise ValueError("payload.digest: a release carries the emulator that lineage.emulator names")


class ReturnStatement(_Statement, frozen=True, tag="return"):
    """A client's word about an adapter; the payload is the adapter, encoded and sealed to the owner's key."""

    client: Name
    release: Hex
    """Digest of the statement of the release that it answers."""
    protection: Literal["crypto_only"]
    """What hides the payload: its seal. No wiretap code took part, since nothing went over the air."""
    training: Training | None
    """Absent when the client trained with tools of its own: nobody but the client knows how."""

    @property
    def key(self) -> UpdateKey:
        """What the sealed update is bound to."""
        return UpdateKey(run=RunId(self.run), round_id=self.round_id, client=ClientId(self.client), attempt=1)


Statement = ReleaseStatement | ReturnStatement
P = TypeVar("P", bound=Part)
T = TypeVar("T")


def canonical(value: Struct) -> bytes:
    """Return the one form of ``value`` in JSON: sorted keys, no spaces, every field."""
    return msgspec.json.encode(msgspec.to_builtins(value), order="sorted")


def parse_statement(data: bytes) -> Statement:
    """Read a statement; `MalformedUpdate` names the field that is wrong, or says that it is not in its one form."""
    if len(data) > STATEMENT_MAX:
        raise MalformedUpdate(f"statement: {len(data)} bytes, at most {STATEMENT_MAX}")
    return _decoded(data, decoder=_STATEMENTS, of="statement")


def parse_canonical(data: bytes, kind: type[P], *, of: str) -> P:
    """Read another canonical document; `MalformedUpdate` as `parse_statement`."""
    value = _decoded(data, decoder=msgspec.json.Decoder(kind), of=of)
    if canonical(value) != data:  # such as base64 with bits that mean nothing
        raise MalformedUpdate(f"{of}: not in its canonical form")
    return value


def schema_digest(schema: Sequence[TensorSpec]) -> Digest:
    """Return the digest of names, shapes, types and blocks of an adapter's tensors, in their order."""
    body = [[spec.name, list(spec.shape), spec.dtype, spec.block] for spec in schema]
    return Digest.of(b"hushtune/schema/1" + msgspec.json.encode(body))


def require_line(text: str, *, of: str) -> None:
    """Raise ``ConfigError`` naming the option ``of`` unless ``text`` can stand in a statement."""
    try:
        _require_printable(text)
    except ValueError as error:
        raise ConfigError(of, str(error)) from error


def without_folders(source: str) -> str:
    """Return a model or data source as others may read it: of files and folders only the last name."""
    kind, colon, rest = source.partition(":")
    return f"{kind}:{Path(rest).name}" if colon and kind in _FILES else source


def moment(clock: Clock) -> str:
    """Return the date of now, in UTC, to the second."""
    return clock.wall().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_STATEMENTS: "Final[msgspec.json.Decoder[Statement]]" = msgspec.json.Decoder(Statement)


def _decoded(data: bytes, *, decoder: "msgspec.json.Decoder[T]", of: str) -> T:
    try:
        value = decoder.decode(data)
        # One meaning, one form: otherwise two files that say the same would have different digests. Held against the plain JSON,
        # so that what an older program wrote, without a setting that came later, is still in its form.
        plain = msgspec.json.encode(msgspec.json.decode(data), order="sorted")
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        raise MalformedUpdate(f"{where.strip('`.') or of}: {problem}") from error
    except (ValueError, RecursionError) as error:
        raise MalformedUpdate(f"{of}: not readable ({error})") from error
    if plain != data:
        raise MalformedUpdate(f"{of}: not in its canonical form")
    return value


def _require_printable(*lines: str) -> None:
    for line in lines:
        if not (line.isprintable() and len(line) <= LINE_MAX):
            raise ValueError(f"text for people is printable and has at most {LINE_MAX} characters, got {line!r:.80}")
