"""How many bytes does an encoded adapter have, in which format, and who makes them? As the scenario says."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil, floor, inf

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec.blockwise import BlockwiseCodec, blockwise_id, blockwise_overhead
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.jopeq import JopeqCodec, jopeq_bytes_max, jopeq_id
from hushtune_common.codec.lossless import LOSSLESS_ID, LosslessCodec, lossless_bytes_max
from hushtune_common.codec.low_rank import LowRankCodec, low_rank_id, low_rank_overhead
from hushtune_common.codec.rate_distortion import RATE_DISTORTION_ID, RateDistortionCodec, rate_distortion_overhead
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.config import CodecConfig, NoiseConfig
from hushtune_common.messages import TensorSpec


def codec_id(config: CodecConfig) -> str:
    """Return the id of the byte format, such as ``delta-turned-ans/1``."""
    inner = _inner_id(config)
    return low_rank_id(inner, rank=config.rank) if config.rank else inner


def _inner_id(config: CodecConfig) -> str:
    match config.kind:
        case "rate_distortion":
            return RATE_DISTORTION_ID
        case "blockwise":
            return blockwise_id(config)
        case "lossless":
            return LOSSLESS_ID
        case "jopeq":
            return jopeq_id(_noise(config))


def weighs_errors(config: CodecConfig) -> bool:
    """Return whether the codec makes use of a sensitivity, so that the emulator has to bring one."""
    return config.kind == "rate_distortion"


def budget_bytes(schema: Sequence[TensorSpec], *, config: CodecConfig, share: float = 1.0) -> int:
    """Return the bytes of an encoded adapter that ``share`` (0 to 1) of a full update grants, from shapes alone.

    Increasing in ``share``; a full share is the codec's ``bytes_max``: ``config.bits`` per weight, and what a container needs
    beside them; without loss, four bytes per weight. ``ValueError`` for a share that is not above 0 and at most 1.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share lies above 0 and is at most 1, got {share}")
    return max(1, floor(share * _bytes_max(schema, config=config)))


def make_codec(
    config: CodecConfig,
    *,
    shipped: AdapterState,
    sensitivity: Sensitivity | Mapping[str, Float32] | None = None,
    feedback: bool = False,
    change_max: float = inf,
) -> AdapterCodec:
    """Return the codec of a scenario for one shipped adapter; both sides give the same ``sensitivity``, none is flat.

    It may be given as the arrays that came with an emulator. `MalformedUpdate` when these are none, ``ValueError`` for a
    sensitivity of other tensors. Codecs that do not weigh errors make no use of one. ``feedback`` says that whoever encodes adds
    what is lost to its next update; whoever decodes need not know. No number of what is decoded lies further than ``change_max``
    from the shipped one: whoever encodes sees to that, or with noise whoever decodes, so say it at both ends.
    """
    schema = [TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in shipped.tensors.items()]
    known = _known(sensitivity, schema)
    bytes_max = budget_bytes(schema, config=config)
    if config.rank:
        make = partial(_inner, config, feedback=feedback)
        standing = config.kind == "rate_distortion"
        return LowRankCodec(
            shipped=shipped,
            sensitivity=known,
            rank=config.rank,
            make=make,
            standing=standing,
            bytes_max=bytes_max,
            change_max=change_max,
        )
    return _inner(config, shipped, known, bytes_max, change_max, feedback=feedback)


def _inner(
    config: CodecConfig,
    shipped: AdapterState,
    sensitivity: Sensitivity,
    bytes_max: int,
    change_max: float = inf,
    *,
    feedback: bool,
) -> AdapterCodec:
    match config.kind:
        case "rate_distortion":
            return RateDistortionCodec(
                shipped=shipped, sensitivity=sensitivity, bytes_max=bytes_max, feedback=feedback, change_max=change_max
            )
        case "blockwise":
            return BlockwiseCodec(shipped=shipped, config=config, bytes_max=bytes_max, change_max=change_max)
        case "lossless":
            return LosslessCodec(shipped=shipped, change_max=change_max)
        case "jopeq":
            return JopeqCodec(shipped=shipped, config=_noise(config), bytes_max=bytes_max, change_max=change_max)


def _known(sensitivity: Sensitivity | Mapping[str, Float32] | None, schema: Sequence[TensorSpec]) -> Sensitivity:
    if sensitivity is None:
        return Sensitivity.flat(schema)
    if not isinstance(sensitivity, Sensitivity):
        return Sensitivity.from_arrays(sensitivity, schema)
    sensitivity.require_matches(schema)
    return sensitivity


def _bytes_max(schema: Sequence[TensorSpec], *, config: CodecConfig) -> int:
    # Of the least share that a codec is sure to fit, the second header must fit as well; no codec with one takes under 1 bit.
    twice = ceil(max(1.0, config.bits) * low_rank_overhead(_inner_id(config), rank=config.rank)) if config.rank else 0
    return twice + _inner_bytes_max(schema, config=config)


def _inner_bytes_max(schema: Sequence[TensorSpec], *, config: CodecConfig) -> int:
    weights = ceil(config.bits * sum(spec.count for spec in schema) / 8)
    match config.kind:
        case "rate_distortion":
            return rate_distortion_overhead(schema) + weights
        case "blockwise":
            return blockwise_overhead(schema, config=config) + weights
        case "lossless":
            return lossless_bytes_max(schema)
        case "jopeq":
            return jopeq_bytes_max(schema, config=_noise(config), bits=config.bits)


def _noise(config: CodecConfig) -> NoiseConfig:
    """Return the noise that a checked configuration of ``jopeq`` has."""
    if config.noise is None:
        raise ValueError("jopeq without noise")
    return config.noise
