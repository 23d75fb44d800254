"""What can stand at one original position of an emulator?"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, Literal, cast

import msgspec

INDEX_MAX = 1 << 20
Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class Keep:
    """The block of this original index stands in the emulator as it is."""

    index: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The block of this original index is left out; its neighbours are joined."""

    index: int


@dataclass(frozen=True, slots=True)
class Share:
    """A frozen copy of the block ``source`` stands in for this one; only the source travels."""

    index: int
    source: int


@dataclass(frozen=True, slots=True)
class Harmonize:
    """A small residual network of this ``rank`` stands in for the block: ``x + W2 relu(W1 x + b1) + b2``."""

    index: int
    rank: int

    def __post_init__(self) -> None:
        """A harmonizer has at least rank 1."""
        if not 1 <= self.rank <= INDEX_MAX:
            raise ValueError(f"block {self.index}: rank: a harmonizer has 1 to {INDEX_MAX}, got {self.rank}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quant:
    """Matrices of frozen blocks as integers of ``bits`` with one half-precision scale for ``block`` weights of a row."""

    bits: Bits
    block: int = 64

    def __post_init__(self) -> None:
        """Check both."""
        if self.bits not in (4, 8) or not 16 <= self.block <= 1024 or self.block % 2:
            raise ValueError(f"quant: takes 4 or 8 bits and an even block of 16 to 1024, got {self.bits} and {self.block}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compress:
    """The block of this original index, made smaller.

    ``ranks`` names matrices inside the block by module path (``self_attn.q_proj``) with the singular components that stay,
    counted from the largest. ``channels`` are the feed-forward neurons that stay; none leaves all. ``quant`` comes last.
    """

    index: int
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    channels: tuple[int, ...] | None = None
    quant: Quant | None = None

    def __post_init__(self) -> None:
        """Components and channels are distinct, in order, and there is at least one."""
        named = {f"ranks of {path}": chosen for path, chosen in self.ranks.items()}
        for what, chosen in (named if self.channels is None else named | {"channels": self.channels}).items():
            if not chosen or chosen[0] < 0 or chosen[-1] >= INDEX_MAX or any(a >= b for a, b in pairwise(chosen)):
                raise ValueError(f"block {self.index}: {what}: indices are distinct, in order and at least one")

    @property
    def index_count(self) -> int:
        """How many components and channels it names."""
        return sum(map(len, self.ranks.values())) + len(self.channels or ())


Slot = Keep | Drop | Share | Harmonize | Compress


def ranges_text(indices: Iterable[int]) -> str:
    """Return ascending indices as ranges, ``0-3,7,9-12``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


_RUN = re.compile(r"(0|[1-9][0-9]{0,6})(?:-([1-9][0-9]{0,6}))?")


def ranges_of(text: str) -> tuple[int, ...]:
    """Parse what `ranges_text` wrote; ``ValueError`` for any other text. Law: ``ranges_text(ranges_of(text)) == text``."""
    return tuple(chain.from_iterable(_runs(text)))


def _runs(text: str) -> list[range]:
    """Return the runs of consecutive indices, none of them expanded."""
    found: list[range] = []
    for part in text.split(","):
        match = _RUN.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:20]!r} is not a range of indices such as 7 or 0-3")
        begin, end = int(match[1]), int(match[2] or match[1])
        # Runs that touch, or one index written as a run, would give one set of indices two texts.
        if (match[2] and end == begin) or not (found[-1].stop if found else -1) < begin <= end < INDEX_MAX:
            raise ValueError(f"{part!r}: ranges of indices ascend, do not touch, and stay below {INDEX_MAX}")
        found.append(range(begin, end + 1))
    return found


class _Quant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bits: Bits
    block: int


class SlotBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A slot as it stands in a plan file; only the fields of its kind may be there."""

    kind: Literal["keep", "drop", "share", "harmonize", "compress"]
    block: int
    source: int | None = None
    rank: int | None = None
    ranks: dict[str, str] | None = None
    channels: str | None = None
    quant: _Quant | None = None

    @property
    def index_count(self) -> int:
        """How many indices its ranges hold, without expanding them; ``ValueError`` when one is none."""
        texts = [*(self.ranks or {}).values(), *([] if self.channels is None else [self.channels])]
        return sum(len(run) for text in texts for run in _runs(text))


def slot_body(slot: Slot) -> dict[str, Any]:
    """Return the plain JSON value of a slot."""
    match slot:
        case Keep(index):
            body = SlotBody("keep", index)
        case Drop(index):
            body = SlotBody("drop", index)
        case Share(index, source):
            body = SlotBody("share", index, source=source)
        case Harmonize(index, rank):
            body = SlotBody("harmonize", index, rank=rank)
        case Compress():
            body = SlotBody(
                "compress",
                slot.index,
                ranks={name: ranges_text(chosen) for name, chosen in sorted(slot.ranks.items())} or None,
                channels=None if slot.channels is None else ranges_text(slot.channels),
                quant=None if slot.quant is None else _Quant(slot.quant.bits, slot.quant.block),
            )
    return cast(dict[str, Any], msgspec.to_builtins(body))


def slot_of(body: SlotBody) -> Slot:
    """Return the slot; ``ValueError`` when a field is missing or belongs to another kind."""
    slot = _slot_of(body)
    if slot_body(slot) != msgspec.to_builtins(body):
        raise ValueError(f"block {body.block}: a slot of kind {body.kind!r} has other fields, or lacks one")
    return slot


def _slot_of(body: SlotBody) -> Slot:
    match body.kind:
        case "keep":
            return Keep(body.block)
        case "drop":
            return Drop(body.block)
        case "share":
            return Share(body.block, -1 if body.source is None else body.source)
        case "harmonize":
            return Harmonize(body.block, 0 if body.rank is None else body.rank)
        case "compress":
            return Compress(
                index=body.block,
                ranks={name: ranges_of(text) for name, text in (body.ranks or {}).items()},
                channels=None if body.channels is None else ranges_of(body.channels),
                quant=None if body.quant is None else Quant(bits=body.quant.bits, block=body.quant.block),
            )
