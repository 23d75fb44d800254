"""Does whatever keeps the clock keep it, on its own cores only, and leave no trace?"""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_client.governor import Throttle, own_cores
from hushtune_common.errors import ConfigError
from hushtune_common.model.governor import VirtualTime
from hushtune_common.units import Second
from tests.fakes import FakeClock

LOW, HIGH = 800_000, 4_000_000


def sysfs(root: Path, *, cores: int = 4, mates: int = 1, steps: str = "") -> Path:
    """Lay out the settings of a machine whose cores change frequency in groups of ``mates``."""
    for n in range(cores):
        folder = root / f"cpu{n}" / "cpufreq"
        folder.mkdir(parents=True)
        group = range(n // mates * mates, (n // mates + 1) * mates)
        (folder / "cpuinfo_min_freq").write_text(f"{LOW}\n")
        (folder / "cpuinfo_max_freq").write_text(f"{HIGH}\n")
        (folder / "scaling_max_freq").write_text(f"{HIGH - n}\n")
        (folder / "affected_cpus").write_text(" ".join(str(k) for k in group) + "\n")
        if steps:
            (folder / "scaling_available_frequencies").write_text(steps)
    return root


def limits(root: Path) -> list[int]:
    return [int((root / f"cpu{n}" / "cpufreq" / "scaling_max_freq").read_text()) for n in range(4)]


def test_only_the_own_cores_are_capped_and_all_is_put_back(tmp_path: Path) -> None:
    root = sysfs(tmp_path)
    before, throttle = limits(root), Throttle.choose("auto", cores=[1, 2], root=root)
    with throttle.hold(0.5) as left:
        assert limits(root) == [before[0], HIGH // 2, HIGH // 2, before[3]]
        assert (left, throttle.name) == (pytest.approx(1.0), "cpufreq")
        throttle.set(0.75)
        assert limits(root)[1:3] == [3 * HIGH // 4] * 2
    assert limits(root) == before


def test_an_error_in_the_middle_of_training_leaves_no_cap_behind(tmp_path: Path) -> None:
    root = sysfs(tmp_path)
    before, throttle = limits(root), Throttle.choose("auto", cores=[0], root=root)
    with pytest.raises(RuntimeError, match="died"), throttle.hold(0.3):
        raise RuntimeError("died")
    assert limits(root) == before


def test_below_the_lowest_frequency_pauses_do_the_rest(tmp_path: Path) -> None:
    throttle = Throttle.choose("auto", cores=[0], root=sysfs(tmp_path))
    with throttle.hold(0.1) as left:
        assert limits(tmp_path)[0] == LOW
        assert left * LOW / HIGH == pytest.approx(0.1)
        assert throttle.name == "cpufreq+pacing"


@given(share=st.floats(0.01, 1.0))
def test_cap_and_pauses_together_give_the_assigned_share(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = sysfs(tmp_path_factory.mktemp("sysfs"), cores=2, steps="800000 1600000 2800000 4000000")
    with Throttle.choose("auto", cores=[0], root=root).hold(share) as left:
        frequency = int((root / "cpu0" / "cpufreq" / "scaling_max_freq").read_text())
        assert frequency in {800_000, 1_600_000, 2_800_000, 4_000_000}
        assert left * frequency / HIGH == pytest.approx(share)


@pytest.mark.parametrize(
    ("cores", "mates", "why"),
    [([0, 1, 2, 3], 1, "not bound to cores of its own"), ([0], 2, "together with 1"), ([7], 1, "offers no frequency")],
)
def test_where_others_would_be_slowed_down_or_nothing_can_be_set_pauses_do_it(
    tmp_path: Path, cores: list[int], mates: int, why: str
) -> None:
    root = sysfs(tmp_path, mates=mates)
    before, throttle = limits(root), Throttle.choose("auto", cores=cores, root=root)
    with throttle.hold(0.5) as left:
        assert (left, throttle.name, limits(root)) == (0.5, "pacing", before)
    assert why in throttle.why


def test_insisting_on_cpufreq_takes_all_cores_or_says_why_not(tmp_path: Path) -> None:
    root = sysfs(tmp_path, mates=2)
    assert Throttle.choose("cpufreq", cores=range(4), root=root).cores == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match=r"compute\.governor.*together with 1"):
        Throttle.choose("cpufreq", cores=[0], root=root)
    with pytest.raises(ConfigError, match="offers no frequency"):
        Throttle.choose("cpufreq", cores=[0], root=tmp_path / "nowhere")


def test_pauses_can_be_asked_for(tmp_path: Path) -> None:
    assert Throttle.choose("pacing", cores=[1], root=sysfs(tmp_path)).cores == frozenset()


def test_settings_that_vanish_are_replaced_by_pauses_and_what_was_changed_is_put_back(tmp_path: Path) -> None:
    root = sysfs(tmp_path)
    before, throttle = limits(root), Throttle.choose("auto", cores=[0, 1], root=root)
    (root / "cpu1" / "cpufreq" / "cpuinfo_max_freq").unlink()
    with throttle.hold(0.5) as left:
        assert (left, throttle.name) == (0.5, "pacing")
        assert limits(root) == before


def test_virtual_time_lasts_what_the_assigned_clock_says() -> None:
    clock = FakeClock()
    governor = VirtualTime(Second(2.5), clock=clock)
    for _ in range(4):
        governor.step_began()
        governor.step_ended()
    assert (clock.monotonic(), governor.wall_s) == (10.0, 10.0)
    with pytest.raises(ValueError, match="takes time"):
        VirtualTime(Second(0.0), clock=clock)


def test_where_the_system_does_not_say_all_cores_are_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_cores() == sorted(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert own_cores() == list(range(os.cpu_count() or 1))
