"""Who is alive? Beats and streams give signs of life; silence and a broken stream take them away.

Only the beat counts, never the progress of training: a client that trains for minutes beats from its parent process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from hushtune_common.units import Second
from hushtune_server.coordinator.events import Member

BEATS_TO_SUSPECT = 3
BEATS_TO_DEATH = 6
"""A member beats every ``idle_s / 6``."""


class Health(StrEnum):
    """How a member is doing."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """When a member was last heard, and since when its stream has been broken (``None``: it is open or was never opened)."""

    heard_at: Second
    broken_at: Second | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """The pulses of all members that are watched; times are seconds on one clock.

    Laws: a member that beats in time is never dead; a silent one is dead after ``idle_s``, one whose stream broke after
    ``idle_s / 2``; time during which nobody looked is charged to nobody.
    """

    idle_s: Second
    looked_at: Second
    pulses: Mapping[Member, Pulse] = field(default_factory=dict[Member, Pulse])

    @property
    def beat_s(self) -> Second:
        """How often a member beats."""
        return Second(self.idle_s / BEATS_TO_DEATH)

    def heard(self, member: Member, at: Second) -> "Liveness":
        """Note a sign of life; it does not mend a broken stream."""
        known = self.pulses.get(member)
        return self._with(member, Pulse(heard_at=at, broken_at=known.broken_at if known else None))

    def connected(self, member: Member, at: Second) -> "Liveness":
        """Note that the member's stream is open."""
        return self._with(member, Pulse(heard_at=at))

    def disconnected(self, member: Member, at: Second) -> "Liveness":
        """Note that the member's stream broke; members that are not watched stay so."""
        known = self.pulses.get(member)
        return self if known is None else self._with(member, replace(known, broken_at=at))

    def forgotten(self, member: Member) -> "Liveness":
        """Stop watching a member that left or died."""
        return replace(self, pulses={m: p for m, p in self.pulses.items() if m != member})

    def looked(self, at: Second) -> "Liveness":
        """Note that somebody looks at ``at``; a pause of more than a beat since the last look is charged to nobody.

        The pause was ours (a stopped process, a suspended machine): beats that came meanwhile wait unread in a buffer.
        """
        pause = at - self.looked_at
        if pause <= self.beat_s:
            return replace(self, looked_at=at)
        return replace(self, looked_at=at, pulses={m: _later(p, pause) for m, p in self.pulses.items()})

    def silence(self, member: Member, now: Second) -> Second:
        """Return the seconds since the member was heard; zero for one that is not watched."""
        known = self.pulses.get(member)
        return Second(0.0 if known is None else max(0.0, now - known.heard_at))

    def health(self, member: Member, now: Second) -> Health:
        """Return how the member is doing; one that is not watched is dead."""
        known = self.pulses.get(member)
        if known is None or self.silence(member, now) >= self.idle_s:
            return Health.DEAD
        if known.broken_at is not None and now - known.broken_at >= self.idle_s / 2:
            return Health.DEAD
        return Health.SUSPECT if self.silence(member, now) >= BEATS_TO_SUSPECT * self.beat_s else Health.ALIVE

    def dead(self, now: Second) -> tuple[Member, ...]:
        """Return the watched members that are dead, in the order of their names."""
        return tuple(sorted(m for m in self.pulses if self.health(m, now) is Health.DEAD))

    def _with(self, member: Member, pulse: Pulse) -> "Liveness":
        return replace(self, pulses={**self.pulses, member: pulse})


def _later(pulse: Pulse, pause: float) -> Pulse:
    broken = None if pulse.broken_at is None else Second(pulse.broken_at + pause)
    return Pulse(heard_at=Second(pulse.heard_at + pause), broken_at=broken)
