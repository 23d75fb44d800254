"""Does every attack find its planted leak, carry an interval, and say what it may?"""

import json
from dataclasses import replace
from math import erfc, log2, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.abstraction import NO_FADING, Fading
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import flags_of
from hushtune_common.link.modular import BlockCode
from hushtune_common.link.wiretap import design, open_design
from hushtune_common.messages import Listener, Part, SecrecyDesign, TapModel
from hushtune_common.seeding import SeedTree
from hushtune_server.eavesdropper.control import positive_control
from hushtune_server.eavesdropper.decode import BlockDecoder
from hushtune_server.eavesdropper.evidence import Evidence, summary
from hushtune_server.eavesdropper.guess import GuessFile
from hushtune_server.eavesdropper.knowledge import PublicKnowledge
from hushtune_server.eavesdropper.looks import look_at
from hushtune_server.eavesdropper.proportion import Proportion
from hushtune_server.eavesdropper.target import Record, Target
from tests.radio import POINTS, link_seed, qpsk_design, random_update, scenario
from tests.tap import Overheard, overhear

SECRET = qpsk_design(codewords=2)
OPEN = open_design(POINTS["qpsk-0.825"], codewords=2)
UPDATE = random_update(20 * SECRET.payload_bytes - 100)
SEEDS = SeedTree(0).child("eavesdropper")
DECODER = BlockDecoder(iterations=16)
fidelities = pytest.mark.parametrize("fidelity", [*Fidelity])


def target(
    folder: Path,
    heard: Overheard,
    *,
    decoder: BlockDecoder = DECODER,
    margin_db: float = 3.0,
    secrecy: dict[str, object] | None = None,
) -> Target:
    """An attack on the part of a transmission, of which nothing has been heard yet."""
    sent = heard.notice.transmission
    fidelity = Fidelity(heard.notice.fidelity)
    public = PublicKnowledge.of(scenario(secrecy=secrecy), client="c1", part=sent.part, design=sent.design)
    record = Record(public=public, round_id=1, fidelity=fidelity, update_bytes=heard.notice.update_bytes, sent={})
    control = positive_control(sent.design, fidelity=fidelity, decoder=decoder, seeds=SEEDS, margin_db=margin_db)
    return Target(record, stem=folder / "c1-1-payload", control=control, decoder=decoder, seeds=SEEDS)


def hear(attack: Target, *transmissions: Overheard) -> Evidence:
    """Attack with whole transmissions."""
    for heard in transmissions:
        attack.begin(heard.notice)
        for chunk in heard.chunks:
            attack.take(chunk, attempt=heard.notice.transmission.key.attempt)
    return attack.evidence()


@fidelities
def test_in_the_designed_regime_nothing_is_decoded_and_the_control_is_recovered(fidelity: Fidelity, tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-5.5, fidelity=fidelity)
    found = hear(target(tmp_path, heard), heard)
    assert found.valid
    assert found.assumption_held
    assert found.tally.heard == Proportion(count=0, of=20)
    assert (found.bytes_known, found.bytes_total) == (0, len(UPDATE))
    assert found.snr_mean_db == pytest.approx(-5.5, abs=1e-4)


@fidelities
@pytest.mark.parametrize("secrecy", [SECRET, OPEN], ids=["secret", "open"])
def test_an_ample_snr_gives_the_update_away(secrecy: SecrecyDesign, fidelity: Fidelity, tmp_path: Path) -> None:
    heard = overhear(UPDATE, secrecy, snr_db=9.0, fidelity=fidelity)
    found = hear(target(tmp_path, heard), heard)
    assert found.bytes_known == len(UPDATE)
    assert (tmp_path / "c1-1-payload.bin").read_bytes() == UPDATE
    assert found.assumption_held is (False if secrecy.secret else None)
    assert any("the bound does not apply" in s for s in found.statement) == secrecy.secret
    assert any("hides NOTHING" in s for s in found.statement) != secrecy.secret


@fidelities
def test_the_same_receptions_give_the_same_evidence(fidelity: Fidelity, tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=5.15, fidelity=fidelity)
    first, second = (hear(target(tmp_path / name, heard), heard).to_json() for name in ("a", "b"))
    assert first == second


def test_wrong_guesses_of_bits_are_half_wrong_and_raw_bits_as_wrong_as_theory_says(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-5.0)
    found = hear(attack := target(tmp_path, heard), heard)
    attack.save()
    decoded = flags_of((tmp_path / "c1-1-payload.decoded").read_bytes(), count=20)
    assert decoded.all()
    guess = np.frombuffer((tmp_path / "c1-1-payload.bin").read_bytes(), np.uint8)
    wrong = np.unpackbits(guess ^ np.frombuffer(UPDATE, np.uint8)).mean()
    assert abs(wrong - 0.5) < 4.0 * sqrt(0.25 / (8 * len(UPDATE)))
    raw = 0.5 * erfc(sqrt(10**-0.5 / 2))  # Q(sqrt(Es/N0 per dimension))
    assert found.to_json()["raw_bit_error_estimate"] == pytest.approx(raw, abs=4.0 * sqrt(0.25 / found.tally.signs))


@pytest.mark.parametrize("snr_db", [-26.7, -35.0])
def test_a_very_weak_tap_keeps_what_its_soft_values_say_of_the_bits(snr_db: float, tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=snr_db)
    found = hear(attack := target(tmp_path, heard), heard)
    attack.save()
    raw = 0.5 * erfc(sqrt(10 ** (snr_db / 10) / 2))
    assert raw < 0.493
    assert found.to_json()["raw_bit_error_estimate"] == pytest.approx(raw, rel=1e-3)
    guess = np.frombuffer((tmp_path / "c1-1-payload.bin").read_bytes(), np.uint8)
    assert (guess == 0).mean() < 0.02


def test_retransmissions_count_in_the_bound_and_add_to_the_guess(tmp_path: Path) -> None:
    first = overhear(UPDATE, SECRET, snr_db=5.1)
    attack = target(tmp_path, first)
    before = hear(attack, first)
    lost = np.flatnonzero(~known(attack, tmp_path)).tolist()
    found = hear(attack, overhear(UPDATE, SECRET, snr_db=9.0, attempt=2, only=lost))
    assert 0 < before.bytes_known < found.bytes_known == len(UPDATE)
    assert (found.transmissions, found.blocks_sent) == (2, 20 + len(lost))
    assert found.log2_delta_total == pytest.approx(-64.0 + log2(20 + len(lost)))


def known(attack: Target, folder: Path) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    attack.save()
    return flags_of((folder / "c1-1-payload.known").read_bytes(), count=20)


def test_evidence_is_json_with_its_fidelity_interval_and_assumptions(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-6.0)
    written = json.loads(json.dumps(hear(target(tmp_path, heard), heard).to_json()))
    assert (written["fidelity"], written["part"], written["decode_share"]) == ("bit_exact", "payload", 1.0)
    assert (written["blocks_coded"], written["blocks_decoded"], written["crc_passes"]) == (20, 20, 0)
    assert written["share_heard_interval_95"][0] == 0.0 < written["share_heard_interval_95"][1] < 0.2
    said = " ".join(written["statement"])
    for words in (
        "every bit was encoded",
        "passive",
        "at most -5.00 dB",
        "2 x 2^-59.7",
        "12 dB",
        "not peer reviewed",
        "sanity check",
    ):
        assert words in said


def test_seeded_randomness_is_said_to_hide_nothing(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-6.0)
    found = hear(target(tmp_path, heard, secrecy={"randomness": "seeded"}), heard)
    assert any("REPRODUCIBLE, NOT SECRET" in sentence for sentence in found.statement)
    assert "reproducible, not secret" in summary([found], fidelity="bit_exact")
    assert found.to_json()["bound_void"] == "the random bits are reproducible, not secret"


def test_a_sample_of_blocks_is_decoded_when_no_more_are_wanted(tmp_path: Path) -> None:
    update = random_update(200 * SECRET.payload_bytes)
    heard = overhear(update, SECRET, snr_db=9.0)
    found = hear(target(tmp_path, heard, decoder=BlockDecoder(iterations=16, share=0.3)), heard)
    assert found.tally.coded == 200
    assert abs(found.tally.decoded - 60) < 4 * sqrt(200 * 0.3 * 0.7)
    assert found.bytes_known == found.tally.crc_passes * SECRET.payload_bytes


def test_a_reception_of_another_part_design_or_update_is_refused(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-6.0)
    attack = target(tmp_path, heard)
    for other in (
        overhear(UPDATE[:-1], SECRET, snr_db=-6.0),
        overhear(UPDATE, OPEN, snr_db=-6.0),
        overhear(UPDATE, SECRET, snr_db=-6.0, fidelity=Fidelity.ABSTRACT),
    ):
        with pytest.raises(MalformedUpdate, match="does not belong"):
            attack.begin(other.notice)
    attack.begin(heard.notice)
    chunk = heard.chunks[0]
    for wrong in (replace(chunk, chunk=1), replace(chunk, part=Part.KEY), replace(chunk, listener=Listener.MAIN)):
        with pytest.raises(MalformedUpdate):
            attack.take(wrong, attempt=1)
    assert hear(attack, heard).tally.decoded == 20


def test_an_attack_whose_control_fails_is_invalid_and_says_so(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-6.0)
    found = hear(target(tmp_path, heard, margin_db=-3.0), heard)
    assert not found.valid
    assert found.to_json()["valid"] is False
    assert found.statement[-1].startswith("INVALID")
    assert "FAILED" in summary([found], fidelity="bit_exact")


def test_where_nothing_was_coded_no_bound_of_bits_on_air_is_claimed(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-9.0, fidelity=Fidelity.ABSTRACT)
    found = hear(target(tmp_path, heard), heard)
    assert "no bit of it was on air" in (found.bound_void or "")
    assert "no leakage bound" in summary([found], fidelity="abstract")
    assert not any("operating system" in sentence for sentence in found.statement)


def test_an_assumption_that_nothing_was_heard_of_is_not_said_to_hold(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-9.0)
    (attack := target(tmp_path, heard)).begin(heard.notice)
    assert "could not be checked" in summary([attack.evidence()], fidelity="bit_exact")
    assert "assumption held" in summary([hear(attack, heard)], fidelity="bit_exact")


def test_an_assumption_that_failed_voids_the_bound(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-4.0)
    found = hear(target(tmp_path, heard), heard)
    assert "FAILED" in (found.bound_void or "")
    assert f"no leakage bound: {found.bound_void}" in summary([found], fidelity="bit_exact")


def test_the_control_needs_iterations_and_the_right_hash_seed() -> None:
    assert positive_control(SECRET, fidelity=Fidelity.BIT_EXACT, decoder=DECODER, seeds=SEEDS).passed
    assert not positive_control(SECRET, fidelity=Fidelity.BIT_EXACT, decoder=BlockDecoder(iterations=1), seeds=SEEDS).passed
    heard = overhear(UPDATE, SECRET, snr_db=9.0)
    wrong = BlockCode(SECRET, toeplitz=link_seed(SECRET, seed=5).toeplitz)
    assert not DECODER.read(heard.chunks[0], code=wrong, seeds=SEEDS).sound.any()


def test_a_design_with_outage_holds_the_mean_against_the_mean_and_outage_stands_apart(tmp_path: Path) -> None:
    made = design(POINTS["qpsk-0.825"], codewords=2, snr_tap_db=-5.0, log2_delta=-64.0, tap_model=TapModel.OUTAGE, subbands=16)
    heard = overhear(UPDATE, made, snr_db=-15.0, fading=Fading(subbands=16))
    found = hear(target(tmp_path, heard), heard)
    assert found.public.snr_bound_db == pytest.approx(-5.0 - 10 * np.log10(np.log(1000.0)))
    assert found.assumption_held
    assert (found.snr_max_db or 0.0) > (found.snr_mean_db or 0.0)
    assert found.outage == pytest.approx(1 - (1 - 1e-3) ** (20 * 2 * 16))
    assert any("not part of the bound" in sentence for sentence in found.statement)


def test_what_is_assumed_of_the_tap_depends_on_its_channel() -> None:
    def held(model: TapModel) -> bool | None:
        made = replace(SECRET, tap_model=model, subbands=0 if model is TapModel.FIXED else 16)
        public = PublicKnowledge.of(scenario(), client="c1", part=Part.PAYLOAD, design=made)
        return public.held(snr_mean_db=-6.0, snr_max_db=-4.0)

    assert held(TapModel.FIXED) is False  # one block was above
    assert held(TapModel.INTERLEAVED) is True  # the mean was below
    assert held(TapModel.OUTAGE) is False  # the mean was above -5 dB less 8.4 dB
    assert (
        PublicKnowledge.of(scenario(), client="c1", part=Part.PAYLOAD, design=OPEN).held(snr_mean_db=9.0, snr_max_db=9.0) is None
    )


@pytest.mark.slow
def test_two_messages_are_played_once_with_the_seed_of_the_transmission(tmp_path: Path) -> None:
    heard = overhear(UPDATE, SECRET, snr_db=-12.0, fading=NO_FADING)
    attack = target(tmp_path, heard)
    hear(attack, heard)
    seed = heard.notice.transmission.seed
    for trial in attack.trials((seed.toeplitz, seed.dither), blocks=600, threads=1):
        assert (trial.subject.snr_db, trial.train, trial.test) == (-5.0, 400, 200)  # the design allows more than it had
        attack.told(trial.run())
    told = attack.evidence().to_json()["distinguish"]
    assert isinstance(told, dict)
    assert told["valid"] is True
    assert attack.trials((seed.toeplitz, seed.dither), blocks=600, threads=1) == ()
    assert any("telling two messages apart" in s and "not evidence" in s for s in attack.evidence().statement)


def test_an_open_part_is_not_worth_telling_messages_apart(tmp_path: Path) -> None:
    heard = overhear(UPDATE, OPEN, snr_db=-12.0)
    attack = target(tmp_path, heard)
    hear(attack, heard)
    assert attack.trials((b"", heard.notice.transmission.seed.dither), blocks=600, threads=1) == ()


@given(steps=st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=12), tail=st.integers(1, 8))
def test_a_guess_keeps_the_best_of_each_block(
    steps: list[tuple[int, bool, bool]], tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stem, size = tmp_path_factory.mktemp("guess") / "x", 6 * 8 + tail
    model = [(0, b"\0" * 8)] * 7  # how good, and what: nothing, guessed, known
    guess = GuessFile(stem, update_bytes=size, block_bytes=8)
    for number, (block, sound, decoded) in enumerate(steps, start=1):
        row = bytes([number] * 8)
        sound |= not decoded
        if (2 if sound else 1) > model[block][0]:
            model[block] = (2 if sound else 1, row)
        rows = np.frombuffer(row, np.uint8).reshape(1, 8)
        guess.put(np.array([block], np.uint32), rows, sound=np.array([sound]), decoded=decoded)
    guess.save()
    again = GuessFile(stem, update_bytes=size, block_bytes=8)
    assert again.path.read_bytes() == b"".join(row for _, row in model)[:size]
    assert again.known.tolist() == [level == 2 for level, _ in model]
    assert b"".join(again.known_bytes()) == b"".join(row[: size - 8 * i] for i, (level, row) in enumerate(model) if level == 2)
    assert again.bytes_known == len(b"".join(again.known_bytes()))


def test_an_update_in_the_clear_is_recognised_and_a_sealed_one_is_not() -> None:
    clear = b'{"__metadata__":{}}' + b"\0" * 5000 + b"model.layers.0.self_attn.q_proj"
    pieces = [clear[:7], clear[7:5030], clear[5030:]]  # markers lie across the cuts
    assert look_at(pieces).markers == ("safetensors header", "tensor name")
    assert look_at([UPDATE]).markers == ()
    assert (look_at([clear]).uniformity_p or 0.0) < 1e-9
    assert 1e-4 < (look_at([UPDATE]).uniformity_p or 0.0) < 1 - 1e-4
    assert look_at([b"few"]).uniformity_p is None


@given(count=st.integers(0, 200), extra=st.integers(0, 200))
def test_the_interval_solves_wilsons_equation(count: int, extra: int) -> None:
    share = Proportion(count=count, of=max(count + extra, 1))
    z = 1.959963984540054
    for bound in share.interval:
        if 0.0 < bound < 1.0:  # the interval ends where |share - p| = z * sqrt(p (1 - p) / n)
            assert abs(share.share - bound) == pytest.approx(z * (bound * (1 - bound) / share.of) ** 0.5, rel=1e-6)
    assert share.interval[0] <= share.share <= share.interval[1]
