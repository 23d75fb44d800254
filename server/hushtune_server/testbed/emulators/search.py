"""Which emulator should an owner take that has demands? The front of those that no other beats, and what stands in the way.

An emulator is judged by three numbers: bytes (fewer), plug-in (the share of full fine-tuning's gain in log-perplexity that is
recovered, more) and gap (nats by which the plug-in is ahead of the strongest attack, more).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hushtune_server.owner.emulators.method import EmulatorRequest
from hushtune_server.owner.emulators.planning import method_for
from hushtune_server.testbed.emulators.schema import Comparison, Entry

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One emulator: its name, and what it is judged by."""

    name: str
    bytes: int
    plug_in: float
    gap: float

    def beats(self, other: "Point") -> bool:
        """Return whether this one is nowhere worse and somewhere better."""
        nowhere_worse = self.bytes <= other.bytes and self.plug_in >= other.plug_in and self.gap >= other.gap
        return nowhere_worse and (self.bytes, self.plug_in, self.gap) != (other.bytes, other.plug_in, other.gap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What an owner asks for; none for what does not matter."""

    plug_in_min: float | None = None
    gap_min: float | None = None
    bytes_max: int | None = None

    def misses(self, point: Point) -> dict[str, float]:
        """Return by how much a point misses each demand that it does not meet."""
        short = {
            "plug-in": 0.0 if self.plug_in_min is None else self.plug_in_min - point.plug_in,
            "gap": 0.0 if self.gap_min is None else self.gap_min - point.gap,
            "bytes": 0.0 if self.bytes_max is None else float(point.bytes - self.bytes_max),
        }
        return {name: amount for name, amount in short.items() if amount > 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The front, by bytes; the point to take, none when no point meets every demand; and then why not, in words."""

    front: tuple[Point, ...]
    taken: Point | None
    problem: str | None


def answer(points: Sequence[Point], demands: Demands) -> Answer:
    """Return what to take: of those that meet every demand the best plug-in, and of equal ones the smallest."""
    fit = [p for p in points if not demands.misses(p)]
    taken = max(fit, key=lambda p: (p.plug_in, -p.bytes, p.gap, p.name), default=None)
    return Answer(front=front(points), taken=taken, problem=None if taken else _problem(points, demands))


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other point beats, the smallest first."""
    best = [p for p in points if not any(q.beats(p) for q in points)]
    return tuple(sorted(best, key=lambda p: (p.bytes, -p.plug_in, p.name)))


def points_of(document: Json, *, sure: bool) -> list[Point]:
    """Return the emulators of a comparison that have all three numbers; ``sure`` takes the lower ends of the intervals."""
    side = "low" if sure else "value"
    found: list[Point] = []
    for row in document["emulators"]:
        gaps = [attack.get("gap", {}).get(side) for attack in row.get("attacks", {}).values()]
        plug_in = row.get("recovery", {}).get(side)
        if plug_in is not None and gaps and all(gap is not None for gap in gaps):
            found.append(Point(name=row["name"], bytes=row["bytes"], plug_in=plug_in, gap=min(gaps)))
    return found


def at_sizes(comparison: Comparison, *, count: int, request: EmulatorRequest) -> Comparison:
    """Return the comparison with every emulator at ``count`` of its method's sizes, evenly spaced, in the place of its own."""
    entries = [sized for entry in comparison.emulators for sized in _sizes(entry, count=count, request=request)]
    return msgspec.structs.replace(comparison, emulators=tuple(entries))


def _sizes(entry: Entry, *, count: int, request: EmulatorRequest) -> list[Entry]:
    sizes = [method.options for method in method_for(entry.options).sizes(request)]
    chosen = sorted({round(k * (len(sizes) - 1) / max(1, count - 1)) for k in range(count)})
    return [Entry(name=f"{entry.name}-size-{k}", options=sizes[k]) for k in chosen]


def _problem(points: Sequence[Point], demands: Demands) -> str:
    """Say which demands cannot be met at all, or else which one the nearest point misses and by how much."""
    if not points:
        return "no emulator has all three numbers: its training failed, full fine-tuning gained nothing, or nothing attacked it"
    alone = {name: min(points, key=lambda p, name=name: demands.misses(p).get(name, 0.0)) for name in ("plug-in", "gap", "bytes")}
    hopeless = {name: demands.misses(p)[name] for name, p in alone.items() if name in demands.misses(p)}
    if hopeless:
        return "; ".join(f"{_short(n, amount)} even by {alone[n].name}, the best at it" for n, amount in hopeless.items())
    nearest = min(points, key=lambda p: (len(demands.misses(p)), sum(_relative(p, demands).values()), p.name))
    misses = ", ".join(_short(name, amount) for name, amount in demands.misses(nearest).items())
    return f"each demand can be met, but not all at once; {nearest.name} comes nearest: {misses}"


def _relative(point: Point, demands: Demands) -> dict[str, float]:
    scale = {"plug-in": 1.0, "gap": 1.0, "bytes": float(demands.bytes_max or 1)}
    return {name: amount / scale[name] for name, amount in demands.misses(point).items()}


def _short(name: str, amount: float) -> str:
    return f"bytes are exceeded by {amount:,.0f}" if name == "bytes" else f"{name} is missed by {amount:.4f}"
