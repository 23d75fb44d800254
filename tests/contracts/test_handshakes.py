"""Does a server's log say who was turned away by TLS, and does everything else on standard error stay there?"""

import asyncio
import logging
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import PeerLost
from hushtune_common.messages import Role
from hushtune_common.wire.endpoint import Kit, ready
from hushtune_server.handshakes import Telling, told
from tests.contracts.test_endpoint import channel_to, replaced, serving
from tests.fakes import FakeClock
from tests.kits import Kits

CLOCK = SystemClock()
EXPIRED = b"I1122 x.cc:1] Handshake failed with error SSL_ERROR_SSL: error:1000007d:SSL:CERTIFICATE_VERIFY_FAILED: has expired\n"


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [r.__dict__["hushtune_fields"] for r in caplog.records if r.getMessage() == "handshake_refused"]


@pytest.mark.parametrize("why", ["expired", "foreign"])
def test_who_is_refused_by_tls_is_in_the_servers_log_in_words(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    kits = Kits(tmp_path / "kits")
    expected = {"expired": "its certificate has expired", "foreign": "its certificate is of another authority"}[why]
    if why == "expired":
        old = kits.kit(Role.CLIENT, "alice", not_before=CLOCK.wall() - timedelta(days=30), days=3)
        alice = replaced(old, not_after=CLOCK.wall() + timedelta(days=3))  # it dials nevertheless
    else:
        folder = Kits(tmp_path / "foreign").folder(Role.CLIENT, "alice")
        shutil.copy(kits.folder(Role.OWNER) / "ca.crt", folder)
        alice = Kit.load(folder)
    timing = TimingConfig(connect_s=3.0, idle_s=5.0)

    async def run() -> None:
        async with serving(kits.kit(Role.OWNER)) as server, channel_to(server.address, alice, timing=timing) as channel:
            started = CLOCK.monotonic()
            with pytest.raises(PeerLost):
                await ready(channel, address=server.address, role=Role.OWNER, timing=timing, kit=alice)
            assert CLOCK.monotonic() - started < timing.connect_s

    with caplog.at_level(logging.INFO), told(CLOCK):
        asyncio.run(run())
    (event, *more) = logged(caplog)
    assert expected in event["problem"]
    assert event["remedy"]
    assert more == [], "a caller that tries again is told of once"
    assert "Handshake" not in capfd.readouterr().err


def test_everything_else_on_standard_error_is_passed_on_whole_and_in_order(capfd: pytest.CaptureFixture[str]):
    with told(FakeClock()):
        os.write(2, b"first, ")
        os.write(2, b"in two pieces\n" + EXPIRED + b"second\n")
        print("from Python", file=sys.stderr)
        os.write(2, b"x" * 100_000 + b"\nwithout an end")
    shown = capfd.readouterr().err
    assert shown.replace("from Python\n", "") == "first, in two pieces\nsecond\n" + "x" * 100_000 + "\nwithout an end"
    assert "from Python\n" in shown


def test_a_caller_that_tries_again_and_again_is_counted(caplog: pytest.LogCaptureFixture):
    clock = FakeClock()
    telling = Telling(clock)
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            telling.tell("CERTIFICATE_VERIFY_FAILED: certificate has expired")
        telling.tell("PEER_DID_NOT_RETURN_A_CERTIFICATE")
        clock.advance(11.0)
        telling.tell("CERTIFICATE_VERIFY_FAILED: certificate has expired")
    assert [(event["problem"].rpartition(" ")[2], event["times"]) for event in logged(caplog)] == [
        ("expired", 1),
        ("certificate", 1),
        ("expired", 5),
    ]


def test_standard_error_is_as_it_was_afterwards(capfd: pytest.CaptureFixture[str]):
    before = sys.stderr
    with pytest.raises(KeyError), told(FakeClock()):
        raise KeyError
    assert sys.stderr is before
    os.write(2, b"plain\n")
    assert capfd.readouterr().err == "plain\n"
