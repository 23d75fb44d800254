"""Does a round run between machines, each with a network of its own, over bad links, one of which is out for a while?

Every process gets a network namespace: its own addresses, routes and loopback, and a cable to a switch. There are two switches,
and only the air has a cable to both: the eavesdropper hears the air, and no packet of it can reach anybody else.

Every machine's cable has a latency, a jitter, a loss and a rate of its own. Where the kernel has `netem`, that does it all; else
the rate is a token bucket's, packets are dropped at random by the machine's packet filter, and bytes are made late by the fault
proxy (`tests/lateness.py`), through which every machine then reaches the others. The test says which, and measures that it is so.
"""

import json
import os
import re
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
from hushtune_common.wire.transfer import part_bytes
from hushtune_server.testbed.chaos.small import write_small
from tests.kits import Kits

CLOCK = SystemClock()
ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ("c1", "c2", "c3")
GROUND = {"coordinator": 1, "air": 2, "owner": 3, "c1": 11, "c2": 12, "c3": 13}
"""Who has a cable to the first switch, with the last number of its address; 10.77.1.x."""
SKY = {"air": 2, "eavesdropper": 9}
"""Who has one to the second; 10.77.2.x."""
PORTS = {"coordinator": 7001, "air": 7002, "owner": 7003}


@dataclass(frozen=True)
class Cable:
    """How bad a machine's cable is: latency and jitter one way, in seconds; loss in percent; kbit/s of what the machine sends."""

    late_s: float
    jitter_s: float
    loss_percent: float
    rate_kbit: int


CABLES = {
    "coordinator": Cable(0.002, 0.001, 0.1, 100_000),
    "air": Cable(0.004, 0.001, 0.2, 100_000),
    "owner": Cable(0.003, 0.001, 0.1, 200_000),
    "eavesdropper": Cable(0.006, 0.002, 0.3, 50_000),
    "c1": Cable(0.020, 0.005, 0.5, 2_000),
    "c2": Cable(0.035, 0.008, 0.3, 10_000),
    "c3": Cable(0.010, 0.002, 1.0, 5_000),
}
DIALS = {"owner": ("coordinator", "air"), "eavesdropper": ("air",), **dict.fromkeys(CLIENTS, tuple(PORTS))}
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
    ways: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """Where a machine dials a server, if not at the server's own address."""
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

    def worsen(self) -> str:
        """Give every cable its latency, loss and rate, by what the kernel can do; return in words by what."""
        first = next(iter(CABLES))
        by_kernel = self._netem(first)
        for name in CABLES:
            if by_kernel:
                assert name == first or self._netem(name)
                continue
            for number, interface in enumerate(self._interfaces(name)):
                rate = ("rate", f"{CABLES[name].rate_kbit}kbit", "burst", "64kb", "latency", "400ms")
                assert self.inside(name, "tc", "qdisc", "add", "dev", interface, "root", "tbf", *rate).returncode == 0
                share = f"{CABLES[name].loss_percent / 100:.4f}"
                drop = ("-m", "statistic", "--mode", "random", "--probability", share, "-j", "DROP")
                found = self.inside(name, "iptables", "-A", "INPUT", "-i", interface, *drop)
                if found.returncode != 0:
                    assert number == 0
                    pytest.skip(f"NO SEPARATE MACHINES WERE TESTED: the kernel can lose no packets ({found.stderr.strip()})")
        if not by_kernel:
            for name in DIALS:
                self._hold_back(name)
        return (
            "netem"
            if by_kernel
            else "a token bucket (rate), the packet filter (loss) and the fault proxy (latency): no netem here"
        )

    def _interfaces(self, name: str) -> list[str]:
        return [switch for switch, machines in (("ground", GROUND), ("sky", SKY)) if name in machines]

    def _netem(self, name: str) -> bool:
        cable = CABLES[name]
        late = ("delay", f"{cable.late_s * 1e3:g}ms", f"{cable.jitter_s * 1e3:g}ms")
        words = ("netem", *late, "loss", f"{cable.loss_percent}%", "rate", f"{cable.rate_kbit}kbit", "limit", "5000")
        tries = [self.inside(name, "tc", "qdisc", "add", "dev", i, "root", *words) for i in self._interfaces(name)]
        return all(found.returncode == 0 for found in tries)

    def _hold_back(self, name: str) -> None:
        """Lead the ways of a machine to its servers through a proxy of its own."""
        near = CABLES[name]
        ways = [f"{near.late_s}:{CABLES[s].late_s}:{near.jitter_s}:{self.address(name, s)}" for s in DIALS[name]]
        words = ["ip", "netns", "exec", self.space(name), sys.executable, "-m", "tests.lateness", *ways]
        proxy = self.running[f"{name}'s cable"] = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT)
        assert proxy.stdout is not None
        self.ways.update(
            {(name, server): at for server, at in zip(DIALS[name], json.loads(proxy.stdout.readline()), strict=True)}
        )
        proxy.stdout.close()

    def address(self, name: str, server: str) -> str:
        """Return where a machine reaches a server: over the sky for the eavesdropper."""
        there = f"10.77.2.{SKY[server]}" if name == "eavesdropper" else f"10.77.1.{GROUND[server]}"
        return self.ways.get((name, server), f"{there}:{PORTS[server]}")

    def round_trip_s(self, name: str, server: str) -> float:
        """Return how long a server takes, seen from a machine, to answer nonsense, which it does by hanging up."""
        host, _, port = self.address(name, server).rpartition(":")
        ask = (
            f"import socket, time; s = socket.create_connection(('{host}', {port}), 20.0); t = time.monotonic(); "
            "s.sendall(b'nonsense' * 8); s.recv(1); print(time.monotonic() - t)"
        )
        return float(self.inside(name, sys.executable, "-c", ask).stdout)

    def lost(self, name: str) -> int:
        """Return how many packets a machine's cables have lost so far."""
        if not self.ways:
            told = "".join(self.inside(name, "tc", "-s", "qdisc", "show", "dev", i).stdout for i in self._interfaces(name))
            return sum(int(count) for count in re.findall(r"dropped (\d+)", told))
        rules = self.inside(name, "iptables", "-nvxL", "INPUT").stdout.splitlines()[2:]
        return sum(int(rule.split()[0]) for rule in rules)

    def unplug(self, name: str) -> None:
        ip("-n", self.space(name), "link", "set", "ground", "down")

    def plug_in(self, name: str) -> None:
        ip("-n", self.space(name), "link", "set", "ground", "up")

    def can_reach(self, name: str, address: str, port: int) -> bool:
        dial = f"import socket; socket.create_connection(('{address}', {port}), 2.0)"
        return self.inside(name, sys.executable, "-c", dial).returncode == 0

    def start(self, name: str) -> None:
        role = Role.CLIENT if name in CLIENTS else Role(name)
        common = [str(self.folder / "chaos.toml"), "--kit", str(self.kits.folder(role, name)), "--state", str(self.folder / name)]
        servers = [word for other in DIALS.get(name, ()) for word in (f"--{other}", self.address(name, other))]
        listen = "0.0.0.0" if name == "air" else f"10.77.1.{GROUND.get(name)}"
        match name:
            case "coordinator":
                command = ["hushtune_server", name, "serve", *common, "--run", "run-1", "--listen", f"{listen}:{PORTS[name]}"]
            case "air" | "owner":
                command = ["hushtune_server", name, "serve", *common, *servers, "--listen", f"{listen}:{PORTS[name]}"]
            case "eavesdropper":
                command = ["hushtune_server", name, "listen", *common, *servers]
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
def test_a_round_closes_with_all_three_although_a_cable_is_out_in_the_middle_of_an_upload(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    how = machines.worsen()
    with capsys.disabled():
        print(f"\nlinks made bad by {how}")
    write_small(machines.folder, clients=len(CLIENTS))
    for name in ("coordinator", "air", "owner", "eavesdropper"):
        machines.start(name)
    machines.wait_for(lambda: bool(machines.told("owner", "serving_started")))
    for name in CLIENTS:
        trip_s = machines.round_trip_s(name, "coordinator")
        assert trip_s >= CABLES[name].late_s + CABLES["coordinator"].late_s - CABLES[name].jitter_s
    for name in CLIENTS:
        machines.start(name)
    machines.wait_for(lambda: bool(machines.told("c1", "frame_encoded")))
    size, before = machines.told("c1", "frame_encoded")[0]["bytes_frame"], machines.sent_bytes("c1")
    machines.wait_for(lambda: machines.sent_bytes("c1") - before > size / 3)
    machines.unplug("c1")
    cut_at = machines.sent_bytes("c1") - before
    assert size / 3 < cut_at < size, "the cable is out in the middle of the upload"
    assert not machines.told("c1", "transfer_finished", kind="frame")
    assert not machines.told("air", "frame_carried", client="c1")
    assert not machines.can_reach("c1", f"10.77.1.{GROUND['air']}", PORTS["air"])
    CLOCK.pause(OUT_S)
    machines.plug_in("c1")
    machines.wait_for(lambda: bool(machines.told("c1", "transfer_finished", kind="frame")))
    # What had come through is not sent again: the rest, headers of packets, packets that were lost, and a part.
    assert machines.sent_bytes("c1") - before - cut_at < 1.15 * (size - cut_at) + 3 * part_bytes(size)
    machines.wait_for(lambda: all(machines.running[n].poll() is not None for n in ("coordinator", "owner", *CLIENTS)))

    assert [machines.running[name].returncode for name in ("coordinator", "owner", *CLIENTS)] == [0] * 5
    record = json.loads((machines.folder / "coordinator" / "round-1.json").read_text())
    assert (record["state"], record["accepted"], record["died"]) == ("closed", list(CLIENTS), [])
    judged = json.loads((machines.folder / "owner" / "owner.json").read_text())["clients"]
    assert sorted(j["client"] for j in judged) == sorted(CLIENTS)
    machines.wait_for(lambda: len(machines.told("eavesdropper", "reception_attacked")) >= len(CLIENTS))
    assert sum(machines.lost(name) for name in CLIENTS) > 0


def test_every_process_has_a_cable_of_its_own_and_no_two_are_alike() -> None:
    assert {*CABLES} == {*GROUND, *SKY} == {"owner", "coordinator", "air", "eavesdropper", *CLIENTS}
    assert len({*CABLES.values()}) == len(CABLES)
    assert len({*GROUND.values()}) == len(GROUND)
    assert all(cable.late_s > cable.jitter_s > 0.0 < cable.loss_percent for cable in CABLES.values())


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
