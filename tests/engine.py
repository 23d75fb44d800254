"""The container engine that scripts/compose-test gives to tests: its commands, its answers."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

ROOT = Path(__file__).resolve().parent.parent
given = pytest.mark.skipif("HUSHTUNE_COMPOSE" not in os.environ, reason="only scripts/compose-test gives a container engine")
"""On every test that needs an engine: HUSHTUNE_COMPOSE is the command of compose, DOCKER_HOST the engine."""
PROJECT = "hushtunetest"


def docker(*arguments: str, check: bool = True, within_s: float = 60.0) -> str:
    """Run one command of the engine and return what it printed, both ways."""
    return _ran(["docker", *arguments], check=check, within_s=within_s).stdout.strip()


def python(service: str, code: str, *, image: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python code in the container of a service, or in a new one of an image, without network."""
    way = ["run", "--rm", "--network", "none", "--entrypoint", "python", service] if image else ["exec", service, "python"]
    return _ran(["docker", *way, "-c", code], check=False, within_s=60.0)


def _ran(command: list[str], *, check: bool, within_s: float) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=within_s, check=False, cwd=ROOT
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}"
    return done


@dataclass(slots=True)
class Project:
    """A run in containers: started, watched, taken away with its volumes."""

    scenario: str
    started_at: float = 0.0

    def __enter__(self) -> Self:
        """Start everything and return at once."""
        os.environ["SCENARIO"] = self.scenario
        self.compose("down", "--volumes")
        self.started_at = time.monotonic()
        self.compose("up", "--detach", "--no-build", within_s=300.0)
        return self

    def __exit__(self, *_failure: object) -> None:
        """Take away containers, networks and volumes."""
        self.compose("down", "--volumes", within_s=120.0)

    def compose(self, *arguments: str, within_s: float = 120.0) -> str:
        """Run one command of compose."""
        command = [*os.environ["HUSHTUNE_COMPOSE"].split(), "--project-name", PROJECT, *arguments]
        return _ran(command, check=True, within_s=within_s).stdout

    def container(self, service: str) -> str:
        """Return the id of the service's container, running or not."""
        label = "label=com.docker.compose"
        found = docker("ps", "-aq", "--filter", f"{label}.project={PROJECT}", "--filter", f"{label}.service={service}").split()
        assert len(found) == 1, f"{service}: {found}"
        return found[0]

    def state(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of the service's container: ``State``, ``RestartCount`` and more."""
        return json.loads(docker("inspect", self.container(service)))[0]

    def until(self, service: str, event: str, *, within_s: float) -> None:
        """Follow the service's log until an event is in it."""
        follower = subprocess.Popen(
            ["docker", "logs", "--follow", self.container(service)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert follower.stdout is not None
        try:
            assert any(f'"{event}"' in line for line in _lines(follower, within_s=within_s)), f"{service} never logged {event}"
        finally:
            follower.kill()
            follower.wait()
            follower.stdout.close()

    def ended(self, service: str, *, within_s: float) -> int:
        """Wait for the end of a container and return its exit code; one that will be started again has not ended."""
        limit = time.monotonic() + within_s
        while True:
            docker("wait", self.container(service), within_s=max(1.0, limit - time.monotonic()))
            known = self.state(service)
            if not known["State"]["Running"] and not known["State"]["Restarting"]:
                return int(known["State"]["ExitCode"])

    def again(self, service: str, *, within_s: float) -> None:
        """Wait until the engine has started a container again."""
        limit = time.monotonic() + within_s
        events = ["events", "--filter", f"container={self.container(service)}", "--filter", "event=start", "--since", "0"]
        while self.state(service)["RestartCount"] == 0:
            assert time.monotonic() < limit, f"{service} was not started again"
            docker(*events, "--until", str(int(time.time()) + 1), check=False)

    def crash(self, service: str) -> None:
        """Kill the service's first process as an exhausted memory would; the engine takes it for a failure."""
        os.kill(int(self.state(service)["State"]["Pid"]), signal.SIGKILL)


def _lines(follower: subprocess.Popen[str], *, within_s: float) -> Iterator[str]:
    assert follower.stdout is not None
    limit = time.monotonic() + within_s
    for line in follower.stdout:
        yield line
        if time.monotonic() > limit:
            return
