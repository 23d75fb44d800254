"""With error feedback, do the decoded changes that a model kept add up to the true ones, whatever happens to single updates?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune_client.feedback import Residuals, corrected, left_over
from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import CodecConfig
from hushtune_common.messages import Digest, TensorSpec
from hushtune_common.seeding import SeedTree

NAME = "model.layers.0.mlp.up_proj.weight"
SCHEMA = (TensorSpec(name=NAME, shape=(16, 24), dtype="F32", block=0),)
CONFIG = CodecConfig(kind="blockwise", bits=3)


def drawn(seed: int, *, scale: float) -> Float32:
    return (scale * SeedTree(seed).child("values").generator().standard_normal((16, 24))).astype(np.float32)


def state(values: Float32) -> AdapterState:
    return AdapterState({NAME: values})


@dataclass
class Client:
    """A client and its owner's seat, with the production parts: codec, residuals, and their book-keeping."""

    shipped: AdapterState

    def __post_init__(self) -> None:
        self.residuals = Residuals()
        self.files: dict[int, AdapterState] = {}
        self.decoded = self.true = np.zeros((16, 24))

    def play(self, round_id: int, delta: Float32, *, kept: bool) -> None:
        """Train by ``delta``, send with a codec of three bits, and hear whether the model kept it."""
        codec = make_codec(CONFIG, shipped=self.shipped)
        trained = state(self.shipped.tensors[NAME] + delta)
        owed = self.residuals.current(before=round_id)
        wanted = corrected(trained, None if owed is None else self.files[owed])
        arrived = codec.decode(codec.encode(wanted, budget_bytes=codec.bytes_max), SCHEMA)
        self.files[round_id] = left_over(wanted, arrived)
        self.residuals = self.residuals.sealed(round_id, Digest.of(self.files[round_id].tensors[NAME].tobytes()))
        self.residuals = self.residuals.judged(round_id, kept=kept)
        if kept:
            self.decoded = self.decoded + (arrived.tensors[NAME].astype(np.float64) - self.shipped.tensors[NAME])
            self.true = self.true + (trained.tensors[NAME].astype(np.float64) - self.shipped.tensors[NAME])
            self.shipped = arrived

    @property
    def owed(self) -> Float32:
        newest = self.residuals.current(before=1 << 30)
        return np.zeros((16, 24), np.float32) if newest is None else self.files[newest].tensors[NAME]


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_the_kept_changes_add_up_to_the_true_ones_less_the_last_residual(kept: Sequence[bool]) -> None:
    client = Client(state(drawn(0, scale=0.05)))
    for round_id, stays in enumerate(kept, start=1):
        client.play(round_id, drawn(round_id, scale=1e-3), kept=stays)
    assert client.decoded + client.owed == pytest.approx(client.true, abs=1e-7 * len(kept))


def test_over_many_rounds_the_error_stays_that_of_one_round_where_it_would_grow_without_feedback() -> None:
    fed, forgetful = Client(state(drawn(0, scale=0.05))), Client(state(drawn(0, scale=0.05)))
    delta = drawn(1, scale=1e-3)
    first = 0.0
    for round_id in range(1, 41):
        fed.play(round_id, delta, kept=True)
        forgetful.residuals = Residuals()
        forgetful.play(round_id, delta, kept=True)
        first = first or float(np.abs(fed.true - fed.decoded).max())
    assert float(np.abs(fed.true - fed.decoded).max()) < 3 * first
    assert float(np.abs(forgetful.true - forgetful.decoded).max()) > 10 * first


_rounds = st.lists(st.tuples(st.sampled_from(["sealed", "kept", "dropped"]), st.integers(1, 6)), max_size=20)


@given(_rounds, st.integers(1, 7))
def test_what_is_owed_is_that_of_the_newest_kept_update_and_nothing_is_owed_in_doubt(
    story: Sequence[tuple[str, int]], now: int
) -> None:
    residuals = Residuals()
    sealed, told = dict[int, Digest](), dict[int, bool]()
    for what, round_id in story:
        if what == "sealed":
            sealed[round_id] = Digest.of(bytes([round_id]))
            residuals = residuals.sealed(round_id, sealed[round_id])
        else:
            told.setdefault(round_id, what == "kept")
            residuals = residuals.judged(round_id, kept=what == "kept")
    doubtful = [r for r in sealed if r < now and r not in told]
    assert residuals.unanswered(before=now) == tuple(sorted(doubtful))
    if doubtful:
        with pytest.raises(ValueError, match="nobody knows"):
            residuals.current(before=now)
        return
    assert residuals.current(before=now) == max((r for r in sealed if r < now and told[r]), default=None)


@given(_rounds)
def test_no_residual_is_given_up_that_a_later_round_could_owe(story: Sequence[tuple[str, int]]) -> None:
    residuals = Residuals()
    for what, round_id in sorted(story, key=lambda s: s[1]):
        if what == "sealed":
            residuals = residuals.sealed(round_id, Digest.of(b""))
        else:
            residuals = residuals.judged(round_id, kept=what == "kept")
    answered = residuals
    for outcome in (True, False):
        for round_id in residuals.unanswered(before=100):
            answered = answered.judged(round_id, kept=outcome)
        owed = answered.current(before=100)
        assert owed is None or owed in residuals.needed
        answered = residuals
