"""Does an adapter find its way home without a network, once and as it was trained, and is all else refused by name?"""

import json
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import pytest

from hushtune_client.offline import train
from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.config import ComputeConfig, DpConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey, HybridPublicKey
from hushtune_common.errors import (
    ConfigError,
    DigestMismatch,
    ExposureExceeded,
    HushtuneError,
    InvalidEnvelope,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    Replayed,
    ScenarioMismatch,
    StaleRound,
    UntrustedSigner,
)
from hushtune_common.messages import ClientId, Digest, Role, RunId, UpdateKey
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import Unpaced, finetune
from hushtune_common.release.container import read_container
from hushtune_common.release.statement import ReleaseStatement, ReturnStatement
from hushtune_common.release.trust import load_anchor
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.gatekeeper.quarantine import quarantined
from hushtune_server.owner.ledger import LEDGER, read_ledger
from hushtune_server.owner.releases import released
from hushtune_server.owner.versions import Versions
from tests.bundles import CLOCK, Cast
from tests.models import SPEC, tiny_bundle, tiny_source
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


def shipped_of(world: World) -> AdapterState:
    return AdapterState(read_bundle(world.folder / "bundle.safetensors").adapter_numpy())


# The way home.


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


def versions_of(world: World) -> Versions:
    return Versions(world.state / "versions", count_max=9, bytes_max=1 << 30, clock=CLOCK)


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


# The mean of what came home.


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


# What a return may not be.


@pytest.mark.parametrize("field", ["base", "tokenizer", "plan", "schema", "emulator"])
def test_a_return_of_another_lineage_is_refused_by_the_field(world: World, field: str) -> None:
    lineage = msgspec.structs.replace(read_container(world.answer).statement.lineage, **{field: "0" * 64})
    with pytest.raises(DigestMismatch, match=rf"^lineage\.{field}: the return says 000000000000"):
        world.take_in(world.forge(lineage=lineage))


OTHERWISE: Mapping[str, tuple[dict[str, Any], type[HushtuneError]]] = {
    "release": ({"release": "1" * 64}, DigestMismatch),
    "run": ({"run": "another"}, StaleRound),
    "round_id": ({"round_id": 2}, StaleRound),
    "codec": ({"codec": "another/1"}, ScenarioMismatch),
}


@pytest.mark.parametrize("field", OTHERWISE)
def test_a_return_that_answers_something_else_is_refused_by_the_field(world: World, field: str) -> None:
    changed, error = OTHERWISE[field]
    with pytest.raises(error, match=rf"^{field}: "):
        world.take_in(world.forge(**changed))


def test_a_client_cannot_return_in_anothers_name(world: World) -> None:
    with pytest.raises(UntrustedSigner, match=r"^signer\.identity: hushtune://client/c2 may not sign a return of client c1"):
        world.take_in(world.forge(by=world.cast.client("c2")))


def test_a_client_cannot_pass_on_what_another_sealed(world: World) -> None:
    with pytest.raises(NotYours, match=r"^payload: sealed as .*/1/c1/1, stated is .*/1/c2/1"):
        world.take_in(world.forge(by=world.cast.client("c2"), client="c2"))


def test_a_client_that_the_release_is_not_for_is_refused_on_both_sides(world: World) -> None:
    with pytest.raises(NotYours, match=r"^terms\.recipients: the release is for c1, c2, not for c3"):
        train(world.order("c3"), clock=CLOCK, telling=CLIENT_TELLING)
    with pytest.raises(NotYours, match=r"^terms\.recipients: .* not for c3"):
        world.take_in(world.forge(by=world.cast.client("c3"), client="c3"))


def test_a_release_is_no_return_and_the_other_way_round(world: World) -> None:
    with pytest.raises(MalformedUpdate, match=r"^kind: release\.htb is a release"):
        world.take_in(world.release)
    with pytest.raises(MalformedUpdate, match=r"^kind: c1\.htb is a return"):
        train(world.order(release=world.answer, out=world.folder / "x.htb"), clock=CLOCK, telling=CLIENT_TELLING)


def test_an_owner_that_released_nothing_takes_nothing_in(world: World) -> None:
    with pytest.raises(DigestMismatch, match=r"^release: .* nothing was released here"):
        world.take_in(state=world.folder / "elsewhere")


def sealed(world: World, payload: bytes, *, to: HybridPublicKey | None = None, secret: bytes = b"", **other: Any) -> bytes:
    release = read_container(world.release).statement
    assert isinstance(release, ReleaseStatement)
    key = UpdateKey(run=RunId(release.run), round_id=1, client=ClientId("c1"), attempt=1)
    emulator = Digest.from_hex(release.lineage.emulator)
    said: dict[str, Any] = {"key": key, "emulator": emulator, "codec": release.codec, **other}
    recipient = to or HybridPublicKey.from_bytes(release.terms.sealing_key)
    return envelope.to_bytes(envelope.seal(payload, recipient=recipient, secret=secret, **said).update)


def test_a_seal_that_does_not_open_says_no_more(world: World) -> None:
    for payload in (
        sealed(world, b"x", to=HybridPrivateKey.generate().public),
        sealed(world, b"x", codec="another/1"),
        b"no envelope",
    ):
        with pytest.raises(InvalidEnvelope, match=r"^the seal does not open$"):
            world.take_in(world.forge(payload=payload))


def test_a_seal_that_the_air_should_have_helped_to_open_is_refused(world: World) -> None:
    with pytest.raises(MalformedUpdate, match=r"^protection: the seal asks for a secret of the wiretap code"):
        world.take_in(world.forge(payload=sealed(world, b"x", secret=bytes(32))))
    with pytest.raises(DigestMismatch, match=r"^payload: sealed for emulator"):
        world.take_in(world.forge(payload=sealed(world, b"x", emulator=Digest.of(b"another"))))


def test_what_does_not_decode_or_changed_too_much_is_refused_and_leaves_nothing(world: World) -> None:
    with pytest.raises(MalformedUpdate):
        world.take_in(world.forge(payload=sealed(world, b"not an adapter")))
    shipped, bundle = shipped_of(world), read_bundle(world.folder / "bundle.safetensors")
    codec = make_codec(world.scenario.codec, shipped=shipped)
    far = AdapterState({name: tensor * 5.0 for name, tensor in shipped.tensors.items()})
    blob = codec.encode(far, budget_bytes=budget_bytes(bundle.schema, config=world.scenario.codec))
    with pytest.raises(LimitExceeded, match=r"^owner\.gate\.norm_max: .* limit 2; owner\.gate\.reach_max: "):
        world.take_in(world.forge(payload=sealed(world, blob)))
    with pytest.raises(LimitExceeded, match=r"^payload\.size: "):
        world.take_in(world.forge(payload=bytes(codec.bytes_max + envelope.OVERHEAD_MAX + 1)))
    assert not (world.state / "adapters").exists()
    assert not (world.state / "returns").exists()
    assert not versions_of(world).all()
    (aside,) = quarantined(world.state / "quarantine")
    assert (aside.reason.client, aside.reason.screens[0].setting) == ("c1", "owner.gate.norm_max")


def test_a_return_for_the_model_of_another_scenario_is_refused(world: World) -> None:
    other = scenario_of(world.folder, model={"source": SPEC.replace("seed=1", "seed=2"), "adapter_bottom": 2, "adapter_top": 1})
    with pytest.raises(DigestMismatch, match=r"^lineage\.base: the return is for model"):
        world.take_in(scenario=other)


def test_an_emulator_that_moved_can_be_pointed_at_and_must_be_the_same(world: World) -> None:
    moved = world.folder / "moved.safetensors"
    (record,) = (world.state / "releases").iterdir()
    gone = {**json.loads(record.read_bytes()), "emulator": str(world.folder / "gone")}
    record.write_bytes(msgspec.json.encode(gone))
    with pytest.raises(ConfigError, match=r"^--emulator: .*gone"):
        world.take_in()
    (world.folder / "bundle.safetensors").rename(moved)
    other = tiny_bundle(world.folder, 3)
    with pytest.raises(DigestMismatch, match=r"^lineage\.plan: "):
        world.take_in(emulator=other)
    assert not world.take_in(emulator=moved).before


# What a release may not be.


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


# What is told, and what is not.


def test_a_return_tells_what_was_done_and_nothing_of_the_text(world: World) -> None:
    statement = read_container(world.answer).statement
    assert isinstance(statement, ReturnStatement)
    did = statement.training
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
