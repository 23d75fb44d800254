"""Is a return that does not answer its release refused by name, and does it leave nothing behind?"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hushtune_client.offline import train
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey, HybridPublicKey
from hushtune_common.errors import (
    ConfigError,
    DigestMismatch,
    HushtuneError,
    InvalidEnvelope,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    ScenarioMismatch,
    StaleRound,
    UntrustedSigner,
)
from hushtune_common.messages import ClientId, Digest, Role, RunId, UpdateKey
from hushtune_common.model.bundle import read_bundle
from hushtune_common.release.container import read_container
from hushtune_common.release.statement import ReleaseStatement
from hushtune_common.release.trust import load_anchor
from hushtune_server.owner.gatekeeper.quarantine import quarantined
from tests.bundles import CLOCK, Cast
from tests.models import SPEC, tiny_bundle
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
