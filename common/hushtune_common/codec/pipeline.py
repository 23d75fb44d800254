"""The delta codec: what training changed, as blockwise integers, entropy coded."""

import hashlib
from typing import Final

import numpy as np

from hushtune_common.adapter import AdapterState
from hushtune_common.codec import container
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.stages import (
    BlockQuantiser,
    EntropyCoder,
    join_planes,
    pack_codes,
    packed_size,
    split_planes,
    unpack_codes,
)
from hushtune_common.config import CodecConfig
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

_SECTIONS_PER_TENSOR: Final = 2
"""Scales, then codes: mixed in one frame, each would spoil the other's statistics."""


def codec_id(config: CodecConfig) -> str:
    """Return the id of the byte format, such as ``delta-int8-b64-zstd/1``; the level is free, as every decoder reads them all."""
    return f"delta-int{config.bits}-b{config.block_size}-zstd/{container.VERSION}"


def state_digest(state: AdapterState) -> Digest:
    """Return the digest of names, shapes and values; the order of the mapping does not matter."""
    digest = hashlib.sha256(b"hushtune/adapter/1")
    for name in sorted(state.tensors):
        tensor = state.tensors[name]
        label = f"{name}\n{','.join(str(d) for d in tensor.shape)}\n".encode()
        digest.update(len(label).to_bytes(4, "little") + label)
        digest.update(tensor.data.cast("B"))
    return Digest(digest.digest())


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
        self._quantiser = BlockQuantiser(bits=config.bits, block_size=config.block_size)
        self._coder = EntropyCoder(level=config.level)
        self._label = container.Label(
            codec=codec_id(config), shipped=state_digest(shipped), sections=_SECTIONS_PER_TENSOR * len(self._shipped)
        )
        sizes = [size for tensor in self._shipped.values() for size in self._section_sizes(tensor.size)]
        self._bytes_max = self._label.overhead + sum(EntropyCoder.size_max(size) for size in sizes)

    @property
    def id(self) -> str:
        """Name and version of the byte format."""
        return self._label.codec

    @property
    def bytes_max(self) -> int:
        """Largest blob that ``encode`` can make, in bytes; known from the shapes alone."""
        return self._bytes_max

    def encode(self, state: AdapterState) -> bytes:
        """Return the blob; ``ValueError`` names a tensor that is not finite or not of this adapter."""
        self._require_same_shapes(state)
        sections: list[bytes] = []
        for name, shipped in self._shipped.items():
            try:
                scales, codes_n = self._quantiser.quantise(state.tensors[name].reshape(-1), shipped.reshape(-1))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            sections.append(self._coder.compress(split_planes(scales)))
            sections.append(self._coder.compress(pack_codes(codes_n, bits=self._quantiser.bits)))
        return container.write(self._label, sections)

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors in the order of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make.

        ``expected`` is ours and must describe the shipped adapter; ``ValueError`` otherwise.
        """
        if {spec.name: spec.shape for spec in expected} != {name: t.shape for name, t in self._shipped.items()}:
            raise ValueError("the expected tensors are not those of the shipped adapter")
        sections = iter(container.read(blob, label=self._label, bytes_max=self._bytes_max))
        decoded = {name: self._decode_tensor(name, next(sections), next(sections)) for name in self._shipped}
        return AdapterState({spec.name: decoded[spec.name] for spec in expected})

    def bound(self, state: AdapterState) -> AdapterState:
        """Return the largest error of each element of ``decode(encode(state))``, in the shapes of ``state``."""
        self._require_same_shapes(state)
        return AdapterState(
            {
                name: self._quantiser.bound(tensor.reshape(-1), self._shipped[name].reshape(-1)).reshape(tensor.shape)
                for name, tensor in state.tensors.items()
            }
        )

    def _decode_tensor(self, name: str, scale_frame: memoryview, code_frame: memoryview) -> np.ndarray[tuple[int, ...]]:
        shipped = self._shipped[name]
        scale_bytes, code_bytes = self._section_sizes(shipped.size)
        restored = np.empty(shipped.shape, dtype=np.float32)
        try:
            scales = join_planes(self._coder.decompress(scale_frame, size=scale_bytes))
            packed = self._coder.decompress(code_frame, size=code_bytes)
            codes_n = unpack_codes(packed, shipped.size, bits=self._quantiser.bits)
            self._quantiser.restore(scales, codes_n, shipped.reshape(-1), out=restored.reshape(-1))
        except MalformedUpdate as error:
            raise MalformedUpdate(f"{name}: {error}") from error
        return restored

    def _section_sizes(self, count: int) -> tuple[int, int]:
        """Return the bytes of scales and codes of ``count`` elements before entropy coding."""
        return 2 * self._quantiser.block_count(count), packed_size(count, bits=self._quantiser.bits)

    def _require_same_shapes(self, state: AdapterState) -> None:
        for name in self._shipped.keys() | state.tensors.keys():
            shipped, found = self._shipped.get(name), state.tensors.get(name)
            if shipped is None or found is None or shipped.shape != found.shape:
                raise ValueError(f"{name}: not the same tensor in the shipped and in the returned adapter")


_conforms: type[AdapterCodec] = DeltaCodec
