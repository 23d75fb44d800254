"""What do owner and clients do in a simulated run? They follow scripts, and give and take as the protocol says."""

from dataclasses import replace

from hushtune_common.messages import (
    Assignment,
    Channel,
    ClientId,
    Completion,
    Directive,
    DirectiveKind,
    GateDecision,
    Settlement,
    SumWord,
    UpdateKey,
)
from hushtune_common.secagg.messages import Deal, Delivery, Roster, Survivors, Vow
from hushtune_common.units import Joule, PowerRatio, Second
from hushtune_server.coordinator.events import (
    OWNER,
    Announced,
    ChannelChanged,
    Completed,
    Concluded,
    Dealt,
    Event,
    Joined,
    Left,
    Member,
    Reported,
    Settled,
    Vowed,
)
from tests.fakes import CURVE, report_of
from tests.simulation.actors import LAYOUT, RUN, Actor, Coordinator, advertisement_of
from tests.simulation.checks import Checker
from tests.simulation.simulator import Violation, World


class Owner(Actor):
    """Judges what arrives, once per client and round, and ends rounds; what it decided is told until it is heard."""

    # Its crash ends the run, so a frail owner would leave little to see.
    sturdiness = 5.0

    def __init__(self, world: World, coordinator: Coordinator, checker: Checker) -> None:
        super().__init__(world, coordinator, OWNER)
        self._checker = checker
        self._judged: dict[tuple[int, ClientId], bool] = {}
        self._dealers: dict[int, Delivery] = {}
        self._ended: dict[int, bool] = {}

    def joining(self, at: Second) -> Event:
        """Bring what updates are worth; in one of four lives something else was measured."""
        curve = CURVE if self._life % 4 else replace(CURVE, offset=0.75)
        self._checker.measured = curve
        return Joined(at=at, member=self.member, curve=curve, layout=LAYOUT if self._checker.adds else None)

    def start(self) -> None:
        """Begin a life: the newest end of a round may not have been heard."""
        super().start()
        if self._ended:
            self._conclude(max(self._ended))

    def obey(self, directive: Directive) -> None:
        if isinstance(directive.sum, Delivery):
            self._dealers[directive.round_id] = directive.sum
        if directive.kind is DirectiveKind.CONCLUDE:
            if directive.round_id in self._dealers:
                self._announce(directive)
            self.later(self._world.between(0.1, 4.0), lambda: self._conclude(directive.round_id))

    def _announce(self, directive: Directive) -> None:
        round_id, view = directive.round_id, self._dealers[directive.round_id].view
        survivors = Survivors(view=view, members=tuple(sorted(directive.accepted)))
        self.call(f"announce {round_id}", lambda at: Announced(at=at, round_id=round_id, survivors=survivors))

    def _conclude(self, round_id: int) -> None:
        last = self._ended.setdefault(round_id, self._world.happens(0.1))
        self._checker.stopped = round_id if last else self._checker.stopped
        word = "flat" if last else ""
        self.call(f"conclude {round_id} {last}", lambda at: Concluded(at=at, round_id=round_id, last=last, reason=word))

    def receive(self, key: UpdateKey) -> None:
        """Judge an update that came through the air."""
        if self.up:
            self.later(self._world.between(0.1, 2.0), lambda: self._judge(key))

    def _judge(self, key: UpdateKey) -> None:
        update = (key.round_id, key.client)
        accepted = self._judged.setdefault(update, not self._world.happens(self._world.weather.refusal))
        if accepted:
            self._checker.accepted_by_owner.add(update)
        settlement = Settlement(key=key, accepted=accepted)
        self.call(f"settle {key.client} {key.round_id} {accepted}", lambda at: Settled(at=at, settlement=settlement))


class Client(Actor):
    """Reports, trains, moves, uploads, completes. A crash takes its assignment, not what it told of its channel."""

    strays = True

    def __init__(self, world: World, coordinator: Coordinator, client: ClientId, owner: Owner, checker: Checker) -> None:
        super().__init__(world, coordinator, Member(client))
        self._client = client
        self._owner = owner
        self._checker = checker
        self._assignment: Assignment | None = None
        self._told: tuple[int, Channel] | None = None
        self._ready = False
        self._delivered: dict[int, bool] = {}
        self._waiting: int | None = None

    def start(self) -> None:
        """Begin a life without memory of an assignment; the newest one is told again."""
        self._assignment = None
        self._ready = False
        self._checker.on_air.pop(self._client, None)
        super().start()

    def obey(self, directive: Directive) -> None:
        round_id = directive.round_id
        match directive.kind:
            case DirectiveKind.ROUND_OPENED:
                report = report_of(self._client, round_id).on(self._channel())
                keys = advertisement_of(self._client, round_id) if self._checker.adds else None
                self.later(
                    self._world.between(0.1, 4.0),
                    lambda: self.call(f"report {round_id}", lambda at: Reported(at=at, report=report, advertisement=keys)),
                )
            case DirectiveKind.ASSIGNED:
                if directive.assignment is not None:
                    self._train(directive.assignment)
            case DirectiveKind.SUM:
                self._hear_sum(round_id, directive.sum)
            case DirectiveKind.ROUND_CLOSED:
                if directive.last:
                    self.call("leave", lambda at: Left(at=at, member=self.member, reason="the run is over"))
            case _:
                raise Violation(f"{self._client} was sent {directive.kind}, which is not for clients")

    def _hear_sum(self, round_id: int, word: SumWord | None) -> None:
        client = self._client
        match word:
            case Roster():
                terms = self._checker.terms(round_id)
                holders = sorted({*word.members} - {client})
                deal = Deal(dealer=client, roster=word.digest(terms), parcels=tuple((h, bytes(82)) for h in holders))
                self.call(f"deal {round_id}", lambda at: Dealt(at=at, round_id=round_id, deal=deal))
            case Delivery():
                self._delivered[round_id] = client in word.dealers
                if self._waiting == round_id:
                    self._trained(round_id)
            case Survivors():
                vow = Vow(member=client, proof=b"we are these")
                self.call(f"vow {round_id}", lambda at: Vowed(at=at, round_id=round_id, vow=vow))
            case _:
                pass

    def _train(self, assignment: Assignment) -> None:
        before, round_id = self._assignment, assignment.round_id
        anew = before is not None and before.round_id == round_id
        if anew and self.sending == round_id:
            return  # on its way with what it was sealed for
        self._assignment = assignment
        if assignment.gate.decision is not GateDecision.GRANTED:
            self._complete(round_id, uploaded=False)
        elif anew and self._ready:
            self._trained(round_id)
        elif not anew and not self._world.happens(self._world.weather.stall):
            self._ready = False
            self._tell(round_id)
            self.later(self._world.lifetime(self._world.weather.motion_s), lambda: self._move(round_id))
            self.later(self._world.between(1.0, self._world.weather.training_s), lambda: self._trained(round_id))

    def _channel(self) -> Channel:
        gains = [PowerRatio(10.0 ** self._world.between(-11.0, -8.0)) for _ in range(2)]
        return Channel(at=Second(self._world.now), gain_main=gains[0], gain_tap=gains[1])

    def _move(self, round_id: int) -> None:
        """Have another channel, remember it, and tell."""
        newest = self._assignment
        if newest is None or newest.round_id != round_id or newest.protection is None or self.sending == round_id:
            return
        self._told = round_id, self._channel()
        self._checker.told[self._client] = self._told
        self._tell(round_id)
        self.later(self._world.lifetime(self._world.weather.motion_s), lambda: self._move(round_id))

    def _tell(self, round_id: int) -> None:
        if self._told is None or self._told[0] != round_id:
            return
        client, channel = self._client, self._told[1]
        self.call("channel", lambda at: ChannelChanged(at=at, round_id=round_id, client=client, channel=channel))

    def _is_outdated(self, assignment: Assignment) -> bool:
        if self._told is None or self._told[0] != assignment.round_id:
            return False
        return assignment.channel is None or assignment.channel.at < self._told[1].at

    def _trained(self, round_id: int) -> None:
        newest = self._assignment
        if newest is None or newest.round_id != round_id or newest.gate.decision is not GateDecision.GRANTED:
            return
        if self._checker.adds and round_id not in self._delivered:
            self._waiting = round_id
            return  # until it is known who has dealt
        self._waiting = None
        self._ready = self._is_outdated(newest)
        if self._ready:
            return  # until the assignment for its new channel comes
        if self._checker.adds and not self._delivered[round_id]:
            self._complete(round_id, uploaded=False)
            return
        if self._world.happens(self._world.weather.failure):
            self._complete(round_id, uploaded=False)
            return
        self.sending = round_id
        self.ask(round_id, then=lambda why: self._begin(newest, why))

    def _begin(self, assignment: Assignment, why: str) -> None:
        """Transmit what was sealed, or have missed the round."""
        round_id = assignment.round_id
        if why:
            self.sending = None
            self._complete(round_id, uploaded=False)
            return
        self._checker.begins(assignment, self._coordinator.state)
        self._checker.on_air[self._client] = assignment
        self.later(self._world.between(0.1, 2.5), lambda: self._sent(round_id))

    def _sent(self, round_id: int) -> None:
        self.sending = None
        self._checker.on_air.pop(self._client, None)
        key = UpdateKey(run=RUN, round_id=round_id, client=self._client, attempt=1)
        self._world.after(self._world.between(0.1, 0.5), lambda: self._owner.receive(key))
        self._complete(round_id, uploaded=True)

    def _complete(self, round_id: int, *, uploaded: bool) -> None:
        completion = Completion(
            key=UpdateKey(run=RUN, round_id=round_id, client=self._client, attempt=1),
            uploaded=uploaded,
            reason="" if uploaded else "no update",
            bytes_raw=1,
            bytes_uploaded=1,
            airtime=Second(1.0),
            train_seconds=Second(1.0),
            energy=Joule(1.0),
        )
        self.call(f"complete {round_id} {uploaded}", lambda at: Completed(at=at, completion=completion))
