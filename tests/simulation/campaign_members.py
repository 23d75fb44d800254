"""Who plays a campaign of several rounds: the owner with its book, clients with what they owe, both killed at any moment."""

import json
from collections.abc import Callable
from dataclasses import replace

import msgspec

from hushtune_client import phases, rounds
from hushtune_client.feedback import Residuals
from hushtune_client.phases import Command, Idle, State, Terms
from hushtune_common.errors import DigestMismatch
from hushtune_common.messages import (
    Assignment,
    ClientId,
    Conclusion,
    Digest,
    Directive,
    DirectiveKind,
    EmulatorManifest,
    Part,
    Settlement,
    UpdateKey,
    Verdict,
)
from hushtune_common.units import Joule, Second
from hushtune_server.coordinator.events import OWNER, Completed, Concluded, Left, Member, Reported, Settled
from hushtune_server.owner.book import CLOSED, JUDGED, PUBLISHED, Book, Closing, Judgement, Publication, refusal, to_body
from hushtune_server.owner.stopping import why_stop
from tests.fakes import report_of
from tests.simulation.actors import ROUND_S, RUN, Actor, Coordinator
from tests.simulation.campaign_laws import START, Laws, Update, Vector, average, decoded, emulator_of, learnt, plus
from tests.simulation.checks import Checker
from tests.simulation.simulator import Violation, World

PATIENCE = 2


class Owner(Actor):
    """The owner: the production book over a journal; versions of the model's seat outlive a kill, like the journal."""

    def __init__(self, world: World, coordinator: Coordinator, checker: Checker, laws: Laws, *, rounds: int) -> None:
        self._journal: list[tuple[str, str]] = []
        self._versions: dict[int, tuple[Vector, Closing]] = {}
        self._adapters: dict[tuple[ClientId, int], Vector] = {}
        self._checker = checker
        self._laws = laws
        self._rounds = rounds
        self._opened = 0
        self.book = Book()
        super().__init__(world, coordinator, OWNER)
        self._append(PUBLISHED, Publication(run=RUN, manifest=emulator_of(START, 1)))

    def start(self) -> None:
        """Begin a life with what the journal holds."""
        self.book, self._opened, self.last_seen = Book(), 0, 0
        for kind, text in self._journal:
            self.book.apply(kind, json.loads(text))
        super().start()

    def obey(self, directive: Directive) -> None:
        match directive.kind:
            case DirectiveKind.ROUND_OPENED:
                self._opened = max(self._opened, directive.round_id)
            case DirectiveKind.CONCLUDE:
                self.later(self._world.between(0.1, 2.0), lambda: self._conclude(directive))
            case DirectiveKind.ROUND_CLOSED:
                self._opened = max(self._opened, directive.round_id)
                self._close(directive)
            case _:
                pass

    def take(self, update: Update) -> bool:
        """Judge what came through the air, once; return whether it is acknowledged."""
        key = update.key
        if not self.up or self._opened < key.round_id:
            return False
        if self.book.closing(RUN, key.round_id) is not None:
            return True
        if self.book.judgement(RUN, key.round_id, key.client) is None:
            self._append(JUDGED, self._judged(update))
        judgement = self.book.judgement(RUN, key.round_id, key.client)
        if judgement is None:
            raise Violation("a judgement was not taken in")
        if judgement.accepted:
            self._checker.accepted_by_owner.add((key.round_id, key.client))
        word = Settlement(key=key, accepted=judgement.accepted)
        self.call(f"settle {key.client} {key.round_id}", lambda at: Settled(at=at, settlement=word))
        return True

    def manifest(self, round_id: int) -> EmulatorManifest | None:
        return self.book.manifest(RUN, round_id) if self.up else None

    def verdict(self, round_id: int, client: ClientId) -> Verdict | None:
        return self.book.verdict(RUN, round_id, client) if self.up else None

    def _judged(self, update: Update) -> Judgement:
        key, published = update.key, self.book.manifest(RUN, update.key.round_id)
        if published is None or update.emulator != published.emulator:
            raise Violation(f"{key.client} sent an update of another emulator in round {key.round_id}")
        if self._world.happens(self._world.weather.refusal):
            return refusal(key, DigestMismatch("drawn by the weather"))
        self._adapters[key.client, key.round_id] = update.adapter
        return Judgement(key=key, accepted=True, kept=not self._world.happens(0.1), reason="")

    def _close(self, directive: Directive) -> None:
        """Average, remember the version, then the decision: a kill may come between any two of these."""
        round_id = directive.round_id
        if self.book.closing(RUN, round_id) is not None:
            return
        before = self._laws.seats[round_id]
        if round_id not in self._versions:
            self._versions[round_id] = self._averaged(directive, before)
            if self._dies():
                return
        seat, closing = self._versions[round_id]
        self._append(CLOSED, closing)
        self._laws.averaged(closing, before=before, after=seat)

    def _averaged(self, directive: Directive, before: Vector) -> tuple[Vector, Closing]:
        merged = () if directive.failed_reason else self.book.mergeable(RUN, directive.round_id, directive.accepted)
        kept = bool(merged) and not self._world.happens(0.25)
        seat = average([self._adapters[c, directive.round_id] for c in merged]) if kept else before
        closing = Closing(
            run=RUN,
            round_id=directive.round_id,
            accepted=directive.accepted,
            merged=merged,
            kept=kept,
            reason="" if kept else "rolled back",
            perplexity_before=100.0,
            perplexity_after=50.0 / directive.round_id if merged else None,
        )
        if directive.kind is DirectiveKind.CONCLUDE:
            past = self.book.closings_of(RUN)
            closing = replace(closing, stopped=why_stop([*past, closing], patience=PATIENCE, improvement_nats=0.01))
        return seat, closing

    def _conclude(self, directive: Directive) -> None:
        round_id = directive.round_id
        self._close(directive)
        closing = self.book.closing(RUN, round_id)
        if closing is None or not self.up:
            return
        if not closing.stopped and self.book.manifest(RUN, round_id + 1) is None:
            self._append(PUBLISHED, Publication(run=RUN, manifest=emulator_of(self._laws.seats[round_id + 1], round_id + 1)))
            if self._dies():
                return
        word = Conclusion(run=RUN, round_id=round_id, last=bool(closing.stopped), reason=closing.stopped)
        self._checker.stopped = round_id if word.last else self._checker.stopped

        def make(at: Second) -> Concluded:
            return Concluded(at=at, round_id=round_id, last=word.last, reason=word.reason)

        self.call(f"conclude {round_id}", make)

    def _append(self, kind: str, value: Judgement | Closing | Publication) -> None:
        self._journal.append((kind, json.dumps(to_body(value))))
        self.book.apply(kind, json.loads(self._journal[-1][1]))

    def _dies(self) -> bool:
        """Whether this is the moment at which the weather kills the process."""
        if self.finished or self._world.weather.crash_s == float("inf") or not self._world.happens(0.2):
            return False
        self._crash(self._life)
        return True

    def _crash(self, life: int) -> None:
        # Before anybody takes it for dead: a run without its owner is over.
        crash_and_return(self, life, lambda: super(Owner, self)._crash(life), absent_s=3.0)


def crash_and_return(actor: "Owner | Client", life: int, crash: Callable[[], None], *, absent_s: float) -> None:
    """Crash, and come back after at most ``absent_s``, so that a run goes on and there is something to see."""
    world = actor._world  # pyright: ignore[reportPrivateUsage] - the base's own
    kept = world.weather
    world.weather = replace(kept, return_share=0.0)
    was_up = actor.up
    crash()
    world.weather = kept
    if was_up and not actor.up:
        world.after(world.between(0.2, absent_s), actor.start)


class Client(Actor):
    """A client: the production machine and the production book-keeping of residuals, over a journal."""

    strays = True

    def __init__(
        self, world: World, coordinator: Coordinator, client: ClientId, owner: Owner, checker: Checker, laws: Laws
    ) -> None:
        self.client = client
        self._terms = Terms(run=RUN, client=client, attempts_max=8)
        self._owner = owner
        self._checker = checker
        self._laws = laws
        self._journal: list[tuple[str, str, int]] = []
        self._files: dict[int, Vector] = {}
        self._updates: dict[int, Update] = {}
        super().__init__(world, coordinator, Member(client))

    def start(self) -> None:
        """Begin a life: fold the journal, do what was left undone."""
        self.state: State = Idle()
        self.residuals = Residuals()
        self.last_seen = 0
        self._material: EmulatorManifest | None = None
        self._abandoned: set[int] = set()
        self._checker.on_air.pop(self.client, None)
        self._laws.lives += 1
        for kind, text, seq in self._journal:
            self._fold(kind, json.loads(text), seq)
        super().start()
        for command in rounds.resume(self.state):
            self._begin(command)

    def hear(self, directive: Directive) -> None:
        if directive.seq <= self.last_seen:
            raise Violation(f"{self.member} heard directive {directive.seq} after {self.last_seen}")
        self._take(rounds.event_of(directive, client=self.client), seq=directive.seq)

    def _take(self, event: phases.Event, *, seq: int = 0) -> None:
        after, commands = rounds.advance(self.state, event, terms=self._terms)
        if after == self.state and not seq:
            return
        self._append(type(event).__name__, msgspec.to_builtins(event), seq=seq)
        for command in commands:
            self._begin(command)

    def _append(self, kind: str, body: object, *, seq: int = 0) -> None:
        self._journal.append((kind, json.dumps(body, default=str), seq))
        self._fold(kind, json.loads(self._journal[-1][1]), seq)

    def _fold(self, kind: str, body: dict[str, object], seq: int) -> None:
        match kind:
            case "sealed":
                residual = Digest.from_hex(str(body["residual"]))
                self.residuals = self.residuals.sealed(int(str(body["round_id"])), residual)
            case "judged":
                self.residuals = self.residuals.judged(int(str(body["round_id"])), kept=bool(body["kept"]))
            case _:
                event: phases.Event = msgspec.convert(body, getattr(phases, kind), strict=False)
                self.state, _ = rounds.advance(self.state, event, terms=self._terms)
                self.last_seen = max(self.last_seen, seq)

    def _begin(self, command: Command) -> None:
        match command:
            case phases.Measure():
                self._fetch(command.round_id, then=lambda: self._report(command.round_id))
            case phases.Train():
                self._fetch(command.assignment.round_id, then=lambda: self._hear_verdicts(command.assignment))
            case phases.Send():
                self.later(self._world.between(0.1, 2.0), lambda: self._send(command))
            case phases.Conclude():
                self._checker.on_air.pop(self.client, None)
                self.sending = None
                completion = command.completion
                self.call("complete", lambda at: Completed(at=at, completion=completion))
            case phases.AskVerdict():
                self._ask(command.round_id, then=lambda: self._take(phases.VerdictReached(round_id=command.round_id)))
            case phases.Abandon():
                self._abandoned.add(command.round_id)
                self._checker.on_air.pop(self.client, None)
                self.sending = None
            case phases.Stop():
                self.finished = True
                self.call("leave", lambda at: Left(at=at, member=self.member, reason="the run is over"))
            case phases.Watch() | phases.Retune():
                pass

    def _fetch(self, round_id: int, *, then: Callable[[], None]) -> None:
        """Have the emulator of a round at hand, waiting for it."""
        if round_id in self._abandoned:
            return
        if self._material is None or self._material.round_id != round_id:
            self._material = self._owner.manifest(round_id)
        if self._material is None:
            self.later(1.0, lambda: self._fetch(round_id, then=then))
        else:
            then()

    def _report(self, round_id: int) -> None:
        report = report_of(self.client, round_id)
        self.call(f"report {round_id}", lambda at: Reported(at=at, report=report))

    def _hear_verdicts(self, assignment: Assignment) -> None:
        """Learn what became of earlier updates, then train."""
        if assignment.round_id in self._abandoned:
            return
        unanswered = self.residuals.unanswered(before=assignment.round_id)
        if unanswered:
            self._laws.asked_again += 1
            self._ask(unanswered[0], then=lambda: self._hear_verdicts(assignment))
            return
        self._take(phases.TrainingStarted(round_id=assignment.round_id))
        self.later(self._world.between(1.0, self._world.weather.training_s), lambda: self._train(assignment))

    def _ask(self, round_id: int, *, then: Callable[[], None]) -> None:
        if round_id in self.residuals.kept:
            then()
            return
        verdict = self._owner.verdict(round_id, self.client)
        if verdict is None:
            self.later(1.0, lambda: self._ask(round_id, then=then))
            return
        self._append("judged", {"round_id": round_id, "kept": verdict.kept})
        self._laws.owed(self.client, self.residuals, self._files, book=self._owner.book)
        then()

    def _train(self, assignment: Assignment) -> None:
        """Train, add what is owed, encode, keep what the decoder will not get back, seal."""
        round_id, state = assignment.round_id, self.state
        if round_id in self._abandoned or not isinstance(state, phases.Assigned | phases.Training):
            return
        if self._world.happens(self._world.weather.failure):
            self._take(phases.RoundFailed(round_id=round_id, reason="no update"))
            return
        self._seal(state.assignment)
        word = phases.UpdateSealed(
            round_id=round_id, bytes_raw=1, train_seconds=Second(1.0), energy=Joule(1.0), assignment=state.assignment
        )
        self._take(word)
        if self._world.weather.crash_s < float("inf") and self._world.happens(0.1):
            self._crash(self._life)  # with an update of which nobody may ever hear

    def _seal(self, assignment: Assignment) -> None:
        round_id, manifest = assignment.round_id, self.trains_on()
        self._laws.trained(self.client, round_id, manifest=manifest)
        shipped, owed = self._laws.seats[manifest.round_id], self.residuals.current(before=round_id)
        trained = plus(shipped, learnt(self.client, round_id))
        wanted = trained if owed is None else plus(trained, self._files[owed])
        arrives = decoded(wanted, shipped)
        self._laws.learnt[self.client, round_id] = learnt(self.client, round_id)
        self._laws.arrived[self.client, round_id] = arrives
        key = UpdateKey(run=RUN, round_id=round_id, client=self.client, attempt=1)
        self._updates[round_id] = Update(key=key, emulator=manifest.emulator, adapter=arrives)
        self._keep(round_id, plus(wanted, arrives, times=-1))

    def _keep(self, round_id: int, residual: Vector) -> None:
        self._files[round_id] = residual
        self._append("sealed", {"round_id": round_id, "residual": Digest.of(repr(residual).encode()).hex})

    def trains_on(self) -> EmulatorManifest:
        if self._material is None:
            raise Violation(f"{self.client} has nothing to train on")
        return self._material

    def _send(self, command: phases.Send) -> None:
        """Transmit until the owner acknowledges; some blocks may be lost."""
        if not self._is_at(command):
            return
        self.sending = command.assignment.round_id
        self.ask(command.assignment.round_id, then=lambda why: self._begin_to_send(command, why))

    def _begin_to_send(self, command: phases.Send, why: str) -> None:
        """Transmit what was sealed, or have missed the round."""
        if not self._is_at(command):
            return
        if why:
            self._take(phases.RoundFailed(round_id=command.assignment.round_id, reason=why))
            return
        self._checker.begins(command.assignment, self._coordinator.state)
        self._checker.on_air[self.client] = command.assignment
        self._arrive(command)

    def _arrive(self, command: phases.Send) -> None:
        state = self.state
        if not self._is_at(command) or not isinstance(state, phases.Uploading):
            return
        if not self._owner.take(self._updates[state.round_id]):
            self.later(1.0, lambda: self._arrive(command))
            return
        answer = phases.FrameAnswered(
            round_id=state.round_id,
            part=Part.PAYLOAD,
            attempt=command.attempt,
            frame_bytes=1,
            airtime=Second(1.0),
            energy=Joule(1.0),
            missing=(),
        )
        self.later(self._world.between(0.1, 0.5), lambda: self._take(answer))

    def _is_at(self, command: phases.Send) -> bool:
        """Whether this attempt is what the client is at."""
        state, of = self.state, command.assignment.round_id
        at = isinstance(state, phases.Uploading) and (state.round_id, state.attempt) == (of, command.attempt)
        return at and of not in self._abandoned

    def _crash(self, life: int) -> None:
        absent_s = ROUND_S if self._world.happens(0.4) else 3.0
        crash_and_return(self, life, lambda: super(Client, self)._crash(life), absent_s=absent_s)
