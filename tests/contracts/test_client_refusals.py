"""Does a client refuse what it must before it trains, dials or downloads, and leave nothing behind?"""

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hushtune_client import app
from hushtune_client.duties import Duties
from hushtune_client.phases import Send
from hushtune_client.progress import Status
from hushtune_client.sounding import Sounder
from hushtune_client.state import ClientState
from hushtune_client.trainer import Trainer
from hushtune_common.clock import SystemClock
from hushtune_common.errors import (
    CertificateRevoked,
    ConfigError,
    DigestMismatch,
    HushtuneError,
    LimitExceeded,
    MalformedUpdate,
    ScenarioMismatch,
)
from hushtune_common.messages import Digest, Part, Protection, Role
from hushtune_common.seeding import SeedTree
from hushtune_common.wire.bell import Bell
from hushtune_common.wire.kit import Kit
from hushtune_server import pki
from tests.client_stage import GRANTED, Stage, events, logged, run, stage_in, with_direction
from tests.kits import Kits
from tests.loopback import CLIENT, DESIGN, RUN, assignment_of, link_seed, loopback_ports


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def stage(tmp_path: Path, kits: Kits) -> Stage:
    return stage_in(tmp_path, kits=kits)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


@pytest.mark.slow
def test_a_design_that_nobody_can_send_is_refused_before_training(stage: Stage, log: io.StringIO) -> None:
    odd = replace(GRANTED, design=replace(DESIGN, code_bits=10_248))
    assert run(with_direction(stage.take_part(), stage.world, odd)) == MalformedUpdate.exit_code
    assert "training_finished" not in [e["event"] for e in events(log)]


@pytest.mark.slow
def test_bytes_that_are_not_those_of_the_share_are_refused_before_training(stage: Stage, log: io.StringIO) -> None:
    assert run(with_direction(stage.take_part(), stage.world, GRANTED, too_many=1)) == MalformedUpdate.exit_code
    assert not stage.world.sent
    assert "training_finished" not in [e["event"] for e in events(log)]


@pytest.mark.slow
def test_a_protection_that_the_scenario_does_not_name_is_refused_before_training(stage: Stage, log: io.StringIO) -> None:
    bare = assignment_of(protection=Protection.CRYPTO_ONLY)
    assert run(with_direction(stage.take_part(), stage.world, bare)) == MalformedUpdate.exit_code
    assert not stage.world.sent
    assert "training_finished" not in [e["event"] for e in events(log)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tokenizer", "base", "plan"])
def test_an_emulator_that_is_not_the_promised_one_is_refused_by_name(stage: Stage, what: str) -> None:
    stage.world.manifest = replace(stage.world.manifest, **{what: Digest.of(b"other")})
    with pytest.raises(DigestMismatch, match=f"wrong {what}"):
        run(with_direction(stage.take_part(), stage.world))
    assert not stage.world.reports
    assert "DIGEST_MISMATCH" in stage.world.left[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error"),
    [({"size_bytes": 1 << 40}, LimitExceeded), ({"codec": "delta-b16-zstd/2"}, ScenarioMismatch)],
    ids=["too large", "another codec"],
)
def test_a_manifest_that_cannot_be_right_is_refused_before_the_download(
    stage: Stage, change: dict[str, Any], error: type[HushtuneError]
) -> None:
    stage.world.manifest = replace(stage.world.manifest, **change)
    with pytest.raises(error):
        run(with_direction(stage.take_part(), stage.world))
    assert not list((stage.folder / "state" / "blobs").rglob(stage.world.manifest.emulator.hex + "*"))


def test_a_kit_that_knows_that_it_was_revoked_is_refused_before_dialling(stage: Stage, tmp_path: Path) -> None:
    own = Kits(tmp_path / "own-kits")
    options = replace(stage.options("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"), kit=own.folder(Role.CLIENT, CLIENT))
    pki.revoke(own.directory / "ca", clock=SystemClock(), caller=Kit.load(options.kit).caller)
    with pytest.raises(CertificateRevoked, match="new kit"):
        run(app.run(options, clock=SystemClock(), seeds=SeedTree(3)))


def test_a_kit_of_somebody_else_is_refused_before_dialling(stage: Stage) -> None:
    options = replace(stage.options("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"), kit=stage.kits.folder(Role.CLIENT, "c2"))
    with pytest.raises(ConfigError, match="hushtune://client/c2"):
        run(app.run(options, clock=SystemClock(), seeds=SeedTree(3)))


@pytest.mark.slow
def test_a_client_that_breaks_stops_its_work_and_says_goodbye(stage: Stage) -> None:
    (stage.folder / "state").mkdir()
    (stage.folder / "state" / "rounds").touch()  # where a folder has to be
    with pytest.raises(OSError, match="rounds"):
        run(with_direction(stage.take_part(), stage.world))
    assert stage.world.left == ["a fault of this process"]


def test_coding_that_is_cancelled_leaves_no_frame_behind(stage: Stage, tmp_path: Path) -> None:
    async def work() -> None:
        state = ClientState.open(tmp_path / "state", client=CLIENT, attempts_max=1)
        await state.join(RUN)
        await state.keep_sealed(1, bytes(20_000_000), secret=b"", links={Part.PAYLOAD: link_seed()})
        ports = loopback_ports(stage.world, folder=tmp_path)
        sounder = Sounder(
            scenario=stage.scenario,
            device=stage.scenario.clients[0],
            ports=ports,
            state=state,
            status=Status(),
            clock=SystemClock(),
            note=lambda event: asyncio.sleep(0),
            turn=asyncio.Lock(),
            bell=Bell(),
        )
        duties = Duties(
            scenario=stage.scenario,
            device=stage.scenario.clients[0],
            records=(),
            ports=ports,
            sounder=sounder,
            trainer=Trainer(clock=SystemClock()),
            state=state,
            status=Status(),
            clock=SystemClock(),
            seeds=SeedTree(0),
            aside=asyncio.to_thread,
            emit=lambda event: None,
        )
        sending = asyncio.create_task(duties.perform(Send(assignment=GRANTED, part=Part.PAYLOAD, attempt=1, only=None)))
        while not list(state.files(1).directory.glob("frame*")):  # noqa: ASYNC110 - a file rings no bell
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending})
        assert sending.cancelled()
        assert not list(state.files(1).directory.glob("frame*"))
        await state.close()

    run(work())
