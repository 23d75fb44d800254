"""Does every medium keep its laws?"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.channel import Assembly, Frame, Reception, cut
from hushtune_common.messages import Listener, RunId
from hushtune_common.seeding import SeedTree
from hushtune_common.units import PowerRatio
from hushtune_server.air.abstract import AbstractMedium
from hushtune_server.air.medium import Gains, Medium, Overheard
from tests.radio import ONE, frame_of, qpsk_design, random_update, scenario, transmission

DESIGN = qpsk_design(codewords=1)
FADINGS = ("none", "rayleigh_block")
SEEDS = SeedTree(1).child("air")
MEDIA = [AbstractMedium(scenario(air={"fading": f})) for f in FADINGS]
WATERFALL_DB = (5.15, 10.0)  # where each of them loses about half of the blocks
media = pytest.mark.parametrize("medium", MEDIA, ids=FADINGS)
losing = pytest.mark.parametrize(("medium", "snr_db"), list(zip(MEDIA, WATERFALL_DB, strict=True)), ids=FADINGS)


def carry(
    medium: Medium,
    frame: Frame,
    *,
    snr_db: float = 5.2,
    tap: float = 1.0,
    attempt: int = 1,
    client: str = "c1",
    round_id: int = 1,
    run: str = "run-1",
) -> Overheard:
    order = transmission(frame, DESIGN, client=client, attempt=attempt, snr_db=snr_db)
    order = replace(order, key=replace(order.key, round_id=round_id, run=RunId(run)))
    return medium.carry(frame, transmission=order, gains=Gains(main=ONE, tap=PowerRatio(tap)), seeds=SEEDS)


@media
def test_replaying_a_key_gives_equal_receptions(medium: Medium) -> None:
    frame = frame_of(50_000, DESIGN)
    first, again = carry(medium, frame), carry(medium, frame)
    assert (first.main.to_bytes(), first.tap.to_bytes()) == (again.main.to_bytes(), again.tap.to_bytes())


@losing
def test_main_and_tap_draw_independently(medium: Medium, snr_db: float) -> None:
    frame = frame_of(2000 * DESIGN.payload_bytes, DESIGN)
    both = carry(medium, frame, snr_db=snr_db)
    main, tap = both.main.heard.astype(float), both.tap.heard.astype(float)
    assert 0.1 < main.mean() < 0.9
    assert abs(np.corrcoef(main, tap)[0, 1]) < 4 / 2000**0.5


@losing
@pytest.mark.parametrize(
    "other", [{"attempt": 2}, {"client": "c2"}, {"round_id": 2}, {"run": "run-2"}], ids=lambda o: next(iter(o))
)
def test_every_part_of_the_key_has_draws_of_its_own(medium: Medium, snr_db: float, other: dict[str, Any]) -> None:
    frame = frame_of(500 * DESIGN.payload_bytes, DESIGN)
    first, second = carry(medium, frame, snr_db=snr_db), carry(medium, frame, snr_db=snr_db, **other)
    assert (first.main.heard != second.main.heard).any()
    assert (first.tap.heard != second.tap.heard).any()


@media
def test_with_ample_snr_nearly_everything_arrives_unchanged(medium: Medium) -> None:
    update = random_update(200_000)
    got = carry(medium, cut(update, design=DESIGN), snr_db=40.0)
    assembly = Assembly(len(update), DESIGN.payload_bytes)
    assembly.add(got.main)
    assert len(assembly.missing) <= 3
    again = carry(medium, cut(update, design=DESIGN, only=assembly.missing or (0,)), snr_db=40.0, attempt=2)
    assembly.add(again.main)
    assert assembly.data() == update


@media
def test_in_the_designed_regime_the_tap_decodes_nothing(medium: Medium) -> None:
    got = carry(medium, frame_of(200_000, DESIGN), snr_db=6.0, tap=10 ** (-1.4))
    assert not got.tap.heard.any()
    assert got.tap.blocks.size == 0
    assert got.snr_tap_db == pytest.approx(-8.0)


@media
@given(size=st.integers(1, 20_000), snr_db=st.floats(-20.0, 30.0))
def test_frame_and_listener_are_kept(medium: Medium, size: int, snr_db: float) -> None:
    frame = frame_of(size, DESIGN)
    got = carry(medium, frame, snr_db=snr_db)
    for reception, listener in ((got.main, Listener.MAIN), (got.tap, Listener.TAP)):
        assert reception.listener is listener
        assert reception.indices.tolist() == frame.indices.tolist()
        assert reception.update_bytes == size
        assert (reception.blocks == frame.blocks[reception.heard]).all()
        assert Reception.from_bytes(reception.to_bytes()).to_bytes() == reception.to_bytes()


@media
def test_airtime_is_symbols_over_bandwidth(medium: Medium) -> None:
    frame = frame_of(10 * DESIGN.payload_bytes, DESIGN)
    assert carry(medium, frame).airtime == pytest.approx(10 * 5120 / 1e6)


@media
def test_a_frame_of_another_design_is_refused(medium: Medium) -> None:
    frame = frame_of(1000, qpsk_design(codewords=2))
    with pytest.raises(MalformedUpdate, match="design carries"):
        carry(medium, frame)


@pytest.mark.slow
@media
def test_28_megabytes_take_less_than_a_second_of_processor_time(medium: Medium) -> None:
    frame = frame_of(28_000_000, DESIGN)
    start = time.process_time()
    carry(medium, frame)
    assert time.process_time() - start < 1.0
