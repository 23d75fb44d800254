"""What does a client's assignment say, and what is its round expected to take?"""

from math import sqrt

from hushtune_common.messages import Assignment, ClientReport, Gate, GateDecision, Planned
from hushtune_common.units import FlopPerSecond, Hertz, Watt
from hushtune_server.coordinator.problems.radio import expected_symbols_m, size_bits
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, Candidate


def clock_max(report: ClientReport) -> FlopPerSecond:
    """Return the fastest clock that a round's training may have: the device's own, or what its energy allows."""
    return FlopPerSecond(min(report.clock_max, sqrt(report.energy_max / report.train_flops / report.energy_w_per_flops3)))


def granted(
    problem: AllocationProblem,
    report: ClientReport,
    candidate: Candidate,
    *,
    gate: Gate,
    share: float,
    bandwidth: Hertz,
    clock: FlopPerSecond,
    server: FlopPerSecond,
) -> Assignment:
    """Return the assignment of a client that may send, with what is planned for it."""
    bits = size_bits(report, share)
    gaussian = problem.allocator.rate_model == "gaussian"
    air_s = 1e6 * expected_symbols_m(candidate, bits=bits, gaussian=gaussian) / bandwidth
    planned = Planned(
        wait_s=0.0,
        train_s=report.train_flops / clock,
        airtime_s=air_s,
        plug_in_s=problem.owner.plug_in_flops / server,
        compute_j=report.energy_w_per_flops3 * clock**2 * report.train_flops,
        radio_j=candidate.power * air_s,
        update_bits=bits,
    )
    return Assignment(
        client=report.client,
        round_id=report.round_id,
        gate=gate,
        adapter_share=share,
        budget_bytes=report.budget_bytes(share),
        bandwidth=bandwidth,
        power=candidate.power,
        clock=clock,
        secrecy_rate_bps=candidate.rate * bandwidth,
        deadline=problem.round_s,
        protection=candidate.protection,
        design=candidate.design,
        carrier=candidate.carrier,
        planned=planned,
    )


def refused(problem: AllocationProblem, report: ClientReport, gate: Gate) -> Assignment:
    """Return the assignment of a client that may not send."""
    if gate.decision is GateDecision.GRANTED:
        raise ValueError("a granted client is not refused")
    return Assignment(
        client=report.client,
        round_id=report.round_id,
        gate=gate,
        adapter_share=1.0,
        budget_bytes=report.bytes_full,
        bandwidth=Hertz(0.0),
        power=Watt(0.0),
        clock=FlopPerSecond(0.0),
        secrecy_rate_bps=0.0,
        deadline=problem.round_s,
        protection=None,
        design=None,
        carrier=None,
    )
