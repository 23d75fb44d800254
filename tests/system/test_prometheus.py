"""Does a real Prometheus read a real run, and has every panel of the page something to show of it?"""

import json
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contracts.test_metrics_deployment import FOLDER, alerts, panels
from tests.system.test_whole_path import TINY, finish, sentences, start_testbed, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="no Prometheus here (Debian: apt-get install prometheus)",
    ),
]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    lines = list(sentences())
    (tmp_path / "private.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "public.txt").write_text("\n".join(line.replace("the", "any") for line in lines[::5]), encoding="utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@contextmanager
def prometheus(folder: Path, *, targets: Path) -> Generator[str]:
    """Run Prometheus with the project's rules on what ``targets`` lists, at a free port; yield its address."""
    config = folder / "prometheus.yml"
    job = {"job_name": "hushtune", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]}
    often = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config.write_text(yaml.safe_dump({"global": often, "rule_files": [str(FOLDER / "rules.yml")], "scrape_configs": [job]}))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = (re.search(r'msg="Listening on" address=(127\.0\.0\.1:[1-9]\d*)', line) for line in process.stderr)
        address = next(found[1] for found in said if found)
        rest = threading.Thread(target=process.stderr.read)
        rest.start()
        yield f"http://{address}"
        process.terminate()
        rest.join()
    finally:
        process.kill()
        process.wait(20)
        if process.stderr is not None:
            process.stderr.close()


def ask(address: str, path: str, **parameters: Any) -> Any:
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=20) as answer:
        body = json.loads(answer.read())
    assert body["status"] == "success"
    return body["data"]


def test_every_panel_shows_something_of_a_run_and_every_alarm_can_be_asked(scenario: Path, tmp_path: Path) -> None:
    # Two rounds: what the end of the first one counts is there for as long as the second lasts, however busy the machine is.
    testbed = start_testbed(scenario, "--metrics", "--set", "training.epochs=20", "--set", "coordinator.rounds=2")
    runs = scenario.parent / "runs"
    wait_for(testbed, lambda: any(runs.glob("*/metrics.json")))
    (targets,) = runs.glob("*/metrics.json")
    with prometheus(tmp_path, targets=targets) as address:
        output = finish(testbed, within_s=400)
        assert testbed.returncode == 0, output
        names = {series["process"] for series in ask(address, "series", **{"match[]": "hushtune_events_total"})}
        assert names == {"coordinator", "air", "owner", "eavesdropper", "c1", "c2", "c3"}
        until = float(ask(address, "query", query="time()")["result"][1])
        span = {"start": until - 600, "end": until, "step": 1}
        silent = [
            t["expr"]
            for p in panels()
            for t in p["targets"]
            if not ask(address, "query_range", query=t["expr"], **span)["result"]
        ]
        assert silent == []
        for alert in alerts():
            ask(address, "query", query=alert["expr"])
        loaded = [rule["name"] for group in ask(address, "rules")["groups"] for rule in group["rules"]]
        assert loaded == [alert["alert"] for alert in alerts()]
        counted = ask(address, "query_range", query='hushtune_events_total{process="air",event="frame_carried"}', **span)[
            "result"
        ]
        carried = (targets.parent / "logs/air.jsonl").read_text(encoding="utf-8").count('"event": "frame_carried"')
        assert max(float(point[1]) for series in counted for point in series["values"]) == carried
    assert json.loads(targets.read_text()) == []
