"""The real processes of one run, started, killed and started again by a test."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.messages import Role
from tests.kits import Kits

SERVERS = ("coordinator", "air", "owner")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Troupe:
    """The processes of one run, each with a log that its lives share, a folder of its own, and an address that stays."""

    folder: Path
    kits: Kits
    clients: tuple[str, ...]
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in SERVERS})
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict[str, "subprocess.Popen[bytes]"])

    def start(self, name: str) -> None:
        role = Role.CLIENT if name in self.clients else Role(name)
        scenario, at = str(self.folder / "run.toml"), {n: f"127.0.0.1:{p}" for n, p in self.ports.items()}
        common = [scenario, "--kit", str(self.kits.folder(role, name)), "--state", str(self.folder / name), "--json-logs"]
        to_servers = [word for other in SERVERS if other != name for word in (f"--{other}", at[other])]
        match name:
            case "coordinator":
                command = ["hushtune_server", name, "serve", *common, "--run", "run-1", "--listen", at[name]]
            case "air":
                command = ["hushtune_server", name, "serve", *common, "--listen", at[name]]
            case "owner":
                command = ["hushtune_server", name, "serve", *common, *to_servers, "--listen", at[name]]
            case "eavesdropper":
                command = ["hushtune_server", name, "listen", *common, "--air", at["air"]]
            case _:
                command = ["hushtune_client", "run", *common, "--client", name, *to_servers]
        with self.log(name).open("ab") as log, (self.folder / f"{name}.err").open("ab") as errors:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.running[name] = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=errors, env=environment)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.log(name)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    def told(self, name: str, event: str, **fields: object) -> list[dict[str, Any]]:
        return [e for e in self.events(name) if e["event"] == event and fields.items() <= e.items()]

    def kill(self, name: str) -> None:
        """End a process and its children at once, as a machine that loses its power does."""
        self.signal(name, signal.SIGKILL)
        self.running[name].wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and its children."""
        process = psutil.Process(self.running[name].pid)
        for member in [process, *process.children(recursive=True)]:
            member.send_signal(number)

    def ended(self, *names: str) -> bool:
        """Whether these processes are over."""
        return all(self.running[name].poll() is not None for name in names)

    def wait_for(self, condition: Callable[[], bool], *, within_s: float = 200.0) -> None:
        clock = SystemClock()
        limit = clock.monotonic() + within_s
        while not condition():
            if clock.monotonic() > limit:
                pytest.fail(f"waited in vain; {self.words()}")
            clock.pause(0.05)

    def words(self) -> str:
        last = {name: [e["event"] for e in self.events(name)[-3:]] for name in (*SERVERS, *self.clients)}
        errors = {name: (self.folder / f"{name}.err").read_text()[-500:] for name in self.running}
        return f"last heard {last}; {errors}"

    def stop(self) -> None:
        for name, process in self.running.items():
            if process.poll() is None:
                self.kill(name)


@contextmanager
def on_stage(folder: Path, *, scenario: str, clients: tuple[str, ...]) -> Generator[Troupe]:
    """Write a scenario and its texts, and stop whatever was started when the test is over."""
    words = product(
        ("the river", "my brother", "a small dog", "our teacher"), ("forgets", "hides", "paints"), ("a letter", "bread")
    )
    lines = [f"{who} {does} {what} before the evening comes and the lamps are lit" for who, does, what in words]
    (folder / "private.txt").write_text("\n".join(4 * lines), encoding="utf-8")
    (folder / "public.txt").write_text("\n".join(line.replace("the", "any") for line in lines), encoding="utf-8")
    (folder / "run.toml").write_text(scenario, encoding="utf-8")
    made = Troupe(folder, Kits(folder / "kits"), clients)
    try:
        yield made
    finally:
        made.stop()
