"""The transport's results for people: lines on a terminal, and a document with a table."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
Row = tuple[str, str, str, str]

_READING = """\
Both ends run on one machine, over loopback, with mutual TLS (TLS 1.3). A transfer and its named peer take turns in one run, in an
order that alternates, after a turn that does not count; figures are medians and ratios of medians. Ratios hold on a busy machine;
seconds hold for this machine at its load of the day. The **bare stream** is `grpc.aio` with the same parts, the same CRC-32 and
SHA-256 and as many `fdatasync`, and without names, offsets, resumption and quota
(`server/hushtune_server/testbed/transport/bare.py`).
"""


def rows(found: Json) -> list[Row]:
    """Return the table: quantity, measured, peer or target, ratio or verdict."""
    table: list[Row] = []
    if "upload" in found:
        table.append(_upload(found["upload"]))
    if "rounds" in found:
        table += _rounds(found["rounds"])
    if "giant" in found:
        table.append(_giant(found["giant"]))
    if "death" in found:
        table += _death(found["death"])
    if "listener" in found:
        table += _listener(found["listener"])
    if "load" in found:
        table.append(_many(found["load"]))
    return table


def told(found: Json) -> Sequence[tuple[str, str]]:
    """Return the lines for a terminal."""
    return [(what, f"{measured}; {beside}: {verdict}") for what, measured, beside, verdict in rows(found)]


def document_text(found: Json) -> str:
    """Return the document in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found["versions"].items()))
    head = ["quantity", "measured", "beside", "verdict"]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows(found)])
    made = (
        f"Made by `{found['command']}` on {found['date'][:10]}, seed {found['seed']}, {found['cores']} cores under a load "
        f"average of {found['load_average']:g}, with {versions}."
    )
    parts = ["# What the transport costs", made, _READING.strip(), table]
    if "load" in found:
        parts.append(_load(found["load"]))
    return "\n\n".join(parts) + "\n"


def _upload(part: Json) -> Row:
    size = part["bytes"] / 1e6
    return (
        f"{size:.0f} MB up, durable and acknowledged",
        f"{part['seconds'] * 1e3:.0f} ms ({part['mb_per_s']:.0f} MB/s)",
        f"bare stream: {part['bare_seconds'] * 1e3:.0f} ms",
        _ratio(part["ratio"], most=1.25),
    )


def _rounds(part: Json) -> list[Row]:
    rate, killed = part["rounds_per_s"], part["killed"]
    return [
        (
            f"control rounds, {part['clients']} light clients",
            f"{rate:.1f} per s, {part['coordinator_cpu_s_per_round'] * 1e3:.0f} ms of the coordinator's CPU each",
            f"bare calls, 3 per client: {part['bare_rounds_per_s']:.1f} per s",
            f"ratio of times {part['ratio']:.1f}; target 10 per s: {'met' if rate >= 10.0 else 'missed'}",
        ),
        (
            "coordinator SIGKILL in mid-round",
            f"{killed['kill_cost_s']:.2f} s lost, {killed['restart_s']:.2f} s of them its start",
            "target: 5 s",
            "met" if killed["kill_cost_s"] <= 5.0 else "missed",
        ),
    ]


def _giant(part: Json) -> Row:
    most = max(part["sender_peak_bytes"], part["receiver_peak_bytes"])
    return (
        f"{part['bytes'] / 1e9:g} GB blob",
        f"{part['mb_per_s']:.0f} MB/s; largest resident set {part['sender_peak_bytes'] / 1e6:.0f} MB (sender), "
        f"{part['receiver_peak_bytes'] / 1e6:.0f} MB (receiver)",
        "target: 200 MB",
        "met" if most <= 200e6 else "missed",
    )


def _death(part: Json) -> list[Row]:
    return [
        (
            f"{what} client noticed, default timing",
            f"{part[name]:.1f} s",
            f"target: {part['idle_s']:g} s",
            "met" if part[name] <= part["idle_s"] + 1.0 else "missed",
        )
        for what, name in (("killed", "killed_s"), ("stopped", "stopped_s"))
    ]


def _listener(part: Json) -> list[Row]:
    names = {"still": "soft values to one listener, nothing computed", "noisy": "soft values to one listener, through noise"}
    return [
        (
            text,
            f"{part[name]['mb_per_s']:.0f} MB/s ({8 * part[name]['mb_per_s']:.0f} Mbit/s)",
            f"bare stream: {part[name]['bare_mb_per_s']:.0f} MB/s",
            f"ratio of times {part[name]['ratio']:.2f}",
        )
        for name, text in names.items()
    ]


def _many(part: Json) -> Row:
    return (
        f"control rounds, {part['clients']} light clients",
        f"{part['rounds_per_s']:.2f} per s, {part['coordinator_cpu_s_per_round'] * 1e3:.0f} ms of the coordinator's CPU each",
        f"mean waits from {part['wait_means_s']['min']:.2f} to {part['wait_means_s']['max']:.2f} s",
        f"fairness {part['fairness_jain']:.4f}",
    )


def _load(part: Json) -> str:
    mib, waits = 1 << 20, part["wait_assignment_s"]
    return "\n".join(
        [
            f"## {part['clients']} clients",
            "",
            f"`hushtune testbed load --clients {part['clients']} --rounds {part['rounds']}` on the same day: "
            f"{part['rounds_per_s']:.2f} rounds per second; {part['coordinator_bytes_per_client'] / mib:.2f} MiB of memory per "
            f"client at the coordinator and {part['client_bytes_per_client'] / mib:.2f} MiB at the client's end (connection, "
            f"journal, state machine); from report to assignment {waits['median']:.2f} s (median), {waits['p95']:.2f} s (95 %), "
            f"{waits['max']:.2f} s at most; Jain's index of mean waits {part['fairness_jain']:.4f}.",
        ]
    )


def _ratio(value: float, *, most: float) -> str:
    return f"ratio {value:.2f}, target {most:g}: {'met' if value <= most else 'missed'}"
