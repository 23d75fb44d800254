"""What do tests of the codecs start from? Small adapters, the codecs of a scenario, and containers made by hand."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.sensitivity import Sensitivity, TensorSensitivity
from hushtune_common.config import CodecConfig, parse
from hushtune_common.messages import Digest, TensorSpec
from hushtune_server.coordinator.problems.secrecy import AllocationProblem

Kind = Literal["rate_distortion", "blockwise", "lossless"]
KINDS: tuple[Kind, ...] = ("rate_distortion", "blockwise", "lossless")

SHAPES: Mapping[str, tuple[int, ...]] = {
    "layers.3.matrix": (70, 13),
    "layers.3.row": (1, 40),
    "layers.3.column": (37, 1),
    "layers.0.kernel": (3, 4, 5),
    "layers.0.norm": (67,),
    "layers.0.number": (1,),
}
"""A whole run and a rest of rows, one row, one column, three dimensions, a vector, a single number; in no order."""


def specs(state: AdapterState) -> tuple[TensorSpec, ...]:
    """Return the schema of a state, in its order."""
    return tuple(TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in state.tensors.items())


def normal(seed: int, *, scale: float = 1.0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> AdapterState:
    """Return normal numbers."""
    rng = np.random.default_rng(seed)
    return AdapterState({n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()})


def plus(state: AdapterState, change: AdapterState) -> AdapterState:
    """Return the sum."""
    return AdapterState({n: t + change.tensors[n] for n, t in state.tensors.items()})


def zeros(state: AdapterState) -> AdapterState:
    """Return a state of the same shapes."""
    return AdapterState({n: np.zeros_like(t) for n, t in state.tensors.items()})


def codec_of(kind: Kind, *, shipped: AdapterState, bits: float = 8.0, sensitivity: Sensitivity | None = None) -> AdapterCodec:
    """Return the codec that a scenario of this kind makes."""
    return make_codec(CodecConfig(kind=kind, bits=bits), shipped=shipped, sensitivity=sensitivity)


def uneven(state: AdapterState, *, seed: int = 3, directions: int = 2) -> Sensitivity:
    """Return a sensitivity over several octaves, with directions where a tensor has columns enough."""
    rng = np.random.default_rng(seed)
    found: dict[str, TensorSensitivity] = {}
    for spec in specs(state):
        rows, columns = spec.shape[0], spec.count // spec.shape[0]
        axes, _ = np.linalg.qr(rng.standard_normal((columns, min(directions, columns))))
        along = np.ascontiguousarray(axes.T, dtype=np.float32) if columns > directions else np.zeros((0, 0), np.float32)
        found[spec.name] = TensorSensitivity(
            rows=np.exp2(rng.uniform(-6, 6, rows)).astype(np.float32),
            columns=np.exp2(rng.uniform(-6, 6, columns)).astype(np.float32),
            directions=along,
        )
    return Sensitivity(found)


def signed(body: bytes) -> bytes:
    """Return what a hostile client can always make: any body with the right digest."""
    return body + Digest.of(body).value


def largest_errors(decoded: AdapterState, wanted: AdapterState) -> dict[str, float]:
    """Return the largest error of each tensor, computed in float64."""
    return {n: float(np.abs(decoded.tensors[n].astype(np.float64) - t).max()) for n, t in wanted.tensors.items()}


def same_bits(left: Float32, right: Float32) -> bool:
    """Say whether two tensors agree in every bit, signs of zeros included."""
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def dense(directions: Float32) -> NDArray[np.float64]:
    """Return an orthogonal matrix by Householder's textbook products, one direction after the other."""
    size = directions.shape[1]
    whole = np.eye(size)
    taken: list[int] = []
    for direction in directions.astype(np.float64):
        seen = whole.T @ direction
        seen[taken] = 0.0
        pivot = int(np.argmax(np.abs(seen)))
        vector = seen / np.linalg.norm(seen)
        vector[pivot] += np.sign(vector[pivot]) or 1.0
        whole = whole @ (np.eye(size) - 2.0 * np.outer(vector, vector) / (vector @ vector))
        taken.append(pivot)
    return whole


SCENARIO: Mapping[str, object] = {
    "name": "x",
    "seed": 1,
    "model": {"source": "random:blocks=6"},
    "data": {"private": "txt:a.txt", "public": "pkg:jargon-text"},
    "clients": [{"id": "c1", "position": {"x_m": 10.0, "y_m": 20.0}}],
}


def least_share(config: CodecConfig) -> float:
    """Return the least share of an update that the coordinator grants with this codec, 0 where it does not ask."""
    where = structs.replace(parse(SCENARIO), codec=config)
    return AllocationProblem.of(where, []).share_codec
