"""What does the coordinator need from outside: a memory that survives it, and somebody who solves."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hushtune_common.messages import ClientReport, UtilityCurve
from hushtune_common.units import Hertz
from hushtune_server.coordinator.events import Solution


class StoredEvent(Protocol):
    """One entry of the log, numbered from 1 in the order of appending."""

    @property
    def seq(self) -> int:
        """The number."""
        ...

    @property
    def kind(self) -> str:
        """What happened."""
        ...

    @property
    def body(self) -> dict[str, Any]:
        """Its fields, as plain JSON values."""
        ...


class EventLog(Protocol):
    """Remembers events.

    Laws: when ``append`` has returned, the event survives a killed process; ``events`` gives every event after ``after`` once,
    in the order of appending, with the body that was appended.
    """

    async def append(self, kind: str, body: Mapping[str, object], *, key: str | None = None) -> StoredEvent:
        """Remember one event."""
        ...

    def events(self, after: int = 0) -> Sequence[StoredEvent]:
        """Return what is remembered."""
        ...


class Solver(Protocol):
    """Shares the resources of one round among those who reported.

    Laws: the same round, reports, band and curve give the same assignments; each report is answered by exactly one assignment of
    its client and round, which names the report's channel; the bands assigned add up to no more than ``band``, or than the
    scenario's without one. May block: it runs outside of the event loop.
    """

    def solve(
        self, round_id: int, reports: Sequence[ClientReport], *, band: Hertz | None = None, curve: UtilityCurve | None = None
    ) -> Solution:
        """Return the assignments; ``Infeasible`` or ``SolverFailed`` when there are none.

        ``curve`` is what updates are worth where the scenario has that measured; it is not looked at otherwise.
        """
        ...
