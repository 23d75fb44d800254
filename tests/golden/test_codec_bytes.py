"""Did the bytes of an encoded adapter change silently? They may only with the version in the codec's id."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.blockwise import BlockwiseCodec
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.sensitivity import Sensitivity, TensorSensitivity
from hushtune_common.config import CodecConfig
from hushtune_common.messages import TensorSpec

FOLDER = Path(__file__).parent / "vectors"
WIDTHS = ((2, 16), (3, 64), (5, 16), (8, 64))
CASES = {f"adapter-{bits}bit-b{size}": (CodecConfig(block_size=size), bits) for bits, size in WIDTHS}


def shipped() -> AdapterState:
    """Return tensors made of exact fractions, so that no library's generator is part of the vector."""
    return AdapterState(
        {
            "model.layers.0.mlp.up_proj.weight": (np.arange(130) / 64 - 1).astype(np.float32).reshape(10, 13),
            "model.layers.29.input_layernorm.weight": np.full(7, 1.5, dtype=np.float32),
        }
    )


def returned() -> AdapterState:
    """Return the shipped tensors plus a polynomial of the position, in exact fractions."""
    moved: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for name, tensor in shipped().tensors.items():
        k = np.arange(tensor.size, dtype=np.int64)
        delta = (((k * k * 37 + k * 11) % 257 - 128) / 4096).astype(np.float32)
        moved[name] = tensor + delta.reshape(tensor.shape)
    return AdapterState(moved)


SCHEMA = tuple(TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in shipped().tensors.items())


@pytest.mark.parametrize("name", CASES)
def test_the_stored_bytes_decode_and_are_made_again(name: str, request: pytest.FixtureRequest):
    config, bits = CASES[name]
    codec = BlockwiseCodec(shipped=shipped(), config=config, bytes_max=1 << 20)
    path = FOLDER / f"{name}.htad"
    if request.config.getoption("--update-golden", default=False):
        path.write_bytes(codec.encode_at(returned(), bits=bits))
    stored = path.read_bytes()
    bound = codec.bound(stored)
    decoded = codec.decode(stored, SCHEMA).tensors
    assert all((np.abs(decoded[n] - t) <= bound[n]).all() for n, t in returned().tensors.items())
    # Equality holds for the pinned zstandard; with another one only the lines above must.
    assert codec.encode_at(returned(), bits=bits) == stored


def known_sensitivity() -> Sensitivity:
    """Return powers of two, whose roots are exact or correctly rounded everywhere, and one direction along an axis."""
    found: dict[str, TensorSensitivity] = {}
    for name, tensor in shipped().tensors.items():
        rows, columns = tensor.shape[0], tensor.size // tensor.shape[0]
        along = np.eye(1, columns, 4, dtype=np.float32) if columns > 1 else np.zeros((0, 0), np.float32)
        found[name] = TensorSensitivity(
            rows=np.exp2(np.arange(rows) % 5).astype(np.float32),
            columns=np.exp2(np.arange(columns) % 9 - 4.0).astype(np.float32),
            directions=along,
        )
    return Sensitivity(found)


def turned(sensitivity: Sensitivity | None) -> AdapterCodec:
    """Return the rate-distortion codec."""
    return make_codec(CodecConfig(kind="rate_distortion", bits=32.0), shipped=shipped(), sensitivity=sensitivity)


TURNED: Mapping[str, tuple[Sensitivity | None, int]] = {
    "turned-flat": (None, 330),
    "turned-fine": (None, 440),
    "turned-sensitive": (known_sensitivity(), 600),
}
"""Of a few levels, of codes with low bits, and seen through a sensitivity: which, and the bytes granted."""


@pytest.mark.parametrize("name", TURNED)
def test_the_stored_turned_bytes_decode_within_their_bound_and_are_made_again(name: str, request: pytest.FixtureRequest):
    sensitivity, budget = TURNED[name]
    codec, path = turned(sensitivity), FOLDER / f"{name}.htad"
    if request.config.getoption("--update-golden", default=False):
        path.write_bytes(codec.encode(returned(), budget_bytes=budget))
    stored = path.read_bytes()
    assert not set(codec.bound(stored).values()) & {0.0}  # not one of the exact forms
    decoded, bound = codec.decode(stored, SCHEMA).tensors, codec.bound(stored)
    assert all((np.abs(decoded[n] - t) <= bound[n]).all() for n, t in returned().tensors.items())
    # Theta is rounded, so that equality holds with any processor's logarithms but those a last place from the edge of a code.
    assert codec.encode(returned(), budget_bytes=budget) == stored


def near() -> AdapterState:
    """Return the shipped tensors plus a 256th of the change, which is still exact."""
    part = np.float32(1 / 256)
    return AdapterState({n: (t + part * (returned().tensors[n] - t)).astype(np.float32) for n, t in shipped().tensors.items()})


EXACT: Mapping[str, tuple[Literal["lossless", "rate_distortion"], AdapterState]] = {
    "exact-distances": ("lossless", near()),
    "exact-plain": ("lossless", returned()),
    "turned-exact": ("rate_distortion", near()),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_stored_exact_bytes_give_every_bit_and_are_made_again(name: str, request: pytest.FixtureRequest):
    kind, state = EXACT[name]
    codec = make_codec(CodecConfig(kind=kind, bits=32.0), shipped=shipped())
    path = FOLDER / f"{name}.htad"
    if request.config.getoption("--update-golden", default=False):
        path.write_bytes(codec.encode(state, budget_bytes=codec.bytes_max))
    stored = path.read_bytes()
    assert all(t.tobytes() == state.tensors[n].tobytes() for n, t in codec.decode(stored, SCHEMA).tensors.items())
    assert codec.encode(state, budget_bytes=codec.bytes_max) == stored
