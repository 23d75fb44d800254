"""Does the referee of the bits on air count what is there, leave out what is not, and set the channel beside theory?"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from hushtune_common.link import modem
from hushtune_common.link.mcs import point_of
from hushtune_common.link.modular import BlockCode, dither_rows
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.randomness import SeededRandomness
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import Part, SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db
from hushtune_server.air.meter import Meter
from hushtune_server.eavesdropper.guess import GuessFile
from hushtune_server.testbed import link_referee
from hushtune_server.testbed.link_referee import BitErrors
from hushtune_server.testbed.rundir import RunDirectory
from tests.radio import link_seed, qpsk_design, random_update, scenario

DESIGN = qpsk_design(codewords=1)
OPEN = open_design(point_of(DESIGN), codewords=1)
DIGEST = "ab" * 32

Errors = Mapping[int, int]
"""Wrong bits by index of their byte."""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path)
    for name in ("air", "eavesdropper", "coordinator"):
        found.state(name).mkdir(parents=True)
    found.log("c1").parent.mkdir()
    return found


def assign(run: RunDirectory, *, round_id: int = 1, protection: str | None = "payload", client: str = "c1") -> None:
    body = {
        "client": client,
        "protection": protection,
        "design": asdict(DESIGN) if protection in {"payload", "key"} else None,
        "carrier": asdict(OPEN) if protection in {"key", "crypto_only"} else None,
    }
    path = run.state("coordinator") / f"round-{round_id}.json"
    path.write_text(json.dumps({"round_id": round_id, "assignments": [body]}), encoding="utf-8")


def seal(run: RunDirectory, update: bytes, *, round_id: int = 1) -> None:
    folder = run.state("c1") / "rounds" / str(round_id)
    folder.mkdir(parents=True)
    (folder / "sealed.bin").write_bytes(update)


def guess(run: RunDirectory, update: bytes, *, blocks: list[int], wrong: Errors, block_bytes: int, round_id: int = 1) -> None:
    """What the tap writes down when it decoded these blocks, right but for some bits."""
    count = -(-len(update) // block_bytes)
    believed = np.zeros(count * block_bytes, dtype=np.uint8)
    believed[: len(update)] = np.frombuffer(update, dtype=np.uint8)
    for at, bits in wrong.items():
        believed[at] ^= bits
    stem = run.state("eavesdropper") / "guesses" / f"c1-{round_id}-payload"
    file = GuessFile(stem, update_bytes=len(update), block_bytes=block_bytes)
    rows = believed.reshape(count, block_bytes)[blocks]
    file.put(np.array(blocks, dtype=np.uint32), rows, sound=np.zeros(len(blocks), dtype=np.bool_), decoded=True)
    file.save()


def carried(run: RunDirectory, *transmissions: Mapping[str, Any]) -> None:
    usual = {
        "client": "c1",
        "round_id": 1,
        "part": "payload",
        "blocks": 10,
        "blocks_coded": 10,
        "snr_main_db": 6.0,
        "snr_tap_db": -5.0,
        "meter": None,
        "constellation": None,
    }
    body = {"transmissions": [{**usual, **t} for t in transmissions]}
    (run.state("air") / "air.json").write_text(json.dumps(body), encoding="utf-8")


def overheard(run: RunDirectory, *updates: Mapping[str, Any]) -> None:
    usual = {
        "client": "c1",
        "round_id": 1,
        "part": "payload",
        "secret": True,
        "crc_passes": 0,
        "assumption_held": True,
        "log2_delta_total": -50.0,
        "outage": 0.0,
    }
    body = {"updates": [{**usual, **u} for u in updates]}
    (run.state("eavesdropper") / "evidence.json").write_text(json.dumps(body), encoding="utf-8")


def log(run: RunDirectory, process: str, *events: Mapping[str, Any]) -> None:
    run.log(process).write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")


def judged(run: RunDirectory, **air: Any) -> dict[str, Any]:
    return link_referee.judge(run, scenario(air=air))["clients"][0]


# -- bits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protection", "design"), [("payload", DESIGN), ("key", OPEN), ("crypto_only", OPEN)])
def test_planted_bit_errors_are_counted_over_all_reads_and_the_cut_last_block(
    run: RunDirectory, protection: str, design: SecrecyDesign
) -> None:
    size = design.payload_bytes
    update = random_update(1500 * size + 7)  # more blocks than are read at once
    last = len(update) - 1
    wrong = {0: 0b1, size: 0xFF, 1023 * size: 0b11, 1024 * size + 5: 0b101, last: 0x80}
    assign(run, protection=protection)
    seal(run, update)
    guess(run, update, blocks=list(range(1501)), wrong=wrong, block_bytes=size)
    bits = judged(run)["tap_bits"]
    assert (bits["bits_wrong"], bits["bits_compared"]) == (1 + 8 + 2 + 2 + 1, 8 * len(update))
    assert bits["bit_error_rate"] == 14 / (8 * len(update))
    assert bits["like_guessing"] is False


def test_blocks_that_were_not_guessed_are_left_out(run: RunDirectory) -> None:
    size = DESIGN.payload_bytes
    update = random_update(2100 * size)
    assign(run)
    seal(run, update)
    guess(run, update, blocks=[3, 1024, 2099], wrong={3 * size + 1: 0b111, 2099 * size: 0b1}, block_bytes=size)
    bits = judged(run)["tap_bits"]
    assert (bits["bits_wrong"], bits["bits_compared"]) == (4, 3 * 8 * size)


def test_a_guess_of_pure_chance_looks_like_one(run: RunDirectory) -> None:
    size = DESIGN.payload_bytes
    update = random_update(50 * size)
    chance = dict(enumerate(random_update(50 * size, seed=1)))
    assign(run)
    seal(run, update)
    guess(run, update, blocks=list(range(50)), wrong=chance, block_bytes=size)
    assert judged(run)["tap_bits"]["like_guessing"] is True


@pytest.mark.parametrize("of", [1000, 100_000])
def test_the_interval_of_guessing_is_that_of_fair_coins(of: int) -> None:
    low, high = BitErrors(wrong=0, of=of).interval_99
    inside = binom.cdf(np.floor(high * of), of, 0.5) - binom.cdf(np.ceil(low * of) - 1, of, 0.5)
    assert inside == pytest.approx(0.99, abs=0.1 / sqrt(of))  # more than one coin on either side
    for wrong, like in ((of // 2, True), (int(0.45 * of), False), (int(0.55 * of) + 1, False)):
        assert BitErrors(wrong=wrong, of=of).to_json()["like_guessing"] is like


@pytest.mark.parametrize("missing", ["sealed.bin", "c1-1-payload.bin", "c1-1-payload.decoded", "round-1.json"])
def test_without_one_of_the_files_nothing_is_said_about_bits(run: RunDirectory, missing: str) -> None:
    update = random_update(DESIGN.payload_bytes)
    assign(run)
    seal(run, update)
    guess(run, update, blocks=[0], wrong={}, block_bytes=DESIGN.payload_bytes)
    assert judged(run)["tap_bits"] is not None
    (path,) = run.path.rglob(missing)
    path.unlink()
    assert judged(run)["tap_bits"] is None


def test_nothing_guessed_or_a_guess_of_another_size_is_no_bit_error_rate(run: RunDirectory) -> None:
    size = DESIGN.payload_bytes
    assign(run)
    seal(run, random_update(3 * size))
    guess(run, random_update(3 * size), blocks=[], wrong={}, block_bytes=size)
    assert judged(run)["tap_bits"] is None
    guess(run, random_update(4 * size), blocks=[0], wrong={}, block_bytes=size)
    assert judged(run)["tap_bits"] is None


def test_the_last_round_is_judged_by_its_number(run: RunDirectory) -> None:
    size = DESIGN.payload_bytes
    for round_id, wrong in ((9, 0xFF), (10, 0b1)):
        update = random_update(size, seed=round_id)
        assign(run, round_id=round_id)
        seal(run, update, round_id=round_id)
        guess(run, update, blocks=[0], wrong={0: wrong}, block_bytes=size, round_id=round_id)
    assert judged(run)["tap_bits"]["bits_wrong"] == 1


def test_rounds_before_the_last_are_judged_too_each_by_itself(run: RunDirectory) -> None:
    for round_id in (1, 2, 3):
        assign(run, round_id=round_id)
    carried(run, {"blocks": 6}, {"round_id": 2, "blocks": 24}, {"round_id": 3, "blocks": 1})
    earlier = link_referee.judge(run, scenario())["earlier"]
    assert [(each["round_id"], each["clients"][0]["blocks_sent"]) for each in earlier] == [(1, 6), (2, 24)]
    assert earlier[1]["clients"][0]["log2_delta_all_rounds"] == pytest.approx(DESIGN.log2_delta + log2(6 + 24))


# -- bytes at the owner ------------------------------------------------------------------------------------------------


def test_the_owner_has_every_byte_only_when_the_digests_agree(run: RunDirectory) -> None:
    def owner_has(*digests: tuple[int, str, str]) -> bool | None:
        events = [{"event": "update_received", "round_id": r, "client": c, "digest": d} for r, c, d in digests]
        log(run, "owner", *events)
        return judged(run)["owner_has_every_byte"]

    assign(run)
    assert owner_has((1, "c1", DIGEST)) is None  # nobody knows what was sealed
    log(run, "c1", {"event": "update_sealed", "round_id": 1, "digest": DIGEST})
    assert owner_has((1, "c1", DIGEST)) is True
    assert owner_has((1, "c1", "cd" * 32)) is False
    assert owner_has((2, "c1", DIGEST), (1, "c2", DIGEST)) is None
    assert owner_has((1, "c1", "cd" * 32), (1, "c1", DIGEST)) is True  # the last one counts


# -- what is gathered --------------------------------------------------------------------------------------------------


def test_a_run_that_left_nothing_behind_is_judged_without_inventing_anything(run: RunDirectory) -> None:
    found = link_referee.judge(run, scenario(secrecy={"randomness": "seeded"}))
    assert found["randomness"] == "reproducible, not secret"
    assert "not evidence of secrecy" in found["caveat"]
    assert [c.pop("client") for c in found["clients"]] == ["c1", "c2", "c3"]
    counts = {"transmissions": 0, "blocks_sent": 0, "blocks_sent_bit_exact": 0, "tap_bits_protected": False}
    counts |= {"bound_void": "the random bits are reproducible, not secret"}
    for client in found["clients"]:
        assert {k: v for k, v in client.items() if v is not None} == counts


def test_transmissions_of_others_and_of_other_rounds_do_not_count(run: RunDirectory) -> None:
    assign(run)
    carried(run, {}, {"blocks": 3, "blocks_coded": 1}, {"client": "c2"}, {"round_id": 2})
    found = judged(run)
    assert (found["transmissions"], found["blocks_sent"], found["blocks_sent_bit_exact"]) == (2, 13, 11)
    assert (found["snr_main_db"], found["snr_tap_true_db"]) == (6.0, -5.0)


def test_what_leaked_at_most_adds_up_over_the_rounds(run: RunDirectory) -> None:
    for round_id in (1, 2, 3):
        assign(run, round_id=round_id, protection=None if round_id == 2 else "payload")
    carried(run, {"blocks": 6}, {"blocks": 2}, {"round_id": 3, "blocks": 24}, {"client": "c2", "blocks": 1000})
    found = judged(run)
    assert found["log2_delta_total"] == pytest.approx(DESIGN.log2_delta + log2(24))
    assert found["log2_delta_all_rounds"] == pytest.approx(DESIGN.log2_delta + log2(6 + 2 + 24))


@pytest.mark.parametrize(
    ("said", "held"),
    [([], None), ([None], None), ([True, None], None), ([True, True], True), ([True, False], False), ([None, False], False)],
)
def test_an_assumption_held_only_if_it_was_seen_to_hold_everywhere(
    run: RunDirectory, said: list[bool | None], held: bool | None
) -> None:
    assign(run)
    overheard(run, *({"assumption_held": s} for s in said), {"secret": False, "assumption_held": None})
    assert judged(run)["tap_assumption_held"] is held


def test_the_tap_is_judged_by_a_clients_secret_parts_and_open_parts_say_nothing(run: RunDirectory) -> None:
    assign(run, protection="key")
    open_part = {"secret": False, "crc_passes": 99, "log2_delta_total": 0.0}
    overheard(run, {"part": "key", "log2_delta_total": -63.0, "outage": 0.1, "crc_passes": 1}, open_part)
    found = judged(run)
    assert (found["outage"], found["tap_crc_passes"]) == (0.1, 1)
    overheard(run, open_part)
    assert [judged(run)[k] for k in ("outage", "tap_crc_passes")] == [None] * 2


# -- the channel between -----------------------------------------------------------------------------------------------


def metered(design: SecrecyDesign, *, blocks: int, snr_db: float, seeds: SeedTree) -> dict[str, Any]:
    """The air's figures for real blocks over the real channel to the tap."""
    seed = link_seed(design)
    payloads = np.frombuffer(random_update(blocks * design.payload_bytes), dtype=np.uint8).reshape(blocks, -1)
    coded = BlockCode(design, toeplitz=seed.toeplitz).encode(payloads, randomness=SeededRandomness(seeds.child("random")))
    path = modem.Path(snr=from_db(snr_db), gains=None, key=NoiseKey.of(seeds.child("noise")), first=0)
    words = coded.reshape(blocks * design.codewords, -1)
    dither = dither_rows(design, seed.dither)
    values = modem.densities(words, dither=dither, modulation=design.modulation, path=path)
    return Meter.of(values.reshape(blocks, -1).sum(axis=1)).report()


@pytest.mark.slow
def test_what_the_channel_passed_agrees_with_theory_and_stays_below_the_budget(run: RunDirectory) -> None:
    blocks = 200
    assign(run)
    carried(run, *({"meter": metered(DESIGN, blocks=blocks // 2, snr_db=-5.0, seeds=SeedTree(k))} for k in (1, 2)))
    found = judged(run)["density"]
    # QPSK at -5 dB carries 0.197731546 bit per real dimension with variance 0.433445163 (quadrature, nine digits).
    assert found["theory_mean_bits"] == pytest.approx(10240 * 0.197731546, abs=1e-3)
    assert found["theory_sd_bits"] == pytest.approx(sqrt(10240 * 0.433445163), abs=1e-3)
    assert abs(found["mean_bits"] - found["theory_mean_bits"]) < 4.0 * found["theory_sd_bits"] / sqrt(blocks)
    assert found["sd_bits"] == pytest.approx(found["theory_sd_bits"], rel=4.0 / sqrt(2.0 * blocks))
    assert found["mean_bits"] < found["max_bits"] < found["budget_bits"] == 2704
    assert found["blocks"] == len(found["values_bits"]) == blocks


def test_only_what_the_wiretap_code_protects_is_set_against_its_budget(run: RunDirectory) -> None:
    assign(run, protection="key")
    key, payload = ({"values_bits": [value]} for value in (2000.0, 9999.0))
    carried(run, {"part": Part.PAYLOAD.value, "meter": payload}, {"part": Part.KEY.value, "meter": key})
    found = judged(run)
    assert (found["density"]["max_bits"], found["density"]["budget_bits"]) == (2000.0, DESIGN.random_bits)
    assign(run, protection="crypto_only")
    assert judged(run)["density"] is None


def test_a_fading_channel_has_no_white_noise_theory(run: RunDirectory) -> None:
    assign(run)
    carried(run, {"meter": {"values_bits": [1.0, 3.0]}})
    found = judged(run, fading="rayleigh_block")["density"]
    assert (found["mean_bits"], found["sd_bits"]) == (2.0, 1.0)
    assert "theory_mean_bits" not in found


def test_the_first_constellation_that_was_kept_is_told(run: RunDirectory) -> None:
    assign(run)
    points = {"main": [[1.0, 0.0]], "tap": [[0.0, 1.0]]}
    carried(run, {}, {"constellation": points}, {"constellation": {"main": [], "tap": []}})
    assert judged(run)["constellation"] == points
