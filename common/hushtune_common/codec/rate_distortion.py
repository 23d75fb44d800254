"""The rate-distortion codec: to the byte granted, the change of an adapter with the least harm to the plug-in.

What travels is the change in the coordinates of `Coordinates`, quantised per class of columns (`classes`, `levels`) and entropy
coded (`entropy`). One number, theta, decides the precision of everything; it is found from the variances of the columns, then
from a census of the codes, and only then is anything written. Given more bytes than all bits take, all bits travel.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, inf, isinf
from typing import Final

import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec import container, lossless
from hushtune_common.codec.body import SECTIONS, Body, top_within
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.search import Field, size_of, sized
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.codec.shipped import Shipped
from hushtune_common.errors import BudgetTooSmall, MalformedUpdate
from hushtune_common.messages import Digest, TensorSpec

RATE_DISTORTION_ID: Final = "delta-turned-ans/1"
CHANGE_MAX: Final = 2.0**100
"""Largest difference that is encoded; beyond it a weighed number could leave float32."""
_QUANTISED: Final = 0
_LOSSLESS_FROM: Final = 14.0
"""Bits per weight below which no adapter that was trained is written without loss; nothing is tried there."""


def rate_distortion_overhead(schema: Sequence[TensorSpec]) -> int:
    """Return the bytes that a blob may have beside its bits per weight: header and tables of classes."""
    return _label(base=Digest.of(b"")).overhead + 64 + 32 * len(schema)


class RateDistortionCodec:
    """See the module, and `AdapterCodec`. Equal inputs give equal bytes; nothing is drawn.

    Tensors travel in the order of their names. Beside the adapter one copy of its size is held while encoding. With ``feedback``
    values are not scaled up: what an update lacks is added to the next one anyway, and errors that exceed the change itself, as
    small budgets would otherwise make them, would pile up from round to round. No change that is written exceeds ``change_max``:
    that is where a decoder is told to cut off, if the largest change lies beyond. Decoders need not know either.
    """

    def __init__(
        self,
        *,
        shipped: AdapterState,
        sensitivity: Sensitivity,
        bytes_max: int,
        feedback: bool = False,
        change_max: float = inf,
    ) -> None:
        """Take what both sides hold; ``ValueError`` names a shipped tensor that is not finite, or without a sensitivity."""
        self._raised, self._change_max = not feedback, change_max
        self._shipped = Shipped(shipped)
        sensitivity.require_matches(self._shipped.schema)
        self._coordinates = {n: Coordinates.of(t.shape, sensitivity.tensors[n]) for n, t in self._shipped.tensors.items()}
        self._bytes_max = bytes_max
        self._label = _label(base=Digest.of(self._shipped.digest.value + sensitivity.digest.value))

    @property
    def id(self) -> str:
        """Name and version of the byte format."""
        return self._label.codec

    @property
    def bytes_max(self) -> int:
        """Largest blob that is made or read, in bytes."""
        return self._bytes_max

    def encode(self, state: AdapterState, *, budget_bytes: int) -> bytes:
        """Return a blob of at most ``budget_bytes``, see `AdapterCodec`; seldom more than 1 % shorter."""
        self._shipped.require_same(state)
        state = self._shipped.within(state, change_max=self._change_max)
        budget = min(budget_bytes, self._bytes_max)
        fields = [self._field(n, state.tensors[n]) for n in self._shipped.tensors]
        if (whole := self._whole(state, budget=budget)) is not None:
            return whole
        body = sized(fields, bytes_max=budget - self._label.overhead, raised=self._raised)
        if body is None:
            raise BudgetTooSmall(least_bytes=self._least(state), budget_bytes=budget)
        body = body.cut_off([self._top(n, state.tensors[n]) for n in self._shipped.tensors])
        return self._written(body.bounded(self._errors(state, body)))

    def decode(self, blob: bytes, expected: tuple[TensorSpec, ...]) -> AdapterState:
        """Return the tensors in the order of ``expected``; ``MalformedUpdate`` for bytes that ``encode`` does not make."""
        self._shipped.require_expected(expected)
        contents = container.read(blob, label=self._label, bytes_max=self._bytes_max)
        if contents.form in lossless.FORMS:
            decoded = lossless.read(self._shipped, contents)
        else:
            decoded = dict(self._restored(self._body(contents)))
        return AdapterState({spec.name: decoded[spec.name] for spec in expected})

    def bound(self, blob: bytes) -> Mapping[str, float]:
        """Return what the encoder found when it decoded the blob itself, rounded up, with room for another machine's rounding."""
        contents = container.read(blob, label=self._label, bytes_max=self._bytes_max)
        if contents.form in lossless.FORMS:
            return dict.fromkeys(lossless.read(self._shipped, contents), 0.0)
        body = self._body(contents)
        bounds = dict(zip(self._shipped.tensors, body.head.bounds, strict=True))
        for _ in self._restored(body):
            pass  # what cannot be decoded has no bound either
        return bounds

    def _whole(self, state: AdapterState, *, budget: int) -> bytes | None:
        """Return a blob with all bits, if there is any chance that it fits, and it does."""
        if 8 * budget < _LOSSLESS_FROM * state.count:
            return None
        blob = lossless.encode(self._shipped, state, label=self._label)
        return blob if len(blob) <= budget else None

    def _least(self, state: AdapterState) -> int:
        """Return the least budget that suffices: of silence, or of all bits where there are hardly any."""
        silence = self._label.overhead + size_of(Body.silent(list(self._coordinates.values())))
        whole = self._whole(state, budget=silence)
        return silence if whole is None else max(len(whole), ceil(_LOSSLESS_FROM * state.count / 8))

    def _field(self, name: str, returned: Float32) -> Field:
        """Return the change of one tensor in its coordinates."""
        with np.errstate(over="ignore", invalid="ignore"):
            change = returned - self._shipped.tensors[name]
        if not (change.min() >= -CHANGE_MAX and change.max() <= CHANGE_MAX):
            raise ValueError(f"{name}: holds values that are not finite, or differences beyond 2**100")
        turned = np.empty(change.size, dtype=np.float32)
        self._coordinates[name].forth(change, out=turned)
        field = Field.of(self._coordinates[name], turned)
        if not np.isfinite(field.variances).all():
            raise ValueError(f"{name}: holds differences that leave float32 when weighed by their sensitivity")
        return field

    def _top(self, name: str, returned: Float32) -> float:
        """Return where a decoder is to cut off: at the largest change, or where what it makes of one is sure to be allowed."""
        largest = _largest(returned, less=self._shipped.tensors[name])
        if isinf(self._change_max):
            return largest
        return min(largest, top_within(self._change_max - self._shipped.rounding(name, change_max=self._change_max)))

    def _body(self, contents: container.Contents) -> Body:
        if contents.form != _QUANTISED:
            raise MalformedUpdate(f"form {contents.form}, expected one of {(_QUANTISED, *lossless.FORMS)}")
        return Body.read(contents.sections, list(self._coordinates.values()))

    def _written(self, body: Body) -> bytes:
        return container.write(self._label, container.Contents(form=_QUANTISED, sections=body.sections()))

    def _restored(self, body: Body) -> Iterator[tuple[str, Float32]]:
        """Yield the tensors of a body; ``MalformedUpdate`` for what is not finite."""
        for (name, shipped), turned, top in zip(self._shipped.tensors.items(), body.turned(), body.head.tops, strict=True):
            change = self._coordinates[name].back(turned, scale=body.head.root)
            # Nothing moved farther than the farthest weight did: whoever cuts off there only comes nearer.
            np.clip(change, np.float32(-top), np.float32(top), out=change)
            with np.errstate(over="ignore", invalid="ignore"):
                np.add(change, shipped, out=change)
            if not np.isfinite(change).all():
                raise MalformedUpdate(f"{name}: holds values that are not finite")
            yield name, change

    def _errors(self, state: AdapterState, body: Body) -> list[float]:
        """Return the largest error of each tensor, and room for a decoder that rounds otherwise than this machine."""
        found: list[float] = []
        for name, restored in self._restored(body):
            wanted, shipped = state.tensors[name], self._shipped.tensors[name]
            largest = max(_largest(restored), _largest(shipped))
            change = _largest(restored, less=shipped)
            found.append(_largest(restored, less=wanted) * (1.0 + 2.0**-20) + 2.0**-22 * largest + 2.0**-16 * change)
        return found


def _largest(tensor: Float32, *, less: Float32 | None = None) -> float:
    """Return the largest magnitude of a tensor, or of its difference from another."""
    difference = tensor if less is None else tensor - less
    return max(float(difference.max()), -float(difference.min()))


def _label(*, base: Digest) -> container.Label:
    return container.Label(codec=RATE_DISTORTION_ID, shipped=base, sections=SECTIONS)


_conforms: type[AdapterCodec] = RateDistortionCodec
