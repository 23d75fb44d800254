"""How was it for the clients of a load: how fast did rounds go, who waited how long, and what did each take of memory?"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from hushtune_common import config
from hushtune_common.config import Scenario

_PLACES = ((60.0, 20.0), (-40.0, 50.0), (-70.0, -30.0), (30.0, -60.0))

Json = dict[str, Any]


def scenario_of(*, clients: int, rounds: int, idle_s: float, round_s: float = 600.0) -> Scenario:
    """Return a scenario in which every client is granted an upload: near the owner, far from the tap, equal shares."""
    own = [{"id": f"c{k + 1}", "position": dict(zip(("x_m", "y_m"), _PLACES[k % 4], strict=True))} for k in range(clients)]
    return config.parse(
        {
            "name": "load",
            "seed": 1,
            "model": {"source": "random:blocks=6,hidden=32,heads=4,vocab=256,seed=1"},
            "data": {"private": "txt:none", "public": "txt:none"},
            "air": {"bandwidth_hz": 1e6 * clients, "eavesdropper": {"x_m": 5000.0, "y_m": 0.0}},
            "coordinator": {
                "rounds": rounds,
                "allocator": {"kind": "equal_share"},
                "stragglers": {"kind": "everyone"},
            },
            "timing": {"connect_s": 60.0, "idle_s": idle_s, "round_s": round_s},
            "limits": {"clients_max": max(clients, 64)},
            "clients": own,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When rounds ended, in seconds on the owner's clock, in order; what the coordinator held, in bytes, and its CPU seconds."""

    ended_s: Sequence[float]
    empty_bytes: int
    peak_bytes: int
    cpu_s: float = 0.0

    @property
    def rounds_per_s(self) -> float:
        """Rounds after the first, for which everybody had to connect, by the time that they took."""
        return (len(self.ended_s) - 1) / (self.ended_s[-1] - self.ended_s[0])

    @property
    def lengths_s(self) -> list[float]:
        """How long each round after the first took."""
        return [b - a for a, b in zip(self.ended_s, self.ended_s[1:], strict=False)]


def waits_of(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return what each client waited, from the last words of the processes that they lived in."""
    found: dict[str, dict[str, list[float]]] = {}
    for event in events:
        found.update(json.loads(event["waits"]))
    return found


def summary(pace: Pace, *, measured: Sequence[Mapping[str, Any]], clients: int, rounds: int) -> Json:
    """Return the figures of a load.

    Fairness is Jain's index of the clients' mean waits, (sum x)**2 / (n sum x**2): 1 when all wait alike, 1/n when one does all
    the waiting (Jain, Chiu and Hawe, 1984).
    """
    waits = waits_of(measured)
    assignment = {name: fmean(each["assignment_s"]) for name, each in waits.items() if each["assignment_s"]}
    everyone = [s for each in waits.values() for s in each["assignment_s"]]
    calls = [s for each in waits.values() for kind in ("report_s", "complete_s") for s in each[kind]]
    means = np.array(sorted(assignment.values()))
    return {
        "clients": clients,
        "rounds": rounds,
        "rounds_per_s": round(pace.rounds_per_s, 3),
        "round_median_s": round(median(pace.lengths_s), 4),
        "round_max_s": round(max(pace.lengths_s), 4),
        "coordinator_cpu_s_per_round": round(pace.cpu_s / rounds, 4),
        "coordinator_bytes_per_client": max(0, pace.peak_bytes - pace.empty_bytes) // clients,
        "coordinator_peak_bytes": pace.peak_bytes,
        "client_bytes_per_client": round(fmean(m["bytes_per_client"] for m in measured)),
        "wait_assignment_s": _spread(everyone),
        "wait_call_s": _spread(calls),
        "wait_means_s": _spread(means.tolist()),
        "fairness_jain": round(float(means.sum() ** 2 / (means.size * (means**2).sum())), 4),
    }


def _spread(values: Sequence[float]) -> Json:
    points = np.quantile(np.array(values), (0.0, 0.5, 0.95, 1.0))
    return {name: round(float(value), 4) for name, value in zip(("min", "median", "p95", "max"), points, strict=True)}
