"""Do secret bits come from the operating system, are substitutes marked, and can noise never stand in for them?"""

import os
from typing import Any, Literal

import numpy as np
import pytest

from hushtune_common.link.modular import BlockCode, draw_public
from hushtune_common.link.randomness import OsRandomness, SecretRng, SeededRandomness, secret_rng
from hushtune_common.seeding import SeedTree
from tests.radio import qpsk_design

SEEDS = SeedTree(3).child("random")
KINDS: list[Literal["os", "seeded"]] = ["os", "seeded"]


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest) -> SecretRng:
    return secret_rng(request.param, seeds=SEEDS)


@pytest.mark.parametrize("count", [0, 1, 7, 4096])
def test_as_many_bytes_are_drawn_as_were_asked_for(source: SecretRng, count: int) -> None:
    assert len(source.draw(count)) == count


def test_no_draw_repeats_another(source: SecretRng) -> None:
    assert len({source.draw(16) for _ in range(1000)}) == 1000


def test_bits_are_balanced(source: SecretRng) -> None:
    bits = np.unpackbits(np.frombuffer(source.draw(100_000), dtype=np.uint8))
    assert abs(int(bits.sum()) - bits.size / 2) < 5 * np.sqrt(bits.size) / 2


def test_only_the_operating_system_is_secret() -> None:
    assert secret_rng("os", seeds=SEEDS).secret
    assert not secret_rng("seeded", seeds=SEEDS).secret


def test_secret_bits_are_those_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"\x5a" * count)  # pyright: ignore[reportUnknownLambdaType]
    assert OsRandomness().draw(3) == b"ZZZ"


def test_seeded_bits_repeat_with_their_node_and_differ_at_any_other() -> None:
    again, other = SeededRandomness(SEEDS), SeededRandomness(SEEDS.child("2"))
    first = SeededRandomness(SEEDS)
    drawn = [first.draw(n) for n in (5, 32, 1)]
    assert [again.draw(n) for n in (5, 32, 1)] == drawn
    assert other.draw(32) != drawn[1]


def test_noise_is_no_source_of_secret_bits() -> None:
    noise: Any = SEEDS.generator()
    design = qpsk_design(codewords=1)
    payloads = np.zeros((1, design.payload_bytes), dtype=np.uint8)
    with pytest.raises(AttributeError):
        draw_public(design, randomness=noise)
    with pytest.raises(AttributeError):
        BlockCode(design, toeplitz=bytes(design.toeplitz_bytes)).encode(payloads, randomness=noise)
