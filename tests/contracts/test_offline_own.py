"""Does an adapter that was trained with other tools come home without a network, and is nothing claimed of its training?"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hushtune_client.offline import train, write_emulator
from hushtune_client.own_training import OwnTraining
from hushtune_common.adapter import load_adapter
from hushtune_common.config import DpConfig
from hushtune_common.errors import ConfigError, NotYours
from hushtune_common.messages import Role
from hushtune_common.model.bundle import read_bundle
from hushtune_common.release.container import read_container
from hushtune_common.release.inspection import pairs
from hushtune_common.release.statement import ReturnStatement
from hushtune_common.release.trust import load_anchor
from tests.bundles import CLOCK, Cast
from tests.models import tiny_bundle
from tests.offline import CLIENT_TELLING, World, export_of, scenario_of, versions_of


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A release for c1 and c2 that nobody has answered. Tests take copies."""
    folder = tmp_path_factory.mktemp("world")
    cast = Cast(tmp_path_factory.mktemp("kits"))
    world = World(folder, cast, scenario_of(folder), load_anchor(cast.kit(Role.OWNER, "owner")))
    tiny_bundle(folder, 2, 3)
    export_of(world)
    return world


@pytest.fixture
def world(offered: World, tmp_path: Path) -> World:
    shutil.copytree(offered.folder, tmp_path / "world")
    return replace(offered, folder=tmp_path / "world")


def patch_of(world: World, **said: str) -> OwnTraining:
    """Return a patch of one matrix, of which only ``said`` is another than that of the emulator."""
    bundle = read_bundle(world.folder / "bundle.safetensors")
    name = next(name for name in bundle.adapter_numpy() if name.endswith("up_proj.weight"))
    of = {"format": "hushtune-patch/1", "base": bundle.base_digest.hex, "plan": bundle.plan.digest.hex}
    path = world.folder / "patch.safetensors"
    save_file({name: bundle.adapter_numpy()[name] + np.float32(0.003)}, path, metadata=of | said)
    return OwnTraining(path=path)


def test_the_emulator_of_a_release_is_written_out_as_it_was_and_for_its_recipients_only(world: World) -> None:
    out, kit = world.folder / "out.safetensors", world.cast.kit(Role.CLIENT, "c1")
    write_emulator(world.release, out=out, kit=kit, anchor=world.anchor, clock=CLOCK, telling=CLIENT_TELLING)
    assert out.read_bytes() == (world.folder / "bundle.safetensors").read_bytes()
    stranger = world.cast.kit(Role.CLIENT, "c9")
    with pytest.raises(NotYours):
        write_emulator(world.release, out=out, kit=stranger, anchor=world.anchor, clock=CLOCK, telling=CLIENT_TELLING)
    assert [p.name for p in world.folder.glob(".hushtune-*")] == []


@pytest.mark.slow
def test_a_training_from_elsewhere_comes_home_and_its_statement_claims_nothing_of_it(world: World) -> None:
    own = patch_of(world)
    train(world.order(data=None, own=own), clock=CLOCK, telling=CLIENT_TELLING)
    container = read_container(world.answer)
    assert isinstance(container.statement, ReturnStatement)
    assert container.statement.training is None
    assert pairs(container)["training"] == "done elsewhere; nothing is said of it"
    taken = world.take_in()
    bundle = read_bundle(world.folder / "bundle.safetensors")
    copy = world.folder / "copy.safetensors"
    versions = versions_of(world)
    versions.copy(versions.find(taken.verdict.version), copy)
    found, before = load_adapter(copy, bundle.schema).tensors, bundle.adapter_numpy()
    moved = {name for name, tensor in found.items() if float(np.abs(tensor - before[name]).max()) > 1e-3}
    assert len(moved) == 1


def test_a_training_on_another_emulator_is_refused_by_the_field_and_nothing_stays_behind(world: World) -> None:
    own = patch_of(world, base=64 * "0")
    with pytest.raises(ConfigError, match=r"patch.safetensors base: is of another model"):
        train(world.order(data=None, own=own), clock=CLOCK, telling=CLIENT_TELLING)
    assert not world.answer.exists()
    assert [p.name for p in world.folder.glob(".hushtune-*")] == []


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"data": None}, "--data, --adapter-from"),
        ({"own": OwnTraining(path=Path("lora"))}, "--data, --adapter-from"),
        ({"data": None, "own": OwnTraining(path=Path("lora")), "epochs": 1}, "--epochs"),
        ({"data": None, "own": OwnTraining(path=Path("lora")), "dp": DpConfig()}, "--epsilon"),
    ],
)
def test_text_and_a_training_exclude_each_other_and_so_does_what_nothing_would_look_at(
    world: World, changed: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        world.order(**changed)
    assert refused.value.field == field


@pytest.mark.slow
def test_a_training_from_elsewhere_answers_no_release_that_promises_privacy(world: World) -> None:
    private = scenario_of(world.folder, training={"learning_rate": 1e-2, "dp": {"epsilon": 4.0}})
    world.release.unlink()
    export_of(World(world.folder, world.cast, private, world.anchor))
    with pytest.raises(ConfigError, match="vouch for a training that was done elsewhere"):
        train(world.order(data=None, own=patch_of(world)), clock=CLOCK, telling=CLIENT_TELLING)
