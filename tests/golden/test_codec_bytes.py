"""Did the bytes of an encoded adapter change silently? They may only with the version in the codec's id."""

from pathlib import Path

import numpy as np
import pytest

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.blockwise import BlockwiseCodec
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


@pytest.mark.parametrize("name", CASES)
def test_the_stored_bytes_decode_and_are_made_again(name: str, request: pytest.FixtureRequest):
    config, bits = CASES[name]
    codec = BlockwiseCodec(shipped=shipped(), config=config, bytes_max=1 << 20)
    path = FOLDER / f"{name}.htad"
    if request.config.getoption("--update-golden", default=False):
        path.write_bytes(codec.encode_at(returned(), bits=bits))
    stored = path.read_bytes()
    expected = tuple(TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in shipped().tensors.items())
    bound = codec.bound(stored)
    decoded = codec.decode(stored, expected).tensors
    assert all((np.abs(decoded[n] - t) <= bound[n]).all() for n, t in returned().tensors.items())
    # Equality holds for the pinned zstandard; with another one only the lines above must.
    assert codec.encode_at(returned(), bits=bits) == stored
