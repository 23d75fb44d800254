"""Is the channel still the one that this client was assigned for? Measured while it trains, and once more before it seals.

A channel that changed is written down before the coordinator hears of it: from then on nothing is sent before an assignment for
that channel has come, whatever happens to this process.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from msgspec import structs

from hushtune_client.phases import Assigned, ChannelMoved, Event, Training
from hushtune_client.ports import Ports
from hushtune_client.progress import Status
from hushtune_client.state import ClientState
from hushtune_common.clock import Clock
from hushtune_common.config import ClientConfig, Scenario
from hushtune_common.link import secrecy
from hushtune_common.logs import log_event
from hushtune_common.messages import Assignment, Channel
from hushtune_common.units import Decibel, Second, from_db

_logger = logging.getLogger(__name__)
_ROUNDING: Final = 1.0 + 1e-9


class Bell(Protocol):
    """Wakes everyone who waits, each time it is rung."""

    def ring(self) -> None:
        """Wake all who wait now."""
        ...

    def wait(self) -> Awaitable[object]:
        """Wait for the next ring after this call."""
        ...


class Sounder:
    """Measures this client's channel and has the client assigned anew when it changed.

    Laws: an assignment that ``settled`` returns is for a channel that differs from the one just measured by no more than
    ``coordinator.allocator.reallocate_db``, and for a tap that hears at least as well; after ``settled`` began, nothing is told
    by ``watch`` any more.
    """

    def __init__(
        self,
        *,
        scenario: Scenario,
        device: ClientConfig,
        ports: Ports,
        state: ClientState,
        status: Status,
        clock: Clock,
        note: Callable[[Event], Awaitable[None]],
        turn: AbstractAsyncContextManager[None],
        bell: Bell,
    ) -> None:
        """Take everything; ``note`` makes an event durable, ``turn`` lets one measure at a time, ``bell`` rings when assigned."""
        self._scenario = scenario
        self._device = device
        self._ports = ports
        self._state = state
        self._status = status
        self._clock = clock
        self._note = note
        self._turn = turn
        self._bell = bell
        self._at: Second | None = None
        self._told: Channel | None = None
        self._last_call = 0

    async def measure(self, round_id: int) -> Channel:
        """Return the channel as it is now, with the assumed bound on the tap's gain at this device's place."""
        sounding = await self._ports.air.sound(round_id)
        self._at = sounding.at if self._at is None else max(self._at, sounding.at)
        gain_tap = secrecy.tap_gain_bound(self._scenario, self._standing(sounding.at))
        return Channel(at=sounding.at, gain_main=sounding.gain_main, gain_tap=gain_tap)

    def device(self, assignment: Assignment) -> ClientConfig:
        """Return this device where it stood when it last measured.

        Only before the first measurement of this life, so before anything can be sent, the moment that the ``assignment`` names
        is taken instead: the coordinator has no say in where a device stands.
        """
        if self._at is not None:
            return self._standing(self._at)
        return self._standing(Second(0.0) if assignment.channel is None else assignment.channel.at)

    def assigned_anew(self) -> None:
        """Wake who waits for a newer assignment."""
        self._bell.ring()

    async def watch(self, round_id: int) -> None:
        """Measure at the scenario's pace while the client trains."""
        if not self._scenario.coordinator.allocator.reallocate:
            return
        while self._waiting(round_id) is not None and self._last_call != round_id:
            await self._clock.sleep(self._scenario.air.sounding_s)
            async with self._turn:
                if self._last_call != round_id:
                    await self._heed(round_id)

    async def settled(self, assignment: Assignment) -> Assignment:
        """Return the newest assignment of the round, once it is for the channel as it is."""
        round_id = self._last_call = assignment.round_id
        while True:
            async with self._turn:
                await self._heed(round_id)
                state = self._waiting(round_id)
                if state is None or state.moved is None:
                    return assignment if state is None else state.assignment
                rung = self._bell.wait()
            self._status.enter("waiting for an assignment")
            await rung

    async def _heed(self, round_id: int) -> None:
        """Measure, and tell the coordinator when the channel is not the one that it knows."""
        channel, state = await self.measure(round_id), self._waiting(round_id)
        if state is None or not self._scenario.coordinator.allocator.reallocate:
            return
        known = state.moved or state.assignment.channel
        if known is not None and self._is_another(channel, known):
            await self._note(ChannelMoved(round_id=round_id, channel=channel))
            state = self._waiting(round_id)
        if state is None or state.moved is None or state.moved == self._told:
            return
        await self._ports.coordinator.report_channel(round_id, state.moved)
        self._told = state.moved
        log_event(_logger, "channel_told", round_id=round_id, gain_main=channel.gain_main, gain_tap_bound=channel.gain_tap)

    def _is_another(self, now: Channel, known: Channel) -> bool:
        """Whether to tell: beyond the scenario's threshold, or whenever the tap may hear better than what a code is made for."""
        factor = from_db(Decibel(self._scenario.coordinator.allocator.reallocate_db))
        main = not known.gain_main <= now.gain_main * factor <= known.gain_main * factor**2
        return main or now.gain_tap > known.gain_tap * _ROUNDING or now.gain_tap * factor < known.gain_tap

    def _waiting(self, round_id: int) -> Assigned | Training | None:
        """Return the state while this client may still be assigned anew in the round."""
        state = self._state.current
        return state if isinstance(state, Assigned | Training) and state.round_id == round_id else None

    def _standing(self, at: Second) -> ClientConfig:
        return structs.replace(self._device, position=self._scenario.air.place(self._device, at=at))
