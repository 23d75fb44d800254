"""An emulator as data: which original blocks stay and which are left out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import Digest

FORMAT = "hushtune-plan/1"
BLOCKS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Keep:
    """The block of this original index stands in the emulator as it is."""

    index: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The block of this original index is left out; its neighbours are joined."""

    index: int


Slot = Keep | Drop


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

    @staticmethod
    def keep_all(model: BaseModel, *, adapter: tuple[int, ...]) -> "Plan":
        """Return the plan whose emulator is the model itself."""
        slots = tuple(Keep(b) for b in range(model.block_count))
        return Plan(base=model.base_digest, adapter=adapter, slots=slots, method="keep_all")

    @property
    def kept(self) -> tuple[int, ...]:
        """Original indices of the blocks that stand in the emulator, in order."""
        return tuple(s.index for s in self.slots if isinstance(s, Keep))

    @property
    def dropped(self) -> tuple[int, ...]:
        """Original indices of the blocks left out."""
        return tuple(s.index for s in self.slots if isinstance(s, Drop))

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
                slots=tuple(Keep(s.block) if s.kind == "keep" else Drop(s.block) for s in body.slots),
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
            "slots": [{"kind": "keep" if isinstance(s, Keep) else "drop", "block": s.index} for s in self.slots],
            "method": self.method,
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "corpus": None if self.corpus is None else self.corpus.hex,
        }


class _SlotBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["keep", "drop"]
    block: int


class _PlanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["hushtune-plan/1"]
    base: str
    adapter: tuple[int, ...]
    slots: tuple[_SlotBody, ...]
    method: str
    parameters: dict[str, Any]
    seed: int
    corpus: str | None


def kept_positions(keep_count: int, *, of: int) -> tuple[int, ...]:
    """Return ``keep_count`` evenly spaced positions below ``of``, first and last included; halves round up.

    The index rule of the whole project, in exact integers. One position alone is the middle one; none is allowed.
    """
    if not 0 <= keep_count <= of:
        raise ValueError(f"cannot keep {keep_count} of {of} blocks")
    if keep_count == 1:
        return ((of - 1) // 2,)
    gaps = keep_count - 1
    return tuple((2 * k * (of - 1) + gaps) // (2 * gaps) for k in range(keep_count))
