"""Does an adapter find its way home without a network, once and as it was trained, and is a mean made of what came?"""

import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from hushtune_client.offline import train
from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import (
    ConfigError,
    Replayed,
)
from hushtune_common.messages import Role
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import Unpaced, finetune
from hushtune_common.release.container import read_container
from hushtune_common.release.trust import load_anchor
from hushtune_common.seeding import SeedTree
from tests.bundles import CLOCK, Cast
from tests.models import tiny_bundle, tiny_source
from tests.offline import CLIENT_TELLING, World, export_of, scenario_of, shipped_of, versions_of


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which c1 has returned its adapter, and nobody has looked at it yet. Tests take copies."""
    folder = tmp_path_factory.mktemp("world")
    cast = Cast(tmp_path_factory.mktemp("kits"))
    world = World(folder, cast, scenario_of(folder), load_anchor(cast.kit(Role.OWNER, "owner")))
    tiny_bundle(folder, 2, 3)
    export_of(world)
    train(world.order(), clock=CLOCK, telling=CLIENT_TELLING)
    return world


@pytest.fixture
def world(played: World, tmp_path: Path) -> World:
    folder = tmp_path / "world"
    shutil.copytree(played.folder, folder)
    return replace(played, folder=folder)


@pytest.mark.slow
def test_an_adapter_comes_home_as_it_was_trained_without_any_network(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> NoReturn:
        raise AssertionError("somebody opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    train(world.order(), clock=CLOCK, telling=CLIENT_TELLING)
    found = world.take_in()
    bundle = read_bundle(world.folder / "bundle.safetensors")
    windows = bundle.tokens.windows((world.folder / "private.txt").read_text().split("\n"), length=17, limit=24)
    trained = finetune(
        bundle.file.path,
        windows,
        config=world.scenario.training,
        compute=ComputeConfig(),
        seeds=SeedTree(0).child("offline", "training"),
        governor=Unpaced(clock=CLOCK),
        report=lambda progress: None,
    )
    arrived = load_adapter(found.adapter, bundle.schema)
    settings = world.scenario.codec
    codec = make_codec(settings, shipped=shipped_of(world))
    bound = codec.bound(codec.encode(trained, budget_bytes=budget_bytes(bundle.schema, config=settings)))
    for name, tensor in trained.tensors.items():
        assert np.abs(arrived.tensors[name] - tensor).max() <= bound[name]
        assert np.abs(tensor - shipped_of(world).tensors[name]).max() > bound[name]


def test_the_gate_tries_it_in_the_full_model_on_public_text(world: World) -> None:
    found = world.take_in()
    source = tiny_source()
    model, data = source.load(), world.scenario.data
    records = (world.folder / "public.txt").read_text().split("\n")
    windows = source.tokens.spread_windows(records, length=data.window_tokens, count=data.public_windows)
    before = model.loss(windows)
    model.set_adapter(load_adapter(found.adapter, read_bundle(world.folder / "bundle.safetensors").schema).tensors)
    after = model.loss(windows)
    assert found.verdict.perplexity_before == pytest.approx(np.exp(before))
    assert found.verdict.perplexity_after == pytest.approx(np.exp(after))
    assert found.verdict.kept == (after - before <= world.scenario.owner.gate.public_loss_increase_max_nats)
    assert not found.before


def test_the_same_return_again_counts_once_and_changes_nothing(world: World) -> None:
    first = world.take_in()
    before = {p: p.read_bytes() for p in world.state.rglob("*") if p.is_file()}
    again = world.take_in()
    assert (again.before, again.verdict) == (True, first.verdict)
    assert {p: p.read_bytes() for p in world.state.rglob("*") if p.is_file()} == before


def test_another_return_of_the_same_client_and_round_is_a_replay(world: World) -> None:
    world.take_in()
    kept = (world.state / "adapters" / "c1.safetensors").read_bytes()
    train(world.order(seed=1), clock=CLOCK, telling=CLIENT_TELLING)
    with pytest.raises(Replayed, match=r"^payload\.digest: c1 already returned .* round 1"):
        world.take_in()
    assert (world.state / "adapters" / "c1.safetensors").read_bytes() == kept


def test_the_return_of_another_client_counts_as_well(world: World) -> None:
    world.take_in()
    train(world.order("c2"), clock=CLOCK, telling=CLIENT_TELLING)
    assert not world.take_in(world.folder / "c2.htb").before
    assert sorted(p.stem for p in (world.state / "adapters").iterdir()) == ["c1", "c2"]


def test_what_was_interrupted_while_it_was_taken_in_is_done_again(world: World) -> None:
    whole = world.take_in()
    (slot,) = (world.state / "returns").rglob("*.json")
    slot.unlink()
    again = world.take_in()
    assert (again.before, again.verdict) == (False, whole.verdict)
    assert [v.id for v in versions_of(world).all()] == [whole.verdict.version]


def test_what_was_taken_in_is_a_version_that_can_be_promoted_and_the_next_is_held_against_it(world: World) -> None:
    first = world.take_in()
    versions = versions_of(world)
    assert versions.current is None
    versions.promote(versions.find(first.verdict.version))
    train(world.order("c2"), clock=CLOCK, telling=CLIENT_TELLING)
    second = world.take_in(world.folder / "c2.htb")
    assert second.verdict.perplexity_before == pytest.approx(first.verdict.perplexity_after)


def test_nothing_is_taken_in_while_an_owner_runs_on_the_same_state(world: World) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hushtune_common.clock import SystemClock; "
        "from hushtune_server.owner.versions import Versions; "
        f"Versions(Path({str(world.state / 'versions')!r}), count_max=9, bytes_max=9, clock=SystemClock()).hold(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="in use by a running owner"):
            world.take_in()
        other.stdin.close()


@pytest.fixture(scope="module")
def both(played: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that took in what two clients returned. Tests take copies."""
    folder = tmp_path_factory.mktemp("both") / "world"
    shutil.copytree(played.folder, folder)
    world = replace(played, folder=folder)
    world.take_in()
    train(world.order("c2", seed=7), clock=CLOCK, telling=CLIENT_TELLING)
    world.take_in(folder / "c2.htb")
    return world


@pytest.fixture
def full(both: World, tmp_path: Path) -> World:
    folder = tmp_path / "world"
    shutil.copytree(both.folder, folder)
    return replace(both, folder=folder)


def adapter_of(world: World, name: str) -> AdapterState:
    schema = read_bundle(world.folder / "bundle.safetensors").schema
    return load_adapter(world.state / "adapters" / f"{name}.safetensors", schema)


@pytest.mark.slow
def test_the_mean_of_what_came_home_sits_in_the_model_after_a_trial_on_public_text(full: World) -> None:
    found = full.average()
    first, second, mean = (adapter_of(full, name).tensors for name in ("c1", "c2", "aggregate"))
    assert all(np.allclose(mean[n], (first[n].astype(np.float64) + second[n]) / 2, atol=1e-7) for n in mean)
    assert any((first[n] != second[n]).any() for n in mean)
    data, source = full.scenario.data, tiny_source()
    records = (full.folder / "public.txt").read_text().split("\n")
    windows = source.tokens.spread_windows(records, length=data.window_tokens, count=data.public_windows)
    model = source.load()
    before = model.loss(windows)
    model.set_adapter(mean)
    assert found.perplexity_before == pytest.approx(np.exp(before))
    assert found.perplexity_after == pytest.approx(np.exp(model.loss(windows)))
    assert versions_of(full).current == found.version
    about = found.version.about
    assert (about.who, about.kept, len(about.parents)) == ("aggregate", True, 2)


@pytest.mark.slow
def test_averaging_again_gives_the_same_version_and_one_more_return_another(world: World) -> None:
    world.take_in()
    alone = world.average()
    assert all(np.array_equal(t, adapter_of(world, "c1").tensors[n]) for n, t in adapter_of(world, "aggregate").tensors.items())
    again = world.average()
    assert (again.version, again.clients, again.kept) == (alone.version, alone.clients, True)
    train(world.order("c2", seed=7), clock=CLOCK, telling=CLIENT_TELLING)
    world.take_in(world.folder / "c2.htb")
    more = world.average()
    assert (more.clients, more.version.id != alone.version.id) == (("c1", "c2"), True)
    assert more.perplexity_before == pytest.approx(alone.perplexity_after)
    assert versions_of(world).rollback() == alone.version


@pytest.mark.slow
def test_a_mean_that_a_prompt_minds_is_a_version_and_does_not_sit_in_the_model(full: World) -> None:
    limits = {"canary_loss_increase_max_nats": 0.0, "tripwire_loss_decrease_max_nats": 0.0}
    gate = {"norm_max": 2.0, "tripwire": f"txt:{full.folder / 'public.txt'}", **limits}  # no loss may change at all
    owner = {"emulator": {"method": "uniform", "drop": 2}, "gate": gate}
    found = replace(full, scenario=scenario_of(full.folder, owner=owner)).average()
    assert (found.kept, versions_of(full).current) == (False, None)
    assert found.reason.startswith("owner.gate.")
    assert [v.about.kept for v in versions_of(full).all()] == [True, True, False]


@pytest.mark.slow
def test_a_return_that_harms_public_text_stays_out_of_the_mean(full: World) -> None:
    (slot,) = (full.state / "returns").rglob("c2.json")
    record = json.loads(slot.read_bytes())
    slot.write_text(json.dumps({**record, "verdict": {**record["verdict"], "kept": False, "reason": "harms"}}))
    found = full.average()
    assert (found.clients, dict(found.left_out)) == (("c1",), {"c2": "harms"})
    (slot,) = (full.state / "returns").rglob("c1.json")
    record = json.loads(slot.read_bytes())
    slot.write_text(json.dumps({**record, "verdict": {**record["verdict"], "kept": False, "reason": "harms as well"}}))
    with pytest.raises(ConfigError, match=r"^--round: no return of it may enter a mean \(c1: harms as well; c2: harms\)"):
        full.average()


@pytest.mark.slow
def test_what_cannot_be_averaged_is_refused_by_the_option(world: World) -> None:
    with pytest.raises(ConfigError, match=r"^--state: no return was taken in here"):
        world.average()
    world.take_in()
    run = read_container(world.release).statement.run
    with pytest.raises(ConfigError, match=rf"^--run: has no returns here; there are those of {run} round 1"):
        world.average(round_id=2)
    export_of(world, run="offline-second", round_id=3)
    train(world.order("c2"), clock=CLOCK, telling=CLIENT_TELLING)
    world.take_in(world.folder / "c2.htb")
    with pytest.raises(ConfigError, match=rf"^--run: say which round, .*{run} round 1, offline-second round 3"):
        world.average()
    assert world.average(run="offline-second").clients == ("c2",)


@pytest.mark.slow
def test_adapters_of_different_emulators_have_no_mean(world: World) -> None:
    world.take_in()
    run = read_container(world.release).statement.run
    other = replace(world, folder=world.folder / "other")
    other.folder.mkdir()
    tiny_bundle(other.folder, 2)
    export_of(world, run=run, emulator=other.folder / "bundle.safetensors")
    train(world.order("c2"), clock=CLOCK, telling=CLIENT_TELLING)
    world.take_in(world.folder / "c2.htb")
    with pytest.raises(ConfigError, match=r"^--round: its returns are of different emulators"):
        world.average()
