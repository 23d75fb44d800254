"""What does the coordinator leave behind about a round that is over?"""

from dataclasses import asdict
from math import isfinite
from typing import Any, cast

from hushtune_common.messages import Assignment, Completion, UtilityCurve
from hushtune_common.units import Second
from hushtune_server.coordinator.events import Solution
from hushtune_server.coordinator.phases import Answer, Closed, Failed, Round, Rules, State
from hushtune_server.coordinator.sums import summary


def record(state: State, *, rules: Rules) -> dict[str, object] | None:
    """Return the round's outcome as plain values, units in the names; ``None`` while it goes on.

    Numbers that JSON does not know become ``None``. Times are seconds of run time.
    """
    phase = state.phase
    if not isinstance(phase, Closed | Failed):
        return None
    round_ = phase.round
    ended_at = phase.closed_at if isinstance(phase, Closed) else phase.failed_at
    solution = None if round_ is None else round_.solution
    accepted = phase.accepted if isinstance(phase, Closed) else ()
    body: dict[str, object] = {
        "run": rules.run,
        "round_id": state.round_id,
        "state": state.name,
        "failed_reason": phase.reason if isinstance(phase, Failed) else "",
        "last": isinstance(phase, Failed) or phase.last,
        "stopped": phase.stopped if isinstance(phase, Closed) else "",
        "seconds": 0.0 if round_ is None else ended_at - round_.opened_at,
        "accepted": list(accepted),
        "missing": list(phase.missing),
        "reasons": dict(phase.missing),
        "died": [c for c in phase.missing if c in state.roster.gone],
        "withdrawn": [] if round_ is None else sorted(round_.withdrawn),
        "needed": rules.needed,
        "allocation": None if solution is None else _allocation(solution),
        "sum": None if round_ is None or round_.sum is None else summary(round_.sum),
        "utility": None if (curve := _curve(state, round_)) is None else asdict(curve),
        "solutions": [] if round_ is None else [_answer(a, opened_at=round_.opened_at) for a in round_.answers],
        "reports": [] if round_ is None else [asdict(report) for report in round_.reports.values()],
        "assignments": [] if solution is None else [_assignment(a) for a in solution.assignments],
        "completions": [] if round_ is None else [_completion(c) for c in round_.completions.values()],
    }
    return cast(dict[str, object], _finite(body))


def _curve(state: State, round_: Round | None) -> UtilityCurve | None:
    """Return what updates were worth when the round was solved; the owner may have told already what they are worth next."""
    return state.curve if round_ is None or round_.solution is None else round_.curve


def _answer(answer: Answer, *, opened_at: Second) -> dict[str, object]:
    """Return one solution of the round's: for whom and because of whom it was looked for, with its own certificate."""
    occasion, found = answer.occasion, answer.certificate
    return {
        "order": answer.order,
        "at_s": answer.at - opened_at,
        "occasion": occasion_of(answer),
        "gone": sorted(occasion.gone),
        "changed": sorted(occasion.changed),
        "clients": list(answer.clients),
        "failed": answer.failed,
        "allocation": None if found is None else _allocation(found),
    }


def occasion_of(answer: Answer) -> str:
    """Return why a solution was looked for, in words."""
    words = [("departure of", answer.occasion.gone), ("channel change of", answer.occasion.changed)]
    said = " and ".join(f"{word} {', '.join(sorted(who))}" for word, who in words if who)
    return f"after {said}" if said else "first"


def _allocation(solution: Solution) -> dict[str, object]:
    return {
        "method": solution.method,
        "violation": solution.violation,
        "objective": solution.objective,
        "upper_bound": solution.upper_bound,
        "gap": solution.gap,
        "claim": solution.claim,
        "tier": solution.tier,
        "sweeps": solution.sweeps,
        "notes": list(solution.notes),
        "solve_s": solution.solve_s,
    }


def _assignment(assignment: Assignment) -> dict[str, object]:
    return {
        "client": assignment.client,
        "round_id": assignment.round_id,
        "gate": {**asdict(assignment.gate), "decision": assignment.gate.decision.value},
        "adapter_share": assignment.adapter_share,
        "budget_bytes": assignment.budget_bytes,
        "planned": None if assignment.planned is None else asdict(assignment.planned),
        "bandwidth_hz": assignment.bandwidth,
        "power_w": assignment.power,
        "clock_flops": assignment.clock,
        "secrecy_rate_bps": assignment.secrecy_rate_bps,
        "deadline_s": assignment.deadline,
        "protection": assignment.protection,
        "design": None if assignment.design is None else asdict(assignment.design),
        "carrier": None if assignment.carrier is None else asdict(assignment.carrier),
    }


def _completion(completion: Completion) -> dict[str, object]:
    return {
        "client": completion.key.client,
        "attempt": completion.key.attempt,
        "uploaded": completion.uploaded,
        "reason": completion.reason,
        "bytes_raw": completion.bytes_raw,
        "bytes_uploaded": completion.bytes_uploaded,
        "airtime_s": completion.airtime,
        "train_s": completion.train_seconds,
        "energy_j": completion.energy,
    }


def _finite(value: Any) -> object:
    match value:
        case float():
            return value if isfinite(value) else None
        case dict():
            return {k: _finite(v) for k, v in cast(dict[str, object], value).items()}
        case list():
            return [_finite(v) for v in cast(list[object], value)]
        case _:
            return value
