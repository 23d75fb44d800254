"""Which metrics are there? What events feed, what is read of a process's state, and its calls."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hushtune_common.events.event import AIR, CLIENT, COORDINATOR, OWNER
from hushtune_common.metrics.labels import ALL, HEALTHS, LISTENER, METHODS, SERVERS, STATES, STATUSES, STEPS, label, metric
from hushtune_common.metrics.metric import SECONDS, Metric
from hushtune_common.metrics.of_clients import CLIENTS_TABLE
from hushtune_common.metrics.of_servers import SERVERS_TABLE

BY_EVENT: Final = (*SERVERS_TABLE, *CLIENTS_TABLE)
"""What events feed; `hushtune_events_total` is fed by all of them."""

READINGS: Final = (
    metric("hushtune_round", "gauge", (COORDINATOR, CLIENT), "The round, counted from 1; 0 before the first."),
    metric(
        "hushtune_round_state",
        "gauge",
        (COORDINATOR,),
        "1 for the state that the round is in, 0 for all others.",
        labels=(label("state", *STATES),),
    ),
    metric(
        "hushtune_client_step",
        "gauge",
        (CLIENT,),
        "1 for the step of the round that this client is at, 0 for all others.",
        labels=(label("step", *STEPS),),
    ),
    metric(
        "hushtune_clients",
        "gauge",
        (COORDINATOR,),
        "Clients of the scenario by how they are: absent ones have not joined, dead ones fell silent or left.",
        labels=(label("health", *HEALTHS),),
    ),
    metric("hushtune_streams", "gauge", (COORDINATOR,), "Members that have their stream of directives open."),
    metric(
        "hushtune_directives_waiting",
        "gauge",
        (COORDINATOR,),
        "Directives that were not handed to the living members they are for yet.",
    ),
    metric(
        "hushtune_frames_waiting",
        "gauge",
        (AIR,),
        "Frames on air that a listener is not through with: the owner's acknowledgement or the tap's last chunk is missing.",
        labels=(LISTENER,),
    ),
    metric("hushtune_receptions_open", "gauge", (OWNER,), "Updates of which something has arrived, but not all."),
    metric("hushtune_verdicts_waiting", "gauge", (OWNER,), "Calls that wait for an emulator or a verdict."),
    metric("hushtune_journal_bytes", "gauge", (*SERVERS, CLIENT), "Size of the journal on disk."),
    metric(
        "hushtune_stored_bytes",
        "gauge",
        (OWNER, AIR, CLIENT),
        "Bytes of blobs in the state folder: complete ones, and partial ones as far as they have come.",
        labels=(label("state", "complete", "partial"),),
    ),
    metric("hushtune_stored_bytes_max", "gauge", (OWNER, AIR, CLIENT), "How much the blobs may take."),
    metric("hushtune_disk_free_bytes", "gauge", ALL, "Free space of the disk with the state folder."),
    metric("hushtune_disk_size_bytes", "gauge", ALL, "Size of that disk."),
    metric(
        "hushtune_certificate_remaining_seconds",
        "gauge",
        ALL,
        "How long this process's certificate is valid for; negative when it has ended.",
    ),
)
"""What is read of a process's state whenever somebody asks."""

_PAIRS: Final = sum(len(methods) for methods in METHODS.values()) + 1
_SERVICE: Final = label("service", *METHODS)
_METHOD: Final = label("method", *(method for methods in METHODS.values() for method in methods))
_SIDE: Final = label("side", "server", "client")

CALLS: Final = (
    metric(
        "hushtune_grpc_calls_total",
        "counter",
        ALL,
        "Calls that have ended, by their status; side says whether this process answered or asked.",
        labels=(_SIDE, _SERVICE, _METHOD, label("status", *STATUSES)),
        combinations=2 * _PAIRS * (len(STATUSES) + 1),
    ),
    metric(
        "hushtune_grpc_call_seconds",
        "histogram",
        ALL,
        "How long calls took from their beginning to their end; a stream's end is that of the whole stream.",
        labels=(_SIDE, _SERVICE, _METHOD),
        combinations=2 * _PAIRS,
        buckets=SECONDS,
    ),
    metric(
        "hushtune_grpc_calls_open",
        "gauge",
        ALL,
        "Calls that have begun and not ended.",
        labels=(_SIDE, _SERVICE, _METHOD),
        combinations=2 * _PAIRS,
    ),
)
"""What is known of calls between processes."""

TRAINER: Final = "hushtune_trainer"
"""Beginning of the names of what the operating system tells of a client's training process; the process itself has none."""

METRICS: Final[Mapping[str, Metric]] = MappingProxyType({m.name: m for m in (*BY_EVENT, *READINGS, *CALLS)})
if len(METRICS) != len(BY_EVENT) + len(READINGS) + len(CALLS):
    raise ValueError("a metric is in the table twice")
