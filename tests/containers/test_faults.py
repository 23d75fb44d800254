"""Does a run in containers bear a bad network, a stop, and a client that is taken away, and does one from elsewhere take part?

One small run of a random model has it all: c1 and c3 through the proxy of the profile chaos, c2 joined with its kit file through
the published ports; everything stopped and started again; then c3 is removed. Needs scripts/compose-test.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hushtune_server.testbed.chaos.small import write_small
from tests.engine import Project, docker, given, on_host

pytestmark = [given, pytest.mark.docker, pytest.mark.slow]

EPOCHS = 60
Tree = dict[str, Any]
ROLES = ("coordinator", "air", "owner", "eavesdropper", "c1", "c2", "c3", "dashboard", "report")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("faults")
    folder.chmod(0o755)
    scenario, _ = write_small(folder / "small", clients=3, idle_s=30.0)
    scenario.write_text(
        scenario.read_text().replace("epochs = 8", f"epochs = {EPOCHS}").replace("connect_s = 10.0", "connect_s = 30.0")
    )
    mount = {"volumes": [f"{folder / 'small'}:/app/small:ro"]}
    (folder / "mounted.yml").write_text(yaml.safe_dump({"services": dict.fromkeys([*ROLES, "kit"], mount)}))
    files = ("docker-compose.yml", "docker-compose.remote.yml", str(folder / "mounted.yml"))
    bad = {"CHAOS_DELAY_MS": "10", "CHAOS_CUT_EVERY_S": "10", "CHAOS_RATE_KBPS": "0"}
    variables = {"PUBLIC_HOST": "127.0.0.1", "DASHBOARD_PORT": "8085", **bad}
    with Project("small/chaos.toml", files=files, variables=variables, up=("--profile", "chaos", "up")) as project:
        yield project


@pytest.fixture(scope="module")
def joined(run: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """c2, from elsewhere: a process of this machine that has nothing but a kit file, started when the servers are healthy."""
    run.start("c1", "c3")
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "c2-kit.zip").write_bytes(run.written("run", "--rm", "--no-deps", "-T", "kit", "c2"))
    program = str(Path(sys.executable).parent / "hushtune-client")
    command = on_host(program, "join", str(folder / "c2-kit.zip"), "--state", str(folder / "state"), "--data", str(texts(folder)))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        yield process
        process.terminate()
        process.wait(30)
    print((folder / "log").read_text()[-2000:])


def clients_of(state: Tree) -> Tree:
    return state.get("rounds", {}).get("1", {}).get("clients", {})


def lives(state: Tree) -> dict[str, int]:
    return {name: process.get("lives", 0) for name, process in state["processes"].items()}


def texts(folder: Path) -> Path:
    file = folder / "letters.txt"
    file.write_text("".join(f"letter {n} says that the river forgets the bridge before the evening comes\n" for n in range(40)))
    return file


@pytest.fixture(scope="module")
def training(run: Project, joined: subprocess.Popen[bytes]) -> Project:
    """The run, with all three clients at work."""
    run.seen_once(lambda state: all("step" in clients_of(state).get(c, {}) for c in ("c1", "c3")), within_s=120.0)
    assert joined.poll() is None
    return run


def test_what_was_stopped_in_the_middle_of_a_round_goes_on_and_the_page_keeps_what_it_knew(training: Project) -> None:
    before = training.seen()
    training.compose("stop")
    assert all(not training.state(name)["State"]["Running"] for name in ROLES if name != "c2")
    training.start()
    training.start("c1", "c3")
    again = ("coordinator", "air", "owner", "c1", "c3")
    after = training.seen_once(lambda state: all(lives(state).get(name, 0) >= 2 for name in again), within_s=60.0)
    assert after["seen"]["first"] == before["seen"]["first"]
    assert {lives(after)[name] for name in again} == {2}


def test_a_client_that_is_removed_is_seen_on_the_page_and_the_round_closes_without_it(training: Project) -> None:
    training.seen_once(lambda state: lives(state)["c3"] >= 2 and "step" in clients_of(state)["c3"], within_s=60.0)
    docker("rm", "-f", training.container("c3"))
    seen = training.seen_once(lambda state: "closed" in state["rounds"]["1"], within_s=180.0)
    closed = seen["rounds"]["1"]
    assert (closed["accepted"], closed["missing"]) == (["c1", "c2"], ["c3"])
    assert "silent_s" in clients_of(seen)["c3"]["died"]


def test_the_client_from_elsewhere_ends_well_and_the_report_tells_who_is_missing(
    training: Project, joined: subprocess.Popen[bytes]
) -> None:
    assert joined.wait(60) == 0
    assert training.ended("report", within_s=120.0) == 0
    told = docker("logs", training.container("report"))
    assert "accepted c1, c2" in told
    assert "c3 is missing" in told


def test_the_proxy_has_cut_connections_and_says_so(training: Project) -> None:
    rows = training.written("exec", "-T", "dashboard", "hushtune", "logs", "--role", "proxy", "--json").splitlines()
    cuts = [event for event in map(json.loads, rows) if event["event"] == "connections_cut"]
    for server in ("coordinator:7001", "air:7002", "owner:7003"):  # what a cut hits depends on how fast the machine is
        assert max(event["bytes_down"] for event in cuts if event["server"] == server) > 1000
