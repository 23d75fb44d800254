"""When does a round stop waiting for the clients that have not delivered?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import Protocol

from hushtune_common.config import StragglersConfig
from hushtune_common.messages import ClientId
from hushtune_common.units import Second


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """What a policy may look at. All times are seconds since the round opened.

    ``of`` counts the scenario's clients; ``arrived`` maps each client whose update was accepted to when that happened;
    ``waiting`` are the clients of which that may still come true; ``delivered``, some of them, say that they have done all of
    their part, and wait for the owner to judge; ``limit_s`` is the round's own end.
    """

    of: int
    arrived: Mapping[ClientId, Second]
    waiting: frozenset[ClientId]
    limit_s: Second
    delivered: frozenset[ClientId] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a client that has arrived and is waited for, one that delivered and is not, and more clients than there are."""
        if not self.delivered <= self.waiting:
            raise ValueError("a client that delivered and was not judged is waited for")
        if self.waiting & self.arrived.keys():
            raise ValueError("a client that has arrived is not waited for")
        if len(self.waiting) + len(self.arrived) > self.of:
            raise ValueError(f"{len(self.waiting) + len(self.arrived)} clients in view of {self.of}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The round ends with these clients."""

    accepted: frozenset[ClientId]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The round ends with nothing."""

    reason: str


Decision = Wait | Close | Fail


class StragglerPolicy(Protocol):
    """Decides when a round closes.

    Laws: never waits at or past ``limit_s``; never waits when nobody is waited for; closes with exactly those who arrived, each
    once, and with at least ``needed``; at one moment, more arrivals never turn ``Close`` into ``Wait`` or ``Fail``; at one
    view, time never turns ``Close`` into ``Wait``.
    """

    def needed(self, of: int) -> int:
        """Return how many of ``of`` clients a round cannot do without, from 1 to ``of``."""
        ...

    def decide(self, view: RoundView, elapsed: Second) -> Decision:
        """Return what to do ``elapsed`` seconds after the round opened."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum:
    """Closes ``wait_after_s`` after a share of all clients was accepted; fails as soon as that share is out of reach.

    Who delivered in that time is not cut off because the owner, which judges one after the other, is slow: for each client beyond
    the quorum it has ``judging_s``. That is a bound, too, since that one has delivered is the client's own word.
    """

    share: float
    wait_after_s: Second
    judging_s: Second

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 < self.share <= 1.0 or not min(self.wait_after_s, self.judging_s) >= 0.0:
            raise ValueError(f"share in (0, 1] and no negative wait, got {self.share}, {self.wait_after_s}, {self.judging_s}")

    def needed(self, of: int) -> int:
        """Return the share of ``of``, rounded up."""
        # The product of 0.6 and 5 is a hair above 3 in binary; a share is never meant that precisely.
        return max(1, ceil(self.share * of - 1e-9))

    def decide(self, view: RoundView, elapsed: Second) -> Decision:
        """Close on time or when all is in; fail when too few can come."""
        needed = self.needed(view.of)
        beyond = len(view.arrived) + len(view.waiting) - needed
        judged_s = Second(self.judging_s * beyond) if view.delivered else Second(0.0)
        return _decide(view, elapsed, needed=needed, wait_after_s=max(self.wait_after_s, judged_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """Closes at the round's end with whoever has delivered, or at once when nobody is waited for."""

    def needed(self, of: int) -> int:
        """Return 1: an aggregate of nobody does not exist."""
        return min(1, of)

    def decide(self, view: RoundView, elapsed: Second) -> Decision:
        """Wait for everybody who may come until the end."""
        return _decide(view, elapsed, needed=self.needed(view.of), wait_after_s=Second(inf))


@dataclass(frozen=True, slots=True, kw_only=True)
class Everyone:
    """Closes when every client has delivered; fails as soon as one cannot."""

    def needed(self, of: int) -> int:
        """Return ``of``."""
        return of

    def decide(self, view: RoundView, elapsed: Second) -> Decision:
        """Close with all or fail."""
        return _decide(view, elapsed, needed=view.of, wait_after_s=Second(0.0))


def _decide(view: RoundView, elapsed: Second, *, needed: int, wait_after_s: Second) -> Decision:
    missing = needed - len(view.arrived)
    if missing > len(view.waiting):
        return Fail(
            reason=f"{needed} of {view.of} clients are needed, at most {len(view.arrived) + len(view.waiting)} can deliver"
        )
    if missing > 0:
        if elapsed < view.limit_s:
            return Wait()
        return Fail(reason=f"{needed} of {view.of} clients are needed, {len(view.arrived)} delivered within {view.limit_s:g} s")
    # Measured from the arrival that made the quorum: an earlier arrival can only move it forward.
    quorum_at = sorted(view.arrived.values())[needed - 1]
    if view.waiting and elapsed < min(view.limit_s, quorum_at + wait_after_s):
        return Wait()
    return Close(accepted=frozenset(view.arrived))


POLICIES: Mapping[str, Callable[[StragglersConfig, Second], StragglerPolicy]] = {
    "quorum": lambda config, idle_s: Quorum(share=config.share, wait_after_s=Second(config.wait_after_s), judging_s=idle_s),
    "deadline": lambda _config, _idle_s: Deadline(),
    "everyone": lambda _config, _idle_s: Everyone(),
}
"""The policies by the name they have in a scenario; ``timing.idle_s`` is how long nothing at all may happen."""

_conforms: tuple[type[StragglerPolicy], ...] = (Quorum, Deadline, Everyone)
