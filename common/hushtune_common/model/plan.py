"""An emulator as data: what stands at each original position."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol

import msgspec

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Share, Slot, SlotBody, slot_body, slot_of

FORMAT = "hushtune-plan/2"
BLOCKS_MAX = 4096


class BaseModel(Protocol):
    """What a plan has to know of a model; equal digests mean equal numbers of blocks."""

    @property
    def base_digest(self) -> Digest:
        """What identifies the model."""
        ...

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What stands at each original position, and why.

    ``base`` identifies the model, ``corpus`` the public text that was looked at (absent for methods that look at none).
    ``parameters`` are the method's settings and the statistics behind its choice, as plain JSON. ``seed`` is 0 for methods that
    draw nothing. Laws: ``from_json(to_json())`` is the identity; the digest depends on the content only, never on the layout of
    the file; every adapter block is a `Keep`.
    """

    base: Digest
    adapter: tuple[int, ...]
    slots: tuple[Slot, ...]
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    corpus: Digest | None = None

    def __post_init__(self) -> None:
        """Check that slots are complete and in order, and that the adapter blocks are kept."""
        if not 1 <= len(self.slots) <= BLOCKS_MAX or [s.index for s in self.slots] != list(range(len(self.slots))):
            raise ValueError(f"a plan has one slot per block, in order, and at most {BLOCKS_MAX} of them")
        if not self.adapter or list(self.adapter) != sorted(set(self.adapter)):
            raise ValueError(f"adapter blocks are named once, in order, and there is at least one: {self.adapter}")
        strangers = set(self.adapter) - set(self.kept)
        if strangers:
            raise ValueError(f"adapter blocks stay as they are, but the plan has no Keep for {sorted(strangers)}")
        for slot in self.slots:
            if isinstance(slot, Share) and not (
                0 <= slot.source < len(self.slots) and isinstance(self.slots[slot.source], Keep | Compress)
            ):
                raise ValueError(f"block {slot.index} shares block {slot.source}, which is not in the emulator")

    @staticmethod
    def keep_all(model: BaseModel, *, adapter: tuple[int, ...]) -> "Plan":
        """Return the plan whose emulator is the model itself."""
        slots = tuple(Keep(b) for b in range(model.block_count))
        return Plan(base=model.base_digest, adapter=adapter, slots=slots, method="keep_all")

    @property
    def kept(self) -> tuple[int, ...]:
        """Original indices of the blocks that stand in the emulator as they are, in order."""
        return self._of(Keep)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Original indices of the blocks left out without anything in their place."""
        return self._of(Drop)

    @property
    def stored(self) -> tuple[int, ...]:
        """Original indices that have tensors of their own in the emulator, in order."""
        return self._of(Keep, Harmonize, Compress)

    @property
    def running(self) -> tuple[int, ...]:
        """Original indices at which the emulator computes something, in order."""
        return self._of(Keep, Share, Harmonize, Compress)

    def _of(self, *kinds: type[Slot]) -> tuple[int, ...]:
        return tuple(s.index for s in self.slots if isinstance(s, kinds))

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical JSON."""
        return Digest.of(self.to_json().encode())

    def to_json(self) -> str:
        """Return the canonical form: keys sorted, no spaces, ASCII."""
        return json.dumps(self._body(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def to_readable_json(self) -> str:
        """Return the same content laid out for people; it parses to an equal plan."""
        return json.dumps(self._body(), sort_keys=True, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "Plan":
        """Parse either form; `MalformedUpdate` says what is wrong."""
        try:
            body = msgspec.json.decode(text, type=_PlanBody)
            return Plan(
                base=Digest.from_hex(body.base),
                adapter=body.adapter,
                slots=tuple(slot_of(s) for s in body.slots),
                method=body.method,
                parameters=body.parameters,
                seed=body.seed,
                corpus=None if body.corpus is None else Digest.from_hex(body.corpus),
            )
        except (msgspec.DecodeError, ValueError) as error:
            raise MalformedUpdate(f"not a plan: {error}") from error

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "base": self.base.hex,
            "adapter": list(self.adapter),
            "slots": [slot_body(s) for s in self.slots],
            "method": self.method,
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "corpus": None if self.corpus is None else self.corpus.hex,
        }


class _PlanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["hushtune-plan/2"]
    base: str
    adapter: tuple[int, ...]
    slots: tuple[SlotBody, ...]
    method: str
    parameters: dict[str, Any]
    seed: int
    corpus: str | None


Rounding = Literal["half_up", "half_even", "floor"]


def kept_positions(keep_count: int, *, of: int, rounding: Rounding = "half_up") -> tuple[int, ...]:
    """Return ``keep_count`` evenly spaced positions below ``of``, first and last included.

    The index rule of the whole project, in exact integers: ``k (of - 1) / (keep_count - 1)``, rounded. Published code bases round
    halves to even or take the floor. One position alone is the middle one; none is allowed.
    """
    if not 0 <= keep_count <= of:
        raise ValueError(f"cannot keep {keep_count} of {of} blocks")
    if keep_count == 1:
        return ((of - 1) // 2,)
    gaps = keep_count - 1
    return tuple(_rounded(k * (of - 1), gaps, rounding=rounding) for k in range(keep_count))


def _rounded(top: int, bottom: int, *, rounding: Rounding) -> int:
    match rounding:
        case "half_up":
            return (2 * top + bottom) // (2 * bottom)
        case "half_even":
            return round(Fraction(top, bottom))
        case "floor":
            return top // bottom
