"""Does what the referee is told about the tap agree with theory and with what the tap hears?"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from hushtune_common.link.abstraction import Fading
from hushtune_common.link.leakage import information_density
from hushtune_common.link.modem import densities
from hushtune_common.link.reception import Reception
from hushtune_common.messages import Listener
from hushtune_common.units import Watt
from hushtune_server.air.bit_exact import codewords_of, path_of
from hushtune_server.air.ledger import Sent
from tests.air_stage import DESIGN, SEEDS, order, running
from tests.kits import Kits
from tests.radio import random_update, reader


@pytest.fixture
def kits(tmp_path: Path) -> Kits:
    return Kits(tmp_path / "kits")


@pytest.mark.parametrize("fidelity", ["bit_exact", "hybrid"])
@pytest.mark.parametrize("fading", ["none", "rayleigh_block"])
def test_the_meter_reads_the_very_noise_that_the_tap_hears(kits: Kits, tmp_path: Path, fidelity: str, fading: str) -> None:
    sending, blob = order(fidelity=fidelity, update=random_update(150 * DESIGN.payload_bytes))
    sending = replace(sending, power=Watt(3e-5))

    async def play() -> tuple[dict[str, Any], list[Reception]]:
        async with running(kits, tmp_path, fidelity=fidelity, fading=fading, metered_blocks=70) as air:
            await air.put_on_air(sending, blob)
            return air.sky.ledger.report()[0], await air.hear(Listener.TAP)

    entry, receptions = asyncio.run(play())
    frame = reader(blob)
    rows = np.concatenate([frame.chunk(k, design=DESIGN).rows for k in range(3)])[:70]
    soft = np.concatenate([r.soft for r in receptions])[:70].reshape(70, -1)
    (gain,) = {r.gain_log2 for r in receptions}
    signs = np.where(np.unpackbits(rows, axis=1, bitorder="little") == 1, -1.0, 1.0)[: len(soft)]
    # Over QPSK a density is 1 - log2(1 + exp(-L)) with L the log-likelihood ratio of the bit that was sent. 3 L was rounded,
    # or with a receiver's gain a multiple of it: an error of variance 1 / 108 at most, which adds 14 bits to the sum (one
    # deviation) and a mean that the second derivative gives.
    ratio = signs * soft / (3.0 * 2**gain)
    density = 1.0 - np.log2(1.0 + np.exp(-ratio)) + expit(ratio) * expit(-ratio) / np.log(2.0) / 216.0 / 4**gain
    error = np.array(entry["meter"]["values_bits"]) - density.sum(axis=1)
    assert entry["meter"]["blocks"] == len(rows) == 70 <= entry["blocks_coded"]
    assert np.sqrt(np.mean(error**2)) < 20.0 < 50.0 < density.sum(axis=1).std()
    assert entry["meter"]["max_bits"] == pytest.approx(max(entry["meter"]["values_bits"]), abs=0.05)


def test_the_meter_agrees_with_theory_and_with_the_modem(kits: Kits, tmp_path: Path) -> None:
    sending, blob = order(fidelity="bit_exact", update=random_update(100 * DESIGN.payload_bytes))

    async def play() -> tuple[Sent, float]:
        async with running(kits, tmp_path, fidelity="bit_exact") as air:
            sent = await air.put_on_air(sending, blob)
            return sent, air.sky.geography.gain_tap("c1", 1)

    sent, gain = asyncio.run(play())
    assert sent.meter is not None
    about: dict[str, Any] = {"listener": Listener.TAP, "transmission": sending, "gain": gain, "seeds": SEEDS}
    chunk = reader(blob).chunk(1, design=DESIGN)
    words, dither = codewords_of(chunk.rows, sending)
    path = path_of(chunk, **about, fading=Fading(subbands=0))
    values = densities(words, dither=dither, modulation="qpsk", path=path).reshape(-1, 4).sum(axis=1)
    assert sent.meter.values_bits[64:] == pytest.approx(values, abs=0.051)
    theory, dimensions = information_density("qpsk", sent.snr_tap_db), DESIGN.codewords * DESIGN.code_bits
    spread = (dimensions * theory.variance) ** 0.5
    assert abs(sent.meter.values_bits.mean() - dimensions * theory.mean) < 4 * spread / 100**0.5
    assert 0.7 * spread < sent.meter.values_bits.std() < 1.3 * spread


def test_constellations_show_the_points_that_were_sent_with_each_listeners_noise(kits: Kits, tmp_path: Path) -> None:
    async def play() -> Sent:
        async with running(kits, tmp_path, fidelity="bit_exact") as air:
            return await air.put_on_air(*order(fidelity="bit_exact"))

    sent = asyncio.run(play())
    assert sent.constellation is not None
    for points, snr_db in ((sent.constellation.main, sent.snr_main_db), (sent.constellation.tap, sent.snr_tap_db)):
        assert len(points) == 256
        power = np.square(points).sum(axis=1).mean()  # the signal has power 2 over both dimensions
        assert power == pytest.approx(2 + 2 * 10 ** (-snr_db / 10), rel=0.3)


def test_without_coded_blocks_or_metering_there_is_no_meter(kits: Kits, tmp_path: Path) -> None:
    async def play() -> None:
        async with running(kits, tmp_path / "a") as air:
            await air.put_on_air(*order())
            (entry,) = air.sky.ledger.report()
            assert (entry["blocks_coded"], entry["meter"], entry["constellation"]) == (0, None, None)
            assert (entry["part"], entry["random_bits"]) == ("payload", DESIGN.random_bits)
        async with running(kits, tmp_path / "b", fidelity="bit_exact", metered_blocks=0) as air:
            sent = await air.put_on_air(*order(fidelity="bit_exact"))
            assert sent.meter is None
            assert sent.constellation is not None

    asyncio.run(play())
