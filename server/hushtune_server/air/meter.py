"""What did the tap's receiver get out of the bits on air? Only the air can tell, since it knows the noise.

Figures for the referee and for plots: never for a listener, and no proof of secrecy, only a check that the tap's channel was as
the design assumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hushtune_common.link.abstraction import Fading
from hushtune_common.link.frame import FrameChunk, FrameReader
from hushtune_common.link.kernels import spread
from hushtune_common.link.modem import Path, densities, received
from hushtune_common.messages import Listener, Transmission
from hushtune_common.seeding import SeedTree
from hushtune_server.air.bit_exact import codewords_of, path_of
from hushtune_server.air.medium import Gains

Floats = NDArray[np.float64]

_POINTS_MAX = 256
_POINT_DIGITS = 3
_STEP_BITS = 0.1


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """Realised information density at the tap, one value per hash block, in tenths of a bit.

    Packed as little-endian 32-bit integers: listed, those of a large frame would not fit into an event of the journal.
    """

    tenths: bytes

    @staticmethod
    def of(values_bits: Floats) -> "Meter":
        """Return the meter of values (blocks,)."""
        return Meter(tenths=np.rint(values_bits / _STEP_BITS).astype("<i4").tobytes())

    @property
    def values_bits(self) -> Floats:
        """The values, (blocks,)."""
        return np.frombuffer(self.tenths, dtype="<i4") * _STEP_BITS

    def report(self) -> dict[str, Any]:
        """Return the referee's form."""
        values = self.values_bits
        return {
            "blocks": int(values.size),
            "mean_bits": float(values.mean()),
            "sd_bits": float(values.std()),
            "max_bits": float(values.max()),
            "values_bits": [round(float(v), 1) for v in values],
        }


class Constellation(msgspec.Struct, frozen=True, kw_only=True):
    """The first points of the first codeword as both receivers got them: in-phase and quadrature, phase equalised."""

    main: tuple[tuple[float, float], ...]
    tap: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Looks at one transmission with the noise that its listeners will hear."""

    transmission: Transmission
    gains: Gains
    fading: Fading
    seeds: SeedTree
    threads: int = 1

    def meter(self, frame: FrameReader, *, blocks: int) -> Meter | None:
        """Return the density of the first ``blocks`` coded blocks at the tap; None when there are none."""
        parts: list[Floats] = []
        for chunk in _coded_chunks(frame, self.transmission):
            if blocks <= 0:
                break
            parts.append(self._densities(chunk, blocks=min(blocks, len(chunk.rows))))
            blocks -= parts[-1].size
        return Meter.of(np.concatenate(parts)) if parts else None

    def constellation(self, frame: FrameReader) -> Constellation | None:
        """Return received points of the first coded block; None when there is none."""
        chunk = next(_coded_chunks(frame, self.transmission), None)
        if chunk is None:
            return None
        return Constellation(main=self._points(chunk, Listener.MAIN), tap=self._points(chunk, Listener.TAP))

    def _path(self, chunk: FrameChunk, listener: Listener) -> Path:
        gain = self.gains.of(listener)
        order = self.transmission
        return path_of(chunk, listener=listener, transmission=order, gain=gain, fading=self.fading, seeds=self.seeds)

    def _densities(self, chunk: FrameChunk, *, blocks: int) -> Floats:
        design, path = self.transmission.design, self._path(chunk, Listener.TAP)
        words, dither = codewords_of(chunk.rows[:blocks], self.transmission)
        out = np.empty(len(words))

        def work(start: int, stop: int) -> None:
            some = _part(path, start, stop)
            out[start:stop] = densities(words[start:stop], dither=dither, modulation=design.modulation, path=some)

        spread(work, count=len(words), threads=self.threads)
        return out.reshape(blocks, design.codewords).sum(axis=1)

    def _points(self, chunk: FrameChunk, listener: Listener) -> tuple[tuple[float, float], ...]:
        words, dither = codewords_of(chunk.rows[:1], self.transmission)
        path, modulation = _part(self._path(chunk, listener), 0, 1), self.transmission.design.modulation
        points = received(words[:1], dither=dither, modulation=modulation, path=path)[0, :_POINTS_MAX]
        return tuple((round(float(z.real), _POINT_DIGITS), round(float(z.imag), _POINT_DIGITS)) for z in points)


def _part(path: Path, start: int, stop: int) -> Path:
    """Return the channel of the codewords ``start`` to ``stop`` of a run."""
    return replace(path, gains=None if path.gains is None else path.gains[start:stop], first=path.first + start)


def _coded_chunks(frame: FrameReader, transmission: Transmission) -> Iterator[FrameChunk]:
    if not frame.layout.coded_count:
        return
    for number in range(frame.chunk_count(transmission.design)):
        chunk = frame.chunk(number, design=transmission.design)
        if len(chunk.rows):
            yield chunk
