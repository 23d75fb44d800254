"""Does a client say of a sum only what follows from what is on its disk, and the same again after a kill?"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune_client.conductor import Conductor, Duty
from hushtune_client.phases import Completed, Conclude, Idle, Measure, Reported, RoundClosed, RoundOpened, SumHeard, Train
from hushtune_client.ports import Ports
from hushtune_client.progress import Status
from hushtune_client.state import ClientState
from hushtune_client.sums import Sums
from hushtune_common import config
from hushtune_common.config import Scenario
from hushtune_common.errors import DeadlineExceeded, Equivocation, PeerLost, QuorumMissed, StaleRound, StorageFull
from hushtune_common.messages import ClientId, Completion, Digest, Directive, DirectiveKind, RunId
from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.member import Member
from hushtune_common.secagg.messages import Deal, Delivery, Opening, Roster, Survivors, Upload, Vow
from hushtune_common.secagg.relay import Relay, RelayState
from hushtune_common.secagg.terms import Layout
from hushtune_common.seeding import SeedTree
from hushtune_common.wire.bell import Bell
from tests.fakes import FakeClock
from tests.loopback import CLIENT, RUN, LoopbackCoordinator, LoopbackOwner, World, assignment_of, loopback_ports
from tests.secagg import signer, verify

OTHERS = (ClientId("c2"), ClientId("c3"))
LAYOUT = Layout(grid=Digest.of(b"grid"), words=4)
WORDS: Words = np.arange(4, dtype="<u8")
TREE: dict[str, Any] = {
    "name": "sums",
    "seed": 1,
    "model": {"source": "random:blocks=2,hidden=32,heads=4,seed=1"},
    "data": {"private": "txt:nobody", "public": "txt:nobody"},
    "owner": {"aggregation": {"kind": "secure"}},
    "clients": [{"id": name, "position": {"x_m": 1.0, "y_m": 2.0}} for name in ("c1", "c2", "c3")],
}


async def within(seconds: float, work: Awaitable[None]) -> None:
    async with asyncio.timeout(min(seconds, 0.05)):
        await work


@dataclass
class Stage:
    """A client's sums on its disk, with two other members and a relay that keep to the rules."""

    folder: Path
    scenario: Scenario = field(default_factory=lambda: config.parse(TREE))
    world: World = field(default_factory=World)
    lives: list[ClientState] = field(default_factory=list[ClientState])
    ports: Ports | None = None
    clock: FakeClock = field(default_factory=lambda: FakeClock(autojump=True))

    async def life(self) -> Sums:
        """Begin a life of the client's process with what the one before left on disk."""
        while self.lives:
            await self.lives.pop().close()
        state = ClientState.open(self.folder / "state", client=CLIENT, attempts_max=3)
        await state.join(RUN)
        self.lives.append(state)
        return Sums(
            scenario=self.scenario,
            client=CLIENT,
            ports=self.ports or loopback_ports(self.world, folder=self.folder),
            state=state,
            clock=self.clock,
            seeds=SeedTree(1),
            sign=signer(CLIENT),
            verify=verify,
            bell=Bell(),
            within=within,
            aside=asyncio.to_thread,
        )


@dataclass
class Round:
    """What the others make of a round that the client takes part in."""

    sums: Sums
    relayed: RelayState = field(default_factory=RelayState)

    def __post_init__(self) -> None:
        self.terms = self.sums.terms(1, LAYOUT)
        self.relay = Relay(self.terms)
        self.others = {name: Member(self.terms, name=name, sign=signer(name), verify=verify) for name in OTHERS}
        self.states = {name: member.begin() for name, member in self.others.items()}
        for said in (self.sums.begin(1, LAYOUT), *(s.advertisement for s in self.states.values())):
            self.relayed = self.relay.advertise(self.relayed, said)
        self.relayed = self.relay.close_advertisements(self.relayed, among=(CLIENT, *OTHERS))

    @property
    def roster(self) -> Roster:
        assert self.relayed.roster is not None
        return self.relayed.roster

    async def to_delivery(self, world: World) -> None:
        await self.sums.hear(1, self.roster)
        await self.sums.say(1)
        self.relayed = self.relay.deal(self.relayed, world.deals[CLIENT, 1])
        for name, member in self.others.items():
            self.states[name] = member.meet(self.states[name], self.roster)
            self.relayed = self.relay.deal(self.relayed, member.deal(self.states[name]))
        self.relayed = self.relay.close_deals(self.relayed)
        await self.sums.hear(1, self.relay.delivery(self.relayed, CLIENT))

    def survivors(self, *names: ClientId) -> Survivors:
        view = self.relay.delivery(self.relayed, CLIENT).view
        return Survivors(view=view, members=tuple(sorted(names)))

    async def to_vows(self, world: World, sums: Sums, *names: ClientId) -> None:
        survivors = self.survivors(*names)
        self.relayed = self.relay.announce(self.relayed, survivors)
        await sums.hear(1, survivors)
        await sums.say(1)
        self.relayed = self.relay.vow(self.relayed, world.vows[CLIENT, 1])
        for name in set(names) - {CLIENT}:
            member, words = self.others[name], np.zeros(4, dtype="<u8")
            received = member.receive(self.states[name], self.relay.delivery(self.relayed, name))
            stood = member.stand(member.mask(received, words)[0], survivors)
            assert stood.vow is not None
            self.relayed = self.relay.vow(self.relayed, stood.vow)
        self.relayed = self.relay.close_vows(self.relayed)


def run(folder: Path, work: Callable[[Stage], Awaitable[None]]) -> None:
    async def staged() -> None:
        stage = Stage(folder)
        try:
            await work(stage)
        finally:
            for state in stage.lives:
                await state.close()

    asyncio.run(asyncio.wait_for(staged(), 30.0))


def test_a_client_goes_from_keys_to_shares_and_opens_of_nobody_both(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        round_ = Round(sums)
        await round_.to_delivery(stage.world)
        sums.masked(1, WORDS)
        await round_.to_vows(stage.world, sums, CLIENT, OTHERS[0])
        assert round_.relayed.closed is not None
        await sums.hear(1, round_.relayed.closed)
        await sums.say(1)
        opening = stage.world.openings[CLIENT, 1]
        assert [n for n, _ in opening.seeds] == [CLIENT, OTHERS[0]]
        assert [n for n, _ in opening.keys] == [OTHERS[1]]

    run(tmp_path, work)


@pytest.mark.parametrize("stop", ["keys", "deal", "vow", "open"])
def test_after_a_kill_at_any_stage_the_same_words_are_said_again(tmp_path: Path, stop: str) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        round_ = Round(sums)
        if stop == "keys":
            assert (await stage.life()).begin(1, LAYOUT) == round_.roster.of(CLIENT)
            return
        await round_.to_delivery(stage.world)
        if stop != "deal":
            sums.masked(1, WORDS)
            await round_.to_vows(stage.world, sums, CLIENT, *OTHERS)
        if stop == "open":
            assert round_.relayed.closed is not None
            await sums.hear(1, round_.relayed.closed)
            await sums.say(1)
        # The world refuses another word than before, so a life that says other bytes fails here.
        again = await stage.life()
        await again.hear(1, round_.roster)
        await again.say(1)
        said = {"deal": stage.world.deals, "vow": stage.world.vows, "open": stage.world.openings}[stop]
        assert (CLIENT, 1) in said

    run(tmp_path, work)


def test_nothing_is_said_that_is_not_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        round_ = Round(sums)

        def full(path: Path, pieces: object) -> None:
            raise StorageFull("the disk is full")

        monkeypatch.setattr("hushtune_client.sums.write_durably", full)
        with pytest.raises(StorageFull):
            await sums.hear(1, round_.roster)
        await sums.say(1)
        assert stage.world.deals == {}

    run(tmp_path, work)


def test_of_two_payloads_before_anything_was_kept_the_second_counts_and_only_under_the_same_masks(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        round_ = Round(sums)
        await round_.to_delivery(stage.world)
        first: Upload = sums.masked(1, WORDS)
        second = (await stage.life()).masked(1, WORDS + 1)
        found = np.frombuffer(second.words, dtype="<u8") - np.frombuffer(first.words, dtype="<u8")
        np.testing.assert_array_equal(found, np.ones(4, dtype="<u8"))

    run(tmp_path, work)


def test_a_roster_without_its_own_keys_ends_the_part_and_nothing_more_is_said(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        round_ = Round(sums)
        forged = Roster(advertisements=tuple(ad for ad in round_.roster.advertisements if ad.member != CLIENT))
        with pytest.raises(Equivocation, match="does not have what c1 advertised"):
            await sums.hear(1, forged)
        await sums.say(1)
        with pytest.raises(Equivocation):
            await sums.delivered(1)
        assert stage.world.deals == {}

    run(tmp_path, work)


def test_survivors_that_are_too_few_get_no_vow(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        round_ = Round(sums)
        await round_.to_delivery(stage.world)
        sums.masked(1, WORDS)
        with pytest.raises(QuorumMissed, match="1 of 3 members survived"):
            await sums.hear(1, round_.survivors(CLIENT))
        await sums.say(1)
        assert stage.world.vows == {}

    run(tmp_path, work)


def test_a_delivery_that_never_comes_is_a_deadline_and_one_of_no_round_is_stale(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        sums.begin(1, LAYOUT)
        with pytest.raises(DeadlineExceeded, match="delivered no shares of round 1"):
            await sums.delivered(1)
        with pytest.raises(StaleRound, match="no part in the sum of round 2"):
            await sums.delivered(2)

    run(tmp_path, work)


def test_secrets_of_a_sum_outlive_the_upload_and_go_with_the_round(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        (state,) = stage.lives
        await state.record(RoundOpened(round_id=1), seq=1)
        sums.begin(1, LAYOUT)
        path = state.files(1).sum_state
        state.forget_private(1)
        state.forget_ended()
        assert isinstance(state.current, Reported)
        assert path.exists()
        assert path.stat().st_mode & 0o077 == 0
        await state.record(SumHeard(round_id=1), seq=2)
        await state.record(RoundClosed(round_id=1, accepted=False, failed="", last=False), seq=3)
        assert isinstance(state.current, Idle | Completed)
        state.forget_sums()
        assert not path.exists()
        assert state.last_seen_seq == 3

    run(tmp_path, work)


# --- words that nobody heard ------------------------------------------------------------------------------------------


class Deafened(LoopbackCoordinator):
    """A coordinator that cannot be reached for the first ``calls`` calls; ``then`` happens with the last of them."""

    calls = 3
    then: Callable[[], None] | None = None

    async def deal(self, round_id: int, deal: Deal) -> None:
        await self._miss()
        await super().deal(round_id, deal)

    async def vow(self, round_id: int, vow: Vow) -> None:
        await self._miss()
        await super().vow(round_id, vow)

    async def _miss(self) -> None:
        self.calls -= 1
        if self.calls == 0 and self.then is not None:
            self.then()
        if self.calls >= 0:
            raise PeerLost("nobody answers")


def deafened(stage: Stage) -> Deafened:
    coordinator = Deafened(stage.world)
    stage.ports = replace(loopback_ports(stage.world, folder=stage.folder), coordinator=coordinator)
    return coordinator


def test_parcels_and_vows_that_nobody_heard_are_said_again_in_the_same_life(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        coordinator = deafened(stage)
        sums = await stage.life()
        round_ = Round(sums)
        await round_.to_delivery(stage.world)
        sums.masked(1, WORDS)
        dealt_s, coordinator.calls = stage.clock.monotonic(), 2
        await round_.to_vows(stage.world, sums, CLIENT, OTHERS[0])
        idle_s = stage.scenario.timing.idle_s
        assert 3 * 0.25 * idle_s <= dealt_s <= 3 * 0.5 * idle_s
        assert 2 * 0.25 * idle_s <= stage.clock.monotonic() - dealt_s <= 2 * 0.5 * idle_s

    run(tmp_path, work)


def test_shares_that_the_owner_did_not_hear_are_said_again(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        class Away(LoopbackOwner):
            missed = 0

            async def open(self, run: RunId, round_id: int, opening: Opening) -> None:
                self.missed += 1
                if self.missed <= 2:
                    raise DeadlineExceeded("the owner is away")
                await super().open(run, round_id, opening)

        owner = Away(stage.world, folder=stage.folder)
        stage.ports = replace(loopback_ports(stage.world, folder=stage.folder), owner=owner)
        sums = await stage.life()
        round_ = Round(sums)
        await round_.to_delivery(stage.world)
        sums.masked(1, WORDS)
        await round_.to_vows(stage.world, sums, CLIENT, OTHERS[0])
        assert round_.relayed.closed is not None
        await sums.hear(1, round_.relayed.closed)
        await sums.say(1)
        assert owner.missed == 3
        assert (CLIENT, 1) in stage.world.openings

    run(tmp_path, work)


def test_a_word_that_the_sum_does_not_wait_for_any_more_is_not_said_again(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        coordinator = deafened(stage)
        sums = await stage.life()
        round_ = Round(sums)
        await sums.hear(1, round_.roster)
        (state,) = stage.lives
        coordinator.then = state.forget_sums  # the round is over
        await sums.say(1)
        assert (coordinator.calls, stage.world.deals) == (0, {})

    run(tmp_path, work)


def test_a_word_that_is_refused_is_said_once(tmp_path: Path) -> None:
    async def work(stage: Stage) -> None:
        sums = await stage.life()
        round_ = Round(sums)
        await sums.hear(1, round_.roster)
        stage.world.deals[CLIENT, 1] = Deal(dealer=CLIENT, roster=Digest.of(b"another"), parcels=())
        await sums.say(1)
        assert stage.clock.monotonic() == 0.0

    run(tmp_path, work)


# --- shares that came too late ----------------------------------------------------------------------------------------


@dataclass
class Slow:
    """Duties of a client that reports and then trains for ever; its keys are told with the report."""

    sums: Sums
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    done: list[Completion] = field(default_factory=list[Completion])

    async def perform(self, command: Duty) -> None:
        match command:
            case Measure():
                self.sums.begin(command.round_id, LAYOUT)
                self.reported.set()
            case Train():
                await asyncio.get_running_loop().create_future()
            case Conclude():
                self.done.append(command.completion)
            case _:
                pass


def without_its_shares(round_: Round) -> Delivery:
    """Return what the client is delivered when only the others have dealt in time."""
    for name, member in round_.others.items():
        met = member.meet(round_.states[name], round_.roster)
        round_.relayed = round_.relay.deal(round_.relayed, member.deal(met))
    return round_.relay.delivery(round_.relay.close_deals(round_.relayed), CLIENT)


@pytest.mark.parametrize("last", [True, False], ids=["the last round", "a round before another"])
def test_a_client_whose_shares_came_too_late_has_missed_the_round_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, last: bool
) -> None:
    async def work(stage: Stage) -> None:
        def post(kind: DirectiveKind, round_id: int = 1, **more: Any) -> None:
            stage.world.post(Directive(seq=len(stage.world.directives) + 1, kind=kind, round_id=round_id, **more))

        slow = Slow(await stage.life())
        conductor = Conductor(LoopbackCoordinator(stage.world), state=stage.lives[0], status=Status(), clock=stage.clock)
        conducting = asyncio.create_task(conductor.conduct(slow, sums=slow.sums))
        post(DirectiveKind.ROUND_OPENED)
        await slow.reported.wait()
        round_ = Round(slow.sums)
        post(DirectiveKind.ASSIGNED, assignment=assignment_of())
        post(DirectiveKind.SUM, sum=round_.roster)
        post(DirectiveKind.SUM, sum=without_its_shares(round_))
        post(DirectiveKind.ROUND_CLOSED, last=last)
        if not last:
            slow.reported.clear()
            post(DirectiveKind.ROUND_OPENED, 2)
            await slow.reported.wait()
            post(DirectiveKind.ROUND_CLOSED, 2, last=True)
        assert await conducting == 0
        assert [(c.key.round_id, c.uploaded) for c in slow.done] == [(1, False)]
        assert "came too late" in slow.done[0].reason

    with caplog.at_level("INFO"):
        run(tmp_path, work)
    told = [record.message for record in caplog.records]
    assert told.count("round_missed") == 1
    assert not {"round_failed", "sum_refused"} & {*told}
