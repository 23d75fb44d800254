"""Which values can a label have? Everything that the metrics of this program are told apart by, known beforehand."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hushtune_common.errors import HushtuneError
from hushtune_common.events.event import AIR, CLIENT, COORDINATOR, EAVESDROPPER, OWNER
from hushtune_common.metrics.metric import Feed, Kind, Label, Metric

SERVERS: Final = (OWNER, COORDINATOR, AIR)
ALL: Final = (*SERVERS, EAVESDROPPER, CLIENT)


def _reasons(kind: type[HushtuneError]) -> frozenset[str]:
    return frozenset({kind.reason}).union(*(_reasons(below) for below in kind.__subclasses__()))


def label(name: str, *allowed: str) -> Label:
    """Make a label of which these are all values."""
    return Label(name=name, allowed=frozenset(allowed))


OF_CLIENT: Final = Label(name="client", allowed=frozenset({"aggregate"}), clients=True)
PART: Final = label("part", "key", "payload")
FIDELITY: Final = label("fidelity", "bit_exact", "hybrid", "abstract")
KIND: Final = label("kind", "emulator", "frame", "reception")
LISTENER: Final = label("listener", "main", "tap")
FAULT: Final = Label(name="fault", allowed=_reasons(HushtuneError))
OUTCOME: Final = label("outcome", "closed", "failed")
BY_CLIENT: Final = {"client": "client"}
BY_PART: Final = {"client": "client", "part": "part"}

STATES: Final = ("gathering", "open", "solving", "assigned", "settling", "concluding", "closed", "failed")
"""Where a round can stand at the coordinator."""
STEPS: Final = ("idle", "reported", "assigned", "training", "uploading", "completed", "closed", "finished")
"""Where a client can stand in a round."""
HEALTHS: Final = ("alive", "suspect", "dead", "absent")
METHODS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Air": ("Acknowledge", "Listen", "Receive", "Sound", "Transmit"),
        "Blobs": ("FindMissing", "QueryWriteStatus", "Read", "Write"),
        "Coordinator": (
            *(
                "Announce",
                "AskToSend",
                "Complete",
                "Conclude",
                "Deal",
                "Follow",
                "GetRun",
                "Join",
                "Leave",
                "Report",
                "ReportChannel",
            ),
            *("Settle", "Vow"),
        ),
        "Owner": ("GetManifest", "GetVerdict", "Open"),
        "Health": ("Check", "List", "Watch"),
    }
)
"""All calls that there are between processes, by service."""
STATUSES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


def metric(
    name: str,
    kind: Kind,
    by: tuple[str, ...],
    text: str,
    *feeds: Feed,
    labels: tuple[Label, ...] = (),
    buckets: tuple[float, ...] = (),
    combinations: int = 0,
) -> Metric:
    """Make an entry of the table, fed by ``feeds``."""
    return Metric(name=name, kind=kind, help=text, by=by, labels=labels, feeds=feeds, buckets=buckets, combinations=combinations)
