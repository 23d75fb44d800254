"""What does this client do so that its update can be added unseen? Its part in the sum of each round, and what it says of it.

What a member knows is on disk before anything is said that follows from it, so a process that was killed says the same again.
That an earlier life may have said it does not matter: the coordinator and the owner take a word once.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Protocol

from hushtune_client.ports import Ports
from hushtune_client.state import ClientState, write_durably
from hushtune_common.aggregation import SecureConfig
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import DeadlineExceeded, HushtuneError, MalformedUpdate, OperatingFault, StaleRound
from hushtune_common.logs import log_event
from hushtune_common.messages import ClientId, SumWord
from hushtune_common.secagg import record
from hushtune_common.secagg.grid import Words
from hushtune_common.secagg.member import Member, MemberState
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
)
from hushtune_common.secagg.terms import Layout, deal_s, terms_of
from hushtune_common.seeding import SeedTree

_logger = logging.getLogger(__name__)
_AGAIN = (0.25, 0.5)
"""After which part of ``idle_s``, drawn anew each time, a word is said again that nobody heard."""


class Bell(Protocol):
    """Wakes everyone who waits, each time it is rung."""

    def ring(self) -> None:
        """Wake all who wait now."""
        ...

    def wait(self) -> Awaitable[object]:
        """Wait for the next ring after this call."""
        ...


class Within(Protocol):
    """Bounds a wait."""

    def __call__(self, seconds: float, work: Awaitable[None], /) -> Awaitable[None]:
        """Return when ``work`` has; ``TimeoutError`` after so many seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One round's part, as it lies on disk."""

    terms: Terms
    member: MemberState


class Sums:
    """This client's parts in sums; at most one round's matters at a time.

    Laws: a state is durable before a word leaves that follows from it; a word that comes twice changes nothing; one payload is
    masked per round, another only as long as nothing of the first was kept for sending.
    """

    def __init__(
        self,
        *,
        scenario: Scenario,
        client: ClientId,
        ports: Ports,
        state: ClientState,
        clock: Clock,
        seeds: SeedTree,
        sign: Sign,
        verify: Verify,
        bell: Bell,
        within: Within,
        aside: "Callable[[Callable[[], None]], Awaitable[None]]",
    ) -> None:
        """Take the means to prove who says what, and to wait; ``seeds`` spread in time what is said again.

        ``ValueError`` unless the scenario's aggregation is secure.
        """
        options = scenario.owner.aggregation
        if not isinstance(options, SecureConfig):
            raise ValueError("owner.aggregation.kind is not secure")
        self._options = options
        self._scenario = scenario
        self._client = client
        self._ports = ports
        self._state = state
        self._clock = clock
        self._seeds = seeds
        self._sign = sign
        self._verify = verify
        self._bell = bell
        self._within = within
        self._aside = aside
        self._parts: dict[int, _Part] = {}
        self._failed: dict[int, HushtuneError] = {}
        self._lock = Lock()  # a payload is masked in a thread of its own

    # --- at the round's beginning -------------------------------------------------------------------------------------

    def terms(self, round_id: int, layout: Layout) -> Terms:
        """Return the terms of a round, as this client's own scenario has them."""
        count, run = len(self._scenario.clients), self._state.terms.run
        return terms_of(self._options, members_max=count, run=run, round_id=round_id, layout=layout)

    def weight(self, windows: int) -> int:
        """Return how often an update made of so many windows counts."""
        return windows if self._options.weights == "windows" else 1

    def begin(self, round_id: int, layout: Layout) -> Advertisement:
        """Return the keys of a round, the same whenever it is asked."""
        with self._lock:
            terms, known = self.terms(round_id, layout), self._known(round_id)
            if known is None or known.terms != terms:
                known = self._keep(round_id, _Part(terms=terms, member=self._member(terms).begin()))
            return known.member.advertisement

    # --- what is heard ------------------------------------------------------------------------------------------------

    async def hear(self, round_id: int, word: SumWord) -> None:
        """Take what the coordinator carried; raises what the member does of a word that it will not work with.

        A round in which this client has no part, because it is over or was never entered, is none of its business.
        """
        try:
            await self._aside(lambda: self._take(round_id, word))
        except HushtuneError as error:
            self._failed[round_id] = error
            raise
        finally:
            self._bell.ring()

    def _take(self, round_id: int, word: SumWord) -> None:
        with self._lock:
            part = self._known(round_id)
            if part is None:
                return
            after = _heard(self._member(part.terms), part.member, word)
            if after is not part.member:
                self._keep(round_id, replace(part, member=after))
                _tell(after, word, terms=part.terms)

    async def delivered(self, round_id: int) -> None:
        """Wait until the parcels of a round have come; raises why there will be none, `DeadlineExceeded` after a while."""
        timing = self._scenario.timing
        longest = deal_s(timing) + timing.idle_s
        try:
            await self._within(longest, self._until_delivered(round_id))
        except TimeoutError as error:
            raise DeadlineExceeded(f"the coordinator delivered no shares of round {round_id} within {longest:.0f} s") from error

    async def _until_delivered(self, round_id: int) -> None:
        while (part := self._known(round_id)) is not None and part.member.delivery is None:
            if round_id in self._failed:
                raise self._failed[round_id]
            await self._bell.wait()
        if part is None:
            raise StaleRound(f"this client has no part in the sum of round {round_id}")

    # --- what is said -------------------------------------------------------------------------------------------------

    def masked(self, round_id: int, words: Words) -> Upload:
        """Return a payload under its masks. Asked for only while nothing of the round was kept for sending.

        A payload that an earlier life masked, and did not live to keep, was seen by nobody: this one takes its place.
        """
        with self._lock:
            part = self._known(round_id)
            if part is None:
                raise StaleRound(f"this client has no part in the sum of round {round_id}")
            member = self._member(part.terms)
            after, upload = member.mask(replace(part.member, payload=None), words)
            self._keep(round_id, replace(part, member=after))
            return upload

    async def say(self, round_id: int) -> None:
        """Say what follows from what is known: parcels, vow or shares; again, as long as the sum waits for it and nobody heard.

        What is refused is logged, and no more. A word that another one follows meanwhile is not said again.
        """
        rng, said = self._seeds.child("again", str(round_id)).generator(), self._due(round_id)
        while said is not None:
            try:
                await self._deliver(round_id, said)
            except HushtuneError as error:
                fields = {"round_id": round_id, "reason": error.reason, "problem": str(error)}
                log_event(_logger, "sum_word_undelivered", level=logging.WARNING, **fields)
                if not isinstance(error, OperatingFault):
                    return
            else:
                return
            await self._clock.sleep(self._scenario.timing.idle_s * float(rng.uniform(*_AGAIN)))
            said = said if self._due(round_id) == said else None

    def _due(self, round_id: int) -> Deal | Vow | Opening | None:
        """Return the word that the sum of a round waits for from this client."""
        part = self._known(round_id)
        if part is None or round_id in self._failed:
            return None
        member, state = self._member(part.terms), part.member
        if state.confirmed:
            return member.opening(state)
        if state.vow is not None:
            return state.vow
        return member.deal(state) if state.roster is not None and state.delivery is None else None

    async def _deliver(self, round_id: int, said: Deal | Vow | Opening) -> None:
        match said:
            case Opening():
                await self._ports.owner.open(self._state.terms.run, round_id, said)
                log_event(_logger, "sum_opened", round_id=round_id, seeds=len(said.seeds), keys=len(said.keys))
            case Vow():
                await self._ports.coordinator.vow(round_id, said)
                part = self._known(round_id)
                log_event(_logger, "sum_vowed", round_id=round_id, survivors=[] if part is None else _survivors(part.member))
            case Deal():
                await self._ports.coordinator.deal(round_id, said)
                log_event(_logger, "sum_dealt", round_id=round_id, parcels=len(said.parcels))

    # --- memory -------------------------------------------------------------------------------------------------------

    def _member(self, terms: Terms) -> Member:
        return Member(terms, name=self._client, sign=self._sign, verify=self._verify)

    def _known(self, round_id: int) -> _Part | None:
        known, path = self._parts.get(round_id), self._path(round_id)
        if not path.exists():
            return None
        if known is None:
            known = self._parts[round_id] = record.from_bytes(path.read_bytes(), _Part)
        return known

    def _keep(self, round_id: int, part: _Part) -> _Part:
        write_durably(self._path(round_id), [record.to_bytes(part)])
        self._parts = {round_id: part}
        return part

    def _path(self, round_id: int) -> Path:
        return self._state.files(round_id).sum_state


def _heard(member: Member, state: MemberState, word: SumWord) -> MemberState:
    match word:
        case Roster():
            return member.meet(state, word)
        case Delivery():
            return member.receive(state, word)
        case Survivors():
            return member.stand(state, word)
        case Vows():
            return member.confirm(state, word)
        case _:
            raise MalformedUpdate(f"sum: {type(word).__name__} says nothing to a member")


def _tell(state: MemberState, word: SumWord, *, terms: Terms) -> None:
    if isinstance(word, Roster):
        members = list(word.members)
        needed = terms.threshold(len(members))
        log_event(_logger, "sum_joined", round_id=terms.round_id, members=members, needed=needed, colluders=terms.colluders)
    elif isinstance(word, Delivery):
        log_event(_logger, "sum_delivered", round_id=terms.round_id, dealers=list(word.dealers), parcels=len(word.parcels))


def _survivors(state: MemberState) -> list[str]:
    return [] if state.survivors is None else list(state.survivors.members)
