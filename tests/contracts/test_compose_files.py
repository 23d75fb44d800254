"""Are the compose files valid for both versions of compose, do their commands parse, and who shares what with whom?"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cyclopts import App

from hushtune_client import cli as client_cli
from hushtune_server import cli as server_cli
from tests.compose import FILES, ROOT, read, services, variables

CLIENTS = ("c1", "c2", "c3")
ROLES = ("coordinator", "air", "owner", "eavesdropper", *CLIENTS)
WATCHERS = ("dashboard", "report")
SCHEMA = Path("/usr/lib/python3/dist-packages/compose/config/compose_spec.json")
"""The specification's schema, as Debian's docker-compose 1.29 brings it; docker compose refuses what does not fit it, too."""

OF_THE_FIRST_ONLY = {"version", "links", "external_links", "container_name"}
"""Keys that one version ignores or warns about, or that keep a project from being started twice."""


def parse(app: App, arguments: list[str]) -> None:
    app.parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.skipif(not SCHEMA.is_file(), reason="no docker-compose 1.29 here, which brings the specification's schema")
@pytest.mark.parametrize("file", FILES)
def test_a_compose_file_fits_the_schema_of_the_specification(file: str) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(read(file, PUBLIC_HOST="run.example.org"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose 1.29 here")
@pytest.mark.parametrize("files", [FILES[-1:], *((FILES[-1], overlay) for overlay in FILES[:-1]), (FILES[-1], *FILES[:-1])])
def test_the_first_version_of_compose_takes_the_files_together(files: tuple[str, ...]) -> None:
    command = ["docker-compose", *(word for file in files for word in ("-f", file)), "config"]
    given = {"PATH": os.environ["PATH"], "PUBLIC_HOST": "run.example.org"}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = yaml.safe_load(done.stdout)["services"]
    assert {*WATCHERS, *ROLES} <= {*told}


@pytest.mark.parametrize("file", FILES)
def test_only_what_both_versions_of_compose_understand_alike_is_used(file: str) -> None:
    tree = read(file, PUBLIC_HOST="run.example.org")
    assert not OF_THE_FIRST_ONLY & {*tree, *(key for service in tree["services"].values() for key in service)}
    assert {*tree} <= {"services", "networks", "volumes", *(key for key in tree if key.startswith("x-"))}
    assert "$$" not in (ROOT / file).read_text(encoding="utf-8")
    assert {how for asked in variables(file).values() for how in asked} <= {"", ":-", ":?"}


def test_the_services_of_the_compose_file_start_with_commands_that_parse() -> None:
    assert {"owner", "coordinator", "air", "eavesdropper", "c1", "c2", "c3"} <= set(services())
    entries = {"coordinator": ["coordinator", "serve"], "air": ["air", "serve"], "owner": ["owner", "serve"]}
    entries["eavesdropper"] = ["eavesdropper", "listen"]
    for name, service in services().items():
        if service["image"] == "hushtune-watch" and "hushtune" in service["command"]:
            parse(server_cli.app, service["command"][1:])
        if name in entries:
            parse(server_cli.app, [*entries[name], *service["command"]])
        elif service["image"] == "hushtune-client":
            parse(client_cli.app, ["run", *service["command"]])


def neighbours(name: str) -> set[str]:
    own = set(services()[name].get("networks", ()))
    return {n for n, s in services().items() if set(s.get("networks", ())) & own and "profiles" not in s} - {name}


def test_in_containers_the_eavesdropper_reaches_only_the_air_and_a_client_only_the_servers() -> None:
    assert neighbours("eavesdropper") == {"air"}
    assert [neighbours(client) for client in ("c1", "c2", "c3")] == [{"owner", "coordinator", "air"}] * 3


def test_no_two_roles_in_containers_share_a_kit_or_can_read_the_authority() -> None:
    volumes = {n: {v.split(":")[0] for v in s.get("volumes", ())} for n, s in services().items() if n != "pki"}
    kits = [v for mounted in volumes.values() for v in mounted if v.endswith("-kit")]
    assert len(kits) == len(set(kits)) == 7
    assert not any("authority" in mounted for mounted in volumes.values())


def test_every_container_is_confined() -> None:
    for name, service in services().items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert "no-new-privileges:true" in service["security_opt"], name


def mounted(name: str) -> dict[str, str]:
    """Where a service sees which volume, and how."""
    return {volume: place for volume, _, place in (v.partition(":") for v in services()[name].get("volumes", ()))}


def test_a_role_writes_its_log_into_a_volume_that_only_those_who_watch_see_and_they_to_read() -> None:
    for role in ROLES:
        assert mounted(role)[f"{role}-log"] == "/log"
        assert services()[role]["command"][-4:-1] == ["--log-folder", "/log", "--log-level"]
        assert {n: mounted(n)[f"{role}-log"] for n in services() if f"{role}-log" in mounted(n) and n != role} == {
            watcher: f"/logs/{role}:ro" for watcher in WATCHERS
        }


def test_the_dashboard_sees_logs_and_nothing_else_and_is_published_on_loopback_only() -> None:
    assert all(volume.endswith("-log") for volume in mounted("dashboard"))
    assert services()["dashboard"]["ports"] == ["127.0.0.1:8080:8080"]
    assert neighbours("dashboard") == set()
    options = read("docker-compose.yml")["networks"]["page"]
    assert options == {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}


def test_another_port_of_the_dashboard_is_the_one_that_it_prints_and_is_asked_at() -> None:
    service: dict[str, Any] = services(DASHBOARD_PORT="9001")["dashboard"]
    assert service["ports"] == ["127.0.0.1:9001:9001"]
    assert "0.0.0.0:9001" in service["command"]
    assert "127.0.0.1:9001/health" in service["healthcheck"]["test"][-1]


def test_whoever_has_a_state_of_another_has_no_network() -> None:
    for name, service in services().items():
        if any(volume.endswith("-state") and not volume.startswith(f"{name}-") for volume in mounted(name)):
            assert service["network_mode"] == "none", name
