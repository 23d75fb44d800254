"""Do the bundle commands exchange an adapter, say what they believe, and end with the code and the field of what is wrong?"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from hushtune_client import cli as client_cli
from hushtune_common.clock import SystemClock
from hushtune_common.messages import Role
from hushtune_common.release.trust import load_anchor
from hushtune_server import cli as server_cli
from tests.bundles import Cast, release_by, written
from tests.models import tiny_bundle
from tests.offline import World, scenario_of

# What a person types.


@dataclass(frozen=True)
class Desk:
    """A world under the real clock, as the commands see it."""

    world: World
    capsys: pytest.CaptureFixture[str]

    def owner(self, *arguments: object) -> str:
        return self._said(server_cli.main([str(a) for a in arguments]))

    def client(self, *arguments: object) -> str:
        return self._said(client_cli.main([str(a) for a in arguments]))

    def _said(self, code: int) -> str:
        said = self.capsys.readouterr()
        return said.out if code == 0 else f"{code} {said.err}"


SCENARIO = """
name = "offline"
seed = 1
[model]
source = "random:blocks=6,hidden=32,heads=4,seed=1"
adapter_bottom = 2
adapter_top = 1
[data]
private = "txt:nobody.txt"
public = "txt:public.txt"
window_tokens = 17
train_windows = 24
public_windows = 4
[training]
learning_rate = 1e-2
[[clients]]
id = "c1"
position = { x_m = 10.0, y_m = 0.0 }
"""


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    cast = Cast(tmp_path / "kits", clock=SystemClock())
    (tmp_path / "kits").mkdir()
    world = World(tmp_path, cast, scenario_of(tmp_path), load_anchor(cast.kit(Role.OWNER, "owner")))
    (tmp_path / "scenario.toml").write_text(SCENARIO, encoding="utf-8")
    tiny_bundle(tmp_path, 2, 3)
    return Desk(world, capsys)


@pytest.mark.slow
def test_the_commands_exchange_an_adapter_and_say_what_it_is(desk: Desk) -> None:
    folder, world = desk.world.folder, desk.world
    owner, client, state = world.cast.kit(Role.OWNER, "owner"), world.cast.kit(Role.CLIENT, "c1"), folder / "state"
    scenario, emulator = folder / "scenario.toml", folder / "bundle.safetensors"
    released = ("--emulator", emulator, "--out", world.release, "--licence", "MIT", "--cache", folder)
    assert "hushtune://owner/owner with ed25519, ml-dsa-65" in desk.owner(
        "bundle", "export-release", scenario, "--state", state, "--kit", owner, *released
    )
    assert "hushtune://owner/owner" in desk.client("bundle", "verify", world.release, "--trust", client)
    pinned = folder / "owner.keys"
    assert "ml-dsa-65" in desk.owner("bundle", "key", owner, "--out", pinned)
    assert "post-quantum  yes" in desk.client("bundle", "verify", world.release, "--trust", pinned, "--require-post-quantum")
    refused = desk.client("bundle", "verify", world.release, "--trust", client, "--require-post-quantum")
    assert refused.startswith("3 ")
    trained = ("--data", f"txt:{folder / 'private.txt'}", "--out", world.answer, "--kit", client, "--trust", pinned)
    assert "no wiretap code" in desk.client("bundle", "train", world.release, *trained, "--require-post-quantum")
    told = json.loads(desk.owner("bundle", "inspect", world.answer, "--json"))
    assert (told["statement"]["client"], told["trusted"]) == ("c1", None)
    proven = json.loads(desk.owner("bundle", "verify", world.answer, "--trust", owner, "--json"))
    assert proven["trusted"]["signer"] == "hushtune://client/c1"
    taken = ("--scenario", scenario, "--state", state, "--trust", owner, "--cache", folder)
    assert "does no harm" in desk.owner("bundle", "import-return", world.answer, *taken)
    again = json.loads(desk.owner("bundle", "import-return", world.answer, *taken, "--json"))
    assert (again["imported_before"], again["protection"]) == (True, "crypto_only")
    average = ("owner", "adapters", "average", scenario, "--state", state, "--cache", folder)
    assert "sits in the model" in desk.owner(*average)
    mean = json.loads(desk.owner(*average, "--json"))
    assert (mean["clients"], mean["kept"], mean["left_out"]) == (["c1"], True, {})
    nobody = desk.owner(*average, "--round", "2")
    assert nobody.startswith("3 ")
    assert "--run: has no returns here; there are those of offline-" in nobody


def test_a_bundle_of_strangers_ends_with_the_code_of_a_peers_fault_and_names_the_field(desk: Desk) -> None:
    stranger = desk.world.cast.signatory(Role.OWNER, "owner", authority="abroad")
    written(desk.world.release, release_by(stranger, clock=SystemClock()), by=stranger)
    for said in (
        desk.client("bundle", "verify", desk.world.release, "--trust", desk.world.cast.kit(Role.CLIENT, "c1")),
        desk.owner("bundle", "verify", desk.world.release, "--trust", desk.world.cast.kit(Role.OWNER, "owner")),
    ):
        assert said.startswith("6 ")
        assert "signer.certificate: not issued by the trusted authority" in said
    assert "release of an emulator" in desk.client("bundle", "inspect", desk.world.release)


def documented() -> list[str]:
    text = (Path(__file__).resolve().parents[2] / "docs" / "BUNDLES.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.strip().splitlines()]


@pytest.mark.parametrize("line", documented())
def test_a_command_of_the_document_parses(line: str) -> None:
    program, *arguments = shlex.split(line)
    app = {"hushtune": server_cli.app, "hushtune-client": client_cli.app}[program]
    app.parse_args(arguments, exit_on_error=False, print_error=False)
