"""What do hostile bytes look like? Damaged copies of valid ones, and protocol messages filled with extremes."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**53, 2**63 - 1, 2**64 - 1)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 0.5, 1e60)
_TEXTS = ("", "c1", "run-1", "a" * 64, "a" * 100_000, "../x", "a/b", "\x00", "é", "C1", "-", "1", "qpsk", "F32")
_WORDS = (b"\x00", b"\xff", b"\xff" * 4, b"\xff" * 8, b"[" * 300, b"{" * 300, b'"', b"nan", b"1e999", b"-1", b"null", b"\n")
_REPEATS_MAX = 3
_HEAD_BYTES = 2048


def damaged(seed: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Return ``seed`` with one to four damages, some of them pieces of ``others``."""
    data = bytearray(seed)
    for _ in range(int(rng.integers(1, 5))):
        data = _damage(data, others, rng)
    return bytes(data)


def _damage(data: bytearray, others: Sequence[bytes], rng: np.random.Generator) -> bytearray:
    # Every other damage near the beginning: what decides about the rest stands there.
    at = int(rng.integers((min(len(data), _HEAD_BYTES) if rng.random() < 0.5 else len(data)) + 1))
    end = min(len(data), at + int(rng.integers(1, 33)))
    match int(rng.integers(9)):
        case 0 if data:
            data[at % len(data)] ^= 1 << int(rng.integers(8))
        case 1 if data:
            data[at % len(data)] = int(rng.integers(256))
        case 2:
            del data[at:]
        case 3:
            del data[at:end]
        case 4:
            data[at:at] = data[at:end]
        case 5:
            data[at:end] = _integer(rng)
        case 6:
            data[at:at] = _WORDS[int(rng.integers(len(_WORDS)))]
        case 7:
            other = others[int(rng.integers(len(others)))]
            start = int(rng.integers(len(other) + 1))
            data[at:end] = other[start : start + int(rng.integers(1, 65))]
        case _:
            data += rng.bytes(int(rng.integers(1, 65)))
    return data


def _integer(rng: np.random.Generator) -> bytes:
    number, width = _NUMBERS[int(rng.integers(len(_NUMBERS)))], int(rng.choice([1, 2, 4, 8]))
    return (number % (1 << 8 * width)).to_bytes(width, "little" if rng.random() < 0.5 else "big")


def extreme(kind: type[Message], rng: np.random.Generator, *, like: Message | None = None) -> Any:
    """Return a message with extremes in some of its fields; ``like`` is what the others are taken from."""
    message = kind()
    if like is not None:
        message.CopyFrom(like)
    fields: Any = kind.DESCRIPTOR.fields
    for field in fields:
        if rng.random() < (0.6 if like is None else 0.2):
            _set(message, field, rng)
    return message


def _set(message: Any, field: FieldDescriptor, rng: np.random.Generator) -> None:
    if field.is_repeated:
        values = getattr(message, field.name)
        for _ in range(int(rng.integers(_REPEATS_MAX + 1))):
            if field.message_type is None:
                values.append(_value(field, rng))
            else:
                values.add().CopyFrom(extreme(type(values.add()), rng))
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.CopyFrom(extreme(type(inner), rng, like=inner if rng.random() < 0.7 else None))
    else:
        setattr(message, field.name, _value(field, rng))


def _value(field: FieldDescriptor, rng: np.random.Generator) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return bool(rng.random() < 0.5)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            value = _REALS[int(rng.integers(len(_REALS)))]
            return struct.unpack("<f", struct.pack("<f", value))[0] if abs(value) < 1e38 else value
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return rng.bytes(int(rng.choice([0, 1, 31, 32, 33, 10_000])))
            return _TEXTS[int(rng.integers(len(_TEXTS)))]
        case FieldDescriptor.CPPTYPE_ENUM:
            return int(rng.integers(0, 8))
        case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_UINT64:
            return _fitting(64, signed=field.cpp_type == FieldDescriptor.CPPTYPE_INT64, rng=rng)
        case _:
            return _fitting(32, signed=field.cpp_type == FieldDescriptor.CPPTYPE_INT32, rng=rng)


def _fitting(bits: int, *, signed: bool, rng: np.random.Generator) -> int:
    number = _NUMBERS[int(rng.integers(len(_NUMBERS)))] % (1 << bits)
    return number - (1 << bits) if signed and number >> (bits - 1) else number
