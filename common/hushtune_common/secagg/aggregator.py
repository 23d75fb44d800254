"""How does the owner come to the sum, and to nothing else?

It collects masked payloads, names the survivors, collects shares, and only then takes off what does not cancel by itself: each
survivor's own mask, and the masks that survivors share with members that dealt and then dropped out. Every secret that comes of
shares is held against what its member had advertised, so forged shares cannot change a sum unnoticed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from hushtune_common.errors import (
    DigestMismatch,
    Equivocation,
    MalformedUpdate,
    QuorumMissed,
    Replayed,
    StaleRound,
)
from hushtune_common.messages import ClientId, Digest
from hushtune_common.secagg import masks, shamir
from hushtune_common.secagg.admission import require_joined, require_quorum, require_roster
from hushtune_common.secagg.graph import Graph
from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.keys import commitment, pair_key, public_of, self_key
from hushtune_common.secagg.masks import Mask
from hushtune_common.secagg.messages import Delivery, Opening, Roster, Survivors, Terms, Upload, Verify
from hushtune_common.secagg.record import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorState:
    """What the owner knows of a round: digests of the masked payloads, not the payloads; shares as they came."""

    roster: Roster | None = None
    dealers: Delivery | None = None
    received: tuple[tuple[ClientId, Digest], ...] = ()
    survivors: Survivors | None = None
    openings: tuple[Opening, ...] = ()


class Aggregator:
    """The owner's part. Holds no state: every method takes one, and those that learn return the next.

    Laws: a fault leaves the state as it was; what comes twice changes nothing; a payload that comes after the survivors were
    named is never added.
    """

    def __init__(self, terms: Terms, *, verify: Verify) -> None:
        """Take the terms and the means to tell who said what."""
        self.terms = terms
        self._verify = verify

    def meet(self, state: AggregatorState, roster: Roster) -> AggregatorState:
        """Take the roster; `Replayed` for another one than before, for the rest see `require_roster`."""
        if state.roster is not None:
            return _same(state, state.roster, roster, what="roster")
        require_roster(roster, terms=self.terms, verify=self._verify)
        return replace(state, roster=roster)

    def receive(self, state: AggregatorState, dealers: Delivery) -> AggregatorState:
        """Take the names of those that have dealt; `Equivocation` for another roster's, `QuorumMissed` when they are too few."""
        dealers = replace(dealers, parcels=())
        if state.dealers is not None:
            return _same(state, state.dealers, dealers, what="list of dealers")
        roster = _roster(state)
        if dealers.roster != roster.digest(self.terms) or not set(dealers.dealers) <= set(roster.members):
            raise Equivocation("the dealers are of another roster")
        require_quorum(frozenset(dealers.dealers), roster=roster, terms=self.terms, what="dealt")
        return replace(state, dealers=dealers)

    def take(self, state: AggregatorState, upload: Upload) -> AggregatorState:
        """Take a masked payload; the caller keeps the words themselves.

        Raises `MalformedUpdate` for a stranger's or one of another length, `DigestMismatch` for one under another view's masks,
        `Replayed` for a second one with other words, `StaleRound` after the survivors were named.
        """
        dealers = _dealers(state)
        if upload.member not in dealers.dealers:
            raise MalformedUpdate(f"{upload.member} has dealt no shares; its payload could not be unmasked")
        if len(upload.words) != 8 * self.terms.words:
            raise MalformedUpdate(f"{upload.member}: {len(upload.words)} bytes are not {self.terms.words} words")
        if upload.view != dealers.view:
            raise DigestMismatch(f"{upload.member} masked for other members than those that have dealt")
        digest = Digest.of(upload.words)
        known = dict(state.received).get(upload.member)
        if known is not None and known != digest:
            raise Replayed(f"{upload.member} has sent other words in this round")
        if known is not None:
            return state
        if state.survivors is not None:
            raise StaleRound(f"the payload of {upload.member} came after the survivors were named")
        return replace(state, received=tuple(sorted([*state.received, (upload.member, digest)], key=lambda entry: entry[0])))

    def close(self, state: AggregatorState, *, among: Iterable[ClientId] | None = None) -> AggregatorState:
        """Name the survivors: all whose payload came, or those of them ``among`` whom the round counts.

        `QuorumMissed` when they are too few for anybody to stand to them.
        """
        if state.survivors is not None:
            return state
        dealers = _dealers(state)
        counted = frozenset(dealers.dealers if among is None else among)
        members = tuple(name for name, _ in state.received if name in counted)
        staying, graph = frozenset(members), self._graph(state)
        require_quorum(staying, roster=_roster(state), terms=self.terms, what="survived")
        require_joined(staying, graph=graph, terms=self.terms)
        for name in dealers.dealers:
            holders = graph.holders(name)
            needed, found = self.terms.threshold(len(holders)), len(holders & staying)
            if graph.neighbours(name) & staying and found < needed:
                raise QuorumMissed(f"{found} of the {len(holders)} around {name} survived, {needed} are needed")
        return replace(state, survivors=Survivors(view=dealers.view, members=members))

    def open(self, state: AggregatorState, opening: Opening) -> AggregatorState:
        """Take a survivor's shares.

        Raises `MalformedUpdate` when they are of other survivors, of secrets that must stay closed or are not its to open;
        `Replayed` when it opened others before.
        """
        known = next((o for o in state.openings if o.member == opening.member), None)
        if known is not None and known != opening:
            raise Replayed(f"{opening.member} has opened other shares in this round")
        if known is not None:
            return state
        survivors = _survivors(state)
        if opening.member not in survivors.members or opening.survivors != survivors.digest:
            raise MalformedUpdate(f"{opening.member} opens shares for other survivors")
        graph = self._graph(state)
        dropped = frozenset(_dealers(state).dealers) - frozenset(survivors.members)
        near = graph.holders(opening.member)
        if not {name for name, _ in opening.seeds} <= near & frozenset(survivors.members):
            raise MalformedUpdate(f"{opening.member} opens seeds that it has nothing to do with")
        if not {name for name, _ in opening.keys} <= near & dropped:
            raise MalformedUpdate(f"{opening.member} opens keys that it has nothing to do with")
        return replace(state, openings=(*state.openings, opening))

    def lacking(self, state: AggregatorState) -> frozenset[ClientId]:
        """Return the members of whose secrets too few shares have come; nobody once `total` can be had."""
        graph = self._graph(state)
        wanted = {**self._seeds(state), **self._keys(state)}
        return frozenset(n for n, shares in wanted.items() if len(shares) < self.terms.threshold(len(graph.holders(n))))

    def total(self, state: AggregatorState, uploads: Iterable[Upload]) -> Words:
        """Return the sum of the survivors' payloads, given each once more in any order.

        Raises `QuorumMissed` when too few shares have come, `MalformedUpdate` when those of a member do not give what it had
        advertised, `DigestMismatch` for payloads that are not those that were taken.
        """
        lacking = self.lacking(state)
        if lacking:
            raise QuorumMissed(f"too few shares of {', '.join(sorted(lacking))} to unmask the sum")
        masks_left = self._masks_left(state)
        total = self._sum(state, uploads)
        masks.apply(total, masks_left)
        return total

    def _sum(self, state: AggregatorState, uploads: Iterable[Upload]) -> Words:
        wanted = {name: digest for name, digest in state.received if name in _survivors(state).members}
        total = np.zeros(self.terms.words, dtype="<u8")
        for upload in uploads:
            if wanted.pop(upload.member, None) != Digest.of(upload.words):
                raise DigestMismatch(f"{upload.member}: not the payload that was taken, or not for the first time")
            total += np.frombuffer(upload.words, dtype="<u8")
        if wanted:
            raise DigestMismatch(f"the payloads of {', '.join(sorted(wanted))} are gone")
        return total

    def _masks_left(self, state: AggregatorState) -> list[Mask]:
        """Return what has to be added to the sum of masked payloads, so that no mask is left."""
        view, graph = _dealers(state).view, self._graph(state)
        left = [
            Mask(key=self_key(self._seed(state, name, shares), member=name, view=view), negative=True)
            for name, shares in self._seeds(state).items()
        ]
        survivors = frozenset(_survivors(state).members)
        for name, shares in self._keys(state).items():
            private = self._key(state, name, shares)
            left += [self._mask_between(state, name, private, other) for other in sorted(graph.neighbours(name) & survivors)]
        return left

    def _mask_between(self, state: AggregatorState, dropped: ClientId, private: Secret, survivor: ClientId) -> Mask:
        public = _roster(state).of(survivor).mask_key
        key = pair_key(private, own=dropped, other=survivor, public=public, view=_dealers(state).view)
        # The survivor added it, and it has to go, when its name is the lesser one.
        return Mask(key=key, negative=survivor < dropped)

    def _seed(self, state: AggregatorState, name: ClientId, shares: Mapping[int, bytes]) -> bytes:
        committed = _roster(state).of(name).commitment
        return self._recovered(state, name, shares, lambda seed: commitment(seed, member=name, terms=self.terms) == committed)

    def _key(self, state: AggregatorState, name: ClientId, shares: Mapping[int, bytes]) -> Secret:
        public = _roster(state).of(name).mask_key
        return Secret(self._recovered(state, name, shares, lambda private: public_of(private) == public))

    def _recovered(
        self, state: AggregatorState, name: ClientId, shares: Mapping[int, bytes], holds: Callable[[bytes], bool]
    ) -> bytes:
        """Return the secret that ``holds``. With a share to spare, a forged one does no harm: each run of places is tried."""
        needed = self.terms.threshold(len(self._graph(state).holders(name)))
        places = sorted(shares)
        for start in range(len(places) if len(places) > needed else 1):
            run = [places[(start + step) % len(places)] for step in range(needed)]
            try:
                secret = shamir.combine({place: shares[place] for place in run})
            except MalformedUpdate:
                continue
            if holds(secret):
                return secret
        raise MalformedUpdate(f"{name}: the shares do not give the secret that it had advertised")

    def _seeds(self, state: AggregatorState) -> dict[ClientId, dict[int, bytes]]:
        """Return the shares that came of each survivor's seed, by place."""
        roster = _roster(state)
        wanted: dict[ClientId, dict[int, bytes]] = {name: {} for name in _survivors(state).members}
        for opening in state.openings:
            for name, share in opening.seeds:
                wanted[name][roster.place(opening.member)] = share
        return wanted

    def _keys(self, state: AggregatorState) -> dict[ClientId, dict[int, bytes]]:
        """Return the shares that came of the mask key of each that dropped out and that a survivor has masked with."""
        roster, graph = _roster(state), self._graph(state)
        survivors = frozenset(_survivors(state).members)
        dropped = frozenset(_dealers(state).dealers) - survivors
        wanted: dict[ClientId, dict[int, bytes]] = {n: {} for n in sorted(dropped) if graph.neighbours(n) & survivors}
        for opening in state.openings:
            for name, share in opening.keys:
                wanted[name][roster.place(opening.member)] = share
        return wanted

    def _graph(self, state: AggregatorState) -> Graph:
        roster = _roster(state)
        return Graph.of(roster.members, roster=roster.digest(self.terms), degree=self.terms.degree)


def _same(state: AggregatorState, known: object, heard: object, *, what: str) -> AggregatorState:
    if known != heard:
        raise Replayed(f"another {what} than before")
    return state


def _roster(state: AggregatorState) -> Roster:
    if state.roster is None:
        raise StaleRound("ahead of the roster")
    return state.roster


def _dealers(state: AggregatorState) -> Delivery:
    if state.dealers is None:
        raise StaleRound("ahead of the list of those that have dealt")
    return state.dealers


def _survivors(state: AggregatorState) -> Survivors:
    if state.survivors is None:
        raise StaleRound("ahead of the survivors")
    return state.survivors
