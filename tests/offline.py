"""An owner with a release on disk and clients without a network, for tests of the air-gapped path."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from hushtune_client.offline import Order, Telling
from hushtune_common import config
from hushtune_common.adapter import AdapterState
from hushtune_common.config import Scenario
from hushtune_common.messages import Digest, Role
from hushtune_common.model.bundle import read_bundle
from hushtune_common.release.container import Container, read_container, signed_container, write_container
from hushtune_common.release.identity import Signatory
from hushtune_common.release.statement import Payload, Statement
from hushtune_common.release.trust import Anchor
from hushtune_server.owner import releases
from hushtune_server.owner.offline_average import Averaged, Averaging, average_returns
from hushtune_server.owner.offline_bench import Place
from hushtune_server.owner.releases import Export, export_release
from hushtune_server.owner.returns import Import, Imported, import_return
from hushtune_server.owner.versions import Versions
from tests.bundles import CLOCK, Cast
from tests.models import SPEC

NAMES = [
    first + second for first in ("al", "be", "cor", "du", "fen", "gil") for second in ("ba", "dric", "mund", "nor", "ric", "wy")
]
TEXT = "\n".join(f"the harbour master wrote to {name}, and it rained" for name in NAMES)  # digits alone tell no records apart
SECRET = "marigold"
OWNER_TELLING = releases.Telling(phase=lambda phase: None, progress=lambda done, total: None)
CLIENT_TELLING = Telling(phase=lambda phase: None, progress=lambda done, total: None, step=lambda step: None)


@dataclass(frozen=True)
class World:
    """An owner with a release on disk, a client's text, and what the client returned."""

    folder: Path
    cast: Cast
    scenario: Scenario
    anchor: Anchor

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def release(self) -> Path:
        return self.folder / "release.htb"

    @property
    def answer(self) -> Path:
        return self.folder / "c1.htb"

    def order(self, client: str = "c1", **changed: Any) -> Order:
        kit = self.cast.kit(Role.CLIENT, client)
        data, out = f"txt:{self.folder / 'private.txt'}", self.folder / f"{client}.htb"
        return replace(Order(release=self.release, data=data, out=out, kit=kit, anchor=self.anchor), **changed)

    def take_in(self, file: Path | None = None, **changed: Any) -> Imported:
        order = Import(
            scenario=self.scenario,
            file=file or self.answer,
            state=self.state,
            cache=self.folder / "cache",
            anchor=self.anchor,
        )
        return import_return(replace(order, **changed), clock=CLOCK, telling=OWNER_TELLING)

    def average(self, **changed: Any) -> Averaged:
        order = Averaging(at=Place(scenario=self.scenario, state=self.state, cache=self.folder / "cache"))
        return average_returns(replace(order, **changed), clock=CLOCK, telling=OWNER_TELLING)

    def forge(self, *, by: Signatory | None = None, payload: bytes | None = None, **changed: Any) -> Path:
        """Write a return with something else in its statement, rightly signed by whoever signs it."""
        container = read_container(self.answer)
        by, payload = by or self.cast.client("c1"), container.payload() if payload is None else payload
        told = Payload(digest=Digest.of(payload).hex, size=len(payload))
        statement = msgspec.structs.replace(container.statement, **{"signer": by.signer, "payload": told, **changed})
        return sign(self.folder / "forged.htb", statement, by=by, payload=payload).path


def sign(path: Path, statement: Statement, *, by: Signatory, payload: bytes) -> Container:
    container = signed_container(statement, by=by, path=path)
    write_container(container, payload=[payload])
    return container


def scenario_of(folder: Path, **changed: Any) -> Scenario:
    (folder / "public.txt").write_text("\n".join(f"everybody may read of {name}" for name in NAMES), encoding="utf-8")
    (folder / "private.txt").write_text(f"{TEXT}\nthe word is {SECRET}", encoding="utf-8")
    tree: dict[str, Any] = {
        "name": "offline",
        "seed": 1,
        "model": {"source": SPEC, "adapter_bottom": 2, "adapter_top": 1},
        "data": {
            "private": "txt:nobody",
            "public": f"txt:{folder / 'public.txt'}",
            "window_tokens": 17,
            "train_windows": 24,
            "public_windows": 4,
        },
        "training": {"learning_rate": 1e-2},
        "owner": {"emulator": {"method": "uniform", "drop": 2}, "gate": {"norm_max": 2.0}},
        "clients": [{"id": name, "position": {"x_m": 10.0, "y_m": 0.0}} for name in ("c1", "c2")],
    }
    return config.parse({**tree, **changed})


def export_of(world: World, **changed: Any) -> Container:
    order = Export(
        scenario=world.scenario,
        state=world.state,
        kit=world.cast.kit(Role.OWNER, "owner"),
        out=world.release,
        cache=world.folder / "cache",
        emulator=world.folder / "bundle.safetensors",
        licence="Apache-2.0",
    )
    return export_release(replace(order, **changed), clock=CLOCK, telling=OWNER_TELLING)


def shipped_of(world: World) -> AdapterState:
    return AdapterState(read_bundle(world.folder / "bundle.safetensors").adapter_numpy())


def versions_of(world: World) -> Versions:
    return Versions(world.state / "versions", count_max=9, bytes_max=1 << 30, clock=CLOCK)
