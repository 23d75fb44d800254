"""Does one file make a client on another machine, does it go on after a crash, and is a withdrawn one sent away?"""

import json
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from hushtune_common.errors import CertificateRevoked
from hushtune_server.cli import main
from tests.system.test_whole_path import TINY, sentences

ONE_CLIENT = TINY.partition('[[clients]]\nid = "c2"')[0].replace(
    'kind = "quorum", share = 0.6, wait_after_s = 10.0', 'kind = "everyone"'
)


class Stage:
    """A folder in which the servers of a run with one client are started, and clients join."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        lines = list(sentences())
        (folder / "private.txt").write_text("\n".join(lines), encoding="utf-8")
        (folder / "public.txt").write_text("\n".join(lines[::5]), encoding="utf-8")
        (folder / "mine.txt").write_text("\n".join(lines), encoding="utf-8")
        (folder / "s.toml").write_text(
            ONE_CLIENT.replace("[training]", "[training]\nepochs = 600").replace("idle_s = 6", "idle_s = 30"), encoding="utf-8"
        )
        self.hushtune("pki", "init", "ca")
        for role in ("coordinator", "air", "owner"):
            self.hushtune("pki", "issue", "ca", "--role", role, "--name", role, "--out", f"kits/{role}")

    def hushtune(self, *arguments: str) -> None:
        inside = {"ca", *(a for a in arguments if a.startswith(("kits/", "s.toml")) or a.endswith(".zip"))}
        assert main([str(self.folder / a) if a in inside else a for a in arguments]) == 0

    def start(self, module: str, *arguments: str, log: str) -> "subprocess.Popen[str]":
        with (self.folder / f"{log}.jsonl").open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdout=file, stderr=subprocess.PIPE, text=True, cwd=self.folder
            )
        self.started.append(process)
        return process

    def serve(self, role: str, *arguments: str) -> None:
        """Start a server."""
        home = ["--kit", f"kits/{role}", "--state", f"state/{role}", "--listen", "127.0.0.1:0"]
        self.start("hushtune_server", role, "serve", "s.toml", *home, *arguments, log=role)

    def address(self, role: str) -> str:
        """Wait for a server and return its address."""
        return str(self.event(role, "serving_started")["address"])

    def join(self, *arguments: str, log: str) -> "subprocess.Popen[str]":
        return self.start("hushtune_client", "join", "c1.zip", "--state", "mine", *arguments, log=log)

    def events(self, log: str) -> list[dict[str, Any]]:
        text = (self.folder / f"{log}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def event(self, log: str, event: str) -> dict[str, Any]:
        """Wait for an event in a log."""
        for _ in range(1200):
            for found in self.events(log):
                if found["event"] == event:
                    return found
            try:
                self.started[-1].wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"{log}: ended before {event}: {self.started[-1].communicate()[1]}")
        pytest.fail(f"{log}: no {event}")


@contextmanager
def stage(folder: Path) -> Generator[Stage]:
    made = Stage(folder)
    try:
        yield made
    finally:
        for process in made.started:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_a_client_joins_with_one_file_goes_on_after_a_crash_and_is_sent_away_once_it_is_revoked(tmp_path: Path):
    with stage(tmp_path) as here:
        here.serve("coordinator", "--run", "r1")
        here.serve("air")
        coordinator, air = here.address("coordinator"), here.address("air")
        here.serve("owner", "--coordinator", coordinator, "--air", air)
        owner = here.address("owner")
        addresses = f"owner={owner},coordinator={coordinator},air={air}"
        here.hushtune(
            "kit",
            "create",
            "--authority",
            "ca",
            "--client",
            "c1",
            "--scenario",
            "s.toml",
            "--addresses",
            addresses,
            "--out",
            "c1.zip",
        )

        first = here.join("--data", "mine.txt", log="first")
        here.event("first", "training_progressed")
        family = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGHUP)
        here.event("first", "hangup_passed_over")
        first.kill()
        _, told = first.communicate(timeout=10)
        assert "ok    owner: scenario" in told
        assert psutil.wait_procs(family, timeout=2.0)[1] == [], "nobody trains on for a client that is gone"

        second = here.join(log="second")
        joined = here.event("second", "run_joined")
        assert joined["restarted"], "it goes on, with the text that it was given before"
        assert here.event("second", "private_text_read")["own_files"] == 1
        here.event("second", "training_progressed")
        here.hushtune("pki", "revoke", "ca", "--role", "client", "--name", "c1")
        _, told = second.communicate(timeout=30)
        assert second.returncode == CertificateRevoked.exit_code, told
        assert "the certificate of hushtune://client/c1 was withdrawn" in told
        refusal = here.event("coordinator", "call_refused")
        assert (refusal["reason"], refusal["caller"]) == ("CERTIFICATE_REVOKED", "hushtune://client/c1")
