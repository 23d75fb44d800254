"""The delta codec: what training changed, as blockwise integers, entropy coded."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Final

import numpy as np

from hushtune_common.adapter import AdapterState
from hushtune_common.codec import container
from hushtune_common.codec.blockwise import BlockwiseCodec, blockwise_overhead
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.packing import pack_codes, packed_size, unpack_codes
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.codec.shipped import state_digest
from hushtune_common.codec.stages import WIDTHS, BlockQuantiser, EntropyCoder, join_planes, split_planes
from hushtune_common.config import CodecConfig
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

_Frame = bytes | memoryview
_SECTIONS_PER_TENSOR: Final = 2
"""Scales, then codes: mixed in one frame, each would spoil the other's statistics."""


def codec_id(config: CodecConfig) -> str:
    """Return the id of the byte format, such as ``delta-b64-zstd/2``.

    Bits and level are free: every container says its bits, and every decoder reads all levels.
    """
    return f"delta-b{config.block_size}-zstd/{container.VERSION}"


def size_bits(schema: Sequence[TensorSpec], *, bits: int, config: CodecConfig) -> int:
    """Return the most bits of an encoded adapter at ``bits`` bits per weight, from its shapes alone.

    Nothing is taken off for entropy coding, which on bell-shaped deltas saves about 1 bit per weight. In ``bits`` the result is
    a straight line but for rounding: weights times bits, plus scales and headers. ``ValueError`` for bits that no code has.
    """
    sizes = [spec.count for spec in schema]
    return 8 * _bytes_max(
        sizes, label=_label(config, shipped=Digest.of(b""), tensors=len(sizes)), quantiser=_quantiser(config, bits)
    )


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
    """Return the codec of a scenario for one shipped adapter; both sides give the same ``sensitivity``, none is flat."""
    schema = [TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in shipped.tensors.items()]
    if sensitivity is not None:
        sensitivity.require_matches(schema)
    return BlockwiseCodec(shipped=shipped, config=config, bytes_max=budget_bytes(schema, config=config))


class DeltaCodec:
    """Encodes an adapter as its difference from the ``shipped`` one, which both sides hold.

    Tensors travel in the order of their names, one at a time, so no second copy of the adapter is held.
    """

    def __init__(self, *, shipped: AdapterState, config: CodecConfig) -> None:
        """Take the adapter both sides hold; ``ValueError`` names a tensor of it that is not finite."""
        for name, tensor in shipped.tensors.items():
            if not np.isfinite(tensor).all():
                raise ValueError(f"{name}: the shipped tensor holds values that are not finite")
        self._shipped = dict(sorted(shipped.tensors.items()))
        self._config = config
        self._coder = EntropyCoder(level=config.level)
        self._label = _label(config, shipped=state_digest(shipped), tensors=len(self._shipped))

    @property
    def id(self) -> str:
        """Name and version of the byte format."""
        return self._label.codec

    @property
    def bits_max(self) -> int:
        """Most bits per weight that a blob may spend."""
        return self._config.bits

    @property
    def bytes_max(self) -> int:
        """Largest blob that ``encode`` can make with any bits, in bytes; known from the shapes alone."""
        return self._size_max(self.bits_max)

    def encode(self, state: AdapterState, *, bits: int) -> bytes:
        """Return the blob with codes of ``bits`` bits; ``ValueError`` names a tensor that is not finite or not of this adapter.

        ``ValueError`` also for bits below 2 or above `bits_max`.
        """
        self._require_same_shapes(state)
        quantiser = self._quantiser(bits)
        sections: list[bytes] = []
        for name, shipped in self._shipped.items():
            try:
                scales, codes_n = quantiser.quantise(state.tensors[name].reshape(-1), shipped.reshape(-1))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            sections.append(self._coder.compress(split_planes(scales)))
            sections.append(self._coder.compress(pack_codes(codes_n, bits=bits)))
        return container.write(self._label, container.Contents(bits=bits, sections=sections))

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors in the order of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make.

        The blob says its bits per weight, from 2 to `bits_max`; others are refused before anything is unpacked. ``expected`` is
        ours and must describe the shipped adapter; ``ValueError`` otherwise.
        """
        if {spec.name: spec.shape for spec in expected} != {name: t.shape for name, t in self._shipped.items()}:
            raise ValueError("the expected tensors are not those of the shipped adapter")
        contents = container.read(blob, label=self._label, bytes_max=self.bytes_max)
        if contents.bits not in WIDTHS or contents.bits > self.bits_max:
            raise MalformedUpdate(f"{contents.bits} bits per weight, expected {WIDTHS.start} to {self.bits_max}")
        if len(blob) > self._size_max(contents.bits):
            raise MalformedUpdate(f"{len(blob)} bytes are too many at {contents.bits} bits per weight")
        quantiser, sections = self._quantiser(contents.bits), iter(contents.sections)
        decoded = {name: self._decode_tensor(name, quantiser, next(sections), next(sections)) for name in self._shipped}
        return AdapterState({spec.name: decoded[spec.name] for spec in expected})

    def bound(self, state: AdapterState, *, bits: int) -> AdapterState:
        """Return the largest error of each element of ``decode(encode(state, bits=bits))``, in the shapes of ``state``."""
        self._require_same_shapes(state)
        quantiser = self._quantiser(bits)
        return AdapterState(
            {
                name: quantiser.bound(tensor.reshape(-1), self._shipped[name].reshape(-1)).reshape(tensor.shape)
                for name, tensor in state.tensors.items()
            }
        )

    def _decode_tensor(
        self, name: str, quantiser: BlockQuantiser, scale_frame: _Frame, code_frame: _Frame
    ) -> np.ndarray[tuple[int, ...]]:
        shipped = self._shipped[name]
        scale_bytes, code_bytes = _section_sizes(shipped.size, quantiser)
        restored = np.empty(shipped.shape, dtype=np.float32)
        try:
            scales = join_planes(self._coder.decompress(scale_frame, size=scale_bytes))
            packed = self._coder.decompress(code_frame, size=code_bytes)
            codes_n = unpack_codes(packed, shipped.size, bits=quantiser.bits)
            quantiser.restore(scales, codes_n, shipped.reshape(-1), out=restored.reshape(-1))
        except MalformedUpdate as error:
            raise MalformedUpdate(f"{name}: {error}") from error
        return restored

    def _quantiser(self, bits: int) -> BlockQuantiser:
        if bits > self.bits_max:
            raise ValueError(f"codec.bits allows {self.bits_max} bits per weight, asked for {bits}")
        return _quantiser(self._config, bits)

    def _size_max(self, bits: int) -> int:
        """Return the largest blob with codes of ``bits`` bits."""
        sizes = [tensor.size for tensor in self._shipped.values()]
        return _bytes_max(sizes, label=self._label, quantiser=self._quantiser(bits))

    def _require_same_shapes(self, state: AdapterState) -> None:
        for name in self._shipped.keys() | state.tensors.keys():
            shipped, found = self._shipped.get(name), state.tensors.get(name)
            if shipped is None or found is None or shipped.shape != found.shape:
                raise ValueError(f"{name}: not the same tensor in the shipped and in the returned adapter")


def _label(config: CodecConfig, *, shipped: Digest, tensors: int) -> container.Label:
    return container.Label(codec=codec_id(config), shipped=shipped, sections=_SECTIONS_PER_TENSOR * tensors)


def _quantiser(config: CodecConfig, bits: int) -> BlockQuantiser:
    return BlockQuantiser(bits=bits, block_size=config.block_size)


def _section_sizes(count: int, quantiser: BlockQuantiser) -> tuple[int, int]:
    """Return the bytes of scales and codes of ``count`` elements before entropy coding."""
    return 2 * quantiser.block_count(count), packed_size(count, bits=quantiser.bits)


def _bytes_max(counts: Sequence[int], *, label: container.Label, quantiser: BlockQuantiser) -> int:
    """Return the longest container of tensors with so many elements."""
    sections = (size for count in counts for size in _section_sizes(count, quantiser))
    return label.overhead + sum(EntropyCoder.size_max(size) for size in sections)
