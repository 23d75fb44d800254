"""Does an update arrive once, whole and freshly coded whatever fails on its way, and do planted bugs show?"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune_client.uplink import Frame, Framer, LinkRandomness
from hushtune_common.link.randomness import SecretRng, SeededRandomness
from hushtune_common.messages import Part, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_common.store import partial
from hushtune_common.store.partial import Partial, install
from tests.simulation.delivery import Parts, World, play, trace_of
from tests.simulation.disk import SECTOR, PowerCut, StrictDisk, watched
from tests.simulation.simulator import Violation

SEEDS = range(200)


@pytest.mark.slow
def test_every_update_arrives_and_no_law_breaks() -> None:
    endings = [play(seed) for seed in SEEDS]

    # The worlds must be neither all mild nor all hopeless, or they would show nothing.
    assert sum(e.attempts >= 3 for e in endings) >= len(SEEDS) // 8
    assert sum(e.air_lives >= 3 for e in endings) >= len(SEEDS) // 8
    assert sum(e.client_lives >= 3 for e in endings) >= len(SEEDS) // 8
    assert sum(e.air_lives == e.client_lives == 1 for e in endings) >= len(SEEDS) // 20


@pytest.mark.parametrize("seed", range(5))
def test_in_fair_weather_one_attempt_is_enough(seed: int) -> None:
    ending = play(seed, fair=True)

    assert (ending.attempts, ending.air_lives, ending.client_lives) == (1, 1, 1)


@pytest.mark.parametrize("seed", [3, 98])
def test_a_seed_is_a_replay(seed: int) -> None:
    assert trace_of(seed) == trace_of(seed)


# --- planted bugs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SameBits(LinkRandomness):
    """Random bits that an attempt shares with the one before it."""

    def hiding(self, key: UpdateKey, part: Part) -> SecretRng:
        return LinkRandomness.hiding(self, replace(key, attempt=1), part)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneStream(LinkRandomness):
    """Random bits from one stream that begins again whenever the process does."""

    def hiding(self, key: UpdateKey, part: Part) -> SecretRng:
        return SeededRandomness(SeedTree(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recoding(Framer):
    """A framer that codes an attempt again after a restart, instead of sending what it has coded."""

    def frame(self, message: bytes, *, path: Path, **about: Any) -> Frame:
        path.unlink(missing_ok=True)
        return Framer.frame(self, message, path=path, **about)


def with_bits(kind: type[LinkRandomness]) -> Callable[[Framer], Framer]:
    return lambda framer: replace(framer, randomness=kind(kind="seeded", seeds=framer.randomness.seeds))


def recoding(framer: Framer) -> Framer:
    fields = ("fidelity", "share", "threads", "frame_bytes_max", "randomness", "seeds")
    return Recoding(**{name: getattr(framer, name) for name in fields})


def other_noise_each_life(world: World) -> SeedTree:
    return world.seeds.child("air", str(len(world.trace)))


@pytest.mark.parametrize(
    ("parts", "symptom"),
    [
        (Parts(framer=with_bits(SameBits)), "bits are not fresh"),
        (Parts(framer=with_bits(OneStream)), "bits are not fresh"),
        (Parts(framer=recoding), "was refused: REPLAYED"),
        (Parts(air_seeds=other_noise_each_life), "with other noise"),
    ],
)
def test_a_broken_machine_is_caught(parts: Parts, symptom: str) -> None:
    with pytest.raises(Violation, match=symptom) as caught:
        _play_all(parts)

    assert "python -m tests.simulation.delivery" in str(caught.value)


def acknowledged_before_the_sync(self: Partial, target: Path) -> None:
    """Make a blob complete without syncing its bytes."""
    install(self._file, target)  # pyright: ignore[reportPrivateUsage]


def named_without_a_sync(file: Path, target: Path) -> None:
    """Rename without syncing the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)


def folders_without_a_sync(folder: Path, *, mode: int = 0o777) -> None:
    """Make folders whose names a power cut may take."""
    folder.mkdir(mode=mode, parents=True, exist_ok=True)


@pytest.mark.parametrize(
    ("place", "name", "mutant", "symptom"),
    [
        (Partial, "install", acknowledged_before_the_sync, "has other bytes after a restart|is gone after a restart"),
        (partial, "install", named_without_a_sync, "is gone after a restart"),
        (partial, "make_folder", folders_without_a_sync, "is gone after a restart"),
    ],
)
def test_an_acknowledgement_before_the_sync_is_caught(
    place: object, name: str, mutant: object, symptom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, mutant)

    with pytest.raises(Violation, match=symptom):
        _play_all(Parts())


def _play_all(parts: Parts) -> None:
    for seed in SEEDS:
        play(seed, parts=parts)


# --- the disk ---------------------------------------------------------------------------------------------------------


def disk_at(folder: Path, *, seed: int = 0, strikes: bool = False) -> StrictDisk:
    return StrictDisk(folder / "disk", rng=SeedTree(seed).generator(), strikes=lambda: strikes)


def write(path: Path, content: bytes, *, sync: bool, sync_folder: bool) -> None:
    path.write_bytes(content)
    for place, wanted in ((path, sync), (path.parent, sync_folder)):
        if wanted:
            descriptor = os.open(place, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def test_what_was_synced_survives_every_power_cut(tmp_path: Path) -> None:
    for seed in range(20):
        disk = disk_at(tmp_path / str(seed), seed=seed)
        with watched([disk]):
            write(disk.root / "a", b"one" * 1000, sync=True, sync_folder=True)

        assert disk.image(power=True) == {"a": b"one" * 1000}


def test_without_a_sync_names_go_and_contents_tear_at_sectors(tmp_path: Path) -> None:
    found: set[bytes | None] = set()
    for seed in range(60):
        disk = disk_at(tmp_path / str(seed), seed=seed)
        with watched([disk]):
            write(disk.root / "a", bytes([1]) * 2 * SECTOR, sync=False, sync_folder=False)
        found.add(disk.image(power=True).get("a"))

    zeros, ones = bytes(SECTOR), bytes([1]) * SECTOR
    assert {None, b"", ones + ones, zeros + ones, ones + zeros} <= found


def test_a_rename_leaves_a_file_under_one_name_at_least(tmp_path: Path) -> None:
    found: set[frozenset[str]] = set()
    for seed in range(60):
        disk = disk_at(tmp_path / str(seed), seed=seed)
        (disk.root / "to").mkdir()
        disk.restore(disk.image(power=False))
        with watched([disk]):
            write(disk.root / "a", b"x", sync=True, sync_folder=True)
            (disk.root / "a").replace(disk.root / "to" / "b")
        image = disk.image(power=True)
        found.add(frozenset(name for name, content in image.items() if content is not None))

    assert found == {frozenset({"a"}), frozenset({"to/b"}), frozenset({"a", "to/b"})}


def test_a_restart_finds_the_image_and_nothing_else(tmp_path: Path) -> None:
    disk = disk_at(tmp_path)
    image = {"x": None, "x/y": b"1"}
    (disk.root / "later").write_bytes(b"2")

    disk.restore(image)

    assert disk.image(power=True) == disk.image(power=False) == image


def test_a_strike_ends_what_syncs(tmp_path: Path) -> None:
    disk = disk_at(tmp_path, strikes=True)

    with watched([disk]), pytest.raises(PowerCut):
        write(disk.root / "a", b"1", sync=True, sync_folder=False)
    assert np.all([name == "a" for name in disk.image(power=True)])
