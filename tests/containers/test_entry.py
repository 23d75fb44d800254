"""What do the scripts around the containers say where they cannot work? Needs no engine: other commands stand in for it."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hushtune_common.wire.kit import Kit
from hushtune_server.pki_commands import pki_app

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "sh", "awk", "cat", "dirname", "echo", "head", "id", "mkdir", "cp", "ln", "chmod", "sed")
PLENTY = "echo 64000"


def ran(
    command: list[str],
    bin_: Path,
    *,
    tools: tuple[str, ...] = TOOLS,
    cwd: Path = ROOT,
    given: Mapping[str, str] | None = None,
    **commands: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script that finds these commands only: real tools, and others that do what their line of shell says."""
    bin_.mkdir(exist_ok=True)
    for tool in tools:
        (bin_ / tool).unlink(missing_ok=True)
        (bin_ / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    for name, body in commands.items():
        file = bin_ / name.replace("_", "-")
        file.unlink(missing_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        file.chmod(0o755)
    environment = {"PATH": str(bin_), "HOME": str(bin_)} | dict(given or {})
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


ENGINE = 'case "$*" in info*) echo 64000000000;; "compose version"*) exit 0;; "compose ps"*) ;; *) echo "$@";; esac'
START = [str(ROOT / "scripts/containers")]


@pytest.mark.parametrize(
    ("commands", "told", "remedy"),
    [
        ({}, "Docker is missing", "apt-get install docker.io"),
        ({"docker": "exit 1"}, "docker compose is missing", "docker-compose 1.29"),
        ({"docker": "exit 1", "docker_compose": "echo 1.28.5"}, "too old", "1.29 or newer"),
        ({"docker": 'case "$*" in compose*) exit 0;; *) exit 1;; esac'}, "does not answer", "systemctl start docker"),
        (
            {"docker": 'case "$*" in compose*) exit 0;; *) echo "permission denied while trying" >&2; exit 1;; esac'},
            "may not use Docker's engine",
            "usermod -aG docker",
        ),
        ({"docker": ENGINE, "awk": "echo 700"}, "700 MB of memory are free", "SCENARIO=scenarios/small.toml"),
        (
            {"docker": 'case "$*" in info*) echo 2000000000;; "compose version"*) exit 0;; esac', "awk": PLENTY},
            "1907 MB of memory",
            "Docker Desktop",
        ),
        (
            {"docker": f'case "$*" in "image inspect"*|"compose build") exit 1;; esac\n{ENGINE}', "awk": PLENTY},
            "could not be built",
            "docker/fetch-wheels",
        ),
    ],
)
def test_what_is_missing_is_told_in_one_line_with_its_remedy(
    tmp_path: Path, commands: dict[str, str], told: str, remedy: str
) -> None:
    free = {"DASHBOARD_PORT": "1"}  # nobody listens there
    done = ran(START, tmp_path / "bin", given=free, tools=tuple(t for t in TOOLS if t not in commands), cwd=ROOT, **commands)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert told in line
    assert remedy in line


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_port_that_is_taken_is_named_before_anything_starts(tmp_path: Path, taken: int) -> None:
    tools = tuple(t for t in TOOLS if t != "awk")
    done = ran(START, tmp_path / "bin", tools=tools, docker=ENGINE, awk=PLENTY, given={"DASHBOARD_PORT": str(taken)})
    assert (done.returncode, f"port {taken} of 127.0.0.1 is taken" in done.stderr) == (3, True)
    assert "DASHBOARD_PORT=" in done.stderr


def test_where_all_is_well_compose_gets_the_arguments(tmp_path: Path) -> None:
    tools = tuple(t for t in TOOLS if t != "awk")
    given = {"DASHBOARD_PORT": "1"}
    done = ran([*START, "--profile", "chaos", "up"], tmp_path / "bin", tools=tools, docker=ENGINE, awk=PLENTY, given=given)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "compose --profile chaos up")


@pytest.mark.parametrize(("resolves", "there"), [("exit 0", "chaos"), ("exit 1", "")])
def test_a_client_reaches_the_servers_through_the_proxy_where_there_is_one(tmp_path: Path, resolves: str, there: str) -> None:
    words = ["run", "a b.toml", "--owner", "owner:7003", "--air", "air:7002", "--state", "/air:x"]
    done = ran(
        [str(ROOT / "docker/begin"), "hushtune-client", *words],
        tmp_path / "bin",
        given={"NUMBA_CACHE_DIR": str(tmp_path)},
        python3=resolves,
        hushtune_client='for word; do echo "$word"; done',
    )
    expected = ["run", "a b.toml", "--owner", f"{there or 'owner'}:7003", "--air", f"{there or 'air'}:7002", "--state", "/air:x"]
    assert done.stdout.splitlines()[bool(there) :] == expected


def test_a_server_is_never_led_through_the_proxy(tmp_path: Path) -> None:
    command = [str(ROOT / "docker/begin"), "hushtune", "--air", "air:7002"]
    done = ran(command, tmp_path / "bin", given={"NUMBA_CACHE_DIR": str(tmp_path)}, python3="exit 0", hushtune='echo "$@"')
    assert done.stdout.split() == ["--air", "air:7002"]


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    """The folders that pki has as volumes."""
    folder = tmp_path / "kits"
    for name in ("authority", "owner", "coordinator", "air", "eavesdropper", "c1"):
        (folder / name).mkdir(parents=True)
    return folder


def make_kits(kits: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "hushtune"
    return ran([str(ROOT / "docker/make-kits"), "c1"], kits.parent / "bin", cwd=kits, hushtune=f'exec {program} "$@"')


@pytest.mark.slow
def test_kits_are_made_once_and_renewed_later_and_other_layouts_are_refused(kits: Path) -> None:
    assert make_kits(kits).returncode == 0
    first = Kit.load(kits / "c1")
    assert make_kits(kits).returncode == 0
    assert Kit.load(kits / "c1").certificate != first.certificate
    (kits / "authority/layout").write_text("0\n")
    done = make_kits(kits)
    assert (done.returncode, "another version" in done.stderr, "down --volumes" in done.stderr) == (3, True, True)


@pytest.mark.slow
def test_an_older_kit_is_renewed_a_withdrawn_one_left_and_a_damaged_one_named_with_the_remedy(kits: Path) -> None:
    make_kits(kits)
    pki_app(["revoke", str(kits / "authority"), "--role", "client", "--name", "c1"], result_action="return_value")
    withdrawn = make_kits(kits)
    assert (withdrawn.returncode, "not renewed: c1" in withdrawn.stdout) == (0, True)
    (kits / "air/kit.toml").write_text('name = "air"\n')
    assert make_kits(kits).returncode == 0
    assert Kit.load(kits / "air").caller.name == "air"
    (kits / "air/tls.crt").write_text("another format\n")
    done = make_kits(kits)
    assert (done.returncode, "the kit of air" in done.stderr, "down --volumes" in done.stderr) == (3, True, True)
