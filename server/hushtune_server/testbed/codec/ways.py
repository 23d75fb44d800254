"""In which ways can an adapter be written? Those of the peers, and ours with so many bytes; to a bench they are all the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.messages import TensorSpec
from hushtune_server.testbed.codec.adapters import Journey
from hushtune_server.testbed.codec.peer import Peer
from hushtune_server.testbed.emulators.cells import Json

FORMAT = 1
"""Part of every key; raised when what a peer writes changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How one adapter is written and read: a name for tables, what the bytes depend on beside the adapter, both directions."""

    name: str
    key: Json
    encode: Callable[[], bytes]
    decode: Callable[[bytes], AdapterState]


def peers_way(peer: Peer, *, journey: Journey) -> Way:
    """Return how a peer writes the adapter of a journey."""
    shipped, returned = journey.shipped.tensors, journey.returned.tensors
    return Way(
        name=peer.name,
        key={"peer": peer.name, "says": peer.says, "format": FORMAT},
        encode=lambda: peer.encode(returned, shipped=shipped),
        decode=lambda blob: AdapterState(peer.decode(blob, shipped=shipped)),
    )


def our_way(codec: AdapterCodec, *, settings: Json, journey: Journey, budget_bytes: int, name: str) -> Way:
    """Return how our codec writes the adapter of a journey in at most so many bytes; ``settings`` are all that made the codec."""
    expected = tuple(specs_of(journey.shipped))
    return Way(
        name=name,
        key={"codec": codec.id, "settings": settings, "budget_bytes": budget_bytes},
        encode=lambda: codec.encode(journey.returned, budget_bytes=budget_bytes),
        decode=lambda blob: codec.decode(blob, expected),
    )


def specs_of(state: AdapterState) -> Sequence[TensorSpec]:
    """Return what describes the tensors of an adapter, by position of no block, which no codec looks at."""
    return [TensorSpec(name=name, shape=tensor.shape, dtype="F32", block=0) for name, tensor in state.tensors.items()]


def plain(config: msgspec.Struct) -> Json:
    """Return settings as what can stand in a key."""
    return dict(msgspec.to_builtins(config))
