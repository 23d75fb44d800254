"""Does a round run between machines, each with a network of its own, over a slow link that is out for a while?

Every process gets a network namespace: its own addresses, routes and loopback, and a cable to a switch. There are two switches,
and only the air has a cable to both: the eavesdropper hears the air, and no packet of it can reach anybody else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.messages import Role
from hushtune_server.testbed.chaos.small import write_small
from tests.kits import Kits

CLOCK = SystemClock()
CLIENTS = ("c1", "c2", "c3")
GROUND = {"coordinator": 1, "air": 2, "owner": 3, "c1": 11, "c2": 12, "c3": 13}
"""Who has a cable to the first switch, with the last number of its address; 10.77.1.x."""
SKY = {"air": 2, "eavesdropper": 9}
"""Who has one to the second; 10.77.2.x."""
PORTS = {"coordinator": 7001, "air": 7002, "owner": 7003}
SLOW = (
    ("netem", "rate", "2mbit", "delay", "20ms", "5ms", "loss", "0.5%"),
    ("tbf", "rate", "2mbit", "burst", "32kb", "latency", "400ms"),
)
"""How a link is made slow: with delay and loss where the kernel can, else slow only."""
OUT_S = 5.0
"""Shorter than idle_s: who is away for longer is taken for dead, and its round goes on without it."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)


@dataclass
class Machines:
    """Namespaces, cables and processes of one run; `clear` takes all of it away."""

    folder: Path
    kits: Kits
    tag: str = field(default_factory=lambda: f"hush{os.getpid()}")
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict[str, "subprocess.Popen[bytes]"])

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def build(self) -> None:
        for name in ("ground", "sky", *{**GROUND, **SKY}):
            ip("netns", "add", self.space(name))
            ip("-n", self.space(name), "link", "set", "lo", "up")
        for switch, net, machines in (("ground", 1, GROUND), ("sky", 2, SKY)):
            ip("-n", self.space(switch), "link", "add", "br0", "type", "bridge")
            ip("-n", self.space(switch), "link", "set", "br0", "up")
            for name, number in machines.items():
                self._plug(name, switch, address=f"10.77.{net}.{number}/24")

    def _plug(self, name: str, switch: str, *, address: str) -> None:
        near, far, here, there = switch, f"to-{name}"[:15], self.space(name), self.space(switch)
        ip("link", "add", near, "netns", here, "type", "veth", "peer", "name", far, "netns", there)
        ip("-n", there, "link", "set", far, "master", "br0", "up")
        ip("-n", here, "address", "add", address, "dev", near)
        ip("-n", here, "link", "set", near, "up")

    def inside(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        words = ["ip", "netns", "exec", self.space(name), *command]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=20)

    def slow_down(self, name: str) -> None:
        ways = (self.inside(name, "tc", "qdisc", "add", "dev", "ground", "root", *kind) for kind in SLOW)
        assert any(found.returncode == 0 for found in ways), "the kernel can make no link slow"

    def unplug(self, name: str) -> None:
        ip("-n", self.space(name), "link", "set", "ground", "down")

    def plug_in(self, name: str) -> None:
        ip("-n", self.space(name), "link", "set", "ground", "up")

    def can_reach(self, name: str, address: str, port: int) -> bool:
        dial = f"import socket; socket.create_connection(('{address}', {port}), 2.0)"
        return self.inside(name, sys.executable, "-c", dial).returncode == 0

    def start(self, name: str) -> None:
        role = Role.CLIENT if name in CLIENTS else Role(name)
        at = {n: f"10.77.1.{GROUND[n]}:{port}" for n, port in PORTS.items()}
        common = [str(self.folder / "chaos.toml"), "--kit", str(self.kits.folder(role, name)), "--state", str(self.folder / name)]
        servers = [word for other in PORTS if other != name for word in (f"--{other}", at[other])]
        match name:
            case "coordinator":
                command = ["hushtune_server", name, "serve", *common, "--run", "run-1", "--listen", at[name]]
            case "air":
                command = ["hushtune_server", name, "serve", *common, "--listen", f"0.0.0.0:{PORTS[name]}"]
            case "owner":
                command = ["hushtune_server", name, "serve", *common, *servers, "--listen", at[name]]
            case "eavesdropper":
                command = ["hushtune_server", name, "listen", *common, "--air", f"10.77.2.{SKY['air']}:{PORTS['air']}"]
            case _:
                command = ["hushtune_client", "run", *common, "--client", name, *servers]
        words = ["ip", "netns", "exec", self.space(name), sys.executable, "-m", *command, "--json-logs"]
        with (self.folder / f"{name}.jsonl").open("ab") as log, (self.folder / f"{name}.err").open("ab") as errors:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.running[name] = subprocess.Popen(words, stdout=log, stderr=errors, env=environment)

    def told(self, name: str, event: str, **fields: object) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        events = [json.loads(line) for line in lines if line.startswith(b"{")]
        return [e for e in events if e["event"] == event and fields.items() <= e.items()]

    def wait_for(self, condition: Callable[[], bool], *, within_s: float = 90.0) -> None:
        limit = CLOCK.monotonic() + within_s
        while not condition():
            if CLOCK.monotonic() > limit:
                errors = {name: (self.folder / f"{name}.err").read_text()[-400:] for name in self.running}
                pytest.fail(f"waited in vain; {errors}")
            CLOCK.pause(0.02)

    def sent_bytes(self, name: str) -> int:
        """What has left a machine by its cable, by its own kernel's count."""
        return int(self.inside(name, "cat", "/sys/class/net/ground/statistics/tx_bytes").stdout)

    def clear(self) -> None:
        for process in self.running.values():
            with suppress(psutil.Error):
                for member in psutil.Process(process.pid).children(recursive=True):
                    member.kill()
            process.kill()
            process.wait()
        for name in ("ground", "sky", *{**GROUND, **SKY}):
            subprocess.run(["ip", "netns", "del", self.space(name)], check=False, capture_output=True, timeout=20)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path, Kits(tmp_path / "kits"))
    try:
        try:
            made.build()
        except (OSError, subprocess.SubprocessError) as error:
            problem = getattr(error, "stderr", "") or str(error)
            pytest.skip(f"NO SEPARATE MACHINES WERE TESTED: network namespaces cannot be made here ({problem.strip()})")
        yield made
    finally:
        made.clear()


@pytest.mark.slow
def test_a_round_closes_with_all_three_although_a_cable_is_out_in_the_middle_of_an_upload(machines: Machines) -> None:
    write_small(machines.folder, clients=len(CLIENTS))
    for name in ("coordinator", "air", "owner", "eavesdropper"):
        machines.start(name)
    machines.wait_for(lambda: bool(machines.told("owner", "serving_started")))
    machines.slow_down("c1")
    for name in CLIENTS:
        machines.start(name)
    machines.wait_for(lambda: bool(machines.told("c1", "frame_encoded")))
    size, before = machines.told("c1", "frame_encoded")[0]["bytes_frame"], machines.sent_bytes("c1")
    machines.wait_for(lambda: machines.sent_bytes("c1") - before > size / 3)
    machines.unplug("c1")
    assert not machines.told("air", "frame_carried", client="c1")
    assert not machines.can_reach("c1", f"10.77.1.{GROUND['air']}", PORTS["air"])
    CLOCK.pause(OUT_S)
    machines.plug_in("c1")
    machines.wait_for(lambda: all(machines.running[n].poll() is not None for n in ("coordinator", "owner", *CLIENTS)))

    assert [machines.running[name].returncode for name in ("coordinator", "owner", *CLIENTS)] == [0] * 5
    record = json.loads((machines.folder / "coordinator" / "round-1.json").read_text())
    assert (record["state"], record["accepted"], record["died"]) == ("closed", list(CLIENTS), [])
    judged = json.loads((machines.folder / "owner" / "owner.json").read_text())["clients"]
    assert sorted(j["client"] for j in judged) == sorted(CLIENTS)
    machines.wait_for(lambda: len(machines.told("eavesdropper", "reception_attacked")) >= len(CLIENTS))


@pytest.mark.slow
def test_the_eavesdropper_hears_the_air_and_reaches_nobody_else(machines: Machines) -> None:
    for name in PORTS:  # somebody listens there, so that only the way can be missing
        where = f"10.77.1.{GROUND[name]}" if name != "air" else "0.0.0.0"
        listen = (
            f"import socket, time; s = socket.create_server(('{where}', {PORTS[name]})); print('up', flush=True); time.sleep(60)"
        )
        words = ["ip", "netns", "exec", machines.space(name), sys.executable, "-c", listen]
        machines.running[name] = subprocess.Popen(words, stdout=subprocess.PIPE)
        output = machines.running[name].stdout
        assert output is not None
        assert output.readline() == b"up\n"
        output.close()
    ground = {name: f"10.77.1.{GROUND[name]}" for name in PORTS}
    assert all(machines.can_reach("c1", ground[name], PORTS[name]) for name in PORTS)
    assert machines.can_reach("eavesdropper", "10.77.2.2", PORTS["air"])
    assert not machines.can_reach("eavesdropper", ground["owner"], PORTS["owner"])
    # Not even when it tries to go by way of the air, which has a cable to both and hands nothing on.
    ip("-n", machines.space("eavesdropper"), "route", "add", "10.77.1.0/24", "via", "10.77.2.2")
    assert not machines.can_reach("eavesdropper", ground["owner"], PORTS["owner"])
    assert not machines.can_reach("eavesdropper", ground["coordinator"], PORTS["coordinator"])
