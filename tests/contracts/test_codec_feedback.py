"""Does error feedback bring home what small updates leave out, with the codec that zeroes most of them?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_client.feedback import corrected, left_over
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.factors import weighed
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.config import CodecConfig
from tests.codecs import normal, specs, uneven, zeros

SHAPES = {"a": (128, 96), "b": (96, 160), "c": (96,)}
ZERO = zeros(normal(1, shapes=SHAPES))


def codec_of(*, feedback: bool, rank: int = 0, known: Sensitivity | None = None) -> AdapterCodec:
    return make_codec(CodecConfig(bits=32.0, rank=rank), shipped=ZERO, sensitivity=known, feedback=feedback)


def heard(codec: AdapterCodec, state: AdapterState, *, bits: float) -> AdapterState:
    return codec.decode(codec.encode(state, budget_bytes=round(bits * ZERO.count / 8)), specs(ZERO))


def length(state: AdapterState, known: Sensitivity) -> float:
    """Return the length of a change as the loss weighs it."""
    parts = (weighed(t, Coordinates.of(t.shape, known.tensors[n])) for n, t in state.tensors.items())
    return float(np.sqrt(sum(np.square(part, dtype=np.float64).sum() for part in parts)))


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.15, 4.0), st.floats(0.0, 3.0), st.sampled_from([0, 4]))
def test_what_is_left_over_is_never_longer_than_what_was_to_be_said(seed: int, bits: float, spread: float, rank: int):
    rng, known = np.random.default_rng(seed), uneven(ZERO, seed=seed)
    drawn = normal(seed, shapes=SHAPES).tensors
    rough = {n: t * np.exp2(spread * rng.standard_normal(t.shape)) for n, t in drawn.items()}
    change = AdapterState({n: t.astype(np.float32) for n, t in rough.items()})
    decoded = heard(codec_of(feedback=True, rank=rank, known=known), change, bits=bits)
    assert length(left_over(change, decoded), known) <= length(change, known) * (1.0 + 1e-5)


def played(*, feedback: bool, bits: float, rounds: int) -> list[tuple[float, float]]:
    """Return, per round, what is left over as a share of a change, and how far apart the means of changes are."""
    codec, direction = codec_of(feedback=feedback), normal(2, shapes=SHAPES)
    residual, total, found = None, zeros(ZERO), list[tuple[float, float]]()
    flat = Sensitivity.flat(specs(ZERO))
    for number in range(1, rounds + 1):
        wanted = corrected(direction, residual)
        decoded = heard(codec, wanted, bits=bits)
        residual = left_over(wanted, decoded)
        total = corrected(total, decoded)
        mean = AdapterState({n: t / np.float32(number) for n, t in total.tensors.items()})
        whole = length(direction, flat)
        found.append((length(residual, flat) / whole, length(left_over(direction, mean), flat) / whole))
    return found


@pytest.mark.slow
def test_over_rounds_what_is_left_over_stays_bounded_and_the_mean_comes_close_to_the_true_change():
    rounds = played(feedback=True, bits=0.6, rounds=40)
    left, apart = zip(*rounds, strict=True)
    assert max(left[20:]) < 1.2 * max(left[:20])
    assert apart[-1] == pytest.approx(left[-1] / 40, rel=1e-3)
    assert apart[-1] < 0.5 * apart[9] < 0.5 * apart[0]


@pytest.mark.slow
def test_values_scaled_up_for_a_single_update_would_pile_up():
    alone, ours = played(feedback=False, bits=0.6, rounds=40), played(feedback=True, bits=0.6, rounds=40)
    assert alone[-1][0] > 2.0 * ours[-1][0]
    assert alone[0][0] > 1.0 > ours[0][0]
