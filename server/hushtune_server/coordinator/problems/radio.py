"""What can a client deliver at which power density: its coding points as a table.

A coding point closes at one SNR, so at one power per bandwidth, x = p / b. At that density the tap's SNR, and with it the wiretap
design and its rate, are the same over any band: R bit per symbol, b R bit per second, p = b x of power, as long as that is not
more than the client has. Symbols and radio energy of an upload are therefore numbers of the point and the update's size alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link import wiretap
from hushtune_common.link.secrecy import gaussian_secrecy_rate
from hushtune_common.messages import BLOCKS_MAX, ClientReport, SecrecyDesign
from hushtune_common.units import Hertz, Second, Watt, from_db
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, Candidate

Floats = NDArray[np.float64]

_UNLIMITED = Watt(1e60)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Radio:
    """The options of one client: M coding points of its preferred protection by K shares of its update."""

    report: ClientReport
    points: tuple[Candidate, ...]
    """(M,); their power and airtime are not used, the rest holds over any band."""
    shares: tuple[float, ...]
    """(K,), increasing to 1."""
    density_w_per_mhz: Floats
    """x, (M,)."""
    symbols_m: Floats
    """(M, K): millions of complex symbols, retransmissions included; infinity where an update would not fit."""
    refusal: str
    """Why there is no point; empty where there is one."""

    @property
    def band_max_mhz(self) -> Floats:
        """Widest band in which the top power keeps the density, (M,)."""
        return self.report.power_max / self.density_w_per_mhz

    def at(self, point: int, *, bandwidth: Hertz, share: float) -> Candidate:
        """Return a point as a candidate in a band, with the power there and the airtime of an update of this share."""
        found = self.points[point]
        power = Watt(min(float(self.density_w_per_mhz[point]) * bandwidth / 1e6, self.report.power_max))
        seconds = symbols(found, bits=size_bits(self.report, share)) / bandwidth
        return replace(found, power=power, airtime=Second(seconds))


def levels_of(problem: AllocationProblem) -> tuple[float, ...]:
    """Return the shares that updates may have, in equal ratios up to the whole.

    Only the whole where the codec has no other size, and none below the share at which a measured utility begins to be positive.
    """
    least, count = problem.share_least, problem.allocator.levels
    if least >= 1.0 or count == 1:
        return (1.0,)
    return (*(least ** (1.0 - k / (count - 1)) for k in range(count - 1)), 1.0)


def size_bits(report: ClientReport, share: float) -> int:
    """Return the bits of a sealed update of this share."""
    return report.sealed_bits(report.budget_bytes(share))


def radio_of(problem: AllocationProblem, report: ClientReport) -> Radio:
    """Return a client's options; without any, why."""
    levels, band = levels_of(problem), Hertz(problem.air.bandwidth_hz)
    small = replace(report, power_max=_UNLIMITED, update_bits=size_bits(report, levels[0]))
    found = problem.candidates(small, band)
    best = found[0]
    usable = [] if best.problem else [c for c in found if not c.problem and c.protection is best.protection]
    assumed = problem.allocator.rate_model == "gaussian"
    kept = _worth_having(usable)
    sizes = [size_bits(report, share) for share in levels]
    table = [[expected_symbols_m(c, bits=size, gaussian=assumed) for size in sizes] for c in kept]
    return Radio(
        report=report,
        points=tuple(kept),
        shares=levels,
        density_w_per_mhz=np.array([1e6 * c.power / band for c in kept]),
        symbols_m=np.array(table).reshape(len(kept), len(levels)),
        refusal="" if kept else problem.candidates(report, band)[0].problem or best.problem,
    )


def symbols(candidate: Candidate, *, bits: float) -> float:
    """Return the complex symbols of one transmission of an update of so many bits, its key included."""
    main = candidate.design if candidate.carrier is None else candidate.carrier
    if main is None:
        raise ValueError("a candidate without a problem has a design")
    blocks = wiretap.block_count(main, ceil(bits / 8))
    return (blocks * main.symbols if blocks <= BLOCKS_MAX else inf) + _key_symbols(candidate)


def _key_symbols(candidate: Candidate) -> float:
    key: SecrecyDesign | None = candidate.design if candidate.carrier is not None else None
    return 0.0 if key is None else float(key.symbols)


def expected_symbols_m(candidate: Candidate, *, bits: float, gaussian: bool = False) -> float:
    """Return millions of symbols, a mean over retransmissions; by the assumed formula where that is wanted."""
    count = symbols(candidate, bits=bits)
    if gaussian and candidate.design is not None and candidate.carrier is None:
        rate = gaussian_secrecy_rate(from_db(candidate.snr_main_db), from_db(candidate.snr_tap_bound_db))
        count = bits / rate if rate > 0.0 else inf
    return count / (1.0 - candidate.block_error_rate) / 1e6


def _worth_having(usable: Sequence[Candidate]) -> list[Candidate]:
    """Return the points by rising density whose rate beats that of every lower density."""
    kept: list[Candidate] = []
    for candidate in sorted(usable, key=lambda c: (c.power, -c.throughput)):
        if not kept or candidate.throughput > kept[-1].throughput:
            kept.append(candidate)
    return kept
