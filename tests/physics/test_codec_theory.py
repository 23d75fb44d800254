"""Does the rate-distortion codec stand where theory puts it: its quantisers best, its rates near Shannon's, its averages kept?"""

from math import log, log2, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import norm

from hushtune_common.adapter import Float32
from hushtune_common.codec.classes import CLASS_MIN, rate, steps, thresholds
from hushtune_common.codec.coordinates import Coordinates
from hushtune_common.codec.levels import Census, Grid, Zones, emit, indices, raised, restore, take_census
from hushtune_common.codec.search import Field, sized
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.messages import TensorSpec
from tests.codecs import codec_of, dense, normal, specs, zeros

Float64 = NDArray[np.float64]


def quantised(threshold: float, step: float, *, spread: float) -> tuple[float, float]:
    """Return bits and squared error of a normal number behind a dead zone, by integrals over its cells.

    A decoder puts the cells' centroids, scaled until they correlate with the numbers as these do with themselves.
    """
    edges = (threshold + step * np.arange(max(2, int(12 * spread / step) + 2))) / spread
    probability = 2.0 * (norm.sf(edges[:-1]) - norm.sf(edges[1:]))
    first_moment = 2.0 * spread * (norm.pdf(edges[:-1]) - norm.pdf(edges[1:]))
    seen = probability > 0.0
    probability, first_moment = probability[seen], first_moment[seen]
    shares = np.concatenate([[1.0 - probability.sum()], probability / 2, probability / 2])
    bits = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    power = float((first_moment**2 / probability).sum())  # of the centroids, and their correlation with the numbers
    return bits, spread**4 / power - spread**2


def cost(logarithms: Float64, spread: float) -> float:
    """Return the sum that theta weighs."""
    threshold, step = np.exp(logarithms)
    bits, error = quantised(float(threshold), float(step), spread=spread)
    return bits + error


@pytest.mark.slow
@pytest.mark.parametrize("of_class", [-24, -21, -18, -15, -12, -9, *range(-6, 10)])
def test_no_threshold_and_step_are_better_than_the_tables_for_normal_numbers(of_class: int):
    place, spread = np.array([float(of_class)]), 2.0 ** (of_class / 2)
    threshold, step = float(thresholds(place)[0]), float(steps(place)[0])
    bits, error = quantised(threshold, step, spread=spread)
    starts = [np.log([a * threshold, b * step]) for a, b in ((0.8, 1.3), (1.1, 0.7))]
    found = [
        minimize(cost, start, args=(spread,), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-13}) for start in starts
    ]
    best = min(float(f.fun) for f in found)
    assert best * (1 - 1e-9) <= bits + error <= best * 1.0005
    assert float(rate(place)[0]) == pytest.approx(bits, rel=0.006)


@pytest.mark.parametrize("log2_ratio", [14.0, 20.5, 30.0])
def test_beyond_the_tables_steps_and_rates_are_those_of_theory(log2_ratio: float):
    # Entropy-coded uniform quantisation (Gish and Pierce 1968): an error of step^2 / 12 and h(x) - log2(step) bits, of which the
    # sum is least at a step of sqrt(6 / ln 2).
    place, step = np.array([log2_ratio]), sqrt(6.0 / log(2.0))
    assert steps(place)[0] == pytest.approx(step, rel=2e-3)
    assert thresholds(place)[0] == pytest.approx(step / 2, rel=2e-3)
    entropy = 0.5 * log2(2.0 * np.pi * np.e) + log2_ratio / 2
    assert rate(place)[0] == pytest.approx(entropy - log2(step), abs=0.002)


CHANGE = normal(6, scale=1e-3, shapes={"w": (512, 1024)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "gap"), [(0.05, 0.03), (0.1, 0.04), (0.4, 0.14), (1.0, 0.25), (2.0, 0.27), (3.2, 0.27), (6.0, 0.27), (9.0, 0.27)]
)
def test_the_rate_is_within_a_quarter_bit_of_shannons_bound_and_closer_where_bits_are_few(bits: float, gap: float):
    codec = codec_of("rate_distortion", shipped=zeros(CHANGE), bits=16.0)
    blob = codec.encode(CHANGE, budget_bytes=round(bits * CHANGE.count / 8))
    wanted, decoded = (s.tensors["w"].astype(np.float64).ravel() for s in (CHANGE, codec.decode(blob, specs(CHANGE))))
    spent = 8 * len(blob) / CHANGE.count
    # What any decoded numbers tell of normal ones that correlate with them so (Shannon 1948): -log2(1 - r^2) / 2.
    squared = float(wanted @ decoded) ** 2 / float(wanted @ wanted) / float(decoded @ decoded)
    bound = -0.5 * log2(1.0 - squared)
    assert 0.0 < spent - bound < gap + 0.01 * bits


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0.05, 0.2, 0.8, 3.2])
def test_what_a_body_says_correlates_with_the_true_changes_as_these_do_with_themselves(bits: float):
    # So the mean over many weights stays what it was, however few bits there are, until the decoder cuts off what is too far.
    rng = np.random.default_rng(7)
    tensors = (rng.standard_normal((640, 300)), 0.3 * rng.standard_normal((640, 200)), rng.standard_t(4, size=(640, 300)))
    fields = [field_of(tensor.astype(np.float32)) for tensor in tensors]
    body = sized(fields, bytes_max=round(bits * 512_000 / 8))
    assert body is not None
    for field, decoded in zip(fields, body.turned(), strict=True):
        wide = field.turned.astype(np.float64)
        assert float(wide @ (body.head.root * decoded)) == pytest.approx(float(wide @ wide), rel=0.012)


def field_of(change: Float32) -> Field:
    """Return a change whose errors are minded all alike."""
    spec = TensorSpec(name="w", shape=change.shape, dtype="F32", block=0)
    coordinates = Coordinates.of(change.shape, Sensitivity.flat([spec]).tensors["w"])
    turned = np.empty(change.size, np.float32)
    coordinates.forth(change, out=turned)
    return Field.of(coordinates, turned)


@pytest.mark.parametrize("raw", [0, 3])
def test_codes_and_values_are_those_of_a_plain_dead_zone_quantiser(raw: int):
    grid = Grid(rows=70, column_class=indices(np.array([1, -25, 4, 1], np.int32)))
    turned = (3.0 * np.random.default_rng(8).standard_normal(280)).astype(np.float32)
    limits = np.array([1.0, 1.0, 0.5, 1.25], np.float32)
    zones = Zones(thresholds=[limits], steps=np.full(69, 0.75, np.float32))
    census, raw_bits = Census.empty(zones), np.full(69, raw, np.int32)
    take_census(census, turned, grid, tensor=0, zones=zones, scale=0.5)
    highs, lows = np.empty(210, np.int16), np.zeros(210, np.uint32)
    offsets = np.zeros(69, np.int64)
    offsets[4 - CLASS_MIN] = 140
    emit(*(turned, grid), tensor=0, zones=zones, scale=0.5, raw_bits=raw_bits, offsets=offsets.copy(), highs=highs, lows=lows)
    values = raised(census.level_values(), census.gains(census.level_values())[0])
    out = np.empty_like(turned)
    restore(grid, values=values, raw_bits=raw_bits, offsets=offsets.copy(), highs=highs, lows=lows, out=out)
    wanted = by_hand(turned * np.float32(0.5), limits, values, of_column=grid.column_class)
    np.testing.assert_array_equal(out, wanted)
    for k in (1 - CLASS_MIN, 4 - CLASS_MIN):  # the law of the values, to half a 64th of an octave
        mine = np.isin(columns_of(280, 4), np.flatnonzero(grid.column_class == k))
        halved = 0.5 * turned[mine].astype(np.float64)
        assert float(halved @ out[mine]) == pytest.approx(float(halved @ halved), rel=0.006)
    assert int(census.counts.sum()) == 210


def columns_of(size: int, columns: int) -> NDArray[np.int64]:
    """Return the column of each turned number of 70 rows: a run of 64, then one of 6."""
    assert size == 70 * columns
    return np.concatenate([np.repeat(np.arange(columns), 64), np.repeat(np.arange(columns), 6)])


def by_hand(numbers: Float32, limits: Float32, values: Float32, *, of_column: NDArray[np.int32]) -> Float32:
    """Return what a decoder puts, number by number."""
    found = np.zeros_like(numbers)
    for i, (number, j) in enumerate(zip(numbers, columns_of(numbers.size, limits.size).tolist(), strict=True)):
        if of_column[j] < 0 or abs(number) <= limits[j]:
            continue
        level = 1 + int((abs(number) - limits[j]) * (np.float32(1.0) / np.float32(0.75)))
        first, second, third, beyond = values[of_column[j]]
        value = (first, second)[level - 1] if level < 3 else third + np.float32(level - 3) * beyond
        found[i] = value if number > 0 else -value
    return found


def fisher_of(inputs: Float64, error: Float64, *, classes: int) -> float:
    """Return the mean, over inputs and the labels that an untrained softmax layer draws, of the squared change of the loss."""
    total = 0.0
    for label in range(classes):
        gradient = np.full(classes, 1.0 / classes)
        gradient[label] -= 1.0
        total += float(((inputs @ error.T @ gradient) ** 2).mean()) / classes
    return total


def test_the_sensitivity_of_moments_is_the_brute_force_fisher_of_a_small_layer():
    rng = np.random.default_rng(9)
    axis = np.array([1.0, 2.0, 0.0, -2.0, 0.0]) / 3.0
    inputs = 0.5 * rng.standard_normal((200_000, 5)) + 4.0 * rng.standard_normal((200_000, 1)) * axis
    covariance = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    power = np.full(3, (2 / 3 * 1 / 3), np.float32)  # of p - onehot at p = 1/3
    found = Sensitivity.of_moments({"w": (covariance, power)}, directions=1).tensors["w"]
    assert abs(float(found.directions[0] @ axis)) == pytest.approx(1.0, abs=1e-3)
    damping = 0.03 * float(np.trace(covariance)) / 5
    ratios: list[float] = []
    for _ in range(20):
        error = np.zeros((3, 5))
        error[rng.integers(3)] = rng.standard_normal(5)
        minded = quadratic(found.rows, found.columns, error, along=found.directions)
        added = damping * float(power[0]) * float((error**2).sum()) * 1.0
        exact = fisher_of(inputs, error, classes=3) + added
        ratios.append(minded / exact)
    assert np.std(ratios) / np.mean(ratios) < 0.01


def quadratic(rows: Float32, columns: Float32, error: Float64, *, along: Float32) -> float:
    """Return what a sensitivity says that the loss minds."""
    return float((rows[:, None] * columns * (error @ dense(along)) ** 2).sum())


def test_rows_count_by_the_root_of_what_was_measured_and_tensors_by_their_mean():
    covariance = np.diag([1.0, 4.0, 1.0, 2.0]).astype(np.float32)
    even, uneven = np.full(3, 2.0, np.float32), np.array([1.0, 16.0, 4.0], np.float32)
    found = Sensitivity.of_moments(
        {"a": (covariance, even), "b": (16 * covariance, even), "c": (covariance, uneven)}, directions=0
    )
    a, b, c = (found.tensors[n] for n in "abc")
    np.testing.assert_allclose(b.rows / a.rows, 16.0, rtol=1e-5)
    np.testing.assert_allclose(a.columns * 1.03 - 0.03, np.array([1, 4, 1, 2]) / 2.0, rtol=1e-5)
    damped = uneven + 0.03 * 7.0
    np.testing.assert_allclose(c.rows / c.rows[0], np.sqrt(damped / damped[0]), rtol=1e-5)
    lone = Sensitivity.of_moments({"scale": (np.ones((1, 1), np.float32), uneven)}).tensors["scale"]
    np.testing.assert_allclose(lone.rows / lone.rows[0], damped / damped[0], rtol=1e-5)  # a tensor that scales: as measured
