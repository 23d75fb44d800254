"""The blockwise codec: what training changed, as the widest blockwise integers that fit the budget, zstandard behind them."""

from collections.abc import Mapping, Sequence
from math import inf, isinf
from typing import Final

import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.packing import pack_codes, packed_size, unpack_codes
from hushtune_common.codec.shipped import Shipped
from hushtune_common.codec.stages import WIDTHS, BlockQuantiser, EntropyCoder, join_planes, split_planes
from hushtune_common.config import CodecConfig
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

_Frame = bytes | memoryview
_SECTIONS_PER_TENSOR: Final = 2
"""Scales, then codes: mixed in one frame, each would spoil the other's statistics."""


def blockwise_id(config: CodecConfig) -> str:
    """Return the id of the byte format, such as ``delta-b64-zstd/2``.

    Bits and level are free: every container says its bits, and every decoder reads all levels.
    """
    return f"delta-b{config.block_size}-zstd/{container.VERSION}"


def blockwise_overhead(schema: Sequence[TensorSpec], *, config: CodecConfig) -> int:
    """Return the bytes that a blob may have beside its bits per weight: header, section lengths, frames of zstandard."""
    label = _label(config, shipped=Digest.of(b""), tensors=len(schema))
    return label.overhead + len(schema) * _SECTIONS_PER_TENSOR * (EntropyCoder.size_max(0) + 2)


class BlockwiseCodec:
    """Encodes an adapter as its difference from the ``shipped`` one, which both sides hold.

    Tensors travel in the order of their names, one at a time, so no second copy of the adapter is held. No change that is decoded
    exceeds ``change_max``.
    """

    def __init__(self, *, shipped: AdapterState, config: CodecConfig, bytes_max: int, change_max: float = inf) -> None:
        """Take the adapter both sides hold; ``ValueError`` names a tensor of it that is not finite."""
        self._shipped = Shipped(shipped)
        self._config = config
        self._bytes_max, self._change_max = bytes_max, change_max
        self._coder = EntropyCoder(level=config.level)
        self._label = _label(config, shipped=self._shipped.digest, tensors=len(self._shipped.tensors))

    @property
    def id(self) -> str:
        """Name and version of the byte format."""
        return self._label.codec

    @property
    def bytes_max(self) -> int:
        """Largest blob that is made or read, in bytes."""
        return self._bytes_max

    def encode(self, state: AdapterState, *, budget_bytes: int) -> bytes:
        """Return the blob of the widest codes that fit ``budget_bytes``, see `AdapterCodec`."""
        budget = min(budget_bytes, self._bytes_max)
        guess = int(8 * budget / max(1, state.count))
        for bits in range(min(WIDTHS[-1], guess + 2), WIDTHS[0] - 1, -1):  # entropy coding saves at least a bit or two
            blob = self.encode_at(state, bits=bits)
            if len(blob) <= budget:
                return blob
        raise BudgetTooSmall(least_bytes=self._least(state), budget_bytes=budget)

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors in the order of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        self._shipped.require_expected(expected)
        quantiser, frames = self._open(blob)
        decoded = {name: self._decode_tensor(name, quantiser, *frames[name])[0] for name in self._shipped.tensors}
        return AdapterState({spec.name: decoded[spec.name] for spec in expected})

    def bound(self, blob: bytes) -> Mapping[str, float]:
        """Return half the largest step of each tensor, and the rounding of difference, quotient, product and sum."""
        quantiser, frames = self._open(blob)
        return {name: self._bound_tensor(name, quantiser, *frames[name]) for name in self._shipped.tensors}

    def encode_at(self, state: AdapterState, *, bits: int) -> bytes:
        """Return the blob with codes of ``bits`` bits, from 2 to 8, whatever that takes; ``ValueError`` as `encode`."""
        self._shipped.require_same(state)
        state = self._near(state)
        quantiser = BlockQuantiser(bits=bits, block_size=self._config.block_size)
        sections: list[bytes] = []
        for name, shipped in self._shipped.tensors.items():
            try:
                scales, codes_n = quantiser.quantise(state.tensors[name].reshape(-1), shipped.reshape(-1))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            sections.append(self._coder.compress(split_planes(scales)))
            sections.append(self._coder.compress(pack_codes(codes_n, bits=bits)))
        return container.write(self._label, container.Contents(form=bits, sections=sections))

    def _near(self, state: AdapterState) -> AdapterState:
        """Return what is coded: near enough that rounding a block's scale up, by 2^-7 of it, leaves nothing beyond."""
        if isinf(self._change_max):
            return state
        inside = {n: self._change_max - 4.0 * self._shipped.rounding(n, change_max=self._change_max) for n in state.tensors}
        return self._shipped.within(state, change_max=max(0.0, min(inside.values()) * (1.0 - 2.0**-6)))

    def _least(self, state: AdapterState) -> int:
        """Return the least budget that suffices: mostly of the narrowest codes, but where all are alike a byte less of others."""
        least = len(self.encode_at(state, bits=WIDTHS[0]))
        for bits in WIDTHS[1:]:
            tried_from = -(-(bits - 2) * state.count // 8)
            if tried_from < least:
                least = min(least, max(tried_from, len(self.encode_at(state, bits=bits))))
        return least

    def _open(self, blob: bytes) -> tuple[BlockQuantiser, dict[str, tuple[_Frame, _Frame]]]:
        """Return the quantiser that a blob names and its frames of scales and codes, nothing unpacked yet."""
        contents = container.read(blob, label=self._label, bytes_max=self._bytes_max)
        if contents.form not in WIDTHS:
            raise MalformedUpdate(f"{contents.form} bits per weight, expected {WIDTHS.start} to {WIDTHS[-1]}")
        pairs = zip(contents.sections[::2], contents.sections[1::2], strict=True)
        frames = dict(zip(self._shipped.tensors, pairs, strict=True))
        return BlockQuantiser(bits=contents.form, block_size=self._config.block_size), frames

    def _bound_tensor(self, name: str, quantiser: BlockQuantiser, scale_frame: _Frame, code_frame: _Frame) -> float:
        restored, scale = self._decode_tensor(name, quantiser, scale_frame, code_frame)
        # Each of difference, quotient and product rounds at most 2^-24 of a value that is no larger than the largest code's;
        # the sum 2^-24 of itself. A library may have set the processor to flush subnormals, then a whole block below is lost.
        rounding = 2.0**-23 * float(np.abs(restored).max()) + 2.0**-118
        return scale * (0.5 + 3 * (quantiser.code_max + 1) * 2.0**-24) * (1.0 + 2.0**-20) + rounding

    def _decode_tensor(
        self, name: str, quantiser: BlockQuantiser, scale_frame: _Frame, code_frame: _Frame
    ) -> tuple[Float32, float]:
        """Return a tensor and its largest scale."""
        shipped = self._shipped.tensors[name]
        scale_bytes, code_bytes = _section_sizes(shipped.size, quantiser)
        restored = np.empty(shipped.shape, dtype=np.float32)
        try:
            scales = join_planes(self._coder.decompress(scale_frame, size=scale_bytes))
            packed = self._coder.decompress(code_frame, size=code_bytes)
            codes_n = unpack_codes(packed, shipped.size, bits=quantiser.bits)
            largest = quantiser.restore(scales, codes_n, shipped.reshape(-1), out=restored.reshape(-1))
        except MalformedUpdate as error:
            raise MalformedUpdate(f"{name}: {error}") from error
        return restored, largest


def _label(config: CodecConfig, *, shipped: Digest, tensors: int) -> container.Label:
    return container.Label(codec=blockwise_id(config), shipped=shipped, sections=_SECTIONS_PER_TENSOR * tensors)


def _section_sizes(count: int, quantiser: BlockQuantiser) -> tuple[int, int]:
    """Return the bytes of scales and codes of ``count`` elements before entropy coding."""
    return 2 * quantiser.block_count(count), packed_size(count, bits=quantiser.bits)


_conforms: type[AdapterCodec] = BlockwiseCodec
