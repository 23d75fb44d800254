"""A round of secure aggregation in a world full of faults: lost, doubled, late and reordered messages, crashes, members that go.

The members, the relay and the aggregator are the production machines, each kept as bytes between two events. A member writes its
state down before it speaks; a crash loses what it had not written. After every event the laws are checked by a witness that sees
all that coordinator, owner and some members see. Replay one world with its trace: ``python -m tests.simulation.secagg SEED``;
``python -m tests.simulation.secagg 0 10000 --jobs 2`` plays that many from there on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from hushtune_common.errors import ProtocolFault, QuorumMissed, StaleRound
from hushtune_common.messages import ClientId
from hushtune_common.secagg import record
from hushtune_common.secagg.admission import colluders_max
from hushtune_common.secagg.aggregator import Aggregator, AggregatorState
from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.member import Member, MemberState
from hushtune_common.secagg.messages import Advertisement, Deal, Delivery, Opening, Roster, Survivors, Terms, Upload, Vow, Vows
from hushtune_common.secagg.relay import Relay, RelayState, Stage
from tests.secagg import OWNER, Witness, named, signer, terms_for, total_of, verify
from tests.simulation.many import Counts, Kind, main
from tests.simulation.simulator import Violation, World

STAGE_S: Final = 40.0
RETRY_S: Final = 4.0
ROUND_S: Final = 7 * STAGE_S
WORDS: Final = 3

Make = Callable[..., Member]
Said = Advertisement | Deal | Upload | Vow | Opening
Heard = Roster | Delivery | Survivors | Vows


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a world ended: with the sum of so many, or without one."""

    members: int
    survivors: int | None
    reason: str


class Watch:
    """The laws, and what the plotters have seen so far."""

    def __init__(self, terms: Terms, colluding: frozenset[ClientId]) -> None:
        self.terms = terms
        self.colluding = colluding
        self.witness: Witness | None = None
        self.plain: dict[ClientId, list[Words]] = {}
        self.told: dict[ClientId, Delivery] = {}
        self._openings: list[Opening] = []

    def roster(self, roster: Roster) -> None:
        self.witness = Witness(terms=self.terms, roster=roster, views=self.told)

    def uploaded(self, upload: Upload) -> None:
        if self.witness is not None and self.witness.saw_upload(upload):
            self.check()

    def opened(self, opening: Opening) -> None:
        if self.witness is not None and opening not in self._openings:
            self._openings.append(opening)
            self.witness.saw_opening(opening)
            self.check()

    def colludes(self, member: Member, state: MemberState) -> None:
        """A colluder shows all that it knows, once it holds shares."""
        if self.witness is not None and state.delivery is not None:
            self.witness.colluders = {**self.witness.colluders, member.name: (member, state)}
            shares = member.held(state)
            seeds, keys = ((n, s.seed) for n, s in shares.items()), ((n, s.key) for n, s in shares.items())
            self.witness.saw_shares(member.name, seeds, keys)

    def check(self) -> None:
        seen = self.witness
        if seen is None:
            return
        if seen.both_open():
            raise Violation(f"both secrets of {sorted(seen.both_open())} are open")
        for name, uploads in seen.uploads.items():
            if len(uploads) > 1:
                raise Violation(f"{name} put its masks on two payloads")
        groups = seen.readable()
        if len(groups) > 1 or any(len(group) < 2 for group in groups):
            raise Violation(f"sums of {[sorted(group) for group in groups]} are open")
        open_ = seen.found_out({n: payloads[-1] for n, payloads in self.plain.items()})
        if open_:
            raise Violation(f"the payload of {sorted(open_)} is open")

    def summed(self, survivors: Survivors, total: Words) -> None:
        truth = {n: payloads[-1] for n, payloads in self.plain.items()}
        if not (total == total_of(truth, survivors.members)).all():
            raise Violation("the sum is not that of the survivors' payloads")


class Server:
    """Coordinator and owner: they carry, close stages when nobody is waited for or the time is up, and add."""

    def __init__(self, world: World, terms: Terms, names: tuple[ClientId, ...], watch: Watch) -> None:
        self.relay, self.aggregator = Relay(terms), Aggregator(terms, verify=verify)
        self.ending: Ending | None = None
        self._relayed, self._aggregate = record.to_bytes(RelayState()), record.to_bytes(AggregatorState())
        self._uploads: dict[ClientId, Upload] = {}
        self._world = world
        self._names = names
        self._watch = watch
        self._stage: tuple[Stage | str, float] = (Stage.ADVERTISEMENTS, 0.0)
        world.after(1.0, self._tick)

    @property
    def relayed(self) -> RelayState:
        return record.from_bytes(self._relayed, RelayState)

    @property
    def aggregate(self) -> AggregatorState:
        return record.from_bytes(self._aggregate, AggregatorState)

    def hear(self, said: Said) -> None:
        """Take a member's word; a fault is the member's, and changes nothing."""
        try:
            self._take(said)
        except ProtocolFault as fault:
            self._world.note(f"server refuses {type(said).__name__}: {fault}")

    def answers(self, name: ClientId) -> list[Heard]:
        """Return all that ``name`` may hear by now, oldest first."""
        state = self.relayed
        found: list[Heard] = []
        if state.roster is not None:
            found.append(state.roster)
        if state.dealers is not None and name in state.dealers.dealers:
            found.append(self.relay.delivery(state, name))
            self._watch.told[name] = state.dealers
        if state.survivors is not None:
            found.append(state.survivors)
        if state.closed is not None:
            found.append(state.closed)
        return found

    def _take(self, said: Said) -> None:
        relayed, aggregate = self.relayed, self.aggregate
        match said:
            case Advertisement():
                self._keep(self.relay.advertise(relayed, said))
            case Deal():
                self._keep(self.relay.deal(relayed, said))
            case Vow():
                self._keep(self.relay.vow(relayed, said))
            case Upload():
                self._watch.uploaded(said)
                self._aggregate = record.to_bytes(self.aggregator.take(aggregate, said))
                self._uploads.setdefault(said.member, said)
            case Opening():
                self._watch.opened(said)
                self._aggregate = record.to_bytes(self.aggregator.open(aggregate, said))

    def _keep(self, state: RelayState) -> None:
        self._relayed = record.to_bytes(state)

    def _tick(self) -> None:
        if self.ending is not None:
            return
        try:
            self._advance()
        except QuorumMissed as missed:
            self.ending = Ending(members=len(self._names), survivors=None, reason=str(missed))
            self._world.note(f"the round fails: {missed}")
            return
        self._world.after(1.0, self._tick)

    def _advance(self) -> None:
        state = self.relayed
        stage: Stage | str = state.stage
        if stage != self._stage[0]:
            self._stage = (stage, self._world.now)
            self._world.note(f"stage {stage}")
        over = self._world.now - self._stage[1] > STAGE_S
        match state.stage:
            case Stage.ADVERTISEMENTS:
                if over or not self.relay.waiting_for(state, self._names):
                    closed = self.relay.close_advertisements(state, among=self._names)
                    assert closed.roster is not None
                    self._aggregate = record.to_bytes(self.aggregator.meet(self.aggregate, closed.roster))
                    self._watch.roster(closed.roster)
                    self._keep(closed)
            case Stage.DEALS:
                if over or not self.relay.waiting_for(state, self._names):
                    closed = self.relay.close_deals(state)
                    delivery = self.relay.delivery(closed, OWNER)
                    self._aggregate = record.to_bytes(self.aggregator.receive(self.aggregate, delivery))
                    self._keep(closed)
            case Stage.UPLOADS:
                aggregate = self.aggregate
                assert state.dealers is not None
                if over or len(aggregate.received) == len(state.dealers.dealers):
                    closed_ = self.aggregator.close(aggregate)
                    assert closed_.survivors is not None
                    self._aggregate = record.to_bytes(closed_)
                    self._keep(self.relay.announce(state, closed_.survivors))
            case Stage.VOWS:
                if over or not self.relay.waiting_for(state, self._names):
                    self._keep(self.relay.close_vows(state))
            case Stage.DONE:
                aggregate = self.aggregate
                if over or not self.aggregator.lacking(aggregate):
                    self._finish(aggregate)

    def _finish(self, aggregate: AggregatorState) -> None:
        assert aggregate.survivors is not None
        survivors = aggregate.survivors
        total = self.aggregator.total(aggregate, (self._uploads[n] for n in survivors.members))
        self._watch.summed(survivors, total)
        self.ending = Ending(members=len(self._names), survivors=len(survivors.members), reason="")
        self._world.note(f"the sum of {len(survivors.members)}")


class Device:
    """A client: says what its state has to say until it is answered; crashes, comes back, or goes for good."""

    def __init__(self, world: World, server: Server, member: Member, watch: Watch) -> None:
        self._world = world
        self._server = server
        self._member = member
        self._watch = watch
        self._disk = record.to_bytes(member.begin())
        self._payload: Words | None = None
        self._up = True
        self._lost = False
        self._trained_at = world.between(0.0, 1.3 * world.weather.training_s)
        world.after(world.between(0.0, 2.0), self._speak)
        world.after(world.lifetime(world.weather.crash_s), self._crash)
        if world.happens(0.45):
            world.after(world.between(0.0, 2.5 * STAGE_S), self._go)

    def _go(self) -> None:
        self._world.note(f"{self._member.name} goes for good")
        self._up = False

    def _crash(self) -> None:
        if self._up:
            self._world.note(f"{self._member.name} crashes")
            # What it trained is not trained again to the bit; what it masked is on the disk, unless that is what broke.
            self._payload = None
            self._lost = self._lost or self._world.happens(0.6)
            self._world.after(self._world.lifetime(self._world.weather.crash_s), self._crash)

    def _speak(self) -> None:
        if not self._up or self._server.ending is not None:
            return
        said = self._next_word()
        if said is not None:
            self._world.send(lambda: self._server.hear(said))
        self._world.send(self._listen)
        self._world.after(RETRY_S, self._speak)

    def _next_word(self) -> Said | None:
        state = record.from_bytes(self._disk, MemberState)
        if self._member.name in self._watch.colluding:
            self._watch.colludes(self._member, state)
        if state.roster is None:
            return state.advertisement
        if state.delivery is None:
            return self._member.deal(state)
        if state.survivors is None:
            return self._masked(state)
        return self._member.opening(state) if state.confirmed else state.vow

    def _masked(self, state: MemberState) -> Upload | None:
        name = self._member.name
        if self._world.now < self._trained_at:
            return None
        if self._payload is None:
            kept = self._watch.plain.get(name, [])
            fresh = self._world.rng.integers(0, 2**40, WORDS, dtype=np.uint64)
            # Payload and state go to the disk together; before that, nothing was said.
            self._payload = kept[-1] if state.payload is not None and kept and not self._lost else fresh
        try:
            after, upload = self._member.mask(state, self._payload)
        except ProtocolFault as fault:
            self._world.note(f"{name} will not: {fault}")
            return None
        if not self._write(after):
            self._payload = None
            return None
        known = self._watch.plain.setdefault(name, [])
        if not any((self._payload == other).all() for other in known):
            known.append(self._payload)
        return upload

    def _listen(self) -> None:
        if not self._up:
            return
        for heard in self._server.answers(self._member.name):
            self._world.send(lambda h=heard: self._learn(h))

    def _learn(self, heard: Heard) -> None:
        if not self._up:
            return
        state = record.from_bytes(self._disk, MemberState)
        try:
            match heard:
                case Roster():
                    after = self._member.meet(state, heard)
                case Delivery():
                    after = self._member.receive(state, heard)
                case Survivors():
                    after = self._member.stand(state, heard)
                case Vows():
                    after = self._member.confirm(state, heard)
        except StaleRound:
            return  # ahead of its turn; it comes again
        except (ProtocolFault, QuorumMissed) as fault:
            self._world.note(f"{self._member.name} refuses {type(heard).__name__}: {fault}")
            return
        self._write(after)

    def _write(self, state: MemberState) -> bool:
        """Write a state down, unless the power fails right now."""
        if self._world.weather.crash_s != float("inf") and self._world.happens(0.05):
            self._world.note(f"{self._member.name} is killed before it has written")
            return False
        self._disk = record.to_bytes(state)
        return True


class Story:
    """One world from its first event to its end."""

    def __init__(self, seed: int, *, make: Make = Member, fair: bool = False) -> None:
        self.world = World(seed, round_s=ROUND_S, fair=fair)
        rng = self.world.rng
        count = int(rng.integers(2, 8))
        share = float(rng.choice([0.5, 0.5, 0.6, 2 / 3]))
        degree = 4 if count > 5 and rng.random() < 0.5 else 0
        names = named(count)
        most = colluders_max(terms_for(share=share, degree=degree), members=count)
        colluding = frozenset(names[k] for k in rng.permutation(count)[: int(rng.integers(0, most + 1))])
        self.terms = terms_for(words=WORDS, share=share, degree=degree, colluders=len(colluding))
        self.watch = Watch(self.terms, colluding)
        self.server = Server(self.world, self.terms, names, self.watch)
        for name in names:
            member = make(self.terms, name=name, sign=signer(name), verify=verify)
            Device(self.world, self.server, member, self.watch)

    def run(self) -> Ending:
        deadline = 3 * ROUND_S
        while self.server.ending is None:
            if self.world.now > deadline or not self.world.step():
                raise Violation(f"the round is still at {self.server.relayed.stage} after {self.world.now:g} s")
        self.watch.check()
        return self.server.ending


def play(seed: int, *, make: Make = Member, fair: bool = False) -> Ending:
    """Run one world; a ``Violation`` says how to see it again."""
    try:
        return Story(seed, make=make, fair=fair).run()
    except Violation as violation:
        raise Violation(f"seed {seed}: {violation}; replay: python -m tests.simulation.secagg {seed}") from None


def counted(seed: int) -> Counts:
    """Play one world and count what happened in it."""
    ending = play(seed)
    if ending.survivors is None:
        return {"sums": 0, "rounds without one": 1}
    return {"sums": 1, "rounds without one": 0, "members dropped": ending.members - ending.survivors}


def replayed(seed: int) -> None:
    """Play one world and show its trace."""
    story = Story(seed)
    try:
        ending = story.run()
    finally:
        print("\n".join(story.world.trace))
    print(f"seed {seed}: {ending}")


KIND = Kind(name="secagg", play=counted, replay=replayed)

if __name__ == "__main__":
    main(KIND, about=__doc__)
