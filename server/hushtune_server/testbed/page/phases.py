"""What did each process do, from when to when? The phases that it logged, as spans of time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hushtune_common.events.event import ROLES
from hushtune_server.testbed.logbook.lines import Line

_KINDS: Final = (
    (
        "waiting",
        (
            "waiting",
            "listening",
            "connecting",
            "carrying",
            "starting",
            "handing out",
            "saying",
            "stopping",
            "clients are",
            "done",
        ),
    ),
    ("training", ("training", "warming up")),
    ("transfer", ("fetching", "uploading", "reporting", "collecting")),
    ("on air", ("on air",)),
)
_ENDS: Final = frozenset({"done", "round closed", "stopping"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A phase of one process; ``began`` in seconds since 1970."""

    phase: str
    kind: str
    began: float
    seconds: float


def spans(lines: Sequence[Line]) -> Mapping[str, Sequence[Span]]:
    """Return the phases of every process that logged any, by process: first the servers, then clients, then the referee."""
    order = {role: place for place, role in enumerate(("coordinator", "owner", "air", "eavesdropper", "client", "referee"))}
    roles = {line.process: line.role for line in lines}
    names = sorted(roles, key=lambda name: (order.get(roles[name], len(ROLES)), name))
    return {name: found for name in names if (found := _of([line for line in lines if line.process == name]))}


def _of(lines: Sequence[Line]) -> list[Span]:
    begun = [line for line in lines if line.event == "phase_changed"]
    ends = [*(line.moment for line in begun[1:]), lines[-1].moment]
    return [
        Span(phase=phase, kind=kind_of(phase), began=line.moment, seconds=max(0.0, end - line.moment))
        for line, end in zip(begun, ends, strict=False)
        if (phase := str(line.record.get("phase", ""))) not in _ENDS
    ]


def kind_of(phase: str) -> str:
    """Return what sort of thing a phase is: training, transfer, on air, computing, or waiting."""
    return next((kind for kind, beginnings in _KINDS if phase.startswith(beginnings)), "computing")
