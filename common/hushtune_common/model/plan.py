"""An emulator as data: what stands at each original position."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, Protocol, cast

import msgspec

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Share, Slot, SlotBody, slot_body, slot_of

FORMAT = "hushtune-plan/2"
BLOCKS_MAX = 4096
INDICES_MAX = 1 << 22
"""Components and channels that a plan may name; compressing every matrix of a model of 70 billion weights takes fewer."""
TEXT_MAX = 16 << 20
"""Characters of a plan's JSON."""
_DEPTH_MAX = 32
_SEED_MAX = 1 << 63


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
        """Check that slots are complete and in order, and that adapter blocks are kept; ``ValueError`` names block and field."""
        if not 1 <= len(self.slots) <= BLOCKS_MAX or any(s.index != at for at, s in enumerate(self.slots)):
            raise ValueError(f"slots: a plan has one per block, in order, and 1 to {BLOCKS_MAX} of them")
        if not self.adapter or any(a >= b for a, b in pairwise(self.adapter)):
            raise ValueError("adapter: blocks are named once, in order, and there is at least one")
        strangers = set(self.adapter) - set(self.kept)
        if strangers:
            raise ValueError(f"adapter: these blocks stay as they are, but the plan has no Keep for block {min(strangers)}")
        for slot in self.slots:
            if isinstance(slot, Share):
                self._require_source(slot)
        if sum(s.index_count for s in self.slots if isinstance(s, Compress)) > INDICES_MAX:
            raise ValueError(f"slots: ranks and channels name more than {INDICES_MAX} indices")
        if not -_SEED_MAX <= self.seed < _SEED_MAX:
            raise ValueError("seed: takes 64 bits, signed")
        object.__setattr__(self, "parameters", _plain(self.parameters))

    def _require_source(self, slot: Share) -> None:
        source = self.slots[slot.source] if 0 <= slot.source < len(self.slots) else None
        if not isinstance(source, Keep | Compress):
            what = "does not exist" if source is None else f"is itself a {type(source).__name__} and has no tensors to copy"
            raise ValueError(f"block {slot.index}: source: block {slot.source} {what}")

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
        """Parse either form; `MalformedUpdate` says what is wrong. Takes at most some hundred megabytes, whatever the text."""
        try:
            if len(text) > TEXT_MAX:
                raise ValueError(f"{len(text)} characters, at most {TEXT_MAX} are allowed")
            body = msgspec.json.decode(text, type=_PlanBody)
            _require_small(body)
            return Plan(
                base=Digest.from_hex(body.base),
                adapter=body.adapter,
                slots=tuple(slot_of(s) for s in body.slots),
                method=body.method,
                parameters=body.parameters,
                seed=body.seed,
                corpus=None if body.corpus is None else Digest.from_hex(body.corpus),
            )
        except (ValueError, RecursionError) as error:
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


def _require_small(body: _PlanBody) -> None:
    # A few characters can stand for a million indices: count before anything is expanded.
    if len(body.slots) > BLOCKS_MAX or sum(s.index_count for s in body.slots) > INDICES_MAX:
        raise ValueError(f"slots: at most {BLOCKS_MAX}, with {INDICES_MAX} ranks and channels in all")


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON brings them back, so that reading a plan gives an equal one; ``ValueError`` when it cannot."""
    try:
        plain = msgspec.json.decode(json.dumps(dict(parameters), allow_nan=False), type=dict[str, Any])
        if _depth(plain) > _DEPTH_MAX:
            raise ValueError(f"nested deeper than {_DEPTH_MAX}")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"parameters: plain JSON only ({error})") from error
    return plain


def _depth(value: object) -> int:
    inside: list[object] = []
    if isinstance(value, dict):
        inside = list(cast(dict[str, object], value).values())
    elif isinstance(value, list):
        inside = cast(list[object], value)
    return 1 + max(map(_depth, inside), default=0)


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
