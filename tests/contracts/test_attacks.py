"""Does every attack find its planted leak, carry an interval, and say what it may?"""

import json
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.abstraction import NO_FADING, Fading, hear
from hushtune_common.link.channel import Reception, cut
from hushtune_common.messages import Listener
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db
from hushtune_server.eavesdropper.attack import AbstractDecoder, Attack, PublicKnowledge
from hushtune_server.eavesdropper.decode import Proportion, best_guess, markers_in, uniformity
from tests.radio import qpsk_design, random_update, scenario

DESIGN = qpsk_design(snr_tap_db=-5.0)
PUBLIC = PublicKnowledge.of(scenario(), client="c1", design=DESIGN)
UPDATE = random_update(300_000)
ATTACKS: list[Attack] = [AbstractDecoder(seeds=SeedTree(0).child("eavesdropper"))]
attacks = pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)


def tapped(
    *, snr_db: float, update: bytes = UPDATE, only: list[int] | None = None, attempt: int = 1, fading: Fading = NO_FADING
) -> Reception:
    frame = cut(update, design=DESIGN, only=only)
    seeds = SeedTree(7).child(str(attempt))
    return hear(frame, listener=Listener.TAP, design=DESIGN, snr=from_db(snr_db), fading=fading, seeds=seeds)


@attacks
def test_in_the_designed_regime_nothing_is_decoded_and_the_control_is_recovered(attack: Attack) -> None:
    found = attack.run([tapped(snr_db=-5.5)], PUBLIC)
    assert found.valid
    assert found.assumption_held
    assert (found.blocks.count, found.bytes_known) == (0, 0)
    assert found.snr_mean_db == pytest.approx(-5.5, abs=1e-4)


@attacks
def test_a_planted_leak_is_found_and_the_failed_assumption_is_said(attack: Attack) -> None:
    found = attack.run([tapped(snr_db=9.0)], PUBLIC)
    assert found.blocks.share > 0.95
    assert found.bytes_known > 0.95 * len(UPDATE)
    assert not found.assumption_held
    assert any("the bound does not apply" in sentence for sentence in found.statement)


@attacks
def test_the_same_receptions_give_the_same_evidence(attack: Attack) -> None:
    assert attack.run([tapped(snr_db=5.3)], PUBLIC).to_json() == attack.run([tapped(snr_db=5.3)], PUBLIC).to_json()


@attacks
def test_retransmissions_count_in_the_bound_and_add_to_the_guess(attack: Attack) -> None:
    first = tapped(snr_db=5.15)
    lost = [int(i) for i in first.indices[~first.heard]]
    second = tapped(snr_db=9.0, only=lost, attempt=2)
    found = attack.run([first, second], PUBLIC)
    sent = first.indices.size + len(lost)
    assert found.blocks.of == sent
    assert found.log2_delta_total == pytest.approx(-64.0 + log2(sent))
    assert found.bytes_known == len(UPDATE)
    assert best_guess([first, second])[0].data == UPDATE


@attacks
def test_evidence_is_json_with_its_fidelity_interval_and_assumptions(attack: Attack) -> None:
    written = json.loads(json.dumps(attack.run([tapped(snr_db=-6.0)], PUBLIC).to_json()))
    assert written["fidelity"] == "abstract"
    assert written["share_heard_interval_95"][0] == 0.0
    assert 0.0 < written["share_heard_interval_95"][1] < 0.05
    said = " ".join(written["statement"])
    for words in (
        "nothing is claimed about actual bits",
        "passive",
        "at most -5.00 dB",
        "2 x 2^-57.",
        "12 dB",
        "not peer reviewed",
    ):
        assert words in said


@attacks
def test_receptions_of_another_design_or_update_are_refused(attack: Attack) -> None:
    other = PublicKnowledge.of(scenario(), client="c1", design=qpsk_design(snr_tap_db=0.0))
    with pytest.raises(MalformedUpdate, match="announced design"):
        attack.run([tapped(snr_db=0.0)], other)
    with pytest.raises(MalformedUpdate, match="does not belong"):
        attack.run([tapped(snr_db=0.0), tapped(snr_db=0.0, update=UPDATE[:-1])], PUBLIC)
    with pytest.raises(ValueError, match="nothing"):
        attack.run([], PUBLIC)


def test_an_attack_whose_control_fails_is_invalid_and_says_so() -> None:
    deaf = AbstractDecoder(seeds=SeedTree(0), control_margin_db=-3.0)
    found = deaf.run([tapped(snr_db=-6.0)], PUBLIC)
    assert not found.valid
    assert found.to_json()["valid"] is False
    assert found.statement[-1].startswith("INVALID")


def test_with_fading_the_mean_is_held_against_the_mean_and_outage_stands_apart() -> None:
    world = scenario(air={"fading": "rayleigh_block"})
    public = PublicKnowledge.of(world, client="c1", design=DESIGN)
    assert public.snr_mean_bound_db == pytest.approx(-5.0 - 10 * np.log10(np.log(1000.0)))
    found = ATTACKS[0].run([tapped(snr_db=-14.0, fading=Fading(subbands=16))], public)
    assert found.assumption_held
    assert found.snr_max_db > found.snr_mean_db
    assert found.outage == pytest.approx(1 - (1 - 1e-3) ** (found.blocks.of * 4 * 16))
    assert any("not part of the bound" in sentence for sentence in found.statement)


def test_the_guess_is_zero_where_nothing_is_known() -> None:
    got = tapped(snr_db=5.15)
    guess, _ = best_guess([got])
    known = np.frombuffer(guess.data, np.uint8)
    truth = np.frombuffer(UPDATE, np.uint8)
    assert (known[guess.known] == truth[guess.known]).all()
    assert not known[~guess.known].any()
    assert 0 < guess.bytes_known < len(UPDATE)


def test_an_update_in_the_clear_is_recognised_and_a_sealed_one_is_not() -> None:
    clear = b'{"__metadata__":{}}' + b"\0" * 5000 + b"model.layers.0.self_attn.q_proj"
    assert markers_in(clear) == ("safetensors header", "tensor name")
    assert markers_in(UPDATE) == ()
    assert (uniformity(clear) or 0.0) < 1e-9
    assert 1e-4 < (uniformity(UPDATE) or 0.0) < 1 - 1e-4
    assert uniformity(b"few") is None


@given(count=st.integers(0, 200), extra=st.integers(0, 200))
def test_the_interval_solves_wilsons_equation(count: int, extra: int) -> None:
    share = Proportion(count=count, of=max(count + extra, 1))
    z = 1.959963984540054
    for bound in share.interval:
        if 0.0 < bound < 1.0:  # the interval ends where |share - p| = z * sqrt(p (1 - p) / n)
            assert abs(share.share - bound) == pytest.approx(z * (bound * (1 - bound) / share.of) ** 0.5, rel=1e-6)
    assert share.interval[0] <= share.share <= share.interval[1]
