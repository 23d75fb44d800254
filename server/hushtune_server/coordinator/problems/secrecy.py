"""What can each client send secretly: its coding points, powers and secrecy designs in a given band.

A point is usable when the owner decodes it at no more than the client's top power *and* its hash block keeps enough message
bits at the assumed tap SNR. Power is the least that closes the point, plus ``main_margin_db``: more helps the tap as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite

from hushtune_common.config import AirConfig, Scenario, SecrecyConfig
from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link import secrecy as link
from hushtune_common.link import wiretap
from hushtune_common.link.abstraction import Fading, hash_block_error_rate, required_snr_db
from hushtune_common.link.channel import BLOCKS_MAX
from hushtune_common.link.mcs import CODING_POINTS, CodingPoint, point_of
from hushtune_common.messages import Assignment, ClientReport, SecrecyDesign
from hushtune_common.units import Decibel, Hertz, PowerRatio, Second, Watt, from_db, to_db

_SNR_TAP_LEAST_DB = -60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One coding point for one client in one band, with what speaks against it (``problem`` is empty when nothing does).

    ``power`` is the least that closes the point with its margin, also where that is more than the client has; the SNRs are then
    those at the client's top power.
    """

    point: CodingPoint
    power: Watt
    snr_main_db: Decibel
    snr_tap_bound_db: Decibel
    block_error_rate: float
    design: SecrecyDesign | None
    airtime: Second
    problem: str

    @property
    def rate(self) -> float:
        """Coded secrecy rate in bit per complex symbol; 0 without a design."""
        return 0.0 if self.design is None else self.design.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """Relative violations of the constraints: of the shared band, and the worst one of each client; 0 where they hold."""

    bandwidth: float
    clients: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest."""
        return max(self.bandwidth, *self.clients, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationProblem:
    """The reports of one round and the scenario's constants.

    Laws: permuting the reports permutes the residuals; a residual of zero means feasible.
    """

    reports: tuple[ClientReport, ...]
    air: AirConfig
    secrecy: SecrecyConfig
    round_s: Second

    def __post_init__(self) -> None:
        """A client reports once."""
        names = [r.client for r in self.reports]
        if len(set(names)) != len(names):
            raise ValueError(f"a client reported more than once: {', '.join(names)}")

    @staticmethod
    def of(scenario: Scenario, reports: Sequence[ClientReport]) -> "AllocationProblem":
        """Return the problem of a scenario's round."""
        round_s = Second(scenario.timing.round_s)
        return AllocationProblem(reports=tuple(reports), air=scenario.air, secrecy=scenario.secrecy, round_s=round_s)

    def permuted(self, order: Sequence[int]) -> "AllocationProblem":
        """Return the same problem with its clients in another order."""
        return replace(self, reports=tuple(self.reports[i] for i in order))

    def hopeless(self, report: ClientReport) -> bool:
        """Whether the tap may hear this client at least as well as the owner does, so that nothing the client does helps."""
        return report.gain_main <= report.gain_tap

    def snr_tap_bound(self, *, power: Watt, gain: PowerRatio, bandwidth: Hertz) -> PowerRatio:
        """Return the tap SNR to design for: at its assumed gain, times the factor exceeded with ``tap_outage`` under fading."""
        mean = link.snr(power=power, gain=gain, bandwidth=bandwidth)
        if self.air.fading == "none":
            return mean
        return PowerRatio(mean * link.outage_factor(self.secrecy.tap_outage))

    def candidates(self, report: ClientReport, bandwidth: Hertz) -> tuple[Candidate, ...]:
        """Return every coding point for one client, the best first: highest coded rate, then least power."""
        found = [self._candidate(point, report, bandwidth) for point in CODING_POINTS]
        return tuple(sorted(found, key=lambda c: (bool(c.problem), -c.rate, c.power, c.point.name)))

    def residuals(self, assignments: Sequence[Assignment]) -> Residuals:
        """Return how far assignments, in the order of the reports, violate limits of band, power, clock, secrecy and time."""
        if [a.client for a in assignments] != [r.client for r in self.reports]:
            raise ValueError("one assignment per report, in the order of the reports")
        used = sum(a.bandwidth for a in assignments)
        return Residuals(
            bandwidth=max(0.0, used / self.air.bandwidth_hz - 1.0),
            clients=tuple(self._violation(a, r) for a, r in zip(assignments, self.reports, strict=True)),
        )

    def _candidate(self, point: CodingPoint, report: ClientReport, bandwidth: Hertz) -> Candidate:
        demand, fading = self.secrecy, Fading.of(self.air)
        least = required_snr_db(point, codewords=demand.codewords, block_error_max=demand.block_error_max, fading=fading)
        if not isfinite(least):
            top = link.snr(power=Watt(report.power_max), gain=report.gain_main, bandwidth=bandwidth)
            problem = f"{point.name} is not known to reach a block error rate of {demand.block_error_max:g}"
            return self._rejected(point, report, bandwidth, snr_db=to_db(top), power=Watt(inf), problem=problem)
        snr_db = Decibel(least + demand.main_margin_db)
        power = Watt(from_db(snr_db) * link.noise_power(bandwidth) / report.gain_main)
        if power > report.power_max:
            reached = to_db(link.snr(power=report.power_max, gain=report.gain_main, bandwidth=bandwidth))
            problem = (
                f"{point.name} needs {snr_db:.1f} dB, reached {reached:.1f} dB at {_watt(report.power_max)} over "
                f"{bandwidth / 1e6:.2f} MHz: raise power_max_w to {_watt(power)}, give the client at most "
                f"{bandwidth * report.power_max / power / 1e6:.2f} MHz, or move it closer"
            )
            return self._rejected(point, report, bandwidth, snr_db=reached, power=power, problem=problem)
        return self._designed(point, report, bandwidth, power=power, snr_db=snr_db)

    def _designed(self, point: CodingPoint, report: ClientReport, bandwidth: Hertz, *, power: Watt, snr_db: Decibel) -> Candidate:
        demand = self.secrecy
        tap_db = self._tap_db(power, report, bandwidth)
        base = Candidate(
            point=point,
            power=power,
            snr_main_db=snr_db,
            snr_tap_bound_db=tap_db,
            block_error_rate=self._block_error(point, snr_db),
            design=None,
            airtime=Second(inf),
            problem="",
        )
        where = f"tap bound {tap_db:.1f} dB at the least power that closes {point.name} ({_watt(power)})"
        try:
            design = wiretap.design(point, codewords=demand.codewords, snr_tap_db=tap_db, log2_delta=demand.log2_delta)
        except SecrecyUnavailable:
            return replace(base, problem=f"{where}; no message bits are left: {_ADVICE}")
        if design.message_bits < demand.message_bits_min:
            few = f"{design.message_bits} message bits < {demand.message_bits_min}"
            return replace(base, design=design, problem=f"{where}; {few}: {_ADVICE}")
        blocks = wiretap.block_count(design, -(-report.update_bits // 8))
        airtime = wiretap.airtime(design, blocks=blocks, bandwidth=bandwidth)
        return replace(base, design=design, airtime=airtime, problem=self._too_long(design, report, blocks, airtime))

    def _too_long(self, design: SecrecyDesign, report: ClientReport, blocks: int, airtime: Second) -> str:
        size = f"{report.update_bits / 8e6:.1f} MB at {design.rate:.2f} bit/symbol"
        if airtime > self.round_s:
            limit = f"timing.round_s = {self.round_s:g} s"
            return f"{size} take {airtime:.0f} s on air, more than {limit}: raise it or air.bandwidth_hz, or {_ADVICE}"
        if blocks > BLOCKS_MAX:
            return f"{size} take {blocks} hash blocks, more than {BLOCKS_MAX}: raise secrecy.codewords, or {_ADVICE}"
        return ""

    def _rejected(
        self, point: CodingPoint, report: ClientReport, bandwidth: Hertz, *, snr_db: Decibel, power: Watt, problem: str
    ) -> Candidate:
        return Candidate(
            point=point,
            power=power,
            snr_main_db=snr_db,
            snr_tap_bound_db=self._tap_db(Watt(report.power_max), report, bandwidth),
            block_error_rate=self._block_error(point, snr_db),
            design=None,
            airtime=Second(inf),
            problem=problem,
        )

    def _tap_db(self, power: Watt, report: ClientReport, bandwidth: Hertz) -> Decibel:
        """Return the tap bound in dB, rounded up to 0.01 dB: a design for a better tap also holds for this one."""
        bound = to_db(self.snr_tap_bound(power=power, gain=report.gain_tap, bandwidth=bandwidth))
        return Decibel(ceil(max(bound, _SNR_TAP_LEAST_DB) * 100.0) / 100.0)

    def _block_error(self, point: CodingPoint, snr_db: Decibel) -> float:
        fading = Fading.of(self.air)
        return hash_block_error_rate(point, snr_db=snr_db, codewords=self.secrecy.codewords, fading=fading)

    def _violation(self, assignment: Assignment, report: ClientReport) -> float:
        limits = [assignment.power / report.power_max - 1.0, assignment.clock / report.clock_max - 1.0, -assignment.bandwidth]
        design = assignment.design
        if design is not None:
            reached = link.snr(power=assignment.power, gain=report.gain_main, bandwidth=assignment.bandwidth)
            bound = self.snr_tap_bound(power=assignment.power, gain=report.gain_tap, bandwidth=assignment.bandwidth)
            blocks = wiretap.block_count(design, ceil(report.update_bits / 8 * assignment.adapter_share))
            airtime = wiretap.airtime(design, blocks=blocks, bandwidth=assignment.bandwidth)
            limits += [
                self._block_error(point_of(design), to_db(reached)) / self.secrecy.block_error_max - 1.0,
                bound / from_db(design.snr_tap_design_db) - 1.0,
                self.secrecy.message_bits_min / design.message_bits - 1.0,
                airtime / self.round_s - 1.0,
            ]
        return max(0.0, *limits)


_ADVICE = "move the client closer to the owner or the eavesdropper away, or lower secrecy.tap_margin_db"


def _watt(power: float) -> str:
    return f"{power:.3g} W" if power >= 0.1 else f"{power * 1e3:.3g} mW" if power >= 1e-4 else f"{power * 1e6:.3g} uW"
