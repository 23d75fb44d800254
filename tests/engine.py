"""The container engine that scripts/compose-test gives to tests: its commands, its answers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

ROOT = Path(__file__).resolve().parent.parent
given = pytest.mark.skipif("HUSHTUNE_COMPOSE" not in os.environ, reason="only scripts/compose-test gives a container engine")
"""On every test that needs an engine: HUSHTUNE_COMPOSE is the command of compose, DOCKER_HOST the engine."""
PROJECT = "hushtunetest"


def on_host(*command: str) -> list[str]:
    """Return the command as it has to be started to see what the engine publishes: in its networks, where those are its own."""
    own = os.environ.get("HUSHTUNE_ENGINE_PID")
    return ["nsenter", f"--net=/proc/{own}/ns/net", *command] if own else [*command]


def fetched(url: str) -> str:
    """Return what a browser on the engine's machine would get."""
    code = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode())"
    return _ran(on_host(sys.executable, "-c", code), check=True, within_s=30.0).stdout


def docker(*arguments: str, check: bool = True, within_s: float = 60.0) -> str:
    """Run one command of the engine and return what it printed, both ways."""
    return _ran(["docker", *arguments], check=check, within_s=within_s).stdout.strip()


def python(service: str, code: str, *, image: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python code in the container of a service, or in a new one of an image, without network."""
    way = ["run", "--rm", "--network", "none", "--entrypoint", "python", service] if image else ["exec", service, "python"]
    return _ran(["docker", *way, "-c", code], check=False, within_s=60.0)


def _ran(
    command: list[str], *, check: bool, within_s: float, given: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within_s,
        check=False,
        cwd=ROOT,
        env=given,
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}"
    return done


@dataclass(slots=True)
class Project:
    """A run in containers: started, watched, taken away with its volumes."""

    scenario: str
    files: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    up: tuple[str, ...] = ("up",)
    started_at: float = 0.0

    def __enter__(self) -> Self:
        """Start everything and return at once."""
        self.compose("down", "--volumes", "--remove-orphans")
        self.started_at = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        """Take away containers, networks and volumes."""
        self.compose("down", "--volumes", within_s=120.0)

    def start(self, *services: str) -> None:
        """Start these services, or all, and return at once."""
        *options, command = self.up
        self.compose(*options, command, "--detach", "--no-build", *services, within_s=300.0)

    def compose(self, *arguments: str, within_s: float = 120.0) -> str:
        """Run one command of compose."""
        return _ran(self._command(*arguments), check=True, within_s=within_s, given=self._variables).stdout

    def _command(self, *arguments: str) -> list[str]:
        files = [word for file in self.files for word in ("-f", file)]
        return [*os.environ["HUSHTUNE_COMPOSE"].split(), "--project-name", PROJECT, *files, *arguments]

    @property
    def _variables(self) -> dict[str, str]:
        return {**os.environ, "SCENARIO": self.scenario, **self.variables}

    def written(self, *arguments: str) -> bytes:
        """Run one command of compose and return what it wrote to standard output, byte for byte."""
        return subprocess.run(
            self._command(*arguments), stdout=subprocess.PIPE, timeout=120, check=True, cwd=ROOT, env=self._variables
        ).stdout

    def seen(self) -> dict[str, Any]:
        """Return the state of the page as the dashboard's port serves it, and in it what the lines add up to."""
        state = json.loads(fetched(f"http://127.0.0.1:{self.variables.get('DASHBOARD_PORT', '8080')}/state"))
        return {"rounds": {}, "processes": {}, **state, **state.get("live", {})}

    def seen_once(self, told: Callable[[dict[str, Any]], object], *, within_s: float) -> dict[str, Any]:
        """Return the first state of the page of which something is true."""
        limit = time.monotonic() + within_s
        while not told(state := self.seen()):
            assert time.monotonic() < limit, f"the page did not show it: {json.dumps(state)[-3000:]}"
        return state

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
        tail = ["tail", "-F", "-n", "+1", f"/log/{service}.jsonl"]
        follower = subprocess.Popen(
            ["docker", "exec", self.container(service), *tail], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
