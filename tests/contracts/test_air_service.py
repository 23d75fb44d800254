"""Does the air carry what a client may send, once, and refuse everything else by name?"""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.config import LimitsConfig
from hushtune_common.errors import LimitExceeded, MalformedUpdate, NotYours, Replayed
from hushtune_common.link.mcs import point_of
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.reception import Reception, bare_payloads
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import Digest, Listener, Part, Role, SecrecyDesign
from hushtune_common.units import Hertz, Watt
from hushtune_common.wire import convert, faults
from hushtune_common.wire.v1 import air_pb2
from tests.air_stage import DESIGN, MEDIA, UPDATE, order, running
from tests.kits import Kits
from tests.radio import link_seed, random_update


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


def put_together(receptions: list[Reception], *, size: int, secrecy: SecrecyDesign = DESIGN) -> bytes:
    """Decode what can be decoded; the rest stays zero."""
    code = BlockCode(secrecy, toeplitz=link_seed(secrecy).toeplitz)
    rows = np.zeros((-(-size // secrecy.payload_bytes), secrecy.payload_bytes), dtype=np.uint8)
    for reception in receptions:
        indices, payloads = bare_payloads(reception)
        rows[indices] = payloads
        decoded = code.decode(reception.soft, iterations=point_of(secrecy).iterations)
        rows[reception.coded_indices[decoded.sound]] = decoded.payloads[decoded.sound]
    return rows.tobytes()[:size]


def test_a_frame_reaches_the_owner_whole_and_its_sender_learns_the_receipt(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            airtime_s, missing = await air.transmit(sending, caller="c1")
            assert missing == ()
            symbols = 3 * DESIGN.symbols
            assert airtime_s == pytest.approx(symbols / sending.bandwidth)

    asyncio.run(play())


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", MEDIA)
def test_the_owner_puts_together_what_the_client_sent(kits: Kits, tmp_path: Path, fidelity: str) -> None:
    update = random_update(70 * DESIGN.payload_bytes - 5)

    async def play() -> bytes:
        async with running(kits, tmp_path, fidelity=fidelity) as air:
            sent = await air.put_on_air(*order(update=update, fidelity=fidelity))
            assert (sent.blocks, sent.update_bytes, sent.fidelity) == (70, len(update), fidelity)
            receptions = await air.hear(Listener.MAIN)
            assert [r.chunk for r in receptions] == [0, 1]
            return put_together(receptions, size=len(update))

    assert asyncio.run(play()) == update


def test_a_repeated_transmission_gets_the_stored_outcome_and_is_not_sent_again(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            first, again = await air.transmit(sending, caller="c1"), await air.transmit(sending, caller="c1")
            assert first == again
            assert len(air.sky.ledger.sent) == 1

    asyncio.run(play())


def test_two_calls_at_once_for_one_key_are_one_transmission(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            first, second = await asyncio.gather(air.sky.send(sending), air.sky.send(sending))
            assert first == second
            assert len(air.sky.ledger.sent) == 1

    asyncio.run(play())


def test_another_frame_under_a_used_key_is_refused(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.put_on_air(sending, blob)
            other, other_blob = order(update=UPDATE[::-1])
            with pytest.raises(Replayed):
                await air.transmit(other, caller="c1")
            with pytest.raises(Replayed):
                await air.write("c1", other_blob, prefix=f"frames/{sending.key.text}")
            assert len(await air.hear(Listener.MAIN)) == 1

    asyncio.run(play())


def test_who_is_no_client_of_the_scenario_takes_no_room_on_the_disk(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order("c9")
            with pytest.raises(NotYours):
                await air.write("c9", blob, prefix=f"frames/{sending.key.text}")

    asyncio.run(play())


def test_a_client_cannot_transmit_as_another(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order("c1")
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(NotYours):
                await air.transmit(sending, caller="c2")
            with pytest.raises(NotYours):
                await air.write("c2", blob, prefix=f"frames/{sending.key.text}")

    asyncio.run(play())


def test_what_was_not_written_or_exceeds_the_device_is_not_sent(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            with pytest.raises(MalformedUpdate):
                await air.transmit(sending, caller="c1")
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(LimitExceeded):
                await air.transmit(replace(sending, power=Watt(0.3)), caller="c1")
            ahead = replace(sending, key=replace(sending.key, round_id=2))
            with pytest.raises(LimitExceeded, match="round 2"):
                await air.write("c1", blob, prefix=f"frames/{ahead.key.text}")
            with pytest.raises(LimitExceeded):
                await air.transmit(ahead, caller="c1")
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_a_tiny_frame_of_many_codewords_is_refused_before_anything_is_drawn(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            words = 100
            bits = words * DESIGN.info_bits
            design = replace(DESIGN, codewords=words, message_bits=64, random_bits=bits - 64)
            sending, blob = order(update=bytes(400), secrecy=design)
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(MalformedUpdate, match="codewords"):
                await air.transmit(sending, caller="c1")
            assert air.medium.chunks == []

    asyncio.run(play())


def test_what_nobody_can_hear_is_refused(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(MalformedUpdate, match="nothing can be heard"):
                await air.transmit(replace(sending, power=Watt(5e-324)), caller="c1")
            with pytest.raises(LimitExceeded):
                await air.transmit(replace(sending, bandwidth=Hertz(5e-324)), caller="c1")
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


@pytest.mark.parametrize("fidelity", ["bit_exact", "hybrid"])
def test_a_frame_of_another_fidelity_is_refused(kits: Kits, tmp_path: Path, fidelity: str) -> None:
    async def play() -> None:
        async with running(kits, tmp_path, fidelity=fidelity) as air:
            with pytest.raises(MalformedUpdate, match=f"the air runs {fidelity}"):
                await air.put_on_air(*order(fidelity="abstract"))
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_a_code_that_nobody_has_measured_and_seeds_of_wrong_length_are_refused(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            with pytest.raises(MalformedUpdate, match="no coding point"):
                await air.put_on_air(*order(secrecy=replace(DESIGN, code_bits=10_248)))
            sending, blob = order("c2")
            await air.write("c2", blob, prefix=f"frames/{sending.key.text}")
            request = air_pb2.TransmitRequest(transmission=convert.transmission_to_wire(sending))
            for name in ("toeplitz", "dither"):
                short = air_pb2.TransmitRequest()
                short.CopyFrom(request)
                setattr(short.transmission.seed, name, getattr(sending.seed, name)[:-1])
                with pytest.raises(MalformedUpdate, match="seed"), faults.translated():
                    await air.stub(Role.CLIENT, "c2").Transmit(short, timeout=5).read()
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_damaged_frames_are_refused_and_cost_no_notice(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path) as air:
            sending, blob = order()
            head = 32 + 12  # sizes, then three indices
            swapped = blob[: head - 4] + blob[head : head + 4] + blob[head - 4 : head] + blob[head + 4 :]
            for damaged in (b"HTFR" + bytes(60), blob[:-1], blob + b"\0", blob[:20], swapped):
                await air.write("c1", damaged, prefix=f"frames/{sending.key.text}")
                with pytest.raises(MalformedUpdate):
                    await air.transmit(replace(sending, frame=Digest.of(damaged), frame_bytes=len(damaged)), caller="c1")
            assert air.sky.ledger.sent == ()

    asyncio.run(play())


def test_frames_and_updates_have_a_largest_size(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        sending, blob = order()
        async with running(kits, tmp_path / "a", limits=LimitsConfig(frame_bytes_max=len(blob) - 1)) as air:
            with pytest.raises(LimitExceeded):
                await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            with pytest.raises(LimitExceeded, match="frame_bytes_max"):
                await air.transmit(sending, caller="c1")
        async with running(kits, tmp_path / "b", limits=LimitsConfig(update_bytes_max=len(UPDATE) - 1)) as air:
            with pytest.raises(LimitExceeded, match="update_bytes_max"):
                await air.put_on_air(sending, blob)

    asyncio.run(play())


OPEN = open_design(point_of(DESIGN), codewords=4)
KEY = random_update(32)


@pytest.mark.parametrize(
    ("protection", "part", "secrecy", "update", "allowed"),
    [
        ("payload", Part.PAYLOAD, DESIGN, UPDATE, True),
        ("payload", Part.PAYLOAD, OPEN, UPDATE, False),
        ("payload", Part.KEY, DESIGN, KEY, False),
        ("key", Part.KEY, DESIGN, KEY, True),
        ("key", Part.KEY, OPEN, KEY, False),
        ("key", Part.KEY, DESIGN, KEY + b"1", False),
        ("key", Part.PAYLOAD, OPEN, UPDATE, True),
        ("key", Part.PAYLOAD, DESIGN, UPDATE, False),
        ("crypto_only", Part.PAYLOAD, OPEN, UPDATE, True),
        ("crypto_only", Part.PAYLOAD, DESIGN, UPDATE, False),
        ("crypto_only", Part.KEY, DESIGN, KEY, False),
    ],
)
def test_parts_go_as_the_scenarios_protections_say(
    kits: Kits, tmp_path: Path, protection: str, part: Part, secrecy: SecrecyDesign, update: bytes, allowed: bool
) -> None:
    async def play() -> None:
        async with running(kits, tmp_path, protections=(protection,)) as air:
            sending, blob = order(update=update, secrecy=secrecy, part=part)
            await air.write("c1", blob, prefix=f"frames/{sending.key.text}")
            if allowed:
                assert (await air.transmit(sending, caller="c1"))[1] == ()
                return
            with pytest.raises(MalformedUpdate, match="part"):
                await air.transmit(sending, caller="c1")

    asyncio.run(play())
