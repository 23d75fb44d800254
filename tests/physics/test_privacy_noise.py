"""Is the error of the private codec distributed as said, and does no output tell more than epsilon?"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product
from math import exp, inf, log

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from hushtune_common.codec import staircase
from hushtune_common.noise import GridNoise, Promise, Statement

Float64 = NDArray[np.float64]

GRIDS = [
    GridNoise(promise=Promise(epsilon=epsilon, clip=clip, block=block), steps=steps)
    for epsilon, clip, block, steps in (
        (0.5, 1e-3, 1, 1),
        (4.0, 1e-3, 1, 2),
        (2.0, 7.0, 1, 5),
        (30.0, 1.0, 1, 61),
        (6.0, 0.5, 3, 4),
    )
]
every_grid = pytest.mark.parametrize("noise", GRIDS, ids=lambda g: f"eps{g.promise.epsilon:g}-b{g.promise.block}-n{g.steps}")
NEVER = 1e-6
"""A right program fails a test with true randomness once in a million runs."""


def errors(noise: GridNoise, where: Float64) -> Float64:
    """Return the error of numbers ``where`` in shares of the clip, which are no more than their block may have."""
    change = where * noise.promise.clip
    (dither,) = staircase.dithers(staircase.fresh_seed(), (change.size,))
    codes = staircase.hidden(change, dither, noise=noise, tables=staircase.NoiseTables.of(noise))
    shift = (dither + 0.5) / 2**32 - 0.5
    return (codes + shift) * noise.step - change


def chance_of(decay: float, steps: Float64) -> Float64:
    """Return the chance of so many steps of noise, by scipy."""
    return np.asarray(stats.dlaplace.pmf(steps, decay))


def staircase_cdf(noise: GridNoise) -> Callable[[Float64], Float64]:
    """Return the distribution of a uniform error and so many steps of scipy's discrete Laplace."""

    def cdf(z: Float64) -> Float64:
        steps = z / noise.step + 0.5
        whole = np.floor(steps)
        return stats.dlaplace.cdf(whole - 1, noise.decay) + chance_of(noise.decay, whole) * (steps - whole)

    return cdf


@every_grid
def test_the_error_follows_the_staircase_wherever_the_number_lies(noise: GridNoise):
    for where in (np.zeros(20_000), np.full(20_000, 0.37), np.linspace(-0.999, 0.999, 20_000)):
        assert stats.kstest(errors(noise, where), staircase_cdf(noise)).pvalue > NEVER


def test_with_fine_steps_the_error_is_that_of_laplace():
    noise = GridNoise(promise=Promise(epsilon=2.0, clip=1.0, block=1), steps=200)
    laplace = stats.laplace(scale=2.0 * noise.promise.clip / noise.promise.epsilon)
    assert stats.kstest(errors(noise, np.full(20_000, 0.3)), laplace.cdf).pvalue > NEVER


def test_the_same_test_tells_a_noise_that_is_a_tenth_too_small():
    noise = GRIDS[1]
    assert stats.kstest(0.9 * errors(noise, np.zeros(20_000)), staircase_cdf(noise)).pvalue < NEVER


@every_grid
def test_the_mean_square_is_as_said(noise: GridNoise):
    found = np.square(errors(noise, np.full(40_000, -0.2)))
    assert found.mean() == pytest.approx(noise.variance, abs=6.0 * found.std() / 200.0)


def test_for_single_numbers_the_best_grid_errs_no_more_than_laplace():
    for epsilon in (0.01, 0.3, 1.0, 4.0, 12.0):
        best = Promise(epsilon=epsilon, clip=1.0, block=1).best(numbers=10**6, blocks=10**6, bytes_max=inf)
        assert best is not None
        assert best.variance <= 1.001 * 2.0 * (2.0 / epsilon) ** 2


def chances(noise: GridNoise, reach: int) -> list[Fraction]:
    """Return the chance of noise from -reach to reach, from the tables' whole numbers, and of all beyond at both ends."""
    tables, most = staircase.NoiseTables.of(noise), noise.noise_most
    both, further = (np.diff(t.astype(object), prepend=0) for t in (tables.both, tables.further))
    found, whole = {g: Fraction(int(c), 2**62) for g, c in zip(range(-most, most + 1), both, strict=True)}, 2**62
    for sign in (-1, 1):
        start, left = most, found[sign * most]
        while start < reach:  # what was put at `start` goes on from there
            found |= {sign * (start + g): left * Fraction(int(c), whole) for g, c in enumerate(further)}
            start, left = start + most, found[sign * (start + most)]
    beyond = [sum((c for g, c in found.items() if sign * g >= reach), Fraction(0)) for sign in (-1, 1)]
    return [beyond[0], *(found[g] for g in range(1 - reach, reach)), beyond[1]]


def likelihoods(noise: GridNoise) -> list[list[float]]:
    """Return the logarithm of the chance of each code (columns) for each rounded number (rows)."""
    far = noise.code_most + noise.reach
    each, rows = chances(noise, far), list[list[float]]()
    assert sum(each) == 1
    for start in range(-noise.reach, noise.reach + 1):
        row = [Fraction(0)] * (2 * noise.code_most + 1)
        for g, chance in zip(range(-far, far + 1), each, strict=True):
            row[max(-noise.code_most, min(noise.code_most, start + g)) + noise.code_most] += chance
        rows.append([log(c.numerator) - log(c.denominator) for c in row])
    return rows


@every_grid
def test_no_code_is_more_likely_by_more_than_epsilon_over_the_steps_for_a_neighbour(noise: GridNoise):
    rows = likelihoods(noise)
    worst = max(abs(a - b) for one, other in pairwise(rows) for a, b in zip(one, other, strict=True))
    assert worst * (noise.steps + noise.promise.block - 1) <= noise.promise.epsilon
    assert worst == pytest.approx(noise.decay, rel=1e-3)


@pytest.mark.parametrize("noise", GRIDS[1:3], ids=lambda g: f"n{g.steps}")
def test_for_any_two_numbers_and_any_dither_the_ratio_of_likelihoods_stays_within_epsilon(noise: GridNoise):
    rng, rows, worst = np.random.default_rng(3), likelihoods(noise), 0.0
    ends = staircase.clipped(np.array([-1.0, -0.4, 0.0, 0.7, 1.0]) * 2.0 * noise.promise.clip, noise=noise)
    for raw in rng.integers(0, 2**32, 300, dtype=np.uint32):
        codes = staircase.rounded(ends, np.full(ends.size, raw, np.uint32), noise=noise).tolist()
        for one, other in product(codes, codes):
            worst = max(worst, *(a - b for a, b in zip(rows[one + noise.reach], rows[other + noise.reach], strict=True)))
    assert noise.promise.epsilon * 0.99 < worst <= noise.promise.epsilon


def test_noise_beyond_its_table_goes_on_as_it_began():
    noise = GridNoise(promise=Promise(epsilon=1.0, clip=1.0, block=1), steps=1)
    short = replace_most(staircase.NoiseTables.of(noise), most=2)
    found = np.abs(short.drawn(200_000))
    expected = chance_of(noise.decay, np.arange(12.0)) * np.where(np.arange(12) > 0, 2, 1) * found.size
    seen = np.bincount(found, minlength=12)[:12]
    assert stats.chisquare([*seen, found.size - seen.sum()], [*expected, found.size - expected.sum()]).pvalue > NEVER


def replace_most(tables: staircase.NoiseTables, *, most: int) -> staircase.NoiseTables:
    """Return the same distribution in tables that end at ``most``, so that the noise often goes on beyond them."""
    middle = tables.both.size // 2
    both = [*tables.both[middle - most : middle + most], 2**62]
    return staircase.NoiseTables(both=np.array(both, np.uint64), further=np.array([*tables.further[:most], 2**62], np.uint64))


def test_two_clipped_blocks_are_never_further_apart_than_the_noise_covers_and_reach_that():
    noise = GridNoise(promise=Promise(epsilon=6.0, clip=1.0, block=4), steps=3)
    rng, most = np.random.default_rng(4), 0
    one = staircase.clipped(np.tile([1.0, 0.0, 0.0, 0.0], 5_000), noise=noise)
    other = staircase.clipped(np.tile([-1.0, 1e-3, 1e-3, 1e-3], 5_000), noise=noise)
    for _ in range(40):
        raw = rng.integers(0, 2**32, one.size, dtype=np.uint32)
        raw[rng.random(one.size) < 0.5] = 0  # zero is just short of the next grid point
        apart = np.abs(staircase.rounded(one, raw, noise=noise) - staircase.rounded(other, raw, noise=noise))
        most = max(most, int(apart.reshape(-1, 4).sum(axis=1).max()))
    assert most == noise.steps + noise.promise.block - 1


def test_who_has_the_dither_reads_a_layered_code_with_exactly_laplace_error_like_an_open_book():
    # Why the exact layered quantiser is not used: without its layers, its error is Laplace's; with them, it hides nothing.
    rng, clip, epsilon = np.random.default_rng(5), 1.0, 0.5
    secret = rng.choice([-clip, clip], 4_000)
    half = rng.gamma(
        2.0, 2.0 * clip / epsilon, secret.size
    )  # Laplace's density, layer by layer (Wilson 2000; Hegazy and Li 2022)
    shift = rng.uniform(-0.5, 0.5, secret.size)
    code = np.rint(secret / (2 * half) - shift)
    assert stats.kstest((code + shift) * 2 * half - secret, stats.laplace(scale=2.0 * clip / epsilon).cdf).pvalue > NEVER
    told = np.rint(clip / (2 * half) - shift) != np.rint(-clip / (2 * half) - shift)
    is_plus = code == np.rint(clip / (2 * half) - shift)
    assert (np.where(is_plus, clip, -clip)[told] == secret[told]).all()
    assert told.mean() > 0.1  # one number in ten is known for sure; pure privacy of any epsilon allows none


@every_grid
def test_the_bits_that_always_suffice_are_those_of_the_widest_distribution(noise: GridNoise):
    k = np.arange(1.0, 200_000.0)
    mean = noise.steps / (2 * noise.promise.block) + float(2.0 * (k * chance_of(noise.decay, k)).sum())

    def too_wide(b: float) -> float:
        return 2 * b / (1 - b * b) - mean

    b = float(optimize.brentq(too_wide, 1e-9, 1 - 1e-9, full_output=False))  # pyright: ignore[reportArgumentType]  # one root
    bits = float(stats.dlaplace(-log(b)).entropy()) / log(2.0)
    assert bits <= noise.bits_most <= 1.006 * bits + 0.011


def test_statements_add_up_over_blocks_and_rounds_and_say_when_they_are_empty():
    said = Statement(promise=Promise(epsilon=4.0, clip=1e-3, block=1), blocks=28_300_000, rounds=3)
    assert said.update == 4.0 * 28_300_000
    assert said.all_rounds == 3.0 * said.update == said.all_rounds_with_delta
    assert said.empty
    assert "rules out nothing" in said.words
    small = Statement(promise=Promise(epsilon=0.01, clip=1e-3, block=1), blocks=1000, rounds=1)
    rho = 1000 * 0.01**2 / 2
    assert small.all_rounds_with_delta == pytest.approx(rho + 2.0 * np.sqrt(rho * log(1e5)))
    assert small.all_rounds_with_delta < small.all_rounds
    assert not small.empty
    assert exp(small.all_rounds_with_delta) < 1e6
