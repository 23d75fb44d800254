"""Does a whole run in containers come to its end, apart from each other, and through a crash? Needs scripts/compose-test."""

import json
import time
from collections.abc import Iterator, Mapping

import pytest

from tests.engine import Project, docker, given, python

pytestmark = [given, pytest.mark.docker, pytest.mark.slow]

CLIENTS = ["c1", "c2", "c3"]
PORTS = {"coordinator": 7001, "air": 7002, "owner": 7003}


@pytest.fixture(scope="module")
def run() -> Iterator[Project]:
    with Project("scenarios/small.toml") as project:
        yield project


def reached(run: Project, source: str, targets: Mapping[str, int]) -> set[str]:
    """Which services a process in a container can connect to, by name or by any address that they have."""
    code = (
        "import socket, sys\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "def tried(name, host, port):\n"
        " try: socket.create_connection((host, port), timeout=2).close(); return name\n"
        " except ConnectionRefusedError: return name\n"
        " except OSError: return None\n"
        f"with ThreadPoolExecutor(32) as pool: print(*(set(pool.map(tried, *zip(*{_addresses(run, targets)}))) - {{None}}))\n"
    )
    answer = python(run.container(source), code)
    assert answer.returncode == 0, answer.stdout
    return set(answer.stdout.split())


def _addresses(run: Project, targets: Mapping[str, int]) -> list[tuple[str, str, int]]:
    networks = {name: run.state(name)["NetworkSettings"]["Networks"].values() for name in targets}
    hosts = {name: [name, *(n["IPAddress"] for n in networks[name] if n["IPAddress"])] for name in targets}
    return [(name, host, port) for name, port in targets.items() for host in hosts[name]]


def test_the_eavesdropper_reaches_the_air_and_nobody_else(run: Project) -> None:
    assert reached(run, "eavesdropper", PORTS | dict.fromkeys(CLIENTS, 7001)) == {"air"}


def test_a_client_reaches_the_servers_and_neither_the_tap_nor_another_client(run: Project) -> None:
    assert reached(run, "c2", PORTS | {"eavesdropper": 7001, "c1": 7001, "c3": 7001}) == {*PORTS}


@pytest.mark.parametrize("service", ["owner", "coordinator", "air", "eavesdropper", "c2"])
def test_a_role_has_its_own_kit_only_and_a_file_system_that_it_cannot_change(run: Project, service: str) -> None:
    code = "import os; print(os.getuid(), os.path.exists('/kits'), os.access('/app', os.W_OK), os.access('/state', os.W_OK))"
    assert python(run.container(service), code).stdout.split() == ["10001", "False", "False", "True"]


LIVE = """
import json, pathlib, time
from datetime import datetime
from urllib.request import urlopen
log, limit = pathlib.Path("/logs/c2/c2.jsonl"), time.monotonic() + 50
size = log.stat().st_size
while log.stat().st_size == size and time.monotonic() < limit: time.sleep(0.01)
began = time.monotonic()
moment = datetime.fromisoformat(json.loads(log.read_text().splitlines()[-1])["time"]).timestamp()
while json.load(urlopen("http://127.0.0.1:8080/state"))["live"]["seen"]["last"] < moment: time.sleep(0.02)
print(time.monotonic() - began)
"""


def test_a_line_that_a_client_writes_is_on_the_page_at_once(run: Project) -> None:
    run.until("c2", "round_opened", within_s=240.0)
    answer = python(run.container("dashboard"), LIVE)
    print(f"\na line was on the page after {float(answer.stdout):.2f} s")
    assert float(answer.stdout) < 2.0  # one second is promised on a machine that has time


def test_a_client_that_is_killed_while_it_trains_is_started_again(run: Project) -> None:
    run.until("c1", "training_progressed", within_s=240.0)
    assert run.seen()["rounds"]["1"]["clients"]["c1"]["step"]["step"] >= 1
    run.crash("c1")
    run.again("c1", within_s=30.0)
    assert run.state("c1")["RestartCount"] == 1


def test_the_run_ends_with_every_update_accepted_although_a_client_crashed(run: Project) -> None:
    assert [run.ended(name, within_s=300.0) for name in ("coordinator", "owner", *CLIENTS)] == [0] * 5
    assert run.ended("report", within_s=120.0) == 0
    print(f"\nthe run took {time.monotonic() - run.started_at:.0f} s, a crash included:")
    print(told := docker("logs", run.container("report")))
    assert "accepted c1, c2, c3" in told
    assert "secrecy gate for c1: GRANTED" in told


def test_what_owner_and_coordinator_have_written_agrees_that_every_update_was_accepted(run: Project) -> None:
    record, owner = (json.loads(read(run, f"/states/{path}")) for path in ("coordinator/round-1.json", "owner/owner.json"))
    assert (record["state"], record["accepted"], owner["rounds"][0]["accepted"]) == ("closed", CLIENTS, CLIENTS)


def read(run: Project, path: str) -> str:
    """Return a file of the states that the report sees."""
    code = f"import json; print(json.dumps(json.load(open({path!r}))))"
    return run.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "python", "report", "-c", code).splitlines()[-1]


def test_the_page_shows_the_round_and_who_was_restarted(run: Project) -> None:
    seen = run.seen_once(lambda state: "closed" in state["rounds"]["1"], within_s=10.0)
    assert seen["rounds"]["1"]["accepted"] == CLIENTS
    assert {name: process["lives"] for name, process in seen["processes"].items() if "lives" in process}["c1"] == 2
    assert seen["damaged"] in ({}, {"c1": 1})  # the line that it wrote when it was killed


def test_whoever_watches_can_follow_one_adapter_through_all_processes_and_write_the_page_about_the_run(run: Project) -> None:
    sealed = run.compose("exec", "-T", "dashboard", "hushtune", "logs", "--event", "update_sealed", "--client", "c2", "--json")
    digest = json.loads(sealed.splitlines()[0])["digest"]
    told = run.compose("exec", "-T", "dashboard", "hushtune", "trace", digest[:12])
    assert all(name in told for name in ("c2", "air", "owner", "eavesdropper"))
    page = run.compose("run", "--rm", "--no-deps", "-T", "report", "report", "page")
    assert "<html" in page
    assert digest[:8] in page


@pytest.mark.parametrize("service", ["eavesdropper", "c2", "owner"])
def test_nobody_but_those_who_watch_sees_the_log_of_another_and_they_only_to_read(run: Project, service: str) -> None:
    code = "import os; print(sorted(os.listdir('/log')), os.path.exists('/logs'))"
    if service == "eavesdropper" or run.state(service)["State"]["Running"]:
        assert python(run.container(service), code).stdout.split(" ") == [f"['{service}.jsonl']", "False\n"]
    tried = python(run.container("dashboard"), f"open('/logs/{service}/{service}.jsonl', 'a')")
    assert "Read-only file system" in tried.stdout


def test_the_eavesdropper_does_not_reach_the_dashboard(run: Project) -> None:
    assert reached(run, "eavesdropper", {"dashboard": 8080}) == set()


def test_air_and_eavesdropper_stop_in_order_when_told_to(run: Project) -> None:
    run.compose("stop")
    assert [run.state(name)["State"]["ExitCode"] for name in ("air", "eavesdropper")] == [0, 0]
