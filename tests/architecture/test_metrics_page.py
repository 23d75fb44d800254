"""Is the page about metrics that of the table, and is every event that says how much or how often on it?"""

import json
from pathlib import Path

from hushtune_common.events.catalogue import EVENTS
from hushtune_common.events.event import unit_of
from hushtune_common.metrics.labels import ALL
from hushtune_common.metrics.table import METRICS
from hushtune_server.testbed.metrics.document import as_json, document, explanation
from hushtune_server.testbed.metrics.targets import file_sd, write_targets

ROOT = Path(__file__).resolve().parents[2]

COUNTED_ONLY = {
    "client_died": "its silence is idle_s, or hardly more",
    "owner_died": "its silence is idle_s, or hardly more",
    "verdicts_left": "the wait is a constant",
    "stop_abandoned": "the grace is a constant",
    "channel_changed": "the client's position would follow from its gain",
    "assignment_received": "one for each round; the report has them",
    "round_completed": "the sum of what is counted one by one",
    "frame_reused": "was counted when it was coded",
    "utility_calibrated": "a curve",
    "emulator_verified": "its bytes are those of the transfer",
    "emulator_marked": "a copy of what is counted",
    "update_masked_received": "its bytes are those of the update",
    "adapter_stored": "a file of the owner's, whose disk is watched",
    "payload_masked": "a step of sealing",
    "rehearsal_measured": "a tool's result",
    "room_awaited": "counted; the wait is chosen, not measured",
    "reception_unread": "counted; its size is for the log",
    "sum_unmasked": "counted; its time is the log's",
}
"""Events with a unit that feed no more than a count, and why."""


def test_the_page_about_metrics_is_up_to_date() -> None:
    written = (ROOT / "docs/METRICS.md").read_text(encoding="utf-8")
    assert written == document(), "run: hushtune metrics catalogue --document docs/METRICS.md"


def test_the_page_names_every_metric_and_every_label() -> None:
    page, listed = document(), {str(entry["metric"]) for entry in as_json()}
    assert listed == {*METRICS}
    for metric in METRICS.values():
        assert f"### `{metric.name}`" in page
        assert all(f"- `{label.name}`:" in page for label in metric.labels)
        assert metric.help in explanation(metric)


def test_an_event_with_seconds_or_bytes_feeds_a_metric_or_says_why_not() -> None:
    ours = [e for e in EVENTS.values() if {*e.by} & {*ALL}]
    measured = {e.name for e in ours if {unit_of(f) for f in e.fields} & {"s", "bytes", "J"}}
    fed = {feed.event for metric in METRICS.values() for feed in metric.feeds if feed.value}
    assert measured - fed == {*COUNTED_ONLY}, "feed it to a metric (hushtune_common/metrics), or say in this test why not"


def test_the_list_of_a_run_is_what_prometheus_reads(tmp_path: Path) -> None:
    targets = file_sd({"c1": "127.0.0.1:5", "air": "127.0.0.1:6"}, roles={"c1": "client", "air": "air"})
    write_targets(tmp_path / "metrics.json", targets)
    assert json.loads((tmp_path / "metrics.json").read_text()) == [
        {"targets": ["127.0.0.1:6"], "labels": {"role": "air", "process": "air"}},
        {"targets": ["127.0.0.1:5"], "labels": {"role": "client", "process": "c1"}},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
