"""Where does a round's sum stand, who is told what next, and when is a stage over? Only with secure aggregation.

The relay of `hushtune_common.secagg.relay` carries; the round says who is still expected and keeps the time. Advertisements come
with the reports, deals are made while clients train, survivors are named at the round's end.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import Scenario
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import ClientId, RunId, SumWord
from hushtune_common.secagg.messages import Advertisement, Deal, Survivors, Terms, Vow
from hushtune_common.secagg.relay import Relay, RelayState, Stage
from hushtune_common.secagg.terms import Layout, deal_s, terms_of, vow_s
from hushtune_common.units import Second


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRules:
    """What does not change during a run whose updates are only added, and how long deals and vows are waited for."""

    options: SecureConfig
    run: RunId
    members_max: int
    deal_s: Second
    vow_s: Second

    @staticmethod
    def of(scenario: Scenario, *, run: RunId) -> "SumRules | None":
        """Derive the rules from a scenario; none where updates are judged one by one."""
        options = scenario.owner.aggregation
        if not isinstance(options, SecureConfig):
            return None
        timing = scenario.timing
        return SumRules(options=options, run=run, members_max=len(scenario.clients), deal_s=deal_s(timing), vow_s=vow_s(timing))

    def terms(self, layout: Layout, *, round_id: int) -> Terms:
        """Return the terms of a round."""
        return terms_of(self.options, members_max=self.members_max, run=self.run, round_id=round_id, layout=layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """A round's sum: under which terms, what was carried, and since when the present stage lasts."""

    terms: Terms
    relay: RelayState
    since: Second

    @property
    def stage(self) -> Stage:
        """What is being collected."""
        return self.relay.stage

    def advertised(self, said: Advertisement) -> "Sum":
        """Take a client's keys; ``Replayed`` for other ones than before."""
        return self._with(Relay(self.terms).advertise(self.relay, said))

    def met(self, granted: Iterable[ClientId], *, at: Second) -> "Sum":
        """Close the roster over those that were ``granted`` an upload; ``QuorumMissed`` when they are too few."""
        return self._with(Relay(self.terms).close_advertisements(self.relay, among=granted), at=at)

    def dealt(self, deal: Deal) -> "Sum":
        """Take a client's parcels; `MalformedUpdate` or ``Replayed`` for others than it should deal, or has dealt."""
        return self._with(Relay(self.terms).deal(self.relay, deal))

    def deals_closed(self, expected: Iterable[ClientId], *, at: Second, within_s: Second) -> "Sum":
        """Deliver when nobody ``expected`` is missing, or the time is up; ``QuorumMissed`` when too few have dealt."""
        relay = Relay(self.terms)
        if self.stage is not Stage.DEALS or (relay.waiting_for(self.relay, expected) and at - self.since < within_s):
            return self
        return self._with(relay.close_deals(self.relay), at=at)

    def announced(self, survivors: Survivors, *, accepted: Iterable[ClientId], at: Second) -> "Sum":
        """Take the survivors from the owner; `MalformedUpdate` for one whose update was not accepted."""
        strangers = {*survivors.members} - {*accepted}
        if strangers:
            raise MalformedUpdate(f"survivors: {', '.join(sorted(strangers))} had no update accepted in this round")
        known = self.relay.survivors
        return self._with(Relay(self.terms).announce(self.relay, survivors), at=at if known is None else self.since)

    def vowed(self, vow: Vow) -> "Sum":
        """Take a survivor's vow."""
        return self._with(Relay(self.terms).vow(self.relay, vow))

    def vows_closed(self, expected: Iterable[ClientId], *, at: Second, within_s: Second) -> "Sum":
        """Pass the vows on when nobody ``expected`` is missing, or the time is up; ``QuorumMissed`` when they are too few."""
        relay = Relay(self.terms)
        if self.stage is not Stage.VOWS or (relay.waiting_for(self.relay, expected) and at - self.since < within_s):
            return self
        return self._with(relay.close_vows(self.relay), at=at)

    def word_for(self, member: ClientId) -> SumWord | None:
        """Return what ``member`` is to be told, now that a stage was closed; none when it has nothing to do with it."""
        roster, survivors = self.relay.roster, self.relay.survivors
        if roster is None or member not in roster.members:
            return None
        match self.stage:
            case Stage.DEALS:
                return roster
            case Stage.UPLOADS:
                return Relay(self.terms).delivery(self.relay, member)
            case Stage.VOWS:
                return survivors if survivors is not None and member in survivors.members else None
            case Stage.DONE:
                return self.relay.closed if survivors is not None and member in survivors.members else None
            case Stage.ADVERTISEMENTS:
                return None

    @property
    def word_for_owner(self) -> SumWord | None:
        """What the owner is to be told, now that a stage was closed."""
        match self.stage:
            case Stage.DEALS:
                return self.relay.roster
            case Stage.UPLOADS:
                return self.relay.dealers
            case _:
                return None

    def _with(self, relay: RelayState, *, at: Second | None = None) -> "Sum":
        if relay == self.relay:
            return self  # the very same, so that nobody is told again
        return replace(self, relay=relay, since=self.since if at is None else at)


def needed(after: Sum) -> int:
    """Return how many of the roster have to survive, and to vow."""
    roster = after.relay.roster
    return after.terms.threshold(0 if roster is None else len(roster.members))


def summary(after: Sum) -> dict[str, object]:
    """Return how a round's sum went, as plain values; lists of names are empty for stages that were not reached."""
    relay = after.relay
    return {
        "members": [] if relay.roster is None else list(relay.roster.members),
        "dealers": [] if relay.dealers is None else list(relay.dealers.dealers),
        "survivors": [] if relay.survivors is None else list(relay.survivors.members),
        "vows": [] if relay.closed is None else [vow.member for vow in relay.closed.vows],
        "needed": needed(after),
        "stage": after.stage.value,
        "words": after.terms.words,
    }
