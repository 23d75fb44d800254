"""Equal share: everyone who can be helped gets the same band; the baseline of every optimiser."""

from collections.abc import Sequence
from typing import Final

from hushtune_common.errors import SolverFailed
from hushtune_common.link.secrecy import gaussian_secrecy_rate
from hushtune_common.messages import Assignment, ClientReport, Gate, GateDecision, Protection
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, Hertz, Watt, from_db, to_db
from hushtune_server.coordinator.allocators.allocator import VIOLATION_MAX, Allocation, Allocator
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, Candidate


class EqualShare:
    """Splits the band evenly over all clients that are not excluded; each uses the least power for its best coding point."""

    def __init__(self, *, clock_share: float) -> None:
        """Run every device at ``clock_share`` of its top clock."""
        if not 0.0 < clock_share <= 1.0:
            raise ValueError(f"clock_share must be in (0, 1], got {clock_share}")
        self._clock_share = clock_share

    def allocate(self, problem: AllocationProblem, *, seeds: SeedTree) -> Allocation:
        """Return the allocation; the seeds are not used."""
        sharing = sum(not problem.hopeless(r) for r in problem.reports)
        bandwidth = Hertz(problem.air.bandwidth_hz / max(sharing, 1))
        assignments = tuple(self._assign(problem, report, bandwidth) for report in problem.reports)
        violation = problem.residuals(assignments).worst
        if violation > VIOLATION_MAX:
            raise SolverFailed(f"equal_share: its own residuals say {violation:.1e}")
        return Allocation(assignments=assignments, method="equal_share", violation=violation, gap=None)

    def _assign(self, problem: AllocationProblem, report: ClientReport, bandwidth: Hertz) -> Assignment:
        found = problem.candidates(report, bandwidth)
        best = found[0]
        gate = _gate(problem, report, found, bandwidth)
        granted = gate.decision is GateDecision.GRANTED
        return Assignment(
            client=report.client,
            round_id=report.round_id,
            gate=gate,
            adapter_share=1.0,
            code_bits=problem.code_bits,
            bandwidth=bandwidth if granted else Hertz(0.0),
            power=best.power if granted else Watt(0.0),
            clock=FlopPerSecond(self._clock_share * report.clock_max) if granted else FlopPerSecond(0.0),
            secrecy_rate_bps=best.rate * bandwidth if granted else 0.0,
            deadline=problem.round_s,
            protection=best.protection if granted else None,
            design=best.design if granted else None,
            carrier=best.carrier if granted else None,
        )


def _gate(problem: AllocationProblem, report: ClientReport, found: Sequence[Candidate], bandwidth: Hertz) -> Gate:
    """Return the decision on a client's best candidate, in words a person understands."""
    best = found[0]
    if problem.hopeless(report):
        decision, reason = GateDecision.EXCLUDED, _hopeless(report)
    elif best.problem:
        decision, reason = GateDecision.DEFERRED, best.problem
    else:
        decision, reason = GateDecision.GRANTED, _granted(problem, found, bandwidth)
    return Gate(
        decision=decision,
        reason=reason,
        snr_main_db=best.snr_main_db,
        snr_tap_bound_db=best.snr_tap_bound_db,
        block_error_rate=best.block_error_rate,
        rate_coded=best.rate,
        rate_gaussian=gaussian_secrecy_rate(from_db(best.snr_main_db), from_db(best.snr_tap_bound_db)),
    )


def _hopeless(report: ClientReport) -> str:
    ahead = to_db(report.gain_tap) - to_db(report.gain_main)
    return (
        f"the assumed tap gain is {ahead:.1f} dB above the owner's ({to_db(report.gain_tap):.1f} dB against "
        f"{to_db(report.gain_main):.1f} dB), so no power or bandwidth helps: move the client closer to the owner or the "
        f"eavesdropper away, or lower secrecy.tap_margin_db"
    )


def _granted(problem: AllocationProblem, found: Sequence[Candidate], bandwidth: Hertz) -> str:
    """Return what carries the update, with its numbers, and why nothing that the scenario prefers does."""
    best = found[0]
    said = f"{best.point.name} closes at {best.snr_main_db:.1f} dB with a tap bound of {best.snr_tap_bound_db:.1f} dB; "
    design = best.design
    if design is None:
        said += "encryption alone protects the update, the physical layer contributes nothing: "
    else:
        what = "the message" if best.carrier is None else "the update's key"
        said += f"{design.message_bits} of {design.message_bits + design.random_bits} bits carry {what}: "
    mbps = best.throughput * bandwidth / 1e6
    said += f"{best.throughput:.2f} bit/symbol, {mbps:.1f} Mbit/s, {best.airtime:.1f} s on air"
    preferred = Protection(problem.secrecy.protections[0])
    if preferred is best.protection:
        return said
    refused = next(c for c in found if c.protection is preferred)  # usable ones come first, so all of these have a problem
    return f"{said} ({_WORDS[preferred]}: {refused.problem})"


_WORDS: Final = {
    Protection.PAYLOAD: "the update itself over the wiretap code",
    Protection.KEY: "its key over the wiretap code",
    Protection.CRYPTO_ONLY: "encryption alone",
}


_conforms: type[Allocator] = EqualShare
