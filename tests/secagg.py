"""Rounds of secure aggregation in one process, and a witness that tries to read more than the sum."""

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from hushtune_common.messages import ClientId, Digest, RunId
from hushtune_common.secagg import masks, shamir
from hushtune_common.secagg.aggregator import Aggregator, AggregatorState
from hushtune_common.secagg.graph import Graph
from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.keys import pair_key, public_of, self_key
from hushtune_common.secagg.masks import Mask
from hushtune_common.secagg.member import Member, MemberState
from hushtune_common.secagg.messages import Delivery, Opening, Roster, Sign, Survivors, Terms, Upload, Verify, Vows
from hushtune_common.secagg.record import Secret
from hushtune_common.secagg.relay import Relay, RelayState

OWNER = ClientId("owner")
NOBODY: frozenset[ClientId] = frozenset()
STAGES = ("advertise", "deal", "upload", "vow", "open")


def signer(name: ClientId) -> Sign:
    """Return an identity as good as its secrecy among the tests: a keyed hash."""
    return lambda message: hmac.digest(name.encode(), message, "sha256")


def verify(name: ClientId, message: bytes, proof: bytes) -> bool:
    return hmac.compare_digest(hmac.digest(name.encode(), message, "sha256"), proof)


_verifies: Verify = verify


def named(count: int) -> tuple[ClientId, ...]:
    return tuple(ClientId(f"c{k:02}") for k in range(1, count + 1))


def terms_for(
    *, words: int = 4, round_id: int = 1, share: float = 0.5, degree: int = 0, members_min: int = 2, colluders: int = 0
) -> Terms:
    return Terms(
        run=RunId("run-1"),
        round_id=round_id,
        grid=Digest.of(b"grid"),
        words=words,
        members_min=members_min,
        members_max=64,
        share=share,
        degree=degree,
        colluders=colluders,
    )


def payloads(names: Iterable[ClientId], *, terms: Terms, seed: int = 0) -> dict[ClientId, Words]:
    rng = np.random.default_rng([seed, terms.round_id])
    return {n: rng.integers(0, 2**40, terms.words, dtype=np.uint64) for n in names}


Make = Callable[..., Member]


class Rehearsal:
    """A round by the book, stage by stage; each stage says who takes no part in it any more."""

    def __init__(
        self,
        count: int = 4,
        *,
        terms: Terms | None = None,
        make: Make = Member,
        words: int = 4,
        names: tuple[ClientId, ...] | None = None,
    ) -> None:
        self.terms = terms or terms_for(words=words)
        self.names = names or named(count)
        self.members = {n: make(self.terms, name=n, sign=signer(n), verify=verify) for n in self.names}
        self.states = {n: m.begin() for n, m in self.members.items()}
        self.relay, self.relayed = Relay(self.terms), RelayState()
        self.aggregator, self.aggregate = Aggregator(self.terms, verify=verify), AggregatorState()
        self.plain = payloads(self.names, terms=self.terms)
        self.uploads: dict[ClientId, Upload] = {}
        self.gone: frozenset[ClientId] = NOBODY

    @property
    def roster(self) -> Roster:
        assert self.relayed.roster is not None
        return self.relayed.roster

    @property
    def survivors(self) -> Survivors:
        assert self.relayed.survivors is not None
        return self.relayed.survivors

    @property
    def vows(self) -> Vows:
        assert self.relayed.closed is not None
        return self.relayed.closed

    def delivery(self, name: ClientId) -> Delivery:
        return self.relay.delivery(self.relayed, name)

    def here(self, without: Iterable[ClientId]) -> list[ClientId]:
        self.gone |= frozenset(without)
        return [n for n in self.names if n not in self.gone]

    def advertise(self, *, without: Iterable[ClientId] = ()) -> None:
        for name in self.here(without):
            self.relayed = self.relay.advertise(self.relayed, self.states[name].advertisement)
        self.relayed = self.relay.close_advertisements(self.relayed, among=self.names)
        self.aggregate = self.aggregator.meet(self.aggregate, self.roster)
        for name in self.roster.members:
            self.states[name] = self.members[name].meet(self.states[name], self.roster)

    def deal(self, *, without: Iterable[ClientId] = ()) -> None:
        for name in self.here(without):
            self.relayed = self.relay.deal(self.relayed, self.members[name].deal(self.states[name]))
        self.relayed = self.relay.close_deals(self.relayed)
        self.aggregate = self.aggregator.receive(self.aggregate, self.delivery(OWNER))
        for name in self.here(()):
            self.states[name] = self.members[name].receive(self.states[name], self.delivery(name))

    def mask(self, name: ClientId, words: Words | None = None) -> Upload:
        payload = self.plain[name] if words is None else words
        self.states[name], upload = self.members[name].mask(self.states[name], payload)
        return upload

    def upload(self, *, without: Iterable[ClientId] = (), late: Iterable[ClientId] = ()) -> None:
        """Send the payloads; those of ``late`` are made, and come when nobody waits for them any more."""
        for name in self.here(without):
            self.uploads[name] = self.mask(name)
            if name not in frozenset(late):
                self.aggregate = self.aggregator.take(self.aggregate, self.uploads[name])
        self.gone |= frozenset(late)
        self.aggregate = self.aggregator.close(self.aggregate)
        assert self.aggregate.survivors is not None
        self.relayed = self.relay.announce(self.relayed, self.aggregate.survivors)

    def vow(self, *, without: Iterable[ClientId] = ()) -> None:
        for name in self.here(without):
            self.states[name] = self.members[name].stand(self.states[name], self.survivors)
            vow = self.states[name].vow
            assert vow is not None
            self.relayed = self.relay.vow(self.relayed, vow)
        self.relayed = self.relay.close_vows(self.relayed)

    def opening(self, name: ClientId) -> Opening:
        self.states[name] = self.members[name].confirm(self.states[name], self.vows)
        return self.members[name].opening(self.states[name])

    def open(self, *, without: Iterable[ClientId] = ()) -> None:
        for name in self.here(without):
            self.aggregate = self.aggregator.open(self.aggregate, self.opening(name))

    def total(self) -> Words:
        return self.aggregator.total(self.aggregate, (self.uploads[n] for n in self.survivors.members))

    def expected(self) -> Words:
        return total_of(self.plain, self.survivors.members)

    def whole(self) -> Words:
        for stage in (self.advertise, self.deal, self.upload, self.vow, self.open):
            stage()
        return self.total()


def reached(stage: str, rehearsal: Rehearsal) -> Rehearsal:
    """Let a rehearsal go on to where ``stage`` comes next."""
    for name in STAGES[: STAGES.index(stage)]:
        getattr(rehearsal, name)()
    return rehearsal


def total_of(plain: Mapping[ClientId, Words], names: Iterable[ClientId]) -> Words:
    total = np.zeros(next(iter(plain.values())).size, dtype=np.uint64)
    for name in names:
        total += plain[name]
    return total


@dataclass(slots=True, kw_only=True)
class Witness:
    """Coordinator, owner and ``colluders`` put everything together that they saw of one round.

    It may read a sum of uploads when every mask in it is known or cancels. With the truth at hand, it also finds out what it
    could read where a member's machine does not do what it should.
    """

    terms: Terms
    roster: Roster
    colluders: Mapping[ClientId, tuple[Member, MemberState]] = field(default_factory=dict[ClientId, tuple[Member, MemberState]])
    views: dict[ClientId, Delivery] = field(default_factory=dict[ClientId, Delivery])
    """What each member was told about who has dealt."""
    uploads: dict[ClientId, list[Upload]] = field(default_factory=dict[ClientId, list[Upload]])
    seeds: dict[ClientId, dict[int, bytes]] = field(default_factory=dict[ClientId, dict[int, bytes]])
    keys: dict[ClientId, dict[int, bytes]] = field(default_factory=dict[ClientId, dict[int, bytes]])
    _graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        self._graph = Graph.of(self.roster.members, roster=self.roster.digest(self.terms), degree=self.terms.degree)

    def saw_upload(self, upload: Upload) -> bool:
        """Take an upload; return whether it is new."""
        known = self.uploads.setdefault(upload.member, [])
        if upload in known:
            return False
        known.append(upload)
        return True

    def saw_shares(
        self, holder: ClientId, seeds: Iterable[tuple[ClientId, bytes]], keys: Iterable[tuple[ClientId, bytes]]
    ) -> None:
        for table, shares in ((self.seeds, seeds), (self.keys, keys)):
            for subject, share in shares:
                table.setdefault(subject, {})[self.roster.place(holder)] = share

    def saw_opening(self, opening: Opening) -> None:
        self.saw_shares(opening.member, opening.seeds, opening.keys)

    def both_open(self) -> set[ClientId]:
        """Return the honest members of whose two secrets enough shares were seen."""
        return {n for n in self.honest if self._seed(n) is not None and self._key(n) is not None}

    @property
    def honest(self) -> list[ClientId]:
        return [n for n in self.roster.members if n not in self.colluders]

    def readable(self) -> list[frozenset[ClientId]]:
        """Return the groups of honest members whose sums it can read, none of which is made of smaller ones."""
        hidden = {n: self._unknown(n) for n in self.honest}
        groups: list[frozenset[ClientId]] = []
        left = set(self.honest)
        while left:
            group, fresh = set[ClientId](), {min(left)}
            while fresh:
                group |= fresh
                fresh = {m for n in fresh for m in hidden[n]} - group
            left -= group
            if all(n in self.uploads and self._seed(n) is not None for n in group):
                groups.append(frozenset(group))
        return groups

    def read(self, group: Iterable[ClientId]) -> Words:
        """Return the sum that it reads of ``group``, by taking off all it knows."""
        total = np.zeros(self.terms.words, dtype=np.uint64)
        for name in group:
            total += self._stripped(name, self.uploads[name][0], own=True)
        return total

    def found_out(self, plain: Mapping[ClientId, Words]) -> set[ClientId]:
        """Return the honest members whose payload lies open, by whatever mistake."""
        open_: set[ClientId] = set()
        for name in set(self.honest) & self.uploads.keys():
            for upload in self.uploads[name]:
                guesses = (self._stripped(name, upload, own=own, pairs=pairs) for own in (False, True) for pairs in (False, True))
                if any((guess == plain[name]).all() for guess in guesses):
                    open_.add(name)
            if len(self.uploads[name]) > 1:
                open_.add(name)  # the difference of two payloads
        return open_

    def _stripped(self, name: ClientId, upload: Upload, *, own: bool, pairs: bool = True) -> Words:
        words = np.frombuffer(upload.words, dtype="<u8").copy()
        seed, view = self._seed(name), upload.view
        off = [Mask(key=self_key(seed, member=name, view=view), negative=True)] if own and seed is not None else []
        for other in self._partners(name):
            key = self._between(name, other, view=view) if pairs else None
            if key is not None:
                off.append(Mask(key=key, negative=name < other))
        masks.apply(words, off)
        return words

    def _unknown(self, name: ClientId) -> set[ClientId]:
        """Return the honest ones with whom ``name`` shares a mask that is not known."""
        if name not in self.views:
            return set()
        view = self.views[name].view
        return {other for other in self._partners(name) if self._between(name, other, view=view) is None}

    def _partners(self, name: ClientId) -> frozenset[ClientId]:
        return self._graph.neighbours(name) & frozenset(self.views[name].dealers)

    def _between(self, name: ClientId, other: ClientId, *, view: Digest) -> bytes | None:
        for own, far in ((name, other), (other, name)):
            private = self._key(own)
            if private is not None:
                return pair_key(Secret(private), own=own, other=far, public=self.roster.of(far).mask_key, view=view)
        return None

    def _seed(self, name: ClientId) -> bytes | None:
        if name in self.colluders:
            return self.colluders[name][1].secrets.seed.material
        return self._opened(name, self.seeds.get(name, {}))

    def _key(self, name: ClientId) -> bytes | None:
        if name in self.colluders:
            return self.colluders[name][1].secrets.mask.material
        found = self._opened(name, self.keys.get(name, {}))
        assert found is None or public_of(found) == self.roster.of(name).mask_key
        return found

    def _opened(self, name: ClientId, shares: Mapping[int, bytes]) -> bytes | None:
        needed = self.terms.threshold(len(self._graph.holders(name)))
        if len(shares) < needed:
            return None
        return shamir.combine({place: shares[place] for place in sorted(shares)[:needed]})


def witness_of(rehearsal: Rehearsal) -> Witness:
    """Return what coordinator and owner saw of a rehearsal, late uploads included."""
    seen = Witness(terms=rehearsal.terms, roster=rehearsal.roster)
    if rehearsal.relayed.dealers is not None:
        seen.views = dict.fromkeys(rehearsal.relayed.dealers.dealers, rehearsal.relayed.dealers)
    for upload in rehearsal.uploads.values():
        seen.saw_upload(upload)
    for opening in rehearsal.aggregate.openings:
        seen.saw_opening(opening)
    return seen
