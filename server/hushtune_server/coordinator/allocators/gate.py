"""What does the secrecy gate say to a client, in words a person understands?"""

from collections.abc import Sequence
from typing import Final

from hushtune_common.link.secrecy import gaussian_secrecy_rate
from hushtune_common.messages import ClientReport, Gate, GateDecision, Protection
from hushtune_common.units import Hertz, from_db, to_db
from hushtune_server.coordinator.problems.secrecy import AllocationProblem, Candidate


def gate_of(
    problem: AllocationProblem, report: ClientReport, found: Sequence[Candidate], bandwidth: Hertz, *, refusal: str = ""
) -> Gate:
    """Return the decision on a client's best candidate, the first of ``found``; with a ``refusal`` it is deferred for that."""
    best = found[0]
    if problem.hopeless(report):
        decision, reason = GateDecision.EXCLUDED, _hopeless(report)
    elif refusal or best.problem:
        decision, reason = GateDecision.DEFERRED, refusal or best.problem
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
    refused = next((c.problem for c in found if c.protection is preferred and c.problem), "")
    return f"{said} ({_WORDS[preferred]}: {refused})" if refused else said


_WORDS: Final = {
    Protection.PAYLOAD: "the update itself over the wiretap code",
    Protection.KEY: "its key over the wiretap code",
    Protection.CRYPTO_ONLY: "encryption alone",
}
