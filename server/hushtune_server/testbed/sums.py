"""What came of the sums of a run, and what could the owner not check because it saw no update?"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from rich.console import Console

from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import Scenario
from hushtune_server.testbed.rundir import RunDirectory, read_log

Json = dict[str, Any]

LOST: Final = (
    "No bound on one client's change: the grid bounds an honest client's numbers; any words can be put into a sum, and one "
    "member is enough to ruin a mean.",
    "No screen, no trial on public text, no quarantine and no exclusion of one update; whoever spoils a mean cannot be named.",
    "What is left: the sum of the weights, the ranges of the digits, every screen and trial of the mean, and roll-back.",
)
"""For people, in the report and nowhere in a decision."""


def gather(run: RunDirectory, records: Sequence[Mapping[str, Any]], scenario: Scenario) -> Json:
    """Return how updates became one; with secure aggregation, a line per round and what could not be checked."""
    options = scenario.owner.aggregation
    if not isinstance(options, SecureConfig):
        return {"kind": "mean"}
    owner = list(read_log(run.log("owner")))
    clients = [(c.id, list(read_log(run.log(c.id)))) for c in scenario.clients]
    rounds = [_round(cast(Json, record), owner=owner, clients=clients) for record in records]
    return {
        "kind": "secure",
        "share": options.share,
        "colluders_withstood": options.colluders,
        "weights": options.weights,
        "unseen": bool(rounds) and all(line["unmasked"] for line in rounds),
        "checks_lost": list(LOST),
        "rounds": rounds,
    }


def _round(record: Json, *, owner: Sequence[Json], clients: Sequence[tuple[str, Sequence[Json]]]) -> Json:
    number = record.get("round_id")
    told = cast(Json, record.get("sum") or {})
    unmasked = _last(owner, "sum_unmasked", number)
    masked = {client: _last(events, "payload_masked", number) for client, events in clients}
    return {
        "round_id": number,
        **{key: told.get(key) or [] for key in ("members", "dealers", "survivors", "vows")},
        "dropped": unmasked.get("dropped") or [],
        "needed": told.get("needed"),
        "unmasked": bool(unmasked),
        "failed": _last(owner, "sum_failed", number).get("problem"),
        "weight": unmasked.get("weight"),
        "bits_per_number": unmasked.get("bits_per_number"),
        "seconds": unmasked.get("seconds"),
        "payloads": {
            client: {key: said.get(key) for key in ("bytes_payload", "clipped", "step_max", "seconds")}
            for client, said in masked.items()
            if said
        },
    }


def _last(events: Sequence[Json], name: str, round_id: object) -> Json:
    return next((e for e in reversed(events) if e.get("event") == name and e.get("round_id") == round_id), {})


def print_sums(report: Mapping[str, Any], console: Console) -> None:
    """Say what the owner saw, where it did not see updates."""
    told = cast(Json, report.get("aggregation") or {})
    if told.get("kind") != "secure":
        return
    for line in cast(list[Json], told["rounds"]):
        where = f"Sum of round {line['round_id']}"
        if not line["unmasked"]:
            console.print(f"{where}: none; {line['failed'] or 'the round came to nothing'}")
            continue
        gone = f", without {', '.join(line['dropped'])}, which dropped out" if line["dropped"] else ""
        console.print(
            f"{where}: of {len(line['survivors'])} updates{gone}; {line['needed']} of {len(line['members'])} were needed; "
            f"{line['bits_per_number']:.1f} bits per number. The owner saw no update by itself, and could check none."
        )
