"""Does a doctor find what is wrong, name it, and know the remedy; and is nothing wrong where nothing is?"""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hushtune_client.cli import main as client_main
from hushtune_common.clock import Clock, SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import PeerLost
from hushtune_common.messages import Digest, Role
from hushtune_common.wire import doctor
from hushtune_common.wire.about import About, about, read_about
from hushtune_common.wire.convert import PROTOCOL_MAJOR, PROTOCOL_MINOR
from hushtune_common.wire.doctor import Finding, Verdict
from hushtune_common.wire.endpoint import Kit, connect, ready, serve
from hushtune_server import pki
from hushtune_server.cli import main as server_main
from tests.fakes import FakeClock
from tests.kits import Kits

CLOCK = SystemClock()
TIMING = TimingConfig(connect_s=3.0, idle_s=6.0)
RUN = Digest.of(b"this run")


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


class Shifted(SystemClock):
    """A machine whose clock is wrong."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def wall(self) -> datetime:
        return super().wall() + self._by


@asynccontextmanager
async def server(kit: Kit, *, scenario: Digest | None = RUN, clock: Clock = CLOCK) -> AsyncGenerator[str]:
    listening = await serve([], names=[], listen="127.0.0.1:0", kit=kit, clock=clock, timing=TIMING, scenario=scenario)
    try:
        yield listening.address
    finally:
        await listening.stop(0.0)


async def examined(folder: Path, tmp_path: Path, **addresses: str) -> dict[str, Finding]:
    places = {Role(role): address for role, address in addresses.items()}
    found = await doctor.examine(folder, addresses=places, scenario=RUN, timing=TIMING, state=tmp_path / "new", clock=CLOCK)
    return {finding.check: finding for finding in found}


def test_where_all_is_well_nothing_is_found_fault_with(kits: Kits, tmp_path: Path):
    async def run() -> dict[str, Finding]:
        async with server(kits.kit(Role.OWNER)) as owner, server(kits.kit(Role.AIR)) as air:
            return await examined(kits.folder(Role.CLIENT, "alice"), tmp_path, owner=owner, air=air)

    found = asyncio.run(run())
    assert {finding.verdict for finding in found.values()} == {Verdict.OK}
    assert {"kit", "certificate", "names", "revocation list", "private key", "disk"} < found.keys()
    for role in ("owner", "air"):
        checks = {check.partition(": ")[2] for check in found if check.startswith(role)}
        assert checks == {"", "protocol", "scenario", "clock", "upload"}
    assert found["kit"].text == "hushtune://client/alice"


def test_what_is_wrong_with_the_kit_is_found_before_anybody_is_called(kits: Kits, tmp_path: Path):
    past = CLOCK.wall() - timedelta(days=30)
    expired = kits.folder(Role.CLIENT, "late", not_before=past, days=3)
    revoked = kits.folder(Role.CLIENT, "lost")
    pki.revoke(kits.directory / "ca", clock=CLOCK, caller=Kit.load(revoked).caller)
    mixed = kits.folder(Role.CLIENT, "mixed")
    shutil.copy(kits.folder(Role.CLIENT, "other") / "tls.crt", mixed)
    gone = kits.folder(Role.CLIENT, "gone")
    (gone / "tls.key").unlink()
    for folder, check, text in (
        (expired, "certificate", "expired on"),
        (revoked, "revocation list", "client/lost was revoked on"),
        (mixed, "names", "the certificate is of hushtune://client/other"),
        (gone, "kit", "tls.key: this file of the kit is missing"),
        (tmp_path / "nowhere.zip", "kit", "nowhere.zip: there is no such file or folder"),
    ):
        found = asyncio.run(examined(folder, tmp_path, owner="127.0.0.1:1"))
        assert (found[check].verdict, text in found[check].text) == (Verdict.FAIL, True), found
        assert found[check].remedy or "; " in found[check].text
        assert "owner" not in found or "was not asked" in found["owner"].text


def test_a_key_that_others_may_read_and_a_certificate_that_ends_soon_are_warned_of(kits: Kits, tmp_path: Path):
    folder = kits.folder(Role.CLIENT, "alice", days=10)
    (folder / "tls.key").chmod(0o640)
    found = asyncio.run(examined(folder, tmp_path))
    assert found["private key"] == Finding(
        check="private key",
        verdict=Verdict.WARN,
        text="others on this machine may read it (mode 640)",
        remedy=f"chmod 600 {folder / 'tls.key'}",
    )
    assert (found["certificate"].verdict, "9 days" in found["certificate"].text) == (Verdict.WARN, True)
    assert doctor.is_well(list(found.values()))


def test_a_server_that_is_not_the_one_is_told_apart(kits: Kits, tmp_path: Path):
    alice = kits.folder(Role.CLIENT, "alice")
    foreign = Kits(tmp_path / "foreign").kit(Role.OWNER)

    async def run() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            nobody = f"127.0.0.1:{silent.getsockname()[1]}"
            async with server(kits.kit(Role.AIR)) as air, server(foreign) as other:
                for address, text, remedy in (
                    (air, "the server there is no owner", "mixed up"),
                    (other, "is of another authority", "one authority"),
                    (nobody, "cannot connect", "start the owner"),
                    ("no-such-host.invalid:1", "has no address", "DNS"),
                ):
                    owner = (await examined(alice, tmp_path, owner=address))["owner"]
                    assert owner.verdict is Verdict.FAIL
                    assert text in owner.text
                    assert remedy in owner.remedy

    asyncio.run(run())


def test_something_that_speaks_no_tls_is_recognised(kits: Kits, tmp_path: Path):
    async def run() -> Finding:
        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            writer.close()

        plain = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with plain:
            address = f"127.0.0.1:{plain.sockets[0].getsockname()[1]}"
            return (await examined(kits.folder(Role.CLIENT, "alice"), tmp_path, owner=address))["owner"]

    found = asyncio.run(run())
    assert (found.verdict, "does not speak TLS" in found.text) == (Verdict.FAIL, True)


def test_a_server_of_a_revoked_certificate_and_one_that_revoked_ours_are_found(kits: Kits, tmp_path: Path):
    alice, owner = kits.folder(Role.CLIENT, "alice"), kits.kit(Role.OWNER)
    before = shutil.copytree(alice, tmp_path / "before")

    async def run() -> None:
        async with server(owner) as address:
            pki.revoke(kits.directory / "ca", clock=CLOCK, caller=owner.caller, reason="key-compromise")
            thief = (await examined(alice, tmp_path, owner=address))["owner"]
            assert (thief.verdict, "was revoked on" in thief.text) == (Verdict.FAIL, True)
            pki.revoke(kits.directory / "ca", clock=CLOCK, caller=Kit.load(alice).caller)
            refused = (await examined(before, tmp_path, owner=address))["owner"]  # it has not heard of either
            assert (refused.verdict, "client/alice was withdrawn" in refused.text) == (Verdict.FAIL, True)
            assert "new kit" in refused.remedy

    asyncio.run(run())


@pytest.mark.parametrize(("minutes", "verdict"), [(9, Verdict.WARN), (-20, Verdict.WARN), (0, Verdict.OK)])
def test_a_clock_that_is_off_is_a_warning_and_the_sign_is_right(kits: Kits, tmp_path: Path, minutes: int, verdict: Verdict):
    owner = kits.kit(Role.OWNER, not_before=CLOCK.wall() - timedelta(days=1))
    pki.publish(kits.directory / "ca", clock=Shifted(timedelta(minutes=-30)))

    async def run() -> dict[str, Finding]:
        async with server(owner, clock=Shifted(timedelta(minutes=minutes))) as address:
            return await examined(kits.folder(Role.CLIENT, "alice"), tmp_path, owner=address)

    found = asyncio.run(run())
    assert found["owner: clock"].verdict is verdict
    if minutes:
        assert ("ahead of" if minutes > 0 else "behind") in found["owner: clock"].text
        assert abs(minutes) * 60 - float(found["owner: clock"].text.partition(" ")[0]) < 2.0
    assert doctor.is_well(list(found.values())), "no run minds"


@pytest.mark.parametrize(("scenario", "verdict"), [(None, Verdict.WARN), (Digest.of(b"another"), Verdict.FAIL)])
def test_a_server_of_another_run_is_found(kits: Kits, tmp_path: Path, scenario: Digest | None, verdict: Verdict):
    async def run() -> dict[str, Finding]:
        async with server(kits.kit(Role.OWNER), scenario=scenario) as address:
            return await examined(kits.folder(Role.CLIENT, "alice"), tmp_path, owner=address)

    found = asyncio.run(run())["owner: scenario"]
    assert found.verdict is verdict
    assert found.remedy


def test_what_a_server_says_of_itself_comes_back_as_it_was_and_nonsense_as_nothing():
    clock = FakeClock()
    told = about(clock=clock, scenario=RUN)
    assert read_about([*told, ("other", b"\0")]) == About(
        date=clock.wall(), protocol=f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}", scenario=RUN
    )
    nonsense = [("hushtune-date", "yesterday"), ("hushtune-scenario", "xyz")]
    assert read_about(nonsense) == About(date=None, protocol=None, scenario=None)
    assert read_about([("hushtune-date", "2026-01-01T00:00:00")]).date is None, "a date without a zone is none"


# --- what a process says that cannot connect --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("why", ["expired server", "foreign client", "nobody"])
def test_a_process_that_is_refused_says_who_refused_whom_within_its_time(kits: Kits, tmp_path: Path, why: str):
    alice = kits.kit(Role.CLIENT, "alice")
    timing = TimingConfig(connect_s=3.0, idle_s=6.0)
    past = CLOCK.wall() - timedelta(days=30)
    owner, clock = kits.kit(Role.OWNER), CLOCK
    expected = "cannot connect.*start the owner"
    if why == "expired server":
        owner, clock = kits.kit(Role.OWNER, "late", not_before=past, days=3), Shifted(timedelta(days=-28))
        pki.publish(kits.directory / "ca", clock=clock)
        expected = "the server's certificate has expired.*hushtune pki renew"
    elif why == "foreign client":
        folder = Kits(tmp_path / "foreign").folder(Role.CLIENT, "alice")
        shutil.copy(owner.directory / "ca.crt", folder)
        alice, expected = Kit.load(folder), "hangs up when it sees our certificate.*another authority"

    async def run() -> None:
        async with server(owner, clock=clock) as address:
            where = address if why != "nobody" else "127.0.0.1:1"
            channel: Any = connect(where, role=Role.OWNER, kit=alice, timing=timing)
            started = CLOCK.monotonic()
            with pytest.raises(PeerLost, match=expected):
                await ready(channel, address=where, role=Role.OWNER, timing=timing, kit=alice)
            assert CLOCK.monotonic() - started < timing.connect_s + 0.5
            await channel.close()

    asyncio.run(run())


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [client_main, server_main], ids=["client", "server"])
def test_the_command_prints_json_and_its_code_says_whether_something_failed(
    kits: Kits, main: Any, capsys: pytest.CaptureFixture[str]
):
    folder = str(kits.folder(Role.CLIENT, "alice"))
    assert main(["doctor", folder, "--json"]) == 0
    assert {entry["verdict"] for entry in json.loads(capsys.readouterr().out)} <= {"ok", "warn"}
    assert main(["doctor", folder, "--addresses", "owner=127.0.0.1:1", "--json"]) == 1
    (failed,) = (entry for entry in json.loads(capsys.readouterr().out) if entry["verdict"] == "fail")
    assert (failed["check"], "start the owner" in failed["remedy"]) == ("owner", True)
    assert main(["doctor", str(kits.directory / "nothing")]) == 1
    assert "fail  kit" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["moon=h:1", "owner", "owner=h", "client=h:1"])
def test_an_address_that_cannot_be_is_a_mistake_with_the_form_to_use(kits: Kits, word: str, capsys: pytest.CaptureFixture[str]):
    assert client_main(["doctor", str(kits.folder(Role.CLIENT, "alice")), "--addresses", word]) == 3
    assert "HOST:PORT" in capsys.readouterr().err
