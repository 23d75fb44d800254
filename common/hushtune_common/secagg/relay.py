"""What does the coordinator carry between the members, and when is a stage over? It reads nothing and decides about no secret.

The stages: advertisements, deals, uploads (which go elsewhere), vows. Each is closed by whoever keeps the time: as soon as nobody
is waited for, or when the time is up. The relay is trusted with the members' patience only: whatever it drops, delays, repeats or
shows to one and not to another, the members notice or the round fails.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from hushtune_common.errors import MalformedUpdate, QuorumMissed, Replayed, StaleRound
from hushtune_common.messages import ClientId
from hushtune_common.secagg.graph import Graph
from hushtune_common.secagg.messages import Advertisement, Deal, Delivery, Roster, Survivors, Terms, Vow, Vows


class Stage(StrEnum):
    """What is being collected."""

    ADVERTISEMENTS = "advertisements"
    DEALS = "deals"
    UPLOADS = "uploads"
    VOWS = "vows"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayState:
    """What was carried so far; a list is complete once the value that it becomes is there."""

    advertisements: tuple[Advertisement, ...] = ()
    roster: Roster | None = None
    deals: tuple[Deal, ...] = ()
    dealers: Delivery | None = None
    survivors: Survivors | None = None
    vows: tuple[Vow, ...] = ()
    closed: Vows | None = None

    @property
    def stage(self) -> Stage:
        """What is being collected now."""
        if self.roster is None:
            return Stage.ADVERTISEMENTS
        if self.dealers is None:
            return Stage.DEALS
        if self.survivors is None:
            return Stage.UPLOADS
        return Stage.VOWS if self.closed is None else Stage.DONE


class Relay:
    """The coordinator's part. Holds no state: every method takes one, and those that learn return the next.

    Laws: what comes twice, or after its stage was closed, changes nothing; of one member two different words on the same thing
    are refused (`Replayed`). Whose word it is, the transport has to know.
    """

    def __init__(self, terms: Terms) -> None:
        """Take the terms."""
        self.terms = terms

    def waiting_for(self, state: RelayState, among: Iterable[ClientId]) -> frozenset[ClientId]:
        """Return who of ``among`` (those expected at all) has not been heard in this stage; nobody outside of stages of ours."""
        expected = frozenset(among)
        match state.stage:
            case Stage.ADVERTISEMENTS:
                return expected - {said.member for said in state.advertisements}
            case Stage.DEALS:
                return expected & set(_roster(state).members) - {deal.dealer for deal in state.deals}
            case Stage.VOWS:
                survivors = () if state.survivors is None else state.survivors.members
                return expected & set(survivors) - {vow.member for vow in state.vows}
            case Stage.UPLOADS | Stage.DONE:
                return frozenset()

    # --- advertisements ---------------------------------------------------------------------------------------------------

    def advertise(self, state: RelayState, said: Advertisement) -> RelayState:
        """Take a member's keys."""
        known = next((a for a in state.advertisements if a.member == said.member), None)
        if known is not None and known != said:
            raise Replayed(f"{said.member} has advertised other keys in this round")
        if known is not None or state.stage is not Stage.ADVERTISEMENTS:
            return state
        return replace(state, advertisements=(*state.advertisements, said))

    def close_advertisements(self, state: RelayState, *, among: Iterable[ClientId]) -> RelayState:
        """Make the roster of those ``among`` whom the round is for; `QuorumMissed` when they are too few.

        More than there is room for are left out, the last names first.
        """
        if state.roster is not None:
            return state
        admitted = frozenset(among)
        taken = sorted((a for a in state.advertisements if a.member in admitted), key=lambda a: a.member)
        if len(taken) < self.terms.members_min:
            raise QuorumMissed(f"{len(taken)} members advertised keys, {self.terms.members_min} are needed")
        return replace(state, roster=Roster(advertisements=tuple(taken[: self.terms.members_max])))

    # --- deals ------------------------------------------------------------------------------------------------------------

    def deal(self, state: RelayState, deal: Deal) -> RelayState:
        """Take a member's parcels; `MalformedUpdate` unless there is one for each neighbour, `StaleRound` before the roster."""
        roster = _roster(state)
        known = next((d for d in state.deals if d.dealer == deal.dealer), None)
        if known is not None and known != deal:
            raise Replayed(f"{deal.dealer} has dealt otherwise in this round")
        if known is not None or state.stage is not Stage.DEALS:
            return state
        if deal.dealer not in roster.members or deal.roster != roster.digest(self.terms):
            raise MalformedUpdate(f"{deal.dealer} deals for another roster")
        if frozenset(holder for holder, _ in deal.parcels) != self._graph(roster).neighbours(deal.dealer):
            raise MalformedUpdate(f"{deal.dealer} has not dealt to exactly its neighbours")
        return replace(state, deals=(*state.deals, deal))

    def close_deals(self, state: RelayState) -> RelayState:
        """Fix who has dealt; `QuorumMissed` when they are too few."""
        if state.dealers is not None:
            return state
        roster = _roster(state)
        self._require(len(state.deals), roster, what="dealt")
        dealers = tuple(sorted(deal.dealer for deal in state.deals))
        return replace(state, dealers=Delivery(roster=roster.digest(self.terms), dealers=dealers))

    def delivery(self, state: RelayState, holder: ClientId) -> Delivery:
        """Return what ``holder`` gets once all have dealt; the names alone for whoever holds nothing, such as the aggregator."""
        if state.dealers is None:
            raise StaleRound("the deals are not closed")
        parcels = ((deal.dealer, parcel) for deal in state.deals for name, parcel in deal.parcels if name == holder)
        return replace(state.dealers, parcels=tuple(sorted(parcels)))

    # --- vows -------------------------------------------------------------------------------------------------------------

    def announce(self, state: RelayState, survivors: Survivors) -> RelayState:
        """Take the survivors from the aggregator."""
        if state.survivors is not None and state.survivors != survivors:
            raise Replayed("other survivors were announced in this round")
        if state.dealers is None:
            raise StaleRound("survivors before the deals are closed")
        return replace(state, survivors=survivors)

    def vow(self, state: RelayState, vow: Vow) -> RelayState:
        """Take a survivor's vow; `StaleRound` before there are survivors."""
        if state.survivors is None:
            raise StaleRound("a vow before the survivors are known")
        if vow.member not in state.survivors.members:
            raise MalformedUpdate(f"{vow.member} vows and is no survivor")
        if state.closed is not None or any(known.member == vow.member for known in state.vows):
            return state
        return replace(state, vows=(*state.vows, vow))

    def close_vows(self, state: RelayState) -> RelayState:
        """Fix who stands to the survivors; `QuorumMissed` when they are too few for anything to be opened."""
        if state.closed is not None:
            return state
        if state.survivors is None:
            raise StaleRound("no survivors to stand to")
        self._require(len(state.vows), _roster(state), what="vowed")
        listed = tuple(sorted(state.vows, key=lambda vow: vow.member))
        return replace(state, closed=Vows(survivors=state.survivors, vows=listed))

    def _require(self, count: int, roster: Roster, *, what: str) -> None:
        needed = self.terms.threshold(len(roster.members))
        if count < needed:
            raise QuorumMissed(f"{count} of {len(roster.members)} members {what}, {needed} are needed")

    def _graph(self, roster: Roster) -> Graph:
        return Graph.of(roster.members, roster=roster.digest(self.terms), degree=self.terms.degree)


def _roster(state: RelayState) -> Roster:
    if state.roster is None:
        raise StaleRound("ahead of the roster")
    return state.roster
