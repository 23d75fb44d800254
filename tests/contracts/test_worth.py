"""Does an owner measure once what updates are worth, keep it over a restart, and measure anew when something is changed?"""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune_common import logs
from hushtune_common.clock import SystemClock
from hushtune_common.config import Scenario, parse
from hushtune_common.errors import ConfigError
from hushtune_common.messages import ClientId, Digest, UtilityCurve
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.engine import Telling, Workplace
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.worth import FILE, planned, worth
from tests.bench import equal, owner, seated, went_on
from tests.models import SPEC, some_windows, tiny_bundle, tiny_source

WHO = ("the miller", "a young fox", "my neighbour", "our teacher", "that old sailor")
WHAT = ("a wooden boat", "the garden wall", "bread and salt", "seven grey stones")


def scenario_of(*, share_min: float = 0.4, **changes: dict[str, Any]) -> Scenario:
    return parse(
        {
            "name": "worth",
            "seed": 1,
            "model": {"source": SPEC},
            "data": {"private": "txt:nobody", "public": "txt:public.txt", "window_tokens": 17, "train_windows": 16},
            "training": {"learning_rate": 1e-2, "batch_windows": 4, "epochs": 3},
            "codec": {"kind": "blockwise", "bits": 8},
            "coordinator": {"allocator": {"share_min": share_min, "utility": {"kind": "measured"}}},
            "clients": [{"id": "c1", "position": {"x_m": 10.0, "y_m": 0.0}}],
            **changes,
        }
    )


@dataclass
class Owner:
    """An owner's folders, and what it was told to do."""

    folder: Path
    phases: list[str] = field(default_factory=list[str])

    def measure(self, scenario: Scenario, *, life: str = "cache") -> UtilityCurve:
        """Measure in a life of its own, with another cache of single results if the owner is another one."""
        self.phases.clear()
        source = tiny_source()
        place = Workplace(
            source=source,
            model=source.load(scenario.compute),
            text=PublicText(corpus=Digest.of(b"text"), windows=np.repeat(some_windows(3), 8, axis=0)),
            compute=scenario.compute,
            seeds=SeedTree(2),
            work=self.folder / life,
            telling=Telling(phase=self.phases.append, progress=lambda _done, _total: None),
        )
        bundle = tiny_bundle(self.folder, 2, source=source)
        return worth(scenario, bundle=bundle, place=place, state_dir=self.folder, clock=SystemClock())


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream, root = io.StringIO(), logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.configure(clock=SystemClock(), stream=stream, json_lines=True, role="owner")
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.slow
def test_a_restart_brings_the_same_curve_and_computes_nothing(tmp_path: Path, log: io.StringIO) -> None:
    life = Owner(tmp_path)
    first = life.measure(scenario_of())
    assert life.phases
    assert life.measure(scenario_of(), life="an empty cache") == first
    assert life.phases == []
    told = [e for e in map(json.loads, log.getvalue().splitlines()) if e["event"] == "utility_calibrated"]
    assert [e["reused"] for e in told] == [False, True]
    assert told[0]["points"] == [list(point) for point in first.points]
    assert (told[0]["offset"], told[0]["shape"]) == (first.offset, first.shape)
    assert told[0]["bytes"] == sorted(told[0]["bytes"])


@pytest.mark.slow
def test_what_rounds_left_in_the_model_is_measured_anew_and_stays_in_it(tmp_path: Path) -> None:
    measured = {"allocator": {"share_min": 0.4, "utility": {"kind": "measured", "every_round": True}}, "rounds": 2}
    training = {"learning_rate": 1e-2, "batch_windows": 4, "epochs": 3}
    lines = [f"{who} {does} {what}" for who in WHO for does in ("mends", "paints", "hides", "sells") for what in WHAT]
    at = owner(tmp_path, coordinator=measured, training=training, written={"kind": "blockwise"}, train_windows=16, lines=lines)
    first = at.bench.worth()
    at.send("c1", by=0.02)
    assert at.bench.merge([ClientId("c1")]).kept
    then = went_on(at, round_id=2)
    second, held = then.bench.worth(), seated(then)
    assert second != first
    assert then.bench.worth() == second
    assert equal(seated(then), held)
    # By hand: the same measurement of the second emulator, with a model of its own that holds what the round left.
    place = replace(at.prepared.place, work=tmp_path / "elsewhere", model=tiny_source().load())
    place.model.set_adapter(then.shipped.tensors)
    bundle = tmp_path / "bundle-2.safetensors"
    assert worth(at.scenario, bundle=bundle, place=place, state_dir=tmp_path / "elsewhere", clock=SystemClock()) == second


@pytest.mark.slow
def test_other_settings_are_measured_anew(tmp_path: Path) -> None:
    life = Owner(tmp_path)
    life.measure(scenario_of())
    life.measure(scenario_of(share_min=0.5))
    assert any(phase.startswith("share 0.5") for phase in life.phases)
    life.measure(scenario_of(share_min=0.5, codec={"kind": "blockwise", "bits": 7}))
    assert life.phases


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"{}", b'{"curve": 1}', b"\xff"])
def test_what_cannot_be_read_back_is_measured_again(tmp_path: Path, damage: bytes) -> None:
    life = Owner(tmp_path)
    first = life.measure(scenario_of())
    (tmp_path / FILE).write_bytes(damage)
    assert life.measure(scenario_of()) == first
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["curve"]["shape"] == first.shape


def test_little_public_text_is_shared_between_training_and_scoring() -> None:
    few, many = planned(scenario_of(), windows=30), planned(scenario_of(), windows=1000)
    assert (few.train_windows, few.held_windows) == (16, 10)
    assert (many.train_windows, many.held_windows) == (16, 48)
    scarce = planned(scenario_of(), windows=9)
    assert scarce.train_windows + scarce.held_windows == 9


@pytest.mark.parametrize(("windows", "share_min"), [(3, 0.4), (100, 1.0)])
def test_where_nothing_can_be_measured_the_setting_is_named(windows: int, share_min: float) -> None:
    with pytest.raises(ConfigError, match=r"allocator\.utility\.kind.*nothing can be measured"):
        planned(scenario_of(share_min=share_min), windows=windows)
