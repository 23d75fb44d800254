"""Stand-ins that keep the laws of what they replace: a clock that jumps, a solver with a fixed answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hushtune_common.clock import Clock
from hushtune_common.messages import (
    SEALING_BYTES,
    Assignment,
    ClientId,
    ClientReport,
    CurvePoint,
    Gate,
    GateDecision,
    Protection,
    SecrecyDesign,
    UtilityCurve,
)
from hushtune_common.units import Decibel, FlopPerSecond, Hertz, Joule, PowerRatio, Second, Watt
from hushtune_server.coordinator.events import Solution
from hushtune_server.coordinator.ports import Solver


class FakeClock:
    """A clock that stands still until told otherwise.

    ``advance`` moves it and wakes whoever slept long enough. With ``autojump`` a sleeper moves it itself, so nothing ever waits.
    """

    def __init__(self, *, start: float = 0.0, autojump: bool = False) -> None:
        self._now = start
        self._autojump = autojump
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def monotonic(self) -> Second:
        return Second(self._now)

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now)

    async def sleep(self, seconds: float) -> None:
        due = self._now + max(seconds, 0.0)
        if self._autojump or seconds <= 0.0:
            await asyncio.sleep(0)
            self.advance(max(0.0, due - self._now))
            return
        woken = asyncio.Event()
        self._sleepers.append((due, woken))
        await woken.wait()

    def pause(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass; ``ValueError`` when it would run backwards."""
        if seconds < 0.0:
            raise ValueError(f"time does not run backwards, got {seconds}")
        self._now += seconds
        for due, woken in self._sleepers:
            if due <= self._now:
                woken.set()
        self._sleepers = [(due, woken) for due, woken in self._sleepers if due > self._now]


_conforms: type[Clock] = FakeClock


class FixedSolver:
    """Grants everybody the same, except those in ``deferred``; of a ``band``, equal parts."""

    def __init__(self, *, deferred: frozenset[ClientId] = frozenset()) -> None:
        self._deferred = deferred

    def solve(
        self, round_id: int, reports: Sequence[ClientReport], *, band: Hertz | None = None, curve: UtilityCurve | None = None
    ) -> Solution:
        del curve
        part = BAND if band is None else Hertz(band / len(reports))
        fixed = ((assignment_of(r.client, round_id, granted=r.client not in self._deferred), r.channel) for r in reports)
        assignments = tuple(replace(a, bandwidth=part, channel=channel) for a, channel in fixed)
        return Solution(assignments=assignments, method="fixed", violation=0.0, gap=None, solve_s=Second(0.0))


_solves: type[Solver] = FixedSolver

CURVE = UtilityCurve(
    offset=0.5,
    weight=0.02,
    shape=1.25,
    share_min=0.1,
    points=(CurvePoint(0.1, 0.15, 0.1, 0.2), CurvePoint(1.0, 0.48, 0.46, 0.5)),
)
"""What an owner may have measured."""
BAND = Hertz(1e6)
"""What each client is assigned at first."""


def report_of(client: ClientId, round_id: int) -> ClientReport:
    """Return what a plain device reports."""
    return ClientReport(
        client=client,
        round_id=round_id,
        gain_main=PowerRatio(1e-9),
        gain_tap=PowerRatio(0.0),
        power_max=Watt(0.2),
        clock_max=FlopPerSecond(2e12),
        energy_max=Joule(5000.0),
        sample_count=100,
        update_bits=8_000_000,
        train_flops=1e12,
        energy_w_per_flops3=1e-36,
    )


def assignment_of(client: ClientId, round_id: int, *, granted: bool, protection: Protection = Protection.PAYLOAD) -> Assignment:
    """Return an assignment with plain numbers; a tap gain of zero makes one of them -inf dB."""
    gate = Gate(
        decision=GateDecision.GRANTED if granted else GateDecision.DEFERRED,
        reason="fixed",
        snr_main_db=Decibel(6.0),
        snr_tap_bound_db=Decibel(float("-inf")),
        block_error_rate=1e-3 if granted else 1.0,
        rate_coded=1.0 if granted else 0.0,
        rate_gaussian=2.0,
    )
    return Assignment(
        client=client,
        round_id=round_id,
        gate=gate,
        adapter_share=1.0,
        budget_bytes=1_000_000 - SEALING_BYTES,
        bandwidth=BAND,
        power=Watt(0.1),
        clock=FlopPerSecond(1e12),
        secrecy_rate_bps=1e6 if granted else 0.0,
        deadline=Second(100.0),
        protection=protection if granted else None,
        design=DESIGN if granted and protection is not Protection.CRYPTO_ONLY else None,
        carrier=CARRIER if granted and protection is not Protection.PAYLOAD else None,
    )


DESIGN = SecrecyDesign(
    modulation="qpsk",
    code_bits=10_240,
    info_bits=8_448,
    codewords=4,
    message_bits=8_448,
    random_bits=25_344,
    snr_tap_design_db=Decibel(-5.0),
    log2_delta=-64.0,
    rho=0.5,
    rate=8_448 / (4 * 10_240 / 2),
)
CARRIER = SecrecyDesign(
    modulation="qpsk",
    code_bits=10_240,
    info_bits=8_448,
    codewords=4,
    message_bits=4 * 8_448,
    random_bits=0,
    snr_tap_design_db=Decibel(0.0),
    log2_delta=0.0,
    rho=0.0,
    rate=4 * 8_448 / (4 * 10_240 / 2),
)
"""Plain error correction with the code of ``DESIGN``."""
