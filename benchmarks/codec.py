"""How fast are the codecs, and how small are their blobs? Beside each other and float16 with zstandard, in the same run.

    python benchmarks/codec.py --millions 28.3 --repeats 3

The adapter has the shapes of SmolLM2-135M's blocks; its delta is Laplacian, or Gaussian with a heavy tail (one element in a
hundred ten times as large), with a scale that varies from row to row. The sensitivity that `rate_distortion` is given varies by
column and row over several octaves and has eight directions per matrix, as a measured one. MB are 10^6 bytes of float32 per
second of one core's own time: set OMP_NUM_THREADS=1. The best of the repeats counts. The error is that of the whole delta: the
norm of what is lost over the norm of what training changed; of `rate_distortion`, which weighs errors, it says little.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import zstandard

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.blockwise import BlockwiseCodec
from hushtune_common.codec.lossless import LosslessCodec
from hushtune_common.codec.rate_distortion import RateDistortionCodec
from hushtune_common.codec.sensitivity import Sensitivity, TensorSensitivity
from hushtune_common.codec.stages import WIDTHS
from hushtune_common.config import CodecConfig
from hushtune_common.messages import TensorSpec

Result = TypeVar("Result")
Tail = Literal["laplace", "gauss"]
Encode = Callable[[AdapterState], bytes]
Decode = Callable[[bytes, tuple[TensorSpec, ...]], AdapterState]
BLOCK_SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536), (576,), (576,))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    encode_s: float
    decode_s: float
    bytes_encoded: int
    error: float


class Float16Peer:
    """What one would write first: the delta as float16, compressed."""

    def __init__(self, shipped: AdapterState) -> None:
        self._shipped = shipped

    def encode(self, state: AdapterState) -> bytes:
        deltas = [(t - self._shipped.tensors[n]).astype(np.float16).tobytes() for n, t in state.tensors.items()]
        return zstandard.ZstdCompressor(level=3).compress(b"".join(deltas))

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        flat = np.frombuffer(zstandard.ZstdDecompressor().decompress(blob), dtype=np.float16)
        parts = np.split(flat, np.cumsum([spec.count for spec in expected])[:-1])
        return AdapterState(
            {s.name: self._shipped.tensors[s.name] + p.reshape(s.shape) for s, p in zip(expected, parts, strict=True)}
        )


def noise(tail: Tail, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return a delta of unit spread before the scale of its rows."""
    if tail == "laplace":
        return rng.laplace(size=shape)
    return rng.standard_normal(shape) * np.where(rng.random(shape) < 0.01, 10.0, 1.0)


def adapters(millions: float, *, tail: Tail) -> tuple[AdapterState, AdapterState]:
    """Return a shipped and a returned adapter of about ``millions`` million parameters."""
    rng = np.random.default_rng(1)
    shipped: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    returned: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    blocks = max(1, round(millions * 1e6 / sum(int(np.prod(s)) for s in BLOCK_SHAPES)))
    for block in range(blocks):
        for index, shape in enumerate(BLOCK_SHAPES):
            name = f"model.layers.{block}.{index}"
            rows = 1e-4 * rng.lognormal(0.0, 0.5, size=(shape[0], *(1 for _ in shape[1:])))
            shipped[name] = (0.05 * rng.standard_normal(shape)).astype(np.float32)
            returned[name] = shipped[name] + (rows * noise(tail, rng, shape)).astype(np.float32)
    return AdapterState(shipped), AdapterState(returned)


def best(repeats: int, call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the shortest processor time of ``call`` and its result."""
    seconds, result = timed(call)
    for _ in range(repeats - 1):
        seconds = min(seconds, timed(call)[0])
    return seconds, result


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the processor time of one call and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def measure(name: str, encode: Encode, decode: Decode, *, shipped: AdapterState, returned: AdapterState, repeats: int) -> Row:
    """Return one line: times, size, and the norm of the error over that of the delta."""
    expected = tuple(TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in shipped.tensors.items())
    encode_s, blob = best(repeats, lambda: encode(returned))
    decode_s, decoded = best(repeats, lambda: decode(blob, expected))
    signal = sum(float(np.square(t - shipped.tensors[n]).sum(dtype=np.float64)) for n, t in returned.tensors.items())
    lost = sum(float(np.square(t - decoded.tensors[n]).sum(dtype=np.float64)) for n, t in returned.tensors.items())
    return Row(name, encode_s, decode_s, len(blob), (lost / signal) ** 0.5)


def measured_like(shipped: AdapterState) -> Sensitivity:
    """Return a sensitivity as uneven as those that are measured, with eight directions per matrix."""
    rng, found = np.random.default_rng(2), dict[str, TensorSensitivity]()
    for name, tensor in shipped.tensors.items():
        rows, columns = tensor.shape[0], tensor.size // tensor.shape[0]
        axes, _ = np.linalg.qr(rng.standard_normal((columns, min(8, columns))))
        found[name] = TensorSensitivity(
            rows=np.exp2(rng.normal(0.0, 1.0, rows)).astype(np.float32),
            columns=np.exp2(rng.normal(0.0, 2.0, columns)).astype(np.float32).clip(2.0**-24, 2.0**24),
            directions=np.ascontiguousarray(axes.T, dtype=np.float32) if columns > 1 else np.zeros((0, 0), np.float32),
        )
    return Sensitivity(found)


def ways(shipped: AdapterState, returned: AdapterState) -> dict[str, tuple[Encode, Decode]]:
    """Return all that is compared, by name."""
    peer, blockwise = Float16Peer(shipped), BlockwiseCodec(shipped=shipped, config=CodecConfig(), bytes_max=8 * shipped.count)
    turned = RateDistortionCodec(shipped=shipped, sensitivity=measured_like(shipped), bytes_max=8 * shipped.count)
    lossless = LosslessCodec(shipped=shipped)
    pairs: dict[str, tuple[Encode, Decode]] = {"float16 + zstandard (peer)": (peer.encode, peer.decode)}
    for bits in reversed(WIDTHS):
        pairs[f"{blockwise.id}, {bits} bits"] = (partial(blockwise.encode_at, bits=bits), blockwise.decode)
    for share in (4.0, 3.2, 0.8, 0.4):
        budget = round(share * returned.count / 8)
        pairs[f"{turned.id}, {share:g} bits"] = (partial(turned.encode, budget_bytes=budget), turned.decode)
    pairs[lossless.id] = (partial(lossless.encode, budget_bytes=lossless.bytes_max), lossless.decode)
    return pairs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=28.3, help="parameters")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tail", choices=["laplace", "gauss"], default="laplace")
    options = parser.parse_args()
    shipped, returned = adapters(options.millions, tail=options.tail)
    pairs = ways(shipped, returned)
    raw_mb = returned.bytes_raw / 1e6
    print(f"{returned.count / 1e6:.1f} M parameters, {raw_mb:.1f} MB as float32, {options.tail} deltas")
    print(f"{'codec':<27} {'encode MB/s':>12} {'decode MB/s':>12} {'MB':>8} {'ratio':>7} {'bit/param':>10} {'error':>7}")
    for name, (encode, decode) in pairs.items():
        row = measure(name, encode, decode, shipped=shipped, returned=returned, repeats=options.repeats)
        size_mb = row.bytes_encoded / 1e6
        print(
            f"{row.name:<27} {raw_mb / row.encode_s:>12.0f} {raw_mb / row.decode_s:>12.0f} {size_mb:>8.2f}"
            f" {raw_mb / size_mb:>7.2f} {8 * row.bytes_encoded / returned.count:>10.2f} {row.error:>7.2%}"
        )


if __name__ == "__main__":
    main()
