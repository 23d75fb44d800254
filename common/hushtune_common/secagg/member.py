"""What does a client do in a round of secure aggregation, and what does it refuse?

::

    begin --roster--> meet --delivery--> receive --words--> mask --survivors--> stand --vows--> confirm
    advertisement     deal                        upload            vow                  opening

Above what comes in, below what can then be sent. A state only ever learns: each field is written once, another value for it is
refused, and what is sent is computed from the state. So whatever comes twice or late changes nothing, and a process that was
killed says the same bytes again, provided that the state was on disk before anything was said. One set of survivors is all that a
state takes; hence of one member either the seed's share or the key's is given out, never both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from hushtune_common.errors import (
    Equivocation,
    InvalidEnvelope,
    MalformedUpdate,
    QuorumMissed,
    Replayed,
    StaleRound,
)
from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg import masks
from hushtune_common.secagg.admission import require_joined, require_quorum, require_roster
from hushtune_common.secagg.graph import Graph
from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.keys import (
    Secrets,
    Shares,
    advertisement,
    opened_parcel,
    pair_key,
    sealed_parcel,
    self_key,
    shares_of,
)
from hushtune_common.secagg.masks import Mask
from hushtune_common.secagg.messages import (
    Advertisement,
    Deal,
    Delivery,
    Opening,
    Roster,
    Sign,
    Survivors,
    Terms,
    Upload,
    Verify,
    Vow,
    Vows,
    by_name,
)

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """What a member knows of its round; ``None`` is not yet known. ``payload`` is the digest of the words that were masked."""

    secrets: Secrets
    advertisement: Advertisement
    roster: Roster | None = None
    delivery: Delivery | None = None
    payload: Digest | None = None
    survivors: Survivors | None = None
    vow: Vow | None = None
    confirmed: bool = False


class Member:
    """One client's part. Holds no state: every method takes one, and those that learn return the next.

    Laws: a fault leaves the state as it was; an equal message once more gives an equal state; equal states send equal bytes.
    A message that is ahead of the state is `StaleRound`, one that contradicts it `Equivocation`.
    """

    def __init__(self, terms: Terms, *, name: ClientId, sign: Sign, verify: Verify) -> None:
        """Take the terms and the means to prove who says what."""
        self.terms = terms
        self.name = name
        self._sign = sign
        self._verify = verify

    # --- keys -------------------------------------------------------------------------------------------------------------

    def begin(self, secrets: Secrets | None = None) -> MemberState:
        """Return a fresh state; its ``advertisement`` is for the relay. Secrets are given by tests only."""
        drawn = Secrets.generate() if secrets is None else secrets
        said = advertisement(drawn, member=self.name, terms=self.terms, sign=self._sign)
        return MemberState(secrets=drawn, advertisement=said)

    def meet(self, state: MemberState, roster: Roster) -> MemberState:
        """Take the roster.

        Raises `Equivocation` for another roster than before or other keys of one's own; for the rest see `require_roster`.
        """
        if state.roster is not None:
            _require_same(state.roster, roster, what="roster")
            return state
        if self.name not in roster.members or roster.of(self.name) != state.advertisement:
            raise Equivocation(f"the roster does not have what {self.name} advertised")
        require_roster(roster, terms=self.terms, verify=self._verify)
        return replace(state, roster=roster)

    # --- shares -----------------------------------------------------------------------------------------------------------

    def deal(self, state: MemberState) -> Deal:
        """Return the parcels for all neighbours: shares of the seed and of the mask key."""
        roster = _known(state.roster, what="roster")
        digest, shares = roster.digest(self.terms), self._shares(state)
        parcels = {
            holder: sealed_parcel(
                shares[holder],
                private=state.secrets.channel,
                dealer=self.name,
                holder=holder,
                public=roster.of(holder).channel_key,
                roster=digest,
            )
            for holder in shares.keys() - {self.name}
        }
        return Deal(dealer=self.name, roster=digest, parcels=by_name(parcels))

    def receive(self, state: MemberState, delivery: Delivery) -> MemberState:
        """Take the parcels of those that have dealt. One that is missing or does not open is a share not held, no more.

        Raises `Equivocation` for another roster's parcels or other dealers than before, `QuorumMissed` for too few dealers,
        `MalformedUpdate` for strangers.
        """
        if state.delivery is not None:
            _require_same(state.delivery, delivery, what="delivery")
            return state
        roster = _known(state.roster, what="roster")
        if delivery.roster != roster.digest(self.terms):
            raise Equivocation("the parcels are of another roster")
        dealers = frozenset(delivery.dealers)
        if not dealers <= frozenset(roster.members) or not {name for name, _ in delivery.parcels} <= dealers:
            raise MalformedUpdate("the delivery names strangers")
        if self.name not in dealers:
            raise StaleRound(f"{self.name} is not among the dealers; its shares came too late")
        self._require_quorum(state, dealers, what="dealt")
        return replace(state, delivery=delivery)

    # --- payload ----------------------------------------------------------------------------------------------------------

    def mask(self, state: MemberState, words: Words) -> tuple[MemberState, Upload]:
        """Return the state that has masked ``words``, and what to upload; ``words`` stay as they are.

        The same words give the same bytes again; `Replayed` for other words, whose difference would be open to whoever saw both.
        """
        delivery = _known(state.delivery, what="delivery")
        if words.size != self.terms.words:
            raise ValueError(f"a payload has {self.terms.words} words, got {words.size}")
        digest = Digest.of(words.data.cast("B"))
        if state.payload not in {None, digest}:
            raise Replayed(f"{self.name} has masked another payload in round {self.terms.round_id}")
        masked = words.astype(np.dtype("<u8"), copy=True)
        masks.apply(masked, self.masks(state))
        return replace(state, payload=digest), Upload(member=self.name, view=delivery.view, words=masked.tobytes())

    def masks(self, state: MemberState) -> list[Mask]:
        """Return the streams that hide this member's payload: its own, and one with each neighbour that has dealt."""
        roster, delivery = _known(state.roster, what="roster"), _known(state.delivery, what="delivery")
        own = Mask(key=self_key(state.secrets.seed.material, member=self.name, view=delivery.view), negative=False)
        shared = (
            Mask(
                key=pair_key(
                    state.secrets.mask, own=self.name, other=other, public=roster.of(other).mask_key, view=delivery.view
                ),
                negative=self.name > other,
            )
            for other in sorted(self._graph(state).neighbours(self.name) & frozenset(delivery.dealers))
        )
        return [own, *shared]

    # --- opening ----------------------------------------------------------------------------------------------------------

    def stand(self, state: MemberState, survivors: Survivors) -> MemberState:
        """Take the survivors and vow to open secrets for them alone; whoever is not among them has nothing more to do.

        Raises `Equivocation` for survivors of another view or after others, `QuorumMissed` when too few survive, in all or
        around this member, or when too few colluders could take them apart.
        """
        if self.name not in survivors.members:
            return state
        if state.survivors is not None:
            _require_same(state.survivors, survivors, what="set of survivors")
            return state
        delivery = _known(state.delivery, what="delivery")
        if survivors.view != delivery.view or not set(survivors.members) <= set(delivery.dealers):
            raise Equivocation("the survivors are of another view of this round")
        if state.payload is None:
            raise Equivocation(f"{self.name} counts as a survivor and has sent nothing")
        among = frozenset(survivors.members)
        self._require_quorum(state, among, what="survived")
        require_joined(among, graph=self._graph(state), terms=self.terms)
        return replace(state, survivors=survivors, vow=Vow(member=self.name, proof=self._sign(survivors.statement)))

    def confirm(self, state: MemberState, vows: Vows) -> MemberState:
        """Take the vows of the others. `Equivocation` when they are of other survivors, `QuorumMissed` when too few hold."""
        survivors = _known(state.survivors, what="set of survivors")
        _require_same(survivors, vows.survivors, what="set of survivors")
        if state.confirmed:
            return state
        holding = [v for v in vows.vows if v.member in survivors.members and self._verify(v.member, survivors.statement, v.proof)]
        needed = self.terms.threshold(len(_known(state.roster, what="roster").members))
        if len(holding) < needed:
            raise QuorumMissed(f"{len(holding)} vows hold, {needed} are needed before anything is opened")
        return replace(state, confirmed=True)

    def opening(self, state: MemberState) -> Opening:
        """Return the shares for the aggregator: of each survivor's seed, of each other dealer's mask key; `StaleRound` before."""
        survivors = _known(state.survivors, what="set of survivors")
        if not state.confirmed:
            raise StaleRound("nothing is opened before a quorum has vowed")
        seeds: dict[ClientId, bytes] = {}
        keys: dict[ClientId, bytes] = {}
        for dealer, shares in self.held(state).items():
            if dealer in survivors.members:
                seeds[dealer] = shares.seed
            else:
                keys[dealer] = shares.key
        return Opening(member=self.name, survivors=survivors.digest, seeds=by_name(seeds), keys=by_name(keys))

    def held(self, state: MemberState) -> dict[ClientId, Shares]:
        """Return the shares that this member holds, by dealer; of these, an opening gives out one each."""
        roster, delivery = _known(state.roster, what="roster"), _known(state.delivery, what="delivery")
        held = {self.name: self._shares(state)[self.name]}
        for dealer, parcel in delivery.parcels:
            try:
                held[dealer] = opened_parcel(
                    parcel,
                    private=state.secrets.channel,
                    dealer=dealer,
                    holder=self.name,
                    public=roster.of(dealer).channel_key,
                    roster=delivery.roster,
                )
            except (InvalidEnvelope, MalformedUpdate):
                continue  # the dealer's or the relay's fault; the others hold enough, or the round fails
        return held

    # --- what all of them need --------------------------------------------------------------------------------------------

    def _graph(self, state: MemberState) -> Graph:
        roster = _known(state.roster, what="roster")
        return Graph.of(roster.members, roster=roster.digest(self.terms), degree=self.terms.degree)

    def _shares(self, state: MemberState) -> Mapping[ClientId, Shares]:
        """Return what each holder is dealt, this member included."""
        roster = _known(state.roster, what="roster")
        holders = self._graph(state).holders(self.name)
        places = {holder: roster.place(holder) for holder in holders}
        threshold = self.terms.threshold(len(holders))
        dealt = shares_of(state.secrets, roster=roster.digest(self.terms), threshold=threshold, at=places.values())
        return {holder: dealt[place] for holder, place in places.items()}

    def _require_quorum(self, state: MemberState, among: frozenset[ClientId], *, what: str) -> None:
        require_quorum(among, roster=_known(state.roster, what="roster"), terms=self.terms, what=what)
        holders = self._graph(state).holders(self.name)
        needed = self.terms.threshold(len(holders))
        if len(holders & among) < needed:
            raise QuorumMissed(f"{len(holders & among)} of the {len(holders)} around {self.name} {what}, {needed} are needed")


def _known(value: _Value | None, *, what: str) -> _Value:
    if value is None:
        raise StaleRound(f"ahead of the {what}, which has not come yet")
    return value


def _require_same(known: object, heard: object, *, what: str) -> None:
    if known != heard:
        raise Equivocation(f"another {what} than before")
