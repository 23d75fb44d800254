"""Does the air's ledger count once and know who waits?"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from hushtune_common.messages import BLOCKS_MAX, LinkSeed, Listener, Receipt, Transmission
from hushtune_common.store.journal import Journal
from hushtune_common.units import Decibel, Second
from hushtune_server.air.ledger import ACKNOWLEDGED, OVERHEARD, TRANSMITTED, Ledger, Sent, key_body, receipt_body
from hushtune_server.air.meter import Constellation, Meter
from tests.air_stage import DESIGN, UPDATE, order


def sent_of(sending: Transmission) -> Sent:
    return Sent(
        transmission=sending,
        blocks=3,
        blocks_coded=2,
        update_bytes=len(UPDATE),
        airtime=Second(1.0),
        fidelity="hybrid",
        snr_main_db=Decibel(3.0),
        snr_tap_db=Decibel(-5.0),
        meter=Meter.of(np.array([2024.75, 2100.0])),
        constellation=Constellation(main=((1.0, -1.0),), tap=((0.5, 0.25),)),
    )


def test_an_event_that_comes_twice_counts_once() -> None:
    sending, _ = order()
    sent, receipt = sent_of(sending), Receipt(key=sending.key, missing=(2,))
    ledger = Ledger()
    for _ in range(2):
        ledger.apply(TRANSMITTED, json.loads(json.dumps(sent.to_body())))
        ledger.apply(ACKNOWLEDGED, json.loads(json.dumps(receipt_body(receipt))))
        ledger.apply(OVERHEARD, json.loads(json.dumps(key_body(sending.key))))
    assert ledger.sent == (sent,)
    assert ledger.receipt(sending.key) == receipt
    assert ledger.awaited(sending.key) == frozenset()
    assert [n.seq for n in ledger.notices_after(0, Listener.TAP)] == [1]


def test_a_ledger_knows_who_waits() -> None:
    first, second = order(attempt=1)[0], order(attempt=2)[0]
    ledger = Ledger()
    assert ledger.awaited(first.key) == frozenset()
    ledger.apply(TRANSMITTED, sent_of(first).to_body())
    assert ledger.awaited(first.key) == {Listener.MAIN, Listener.TAP}
    ledger.apply(TRANSMITTED, sent_of(second).to_body())
    assert ledger.awaited(first.key) == {Listener.TAP}  # the client no longer hopes for an answer
    ledger.apply(OVERHEARD, key_body(first.key))
    ledger.apply(ACKNOWLEDGED, receipt_body(Receipt(key=second.key, missing=())))
    assert (ledger.awaited(first.key), ledger.awaited(second.key)) == (frozenset(), {Listener.TAP})


def test_the_largest_meter_and_the_longest_seeds_fit_into_an_event(tmp_path: Path) -> None:
    bits = 16 * DESIGN.info_bits
    largest = replace(DESIGN, codewords=16, message_bits=64, random_bits=bits - 64)
    seed = LinkSeed(toeplitz=bytes(largest.toeplitz_bytes), dither=bytes(largest.coded_bytes), tag=bytes(32))
    sent = replace(
        sent_of(replace(order()[0], design=largest, seed=seed)),
        meter=Meter.of(np.full(BLOCKS_MAX, 99_999.9)),
        constellation=Constellation(main=((-1.234, 5.678),) * 256, tap=((-10.234, 15.678),) * 256),
    )

    async def play() -> Sent:
        journal = Journal.open(tmp_path / "journal.sqlite", schema="test")
        event = await journal.append(TRANSMITTED, sent.to_body())
        await journal.close()
        return Sent.from_body(event.body)

    assert asyncio.run(play()) == sent
