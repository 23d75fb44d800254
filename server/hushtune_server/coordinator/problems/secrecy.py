"""What can each client send secretly: its protections, coding points, powers and secrecy designs in a given band.

A point is usable when the owner decodes it at no more than the client's top power *and*, where the wiretap code is to protect
the update or its key, a hash block keeps enough message bits at the assumed tap SNR. Power is the least that closes the point,
plus ``main_margin_db``: more helps the tap as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil, inf, isfinite

from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import AirConfig, AllocatorConfig, OwnerConfig, Scenario, SecrecyConfig
from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link import secrecy as link
from hushtune_common.link import wiretap
from hushtune_common.link.abstraction import Fading, hash_block_error_rate, required_snr_db
from hushtune_common.link.mcs import CODING_POINTS, CodingPoint, point_of
from hushtune_common.messages import (
    BLOCKS_MAX,
    Assignment,
    ClientReport,
    Part,
    Protection,
    SecrecyDesign,
    TapModel,
    UtilityCurve,
)
from hushtune_common.units import Decibel, Hertz, PowerRatio, Second, Watt, from_db, to_db

_SNR_TAP_LEAST_DB = -60.0
_NARROWEST_BITS = 2.0
"""Of the blockwise codec's integers; every block has a scale of 16 bits besides."""
_WORTH_MARGIN = 1e-3
"""Shares so little above one that is worth nothing are not offered either."""
_KEY_MESSAGE_BITS_MIN = 8 * (32 + 4)
"""A key and its checksum in one hash block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One protection at one coding point for one client in one band, with what speaks against it (``problem``, or empty).

    ``power`` is the least that closes the point with its margin, also where that is more than the client has; the SNRs are then
    those at the client's top power. ``airtime`` is that of the whole update.
    """

    protection: Protection
    point: CodingPoint
    power: Watt
    snr_main_db: Decibel
    snr_tap_bound_db: Decibel
    block_error_rate: float
    design: SecrecyDesign | None
    carrier: SecrecyDesign | None
    airtime: Second
    problem: str

    @property
    def rate(self) -> float:
        """Coded secrecy rate in bit per complex symbol; 0 without a wiretap design."""
        return 0.0 if self.design is None else self.design.rate

    @property
    def throughput(self) -> float:
        """Rate of the update itself in bit per complex symbol: secret, or open where only its key is."""
        return self.rate if self.carrier is None else self.carrier.rate


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
    share_codec: float = 0.0
    """The least share of an update that the codec is sure to fit, whatever the adapter; 1 where it has no other size."""
    curve: UtilityCurve | None = None
    """What the owner measured updates to be worth; None where that is assumed."""
    allocator: AllocatorConfig = field(default_factory=AllocatorConfig)
    owner: OwnerConfig = field(default_factory=OwnerConfig)

    def __post_init__(self) -> None:
        """A client reports once."""
        names = [r.client for r in self.reports]
        if len(set(names)) != len(names):
            raise ValueError(f"a client reported more than once: {', '.join(names)}")

    @staticmethod
    def of(scenario: Scenario, reports: Sequence[ClientReport], *, curve: UtilityCurve | None = None) -> "AllocationProblem":
        """Return the problem of a scenario's round; ``curve`` only counts where the scenario has utilities measured."""
        round_s = Second(scenario.timing.round_s)
        return AllocationProblem(
            reports=tuple(reports),
            air=scenario.air,
            secrecy=scenario.secrecy,
            round_s=round_s,
            share_codec=_share_codec(scenario),
            curve=curve if scenario.coordinator.allocator.utility.kind == "measured" else None,
            allocator=scenario.coordinator.allocator,
            owner=scenario.owner,
        )

    @property
    def share_least(self) -> float:
        """The least share that an update may have.

        It is the scenario's, or the least that the codec is sure to fit, or where a measured utility begins, and is positive.
        """
        least = max(self.allocator.share_min, self.share_codec)
        if self.curve is not None:
            least = max(least, self.curve.share_min, self.curve.share_worthless * (1.0 + _WORTH_MARGIN))
        return min(1.0, least)

    def permuted(self, order: Sequence[int]) -> "AllocationProblem":
        """Return the same problem with its clients in another order."""
        return replace(self, reports=tuple(self.reports[i] for i in order))

    def hopeless(self, report: ClientReport) -> bool:
        """Whether nothing can help: the tap may hear this client at least as well as the owner, and encryption is not enough."""
        return report.gain_main <= report.gain_tap and Protection.CRYPTO_ONLY not in self.secrecy.protections

    def snr_tap_bound(self, *, power: Watt, gain: PowerRatio, bandwidth: Hertz) -> PowerRatio:
        """Return the tap SNR to design for: the mean at its assumed gain, with the outage design times the factor of Rayleigh
        fading that is exceeded with ``tap_outage``."""
        mean = link.snr(power=power, gain=gain, bandwidth=bandwidth)
        if self.tap_model is not TapModel.OUTAGE:
            return mean
        return PowerRatio(mean * link.outage_factor(self.secrecy.tap_outage))

    @property
    def tap_model(self) -> TapModel:
        """What designs assume of the tap's channel."""
        if self.air.fading == "none":
            return TapModel.FIXED
        return TapModel(self.secrecy.fading_design)

    @property
    def subbands(self) -> int:
        """Coherence blocks of a codeword; 0 without fading."""
        return Fading.of(self.air).subbands

    def candidates(self, report: ClientReport, bandwidth: Hertz) -> tuple[Candidate, ...]:
        """Return every protection and coding point for one client, the best first.

        What can be used comes first, by the scenario's order of protections, then the highest rate of the update, then the least
        power.
        """
        preference = [Protection(name) for name in self.secrecy.protections]
        found = [self._candidate(p, point, report, bandwidth) for p in preference for point in CODING_POINTS]

        def rank(c: Candidate) -> tuple[bool, int, float, float, str]:
            return bool(c.problem), preference.index(c.protection), -c.throughput, c.power, c.point.name

        return tuple(sorted(found, key=rank))

    def residuals(self, assignments: Sequence[Assignment]) -> Residuals:
        """Return how far assignments, in the order of the reports, violate limits of band, power, clock, secrecy and time."""
        if [a.client for a in assignments] != [r.client for r in self.reports]:
            raise ValueError("one assignment per report, in the order of the reports")
        used = sum(a.bandwidth for a in assignments)
        return Residuals(
            bandwidth=max(0.0, used / self.air.bandwidth_hz - 1.0),
            clients=tuple(self._violation(a, r) for a, r in zip(assignments, self.reports, strict=True)),
        )

    def _candidate(self, protection: Protection, point: CodingPoint, report: ClientReport, bandwidth: Hertz) -> Candidate:
        demand, fading = self.secrecy, Fading.of(self.air)
        least = required_snr_db(point, codewords=demand.codewords, block_error_max=demand.block_error_max, fading=fading)
        top_db = to_db(link.snr(power=Watt(report.power_max), gain=report.gain_main, bandwidth=bandwidth))
        if not isfinite(least):
            problem = f"{point.name} is not known to reach a block error rate of {demand.block_error_max:g}"
            return self._plain(protection, point, report, bandwidth, snr_db=top_db, power=Watt(inf), problem=problem)
        snr_db = Decibel(least + demand.main_margin_db)
        power = Watt(from_db(snr_db) * link.noise_power(bandwidth) / report.gain_main)
        if power > report.power_max:
            problem = (
                f"{point.name} needs {snr_db:.1f} dB, reached {top_db:.1f} dB at {_watt(report.power_max)} over "
                f"{bandwidth / 1e6:.2f} MHz: raise power_max_w to {_watt(power)}, give the client at most "
                f"{bandwidth * report.power_max / power / 1e6:.2f} MHz, or move it closer"
            )
            return self._plain(protection, point, report, bandwidth, snr_db=top_db, power=power, problem=problem)
        base = self._plain(protection, point, report, bandwidth, snr_db=snr_db, power=power, problem="")
        if protection is not Protection.PAYLOAD:
            base = replace(base, carrier=wiretap.open_design(point, codewords=demand.codewords, subbands=self.subbands))
        if protection is not Protection.CRYPTO_ONLY:
            base = self._designed(base)
        return base if base.problem else self._timed(base, report, bandwidth)

    def _designed(self, base: Candidate) -> Candidate:
        demand, tap_db = self.secrecy, base.snr_tap_bound_db
        where = f"tap bound {tap_db:.1f} dB at the least power that closes {base.point.name} ({_watt(base.power)})"
        try:
            design = wiretap.design(
                base.point,
                codewords=demand.codewords,
                snr_tap_db=tap_db,
                log2_delta=demand.log2_delta,
                tap_model=self.tap_model,
                subbands=self.subbands,
            )
        except SecrecyUnavailable:
            return replace(base, problem=f"{where}; no message bits are left: {_ADVICE}")
        least = self._message_bits_min(base.protection)
        few = f"{design.message_bits} message bits < {least}"
        return replace(base, design=design, problem=f"{where}; {few}: {_ADVICE}" if design.message_bits < least else "")

    def _message_bits_min(self, protection: Protection) -> int:
        return _KEY_MESSAGE_BITS_MIN if protection is Protection.KEY else self.secrecy.message_bits_min

    def _timed(self, base: Candidate, report: ClientReport, bandwidth: Hertz) -> Candidate:
        design = base.design if base.carrier is None else base.carrier
        if design is None:
            raise ValueError("a candidate without a problem has a design")
        blocks = wiretap.block_count(design, -(-report.update_bits // 8))
        airtime = wiretap.airtime(design, blocks=blocks, bandwidth=bandwidth)
        if base.protection is Protection.KEY and base.design is not None:
            airtime = Second(airtime + wiretap.airtime(base.design, blocks=1, bandwidth=bandwidth))
        return replace(base, airtime=airtime, problem=self._too_long(design, report, blocks, airtime))

    def _too_long(self, design: SecrecyDesign, report: ClientReport, blocks: int, airtime: Second) -> str:
        size = f"{report.update_bits / 8e6:.1f} MB at {design.rate:.2f} bit/symbol"
        if airtime > self.round_s:
            limit = f"timing.round_s = {self.round_s:g} s"
            return f"{size} take {airtime:.0f} s on air, more than {limit}: raise it or air.bandwidth_hz, or {_ADVICE}"
        if blocks > BLOCKS_MAX:
            return f"{size} take {blocks} hash blocks, more than {BLOCKS_MAX}: raise secrecy.codewords, or {_ADVICE}"
        return ""

    def _plain(
        self,
        protection: Protection,
        point: CodingPoint,
        report: ClientReport,
        bandwidth: Hertz,
        *,
        snr_db: Decibel,
        power: Watt,
        problem: str,
    ) -> Candidate:
        """Return a candidate without its designs; its tap bound is that of the power which the client has."""
        return Candidate(
            protection=protection,
            point=point,
            power=power,
            snr_main_db=snr_db,
            snr_tap_bound_db=self._tap_db(Watt(min(power, report.power_max)), report, bandwidth),
            block_error_rate=self._block_error(point, snr_db),
            design=None,
            carrier=None,
            airtime=Second(inf),
            problem=problem,
        )

    def _tap_db(self, power: Watt, report: ClientReport, bandwidth: Hertz) -> Decibel:
        """Return the tap bound in dB, rounded up to 0.01 dB: a design for a better tap also holds for this one."""
        bound = to_db(self.snr_tap_bound(power=power, gain=report.gain_tap, bandwidth=bandwidth))
        return Decibel(ceil(max(bound, _SNR_TAP_LEAST_DB) * 100.0) / 100.0)

    def _block_error(self, point: CodingPoint, snr_db: Decibel) -> float:
        return _block_error_rate(point, snr_db, self.secrecy.codewords, Fading.of(self.air))

    def _violation(self, assignment: Assignment, report: ClientReport) -> float:
        limits = [assignment.power / report.power_max - 1.0, assignment.clock / report.clock_max - 1.0, -assignment.bandwidth]
        if assignment.protection is not None:
            limits += self._link_violations(assignment, report)
        return max(0.0, *limits)

    def _link_violations(self, assignment: Assignment, report: ClientReport) -> list[float]:
        power, bandwidth = assignment.power, assignment.bandwidth
        reached = link.snr(power=power, gain=report.gain_main, bandwidth=bandwidth)
        bound = self.snr_tap_bound(power=power, gain=report.gain_tap, bandwidth=bandwidth)
        found, airtime = list[float](), 0.0
        for part in assignment.parts:
            design = assignment.design_of(part)
            bits = 8 if part is Part.KEY else report.sealed_bits(assignment.budget_bytes)
            airtime += wiretap.airtime(design, blocks=wiretap.block_count(design, ceil(bits / 8)), bandwidth=bandwidth)
            found.append(self._block_error(point_of(design), to_db(reached)) / self.secrecy.block_error_max - 1.0)
            if design.secret and assignment.protection is not None:
                found.append(bound / from_db(design.snr_tap_design_db) - 1.0)
                found.append(self._message_bits_min(assignment.protection) / design.message_bits - 1.0)
        granted = report.budget_bytes(assignment.adapter_share)
        return [*found, airtime / self.round_s - 1.0, abs(assignment.budget_bytes / granted - 1.0)]


def _share_codec(scenario: Scenario) -> float:
    """Return the least share that updates are sure to fit: of blockwise integers, the narrowest with their scales; of noise, the
    coarsest grid. Updates that are only added have one size."""
    if isinstance(scenario.owner.aggregation, SecureConfig):
        return 1.0
    codec = scenario.codec
    match codec.kind:
        case "rate_distortion":
            return 0.0
        case "blockwise":
            return min(1.0, (_NARROWEST_BITS + 16.0 / codec.block_size) / codec.bits)
        case "lossless":
            return 1.0
        case "jopeq":
            return 1.0 if codec.noise is None else min(1.0, codec.noise.promise.bits_least / codec.bits)


def believed(scenario: Scenario, reports: Sequence[ClientReport]) -> tuple[ClientReport, ...]:
    """Return the reports with no tap gain below the scenario's own bound for where its clients stand.

    A client has no say in what the tap hears, except for *when* it measured: of the scenario's places for it, that picks one.
    """
    bounds = {c.id: link.tap_gain_bound(scenario, c) for c in scenario.clients}
    return tuple(replace(r, gain_tap=PowerRatio(max(r.gain_tap, bounds.get(r.client, 0.0)))) for r in reports)


_ADVICE = "move the client closer to the owner or the eavesdropper away, or lower secrecy.tap_margin_db"


@lru_cache(maxsize=4096)
def _block_error_rate(point: CodingPoint, snr_db: Decibel, codewords: int, fading: Fading) -> float:
    """Averaging over fading takes a millisecond, and every protection of every client asks at the same few levels."""
    return hash_block_error_rate(point, snr_db=snr_db, codewords=codewords, fading=fading)


def _watt(power: float) -> str:
    return f"{power:.3g} W" if power >= 0.1 else f"{power * 1e3:.3g} mW" if power >= 1e-4 else f"{power * 1e6:.3g} uW"
