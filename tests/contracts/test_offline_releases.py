"""Is a release for those named, as the ledger says, and what it claims to be?"""

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hushtune_client.offline import train
from hushtune_common.codec.pipeline import budget_bytes
from hushtune_common.config import DpConfig
from hushtune_common.errors import (
    ConfigError,
    DigestMismatch,
    ExposureExceeded,
    Replayed,
    ScenarioMismatch,
    UntrustedSigner,
)
from hushtune_common.messages import Digest, Role
from hushtune_common.model.bundle import read_bundle
from hushtune_common.release.container import read_container
from hushtune_common.release.statement import ReleaseStatement, ReturnStatement
from hushtune_common.release.trust import load_anchor
from hushtune_server.owner.ledger import LEDGER, read_ledger
from hushtune_server.owner.releases import released
from tests.bundles import CLOCK, Cast
from tests.models import SPEC, tiny_bundle
from tests.offline import CLIENT_TELLING, SECRET, World, export_of, scenario_of, sign


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


def test_a_release_by_anybody_but_an_owner_is_not_trained_on(world: World) -> None:
    container, by = read_container(world.release), world.cast.client("c2")
    statement = msgspec.structs.replace(container.statement, signer=by.signer)
    sign(world.release, statement, by=by, payload=container.payload())
    with pytest.raises(UntrustedSigner, match=r"^signer\.identity: hushtune://client/c2 may not sign a release"):
        train(world.order(), clock=CLOCK, telling=CLIENT_TELLING)


def test_a_damaged_emulator_is_noticed_before_training_and_nothing_stays_behind(world: World) -> None:
    data = bytearray(world.release.read_bytes())
    data[-1] ^= 1
    world.release.write_bytes(data)
    before = sorted(p.name for p in world.folder.iterdir())
    with pytest.raises(DigestMismatch, match=r"^payload\.digest"):
        train(world.order(), clock=CLOCK, telling=CLIENT_TELLING)
    assert sorted(p.name for p in world.folder.iterdir()) == before


@pytest.mark.parametrize("field", ["base", "tokenizer", "plan", "schema"])
def test_a_release_that_says_other_than_its_emulator_is_refused_by_the_field(world: World, field: str) -> None:
    container, by = read_container(world.release), world.cast.owner
    lineage = msgspec.structs.replace(container.statement.lineage, **{field: "0" * 64})
    sign(world.release, msgspec.structs.replace(container.statement, lineage=lineage), by=by, payload=container.payload())
    with pytest.raises(DigestMismatch, match=rf"^lineage\.{field}: the release says 000000000000"):
        train(world.order(), clock=CLOCK, telling=CLIENT_TELLING)


def test_a_codec_of_another_version_is_named(world: World) -> None:
    container, by = read_container(world.release), world.cast.owner
    sign(world.release, msgspec.structs.replace(container.statement, codec="another/9"), by=by, payload=container.payload())
    with pytest.raises(ScenarioMismatch, match=r"^codec: the release decodes another/9"):
        train(world.order(), clock=CLOCK, telling=CLIENT_TELLING)


def test_a_release_is_in_the_exposure_ledger_and_written_down_before_it_is_handed_out(world: World) -> None:
    (release,) = read_ledger(world.state / LEDGER)
    assert release.recipients == ("c1", "c2")
    (kept,) = released(world.state)
    assert kept.container.head() == read_container(world.release).head()
    assert kept.container.statement.lineage.emulator == Digest.of((world.folder / "bundle.safetensors").read_bytes()).hex


def test_a_release_that_shows_too_much_is_not_written(world: World, tmp_path: Path) -> None:
    owner = {"emulator": {"method": "uniform", "drop": 2}, "exposure": {"share_max": 0.01}}
    strict = replace(world, scenario=scenario_of(world.folder, owner=owner))
    with pytest.raises(ExposureExceeded):
        export_of(strict, state=tmp_path / "fresh", out=tmp_path / "release.htb")
    assert not (tmp_path / "release.htb").exists()
    assert not (tmp_path / "fresh" / "releases").exists()


def test_a_release_is_for_those_named_and_only_for_clients_of_the_scenario(world: World) -> None:
    statement = export_of(world, recipients=("c2",), out=world.folder / "second.htb").statement
    assert isinstance(statement, ReleaseStatement)
    assert statement.terms.recipients == ("c2",)
    with pytest.raises(ConfigError, match="no client 'c9'"):
        export_of(world, recipients=("c9",))


def test_a_second_copy_of_a_release_is_answered_in_the_same_round(world: World) -> None:
    world.take_in()
    export_of(world, licence="MIT")
    train(world.order(seed=3), clock=CLOCK, telling=CLIENT_TELLING)
    with pytest.raises(Replayed):
        world.take_in()


def test_an_emulator_of_the_wrong_model_is_not_released(world: World) -> None:
    other = scenario_of(world.folder, model={"source": SPEC.replace("seed=1", "seed=2"), "adapter_bottom": 2, "adapter_top": 1})
    with pytest.raises(ConfigError, match=r"^model\.source: is model"):
        export_of(replace(world, scenario=other))


def test_without_an_emulator_the_one_of_the_last_run_is_released(world: World) -> None:
    with pytest.raises(ConfigError, match="hushtune emulator build"):
        export_of(world, emulator=None)
    about = {"bundle": str(world.folder / "bundle.safetensors")}
    (world.state / "owner.json").write_text(json.dumps(about), encoding="utf-8")
    assert export_of(world, emulator=None).statement.payload.size == (world.folder / "bundle.safetensors").stat().st_size


def test_a_return_tells_what_was_done_and_nothing_of_the_text(world: World) -> None:
    statement = read_container(world.answer).statement
    assert isinstance(statement, ReturnStatement)
    did = statement.training
    assert did is not None
    assert (did.windows, did.epochs, did.tokens, did.steps, did.privacy) == (24, 1, 24 * 17, 3, None)
    assert statement.protection == "crypto_only"
    assert statement.provenance.datasets == ()
    content = world.answer.read_bytes()
    assert SECRET.encode() not in content
    assert str(world.folder).encode() not in content
    assert stat.S_IMODE(world.answer.stat().st_mode) == 0o600


def test_a_release_names_its_sources_without_folders(world: World) -> None:
    statement = read_container(world.release).statement
    assert (statement.provenance.model, statement.provenance.datasets) == (SPEC, ("txt:public.txt",))
    assert str(world.folder).encode() not in read_container(world.release).head()


@pytest.mark.slow
def test_a_private_training_says_what_it_spent(world: World) -> None:
    order = world.order(dp=DpConfig(epsilon=8.0, delta=1e-3), described=("forty lines of a log",))
    statement = train(order, clock=CLOCK, telling=CLIENT_TELLING).container.statement
    assert isinstance(statement, ReturnStatement)
    assert statement.training is not None
    spent = statement.training.privacy
    assert spent is not None
    assert 0.0 < spent.epsilon <= 8.0
    assert (spent.delta, spent.unit, statement.provenance.datasets) == (1e-3, "window", ("forty lines of a log",))


def test_a_smaller_share_makes_a_smaller_return(world: World) -> None:
    small = train(world.order(share=0.6, out=world.folder / "s.htb"), clock=CLOCK, telling=CLIENT_TELLING)
    schema = read_bundle(world.folder / "bundle.safetensors").schema
    assert small.bytes_encoded <= budget_bytes(schema, config=world.scenario.codec, share=0.6)
    assert small.container.statement.payload.size < read_container(world.answer).statement.payload.size
    assert not world.take_in(world.folder / "s.htb").before


def test_a_share_that_no_encoding_fits_costs_no_training(world: World) -> None:
    told: list[str] = []
    order = world.order(share=0.001, out=world.folder / "s.htb")
    made = train(order, clock=CLOCK, telling=replace(CLIENT_TELLING, phase=told.append))
    schema = read_bundle(world.folder / "bundle.safetensors").schema
    assert made.bytes_encoded > budget_bytes(schema, config=world.scenario.codec, share=0.001)
    assert any(line.startswith("--share grants") for line in told)
    assert not world.take_in(world.folder / "s.htb").before


def test_orders_that_nobody_can_carry_out_name_the_option(world: World) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("--share", {"share": 0.0}),
        ("--epochs", {"epochs": 0}),
        ("--licence", {"licence": "two\nlines"}),
        ("--describe", {"described": ("\x1b[2J",)}),
    ]
    for option, changed in cases:
        with pytest.raises(ConfigError) as caught:
            world.order(**changed)
        assert caught.value.field == option
    with pytest.raises(ConfigError, match=r"private\.txt/c1\.htb: cannot be written"):
        train(world.order(out=world.folder / "private.txt" / "c1.htb"), clock=CLOCK, telling=CLIENT_TELLING)
    with pytest.raises(ConfigError, match=r"^--work: cannot write into"):
        train(world.order(work=world.folder / "private.txt"), clock=CLOCK, telling=CLIENT_TELLING)
    with pytest.raises(ConfigError, match=r"^--out: .* is a folder"):
        train(world.order(out=world.folder), clock=CLOCK, telling=CLIENT_TELLING)
    with pytest.raises(ConfigError, match=r"^--epochs: the release asks for 1;"):
        train(world.order(epochs=2), clock=CLOCK, telling=CLIENT_TELLING)
    with pytest.raises(ConfigError, match=r"^--run: begins with 'offline-'"):
        export_of(world, run="run-1")
    with pytest.raises(ConfigError, match=r"^--kit: is of hushtune://owner/owner"):
        train(world.order(kit=world.cast.kit(Role.OWNER, "owner")), clock=CLOCK, telling=CLIENT_TELLING)
    (world.folder / "private.txt").write_text("short", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^--data: 1 records do not fill one window of 17 tokens"):
        train(world.order(), clock=CLOCK, telling=CLIENT_TELLING)
