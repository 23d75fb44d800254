"""Does the report tell of every round what it brought, what it cost, and why the run ended?"""

import json
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from hushtune_server.testbed.rounds import ending, gather, table
from hushtune_server.testbed.rundir import RunDirectory
from hushtune_server.testbed.shared_out import SHARED_OUT_MAX, shared_out
from tests.radio import scenario

OWNER = {
    "rounds": [
        {"round_id": 1, "kept": True, "perplexity_public_before": 20.0, "perplexity_public": 15.5, "emulator_bytes": 1000},
        {"round_id": 2, "kept": False, "perplexity_public_before": 15.5, "perplexity_public": 99.0, "revision_bytes": 300},
    ]
}
REFEREE = {"rounds": {"1": {"plug_in": {"perplexity": 33.3}}, "2": {"plug_in": {"perplexity": 44.4}}}}


def fetched(round_id: int, count: int, *, revised: bool = False) -> dict[str, Any]:
    return {"event": "emulator_verified", "round_id": round_id, "bytes_fetched": count, "revised": revised}


def run_in(folder: Path) -> RunDirectory:
    run = RunDirectory(path=folder)
    logs = {"c1": [fetched(1, 1000), fetched(2, 300, revised=True)], "c2": [fetched(1, 1000), fetched(1, 0), fetched(2, 1000)]}
    for client, events in logs.items():
        run.log(client).parent.mkdir(exist_ok=True)
        run.log(client).write_text("\n".join(map(json.dumps, events)), encoding="utf-8")
    return run


def record(round_id: int, **more: Any) -> dict[str, Any]:
    sent = [{"client": "c1", "bytes_uploaded": 70}, {"client": "c2", "bytes_uploaded": 30}]
    return {"round_id": round_id, "state": "closed", "accepted": ["c1"], "missing": ["c2"], "completions": sent, **more}


def gathered(folder: Path) -> list[dict[str, Any]]:
    records = [record(1, stopped=""), record(2, stopped="no better for 1 round")]
    return gather(run_in(folder), records, owner=OWNER, referee=REFEREE, clients=["c1", "c2", "c3"])


def test_a_round_has_its_scores_and_its_bytes_both_ways(tmp_path: Path) -> None:
    first, second = gathered(tmp_path)
    assert (first["owner"]["perplexity_public"], second["owner"]["kept"]) == (15.5, False)
    assert [entry["plug_in"]["perplexity"] for entry in (first, second)] == [33.3, 44.4]
    assert [entry["downlink"]["bytes"] for entry in (first, second)] == [2000, 1300]
    assert second["downlink"]["clients"]["c1"] == {"bytes": 300, "revised": True}
    assert (second["owner"]["revision_bytes"], second["uplink_bytes"]) == (300, 100)


def test_a_round_of_which_only_the_coordinator_left_something_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    (entry,) = gather(RunDirectory(path=tmp_path), [record(1)], owner={}, referee={}, clients=["c1"])
    assert (entry["plug_in"], entry["downlink"], entry["owner"]["kept"]) == (None, {"bytes": 0, "clients": {}}, None)


def test_what_was_shared_out_is_told_of_each_of_the_latest_rounds() -> None:
    gate = {"decision": "deferred", "reason": "too near", "snr_main_db": 2.0}
    told = {
        "assignments": [{"client": "c2", "round_id": 1, "gate": gate, "adapter_share": 0.5}],
        "reasons": {"c2": "gate deferred"},
    }
    found = shared_out(scenario(), [record(n, died=["c3"], **told) for n in range(1, SHARED_OUT_MAX + 3)])
    c1, c2, c3 = found[0]["clients"]
    assert [each["round_id"] for each in (found[0], found[-1])] == [3, SHARED_OUT_MAX + 2]
    assert (c1["accepted"], c1["cost"]["bytes_uploaded"], c1["assignment"]) == (True, 70, {})
    assert (c2["gate"], c2["gate_numbers"], c2["assignment"]) == ("deferred", {"snr_main_db": 2.0}, {"adapter_share": 0.5})
    assert [each["missing_because"] for each in (c1, c2, c3)] == [None, "gate deferred", "died during the round"]


def test_people_see_one_line_per_round_and_why_it_ended(tmp_path: Path) -> None:
    rounds = gathered(tmp_path)
    console = Console(width=160, record=True, file=StringIO())
    console.print(table(rounds))
    printed = console.export_text()
    assert [word in printed for word in ("33.3", "44.4", "15.5", "99.0", "1 of 2", "rolled back", "0.001")] == [True] * 7
    assert ending(rounds) == "Stopped after round 2: no better for 1 round"
    assert (ending(rounds[:1]), ending([])) == ("", "")
