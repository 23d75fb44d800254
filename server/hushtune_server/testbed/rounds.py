"""What did each round of a run bring, and what did it cost on the way down and up?"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from rich.table import Table

from hushtune_server.testbed.rundir import RunDirectory, read_log

Json = dict[str, Any]

_COORDINATOR = ("round_id", "state", "accepted", "missing", "failed_reason", "solutions", "stopped", "seconds")
_OWNER = ("kept", "reason", "left_out", "perplexity_public_before", "perplexity_public", "emulator_bytes", "revision_bytes")


def gather(
    run: RunDirectory, records: Sequence[Json], *, owner: Mapping[str, Any], referee: Mapping[str, Any], clients: Sequence[str]
) -> list[Json]:
    """Return a line per round from the coordinator's ``records``, what the owner and the referee left, and the clients' logs."""
    decided = {line["round_id"]: line for line in cast(list[Json], owner.get("rounds") or [])}
    fetched = {client: [e for e in read_log(run.log(client)) if e.get("event") == "emulator_verified"] for client in clients}
    scored: Mapping[str, Any] = referee.get("rounds") or {}
    return [
        {
            **{key: record.get(key) for key in _COORDINATOR},
            "owner": {key: decided.get(record.get("round_id"), {}).get(key) for key in _OWNER},
            "plug_in": scored.get(str(record.get("round_id")), {}).get("plug_in"),
            "downlink": _downlink(fetched, cast(int, record.get("round_id"))),
            "uplink_bytes": sum(c.get("bytes_uploaded") or 0 for c in record.get("completions") or ()),
        }
        for record in records
    ]


def _downlink(fetched: Mapping[str, Sequence[Json]], round_id: int) -> Json:
    """Return what the clients fetched for a round: in all, and each; who came back after a crash may have fetched twice."""
    mine = {client: [e for e in events if e.get("round_id") == round_id] for client, events in fetched.items()}
    each = {
        client: {"bytes": sum(e.get("bytes_fetched") or 0 for e in events), "revised": any(e.get("revised") for e in events)}
        for client, events in mine.items()
        if events
    }
    return {"bytes": sum(entry["bytes"] for entry in each.values()), "clients": each}


def table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rounds of a run for people."""
    caption = "plug-in: perplexity on held-out private text; down and up: bytes of all clients together"
    shown = Table(title="Rounds", title_justify="left", caption=caption, caption_justify="left")
    shown.add_column("round", justify="right")
    shown.add_column("accepted")
    for heading in ("plug-in", "public before", "after", "down MB", "up MB", "s"):
        shown.add_column(heading, justify="right")
    shown.add_column("the model")
    for entry in rounds:
        owner: Mapping[str, Any] = entry["owner"]
        score: Mapping[str, Any] = entry["plug_in"] or {}
        shown.add_row(
            str(entry["round_id"]),
            f"{len(entry['accepted'] or ())} of {len(entry['accepted'] or ()) + len(entry['missing'] or ())}",
            _number(score.get("perplexity"), 1),
            _number(owner["perplexity_public_before"], 1),
            _number(owner["perplexity_public"], 1),
            _number(entry["downlink"]["bytes"], 3, scale=1e-6),
            _number(entry["uplink_bytes"], 3, scale=1e-6),
            _number(entry["seconds"], 1),
            {True: "kept", False: "rolled back", None: "-"}[owner["kept"]],
        )
    return shown


def ending(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return why the run ended before its last round, nothing when it did not."""
    stopped = rounds[-1].get("stopped") if rounds else ""
    return f"Stopped after round {rounds[-1]['round_id']}: {stopped}" if stopped else ""


def _number(value: object, digits: int, *, scale: float = 1.0) -> str:
    return f"{value * scale:.{digits}f}" if isinstance(value, int | float) else "-"
