"""Does the owner conclude a round whose updates are only added, also when their sum cannot be had?"""

import asyncio
from pathlib import Path

from hushtune_common.aggregation import SecureConfig
from hushtune_common.messages import ClientId, Conclusion, Directive, DirectiveKind
from hushtune_common.secagg.grid import Grid, TensorGrid
from hushtune_common.secagg.terms import terms_of
from hushtune_server.owner.sums import SumTable
from tests.fakes import FakeClock
from tests.owner_stage import RUN, World, play_round, stage
from tests.radio import scenario
from tests.secagg import Rehearsal, verify


class Adding:
    """A round whose members have advertised and dealt, and the owner's table that it is added up on."""

    def __init__(self, folder: Path) -> None:
        grid = Grid(tensors=(TensorGrid(name="w", shape=(2,), clip=1.0, digits=4),), weight_max=3)
        self.table = SumTable(folder, options=SecureConfig(), clients=3, grid=grid, verify=verify, clock=FakeClock())
        self.table.enter(RUN)
        terms = terms_of(SecureConfig(), members_max=3, run=RUN, round_id=1, layout=self.table.layout)
        self.rehearsal = Rehearsal(terms=terms, names=tuple(ClientId(c.id) for c in scenario().clients))
        self.rehearsal.advertise()
        self.rehearsal.deal()
        self.names = self.rehearsal.names

    def tell(self, world: World) -> None:
        """Let the coordinator say who has dealt; from then on payloads come as they are judged."""
        for word in (self.rehearsal.roster, self.rehearsal.delivery(ClientId("owner"))):
            world.directives.put_nowait(Directive(seq=1, kind=DirectiveKind.SUM, round_id=1, sum=word))
        world.taking = lambda key: self.table.take(1, self.rehearsal.mask(key.client).to_bytes(), member=key.client)

    def stand(self, world: World) -> None:
        """Let the survivors that the owner has announced vow, and open what is to be opened."""
        self.rehearsal.relayed = self.rehearsal.relay.announce(self.rehearsal.relayed, world.announced[0])
        self.rehearsal.vow()
        for name in self.names:
            self.table.open(1, self.rehearsal.opening(name))


def test_updates_that_are_only_added_are_not_judged_before_it_is_known_who_has_dealt(tmp_path: Path) -> None:
    async def play() -> None:
        adding = Adding(tmp_path / "sums")
        async with stage(tmp_path, sums=adding.table) as (world, _):
            world.hear(adding.names[0])
            for _ in range(20):
                await asyncio.sleep(0)
            assert world.judged == []
            adding.tell(world)
            await world.until(lambda: world.settled != [])
            assert [key.client for key in world.judged] == [adding.names[0]]

    asyncio.run(play())


def test_a_last_round_is_concluded_by_survivors_that_open_their_shares_and_nothing_more_is_published(tmp_path: Path) -> None:
    async def play() -> None:
        adding = Adding(tmp_path / "sums")
        async with stage(tmp_path, rounds=1, sums=adding.table) as (world, owner):
            adding.tell(world)
            world.announcing = lambda: adding.stand(world)
            await play_round(world, 1, *adding.names)
            assert [s.members for s in world.announced] == [adding.names]
            assert world.merged == [adding.names]
            assert (world.concluded, world.order) == ([Conclusion(run=RUN, round_id=1, last=False)], ["concluded"])
            assert (await owner.desk.verdict(RUN, 1, adding.names[0], within_s=10)).kept
        assert [*(tmp_path / "sums").rglob("*.words")] == []

    asyncio.run(play())


def test_a_sum_that_cannot_be_had_changes_nothing_and_the_run_goes_on(tmp_path: Path) -> None:
    async def play() -> None:
        adding = Adding(tmp_path / "sums")
        async with stage(tmp_path, sums=adding.table) as (world, owner):
            adding.tell(world)
            world.hear(adding.names[0])
            await world.until(lambda: len(world.settled) == 1)
            world.ask_to_conclude(1, adding.names[0])
            await world.until(lambda: world.concluded != [])
            closing = owner.closing()
            assert (closing.merged, closing.kept, world.merged, world.announced) == ((), False, [], [])
            assert "QUORUM_MISSED: 1 of 3 members survived, 2 are needed" in closing.reason
            assert world.renewed == [2], "the next round starts from what the model has"
            assert not (await owner.desk.verdict(RUN, 1, adding.names[0], within_s=10)).kept

    asyncio.run(play())
