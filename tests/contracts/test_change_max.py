"""Does what our client encodes ever move a weight further than the gate takes, whatever the codec, the bits and the round?"""

from collections.abc import Iterator
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_client.allowance import beyond, change_max
from hushtune_client.feedback import corrected, left_over
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.shipped import Shipped
from hushtune_common.config import CodecConfig, GateConfig, NoiseConfig, TrainingConfig
from hushtune_common.errors import BudgetTooSmall
from hushtune_common.model.rates import allowed, furthest
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.measure import changes
from hushtune_server.owner.gatekeeper.reach import overreach
from tests.codecs import normal, plus, same_bits, specs, uneven

SHIPPED = normal(1)
LARGER = normal(1, shapes={"a": (96, 96), "b": (64, 80), "c": (96,)})
NOISE = NoiseConfig(epsilon=2.0, clip=1e-3)
CONFIGS = {
    "rate_distortion": CodecConfig(bits=32.0),
    "blockwise": CodecConfig(kind="blockwise", bits=9.0, block_size=16),
    "lossless": CodecConfig(kind="lossless"),
    "jopeq": CodecConfig(kind="jopeq", bits=8.0, noise=NOISE),
    "low rank": CodecConfig(bits=32.0, rank=4),
    "low rank of integers": CodecConfig(kind="blockwise", bits=9.0, rank=4),
}
every_codec = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def granted(codec: AdapterCodec, state: AdapterState, share: float) -> bytes:
    try:
        return codec.encode(state, budget_bytes=round(share * codec.bytes_max))
    except BudgetTooSmall as refused:
        return codec.encode(state, budget_bytes=refused.least_bytes)


def judged(state: AdapterState, *, shipped: AdapterState, reach: float, reach_max: float = 1.5) -> Finding | None:
    return overreach(changes(state, shipped=shipped), reach=reach, reach_max=reach_max)


@every_codec
@settings(max_examples=40)
@given(st.integers(0, 1 << 16), st.floats(-30, 6), st.floats(-8, 8), st.floats(0, 1), st.floats(0.3, 3.0), st.booleans())
def test_what_is_decoded_passes_the_gate_whatever_was_to_be_sent(
    config: CodecConfig, seed: int, octave: float, larger: float, share: float, reach_max: float, fed: bool
) -> None:
    reach = 2.0**octave
    returned = plus(SHIPPED, normal(seed, scale=2.0 ** (octave + larger)))
    limit = allowed(reach, reach_max=reach_max)
    codec = make_codec(config, shipped=SHIPPED, sensitivity=uneven(SHIPPED, seed=seed), feedback=fed, change_max=limit)
    decoded = codec.decode(granted(codec, returned, share**3), specs(SHIPPED))
    assert judged(decoded, shipped=SHIPPED, reach=reach, reach_max=reach_max) is None


TRAINING = TrainingConfig(learning_rate=4e-4, batch_windows=4)


def played(config: CodecConfig, *, rounds: int, seed: int, bits: float, kept: bool) -> Iterator[tuple[Finding | None, float]]:
    """Yield what the gate finds in every round, and by how much the decoded changes and what is owed miss the true ones.

    Every weight moves as far as training can, in directions that agree in part from round to round: nothing honest is worse.
    """
    rng, shipped, residual = np.random.default_rng(seed), LARGER, None
    lean = {n: rng.uniform(0.2, 0.8, t.shape) for n, t in LARGER.tensors.items()}
    true, heard = ({n: np.zeros(t.shape) for n, t in LARGER.tensors.items()} for _ in range(2))
    for round_id in range(1, rounds + 1):
        reach = furthest(TRAINING, windows=24, round_id=round_id)
        limit = allowed(reach, reach_max=GateConfig().reach_max)
        step = {n: np.where(rng.random(p.shape) < p, reach, -reach) / round_id for n, p in lean.items()}
        trained = plus(shipped, AdapterState({n: s.astype(np.float32) for n, s in step.items()}))
        wanted = corrected(trained, residual)
        most = change_max(trained, shipped=shipped, gate=limit) if kept else inf
        codec = make_codec(config, shipped=shipped, sensitivity=uneven(shipped), feedback=True, change_max=most)
        decoded = codec.decode(granted(codec, wanted, bits * LARGER.count / 8 / codec.bytes_max), specs(LARGER))
        residual = None if config.noise else left_over(wanted, decoded)
        for n, t in shipped.tensors.items():
            true[n] += trained.tensors[n].astype(np.float64) - t
            heard[n] += decoded.tensors[n].astype(np.float64) - t
        owed = residual.tensors if residual else {n: true[n] - heard[n] for n in true}
        yield judged(decoded, shipped=shipped, reach=reach), max(float(np.abs(true[n] - heard[n] - owed[n]).max()) for n in true)
        shipped = decoded


@pytest.mark.slow
@every_codec
@pytest.mark.parametrize("bits", [0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
def test_an_honest_client_is_never_refused_in_any_round_and_still_owes_all_that_was_cut_off(
    config: CodecConfig, bits: float
) -> None:
    rounds = list(played(config, rounds=6, seed=round(100 * bits), bits=bits, kept=True))
    assert not any(found for found, _ in rounds)
    assert max(apart for _, apart in rounds) < 1e-5


def test_without_a_largest_change_the_same_client_would_be_refused() -> None:
    found = [f for f, _ in played(CONFIGS["rate_distortion"], rounds=4, seed=1, bits=0.5, kept=False) if f]
    assert found
    assert max(f.value for f in found) > 1.6


def test_what_lies_within_comes_back_bit_for_bit_and_the_rest_lies_as_near_to_it_as_may_be() -> None:
    returned, limit = plus(SHIPPED, normal(2, scale=0.1)), 0.07
    found = Shipped(SHIPPED).within(returned, change_max=limit)
    for name, start in SHIPPED.tensors.items():
        wide = start.astype(np.float64)
        near = np.abs(returned.tensors[name] - wide) <= limit
        assert same_bits(found.tensors[name][near], returned.tensors[name][near])
        change = np.abs(found.tensors[name] - wide)[~near]
        assert (change <= limit).all()
        assert (change >= limit - 2.0**-23 * (np.abs(wide[~near]) + limit)).all()


def test_what_training_did_is_not_cut_off_but_refused_where_it_went_too_far() -> None:
    reach = furthest(TRAINING, windows=24, round_id=1)
    trained = plus(SHIPPED, normal(3, scale=reach))
    limit = change_max(trained, shipped=SHIPPED, gate=allowed(reach, reach_max=1.5))
    codec = make_codec(CONFIGS["lossless"], shipped=SHIPPED, change_max=limit)
    decoded = codec.decode(codec.encode(trained, budget_bytes=codec.bytes_max), specs(SHIPPED))
    assert all(same_bits(decoded.tensors[n], t) for n, t in trained.tensors.items())
    assert judged(decoded, shipped=SHIPPED, reach=reach) is not None
    assert beyond(trained, shipped=SHIPPED, limit=limit) == 0


def test_a_client_that_minds_no_largest_change_is_refused_or_with_noise_cut_off_by_the_owner() -> None:
    reach, returned = 1e-3, plus(SHIPPED, normal(4, scale=1e-2))
    for config in CONFIGS.values():
        owner = make_codec(config, shipped=SHIPPED, change_max=allowed(reach, reach_max=1.5))
        blob = make_codec(config, shipped=SHIPPED).encode(returned, budget_bytes=owner.bytes_max)
        found = judged(owner.decode(blob, specs(SHIPPED)), shipped=SHIPPED, reach=reach)
        assert (found is None) == (config.noise is not None)
