"""Does the owner find out what an update is worth by its share, on public text alone?"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.clock import SystemClock
from hushtune_common.config import CodecConfig, ComputeConfig, TrainingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.messages import CurvePoint, Digest, UtilityCurve
from hushtune_common.model.adapter import extract
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.owner.calibration.curve import calibrated
from hushtune_server.owner.calibration.fit import Floats, curve_through, fitted
from hushtune_server.owner.calibration.measure import Calibration, Measurement, Plan, parted, shares_from
from hushtune_server.owner.emulators.engine import Telling, Workplace
from hushtune_server.owner.emulators.text import PublicText
from tests.models import ADAPTER, some_windows, tiny_bundle, tiny_source

SHARES = np.array(shares_from(0.05))


def form(shares: Floats, *, offset: float, weight: float, shape: float) -> Floats:
    return offset - weight * shares**-shape


def exact(offset: float = 1.05, weight: float = 0.05, shape: float = 0.9) -> UtilityCurve:
    values = form(SHARES, offset=offset, weight=weight, shape=shape)
    points = zip(SHARES.tolist(), values.tolist(), strict=True)
    return curve_through([CurvePoint(share, value, value - 0.02, value + 0.02) for share, value in points])


@pytest.mark.slow
@given(st.floats(0.5, 2.0), st.floats(0.01, 0.3), st.floats(0.1, 3.0))
def test_numbers_that_lie_on_a_curve_give_its_coefficients_back(offset: float, weight: float, shape: float) -> None:
    values = form(SHARES, offset=offset, weight=weight, shape=shape)
    found = fitted(SHARES, values[None, :], deviations=np.full(SHARES.size, 0.01))
    assert np.allclose(found.values(SHARES)[0], values, atol=1e-6 * np.ptp(values))
    assert found.shape[0] == pytest.approx(shape, rel=1e-3)
    assert found.weight[0] == pytest.approx(weight, rel=1e-2)


def test_the_fit_is_the_best_that_a_search_over_all_three_coefficients_finds() -> None:
    draw = SeedTree(8).generator()
    values = form(SHARES, offset=1.1, weight=0.1, shape=0.6) + 0.05 * draw.standard_normal(SHARES.size)
    found = fitted(SHARES, values[None, :], deviations=np.full(SHARES.size, 0.05))
    left = np.square(values - found.values(SHARES)[0]).sum()
    for _ in range(3000):
        offset, weight, shape = draw.uniform(0.8, 1.6), draw.uniform(0.001, 0.6), draw.uniform(0.05, 3.0)
        assert left <= np.square(values - form(SHARES, offset=offset, weight=weight, shape=shape)).sum()


def test_a_curve_rises_even_where_the_measurements_fall() -> None:
    found = curve_through([CurvePoint(float(s), 1.0 - 0.1 * float(s), 0.8, 1.0) for s in SHARES])
    assert found.weight > 0.0
    assert found.value(1.0) == pytest.approx(found.value(found.share_min), abs=1e-6)


def test_two_shares_are_too_few_for_three_coefficients() -> None:
    with pytest.raises(ValueError, match="three shares"):
        curve_through([CurvePoint(0.5, 0.4, 0.3, 0.5), CurvePoint(1.0, 0.6, 0.5, 0.7)])


def planted(seed: int, *, windows: int = 64) -> tuple[Measurement, Floats]:
    """A measurement whose expected gains lie on a curve, noisy from window to window, and that curve."""
    kept = form(SHARES, offset=1.02, weight=0.02, shape=1.1)
    draw = SeedTree(seed).child("planted").generator()
    gain = 0.5 + 0.15 * draw.standard_normal(windows)
    noise = 0.08 * draw.standard_normal((SHARES.size, windows))
    before = 5.0 + draw.standard_normal(windows)
    measurement = Measurement(
        shares=SHARES,
        sizes=np.arange(SHARES.size),
        losses=before - (kept[:, None] * gain + noise),
        before=before,
        uncompressed=before - gain,
        too_small=(),
        emulator="",
        codec="",
    )
    return measurement, kept


@pytest.mark.slow
def test_the_band_holds_the_planted_curve_about_as_often_as_it_says() -> None:
    inside: list[Floats] = []
    for seed in range(60):
        measurement, kept = planted(seed)
        found = calibrated(measurement, seeds=SeedTree(seed), resamples=200)
        low, high = (np.interp(SHARES, found.band.shares, ends) for ends in (found.band.low, found.band.high))
        inside.append(np.asarray((low <= kept) & (kept <= high), dtype=np.float64))
    # 60 curves with nominal 95 %; windows are resampled, which makes intervals a little narrow. Three standard errors are 0.08.
    assert np.mean(inside) > 0.95 - 0.08


def test_a_calibration_is_in_shares_of_the_uncompressed_gain_and_says_how_large_that_is() -> None:
    measurement, kept = planted(3, windows=4000)
    found = calibrated(measurement, seeds=SeedTree(1), resamples=200)
    assert [p.value for p in found.curve.points] == pytest.approx(kept.tolist(), abs=0.02)
    assert found.gain_low < 0.5 < found.gain_high
    assert found.curve.share_min == SHARES.min()


def test_text_on_which_training_gains_nothing_gives_no_curve() -> None:
    measurement, _ = planted(1)
    nothing = replace(measurement, uncompressed=measurement.before + 0.001 * SHARES.size)
    with pytest.raises(ConfigError, match=r"cannot be told from nothing; let more windows"):
        calibrated(nothing, seeds=SeedTree(1), resamples=200)


@given(st.integers(1, 60), st.integers(2, 40), st.integers(0, 30))
def test_windows_that_score_train_nothing(train: int, held: int, more: int) -> None:
    windows = np.arange(train + held + more, dtype=np.int64)[:, None]
    first, second = parted(windows, plan=Plan(shares=(0.2, 0.5, 1.0), train_windows=train, held_windows=held))
    assert (len(first), len(second)) == (train, held)
    assert not {*first.ravel().tolist()} & {*second.ravel().tolist()}


def test_public_text_that_is_too_short_is_named() -> None:
    plan = Plan(shares=(0.2, 0.5, 1.0), train_windows=8, held_windows=4)
    with pytest.raises(ConfigError, match=r"data.public: has 11 windows, and 8 shall train and 4 score"):
        parted(np.zeros((11, 5), dtype=np.int64), plan=plan)


def workplace(folder: Path, phases: list[str]) -> Workplace:
    source = tiny_source()
    windows = np.repeat(some_windows(3), 8, axis=0)  # text that repeats itself, so that training gains something
    return Workplace(
        source=source,
        model=source.load(ComputeConfig()),
        text=PublicText(corpus=Digest.of(b"text"), windows=windows),
        compute=ComputeConfig(),
        seeds=SeedTree(2),
        work=folder / "work",
        telling=Telling(phase=phases.append, progress=lambda _done, _total: None),
    )


def measured(folder: Path, *, shares: tuple[float, ...], phases: list[str]) -> Measurement:
    place = workplace(folder, phases)
    before = extract(place.model, ADAPTER)
    work = Calibration(
        tiny_bundle(folder, 2, source=place.source),
        at=place,
        training=TrainingConfig(learning_rate=1e-2, batch_windows=4, epochs=3),
        codec=CodecConfig(kind="blockwise", bits=8),
        clock=SystemClock(),
    )
    found = work.measure(Plan(shares=shares, train_windows=16, held_windows=8))
    after = extract(place.model, ADAPTER)
    assert all(np.array_equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
    return found


@pytest.mark.slow
def test_a_tiny_model_is_measured_and_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    phases: list[str] = []
    first = measured(tmp_path, shares=(0.4, 0.7, 1.0), phases=phases)
    assert first.uncompressed.mean() < first.before.mean()
    assert (np.diff(first.sizes) > 0).all()
    assert sum(phase.startswith("training") for phase in phases) == 1
    phases.clear()
    second = measured(tmp_path, shares=(0.4, 0.5, 0.7, 1.0), phases=phases)
    assert [phase.partition(":")[0] for phase in phases] == ["share 0.5"]
    assert np.array_equal(second.losses[[0, 2, 3]], first.losses)


@pytest.mark.slow
def test_a_share_that_no_file_fits_is_told_and_left_out(tmp_path: Path) -> None:
    found = measured(tmp_path, shares=(0.001, 0.5, 0.7, 1.0), phases=[])
    assert found.too_small == (0.001,)
    assert found.shares.tolist() == [0.5, 0.7, 1.0]


SCENARIO = """
name = "tiny"
seed = 1
[model]
source = "random:blocks=4,hidden=32,heads=2,vocab=256,seed=1"
adapter_bottom = 1
adapter_top = 1
[data]
private = "txt:none.txt"
public = "txt:public.txt"
window_tokens = 17
train_windows = 24
[owner.emulator]
method = "uniform"
drop = 1
[training]
learning_rate = 1e-2
batch_windows = 4
epochs = 2
[codec]
kind = "blockwise"
bits = 8
[[clients]]
id = "c1"
position = { x_m = 10.0, y_m = 0.0 }
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A scenario and its public text."""
    words = ["tea", "boat", "lamp", "grass", "stone", "cloud", "seven", "north"]
    draw = SeedTree(3).generator()
    records = [" ".join(words[int(k)] for k in draw.integers(0, len(words), 6)) for _ in range(60)]
    (tmp_path / "public.txt").write_text("\n".join(records), encoding="utf-8")
    file = tmp_path / "scenario.toml"
    file.write_text(SCENARIO, encoding="utf-8")
    return file


def calibrate(scenario: Path, *more: str) -> int:
    folder = scenario.parent
    arguments = ["codec", "calibrate", str(scenario), "--out", str(folder / "curve.json")]
    return main([*arguments, "--cache", str(folder / "cache"), *more])


@pytest.mark.slow
def test_the_command_writes_a_curve_that_can_be_planned_with_and_draws_it(scenario: Path) -> None:
    assert calibrate(scenario, "--shares", "0.4,0.6,0.8,1", "--held-windows", "8") == 0
    found = json.loads((scenario.parent / "curve.json").read_text(encoding="utf-8"))
    points = tuple(CurvePoint(**point) for point in found["curve"].pop("points"))
    curve = UtilityCurve(**found["curve"], points=points)
    assert [p.share for p in curve.points] == [0.4, 0.6, 0.8, 1.0]
    assert curve.value(1.0) == pytest.approx(1.0, abs=0.1)
    assert (scenario.parent / "curve.svg").is_file()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--shares", "0.5,1", "three different shares"),
        ("--shares", "0.5,1,much", "much"),
        ("--held-windows", "1", "2 score"),
        ("--resamples", "5", "at least 100"),
    ],
)
def test_an_option_that_is_wrong_is_named(
    scenario: Path, option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(scenario, option, value) == ConfigError.exit_code
    told = capsys.readouterr().err
    assert option in told
    assert said in told
