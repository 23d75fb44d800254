"""How many bytes does an encoded adapter have, in which format, and who makes them? As the scenario says."""

from collections.abc import Sequence
from math import ceil, floor

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.blockwise import BlockwiseCodec, blockwise_id, blockwise_overhead
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.config import CodecConfig
from hushtune_common.messages import TensorSpec


def codec_id(config: CodecConfig) -> str:
    """Return the id of the byte format, such as ``delta-b64-zstd/2``."""
    return blockwise_id(config)


def budget_bytes(schema: Sequence[TensorSpec], *, config: CodecConfig, share: float = 1.0) -> int:
    """Return the bytes of an encoded adapter that ``share`` (0 to 1) of a full update grants, from shapes alone.

    Increasing in ``share``; a full share is the codec's ``bytes_max``: ``config.bits`` per weight, and what a container needs
    beside them. ``ValueError`` for a share that is not above 0 and at most 1.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share lies above 0 and is at most 1, got {share}")
    weights = sum(spec.count for spec in schema)
    full = blockwise_overhead(schema, config=config) + ceil(config.bits * weights / 8)
    return max(1, floor(share * full))


def make_codec(config: CodecConfig, *, shipped: AdapterState, sensitivity: Sensitivity | None = None) -> AdapterCodec:
    """Return the codec of a scenario for one shipped adapter; both sides give the same ``sensitivity``, none is flat.

    ``ValueError`` for a sensitivity of other tensors. Integers with a scale per block have no use for one.
    """
    schema = [TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in shipped.tensors.items()]
    if sensitivity is not None:
        sensitivity.require_matches(schema)
    return BlockwiseCodec(shipped=shipped, config=config, bytes_max=budget_bytes(schema, config=config))
