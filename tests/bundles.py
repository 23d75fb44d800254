"""Signers and small statements for tests of signed bundles: an authority with an owner and clients, and a foreign one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from hushtune_common.clock import Clock
from hushtune_common.config import CodecConfig, TrainingConfig
from hushtune_common.crypto.keys import PUBLIC_BYTES
from hushtune_common.messages import Digest, Role
from hushtune_common.release.container import Container, signed_container, write_container
from hushtune_common.release.identity import Signatory, signatory
from hushtune_common.release.statement import (
    FORMAT,
    Lineage,
    Payload,
    Provenance,
    ReleaseStatement,
    ReturnStatement,
    Signer,
    Statement,
    Terms,
    Training,
    moment,
)
from hushtune_common.release.trust import Anchor, load_anchor, write_pin
from hushtune_server import pki
from tests.fakes import FakeClock

CLOCK = FakeClock()
PAYLOAD = b"weights, and more weights; " * 40
_OF = {name: Digest.of(name.encode()).hex for name in ("base", "tokenizer", "plan", "schema")}


@dataclass(frozen=True)
class Cast:
    """Kits below one folder, made when first asked for; ``home`` is the authority that everybody trusts."""

    folder: Path
    clock: Clock = CLOCK

    def kit(self, role: Role, name: str, *, authority: str = "home", days: int = 90) -> Path:
        ca, out = self.folder / authority, self.folder / f"{authority}-{role}-{name}-{days}"
        if not ca.exists():
            pki.init(ca, clock=self.clock)
        if not out.exists():
            pki.issue(ca, role=role, name=name, out=out, clock=self.clock, days=days)
        return out

    def signatory(self, role: Role, name: str, *, authority: str = "home", days: int = 90) -> Signatory:
        return signatory(self.kit(role, name, authority=authority, days=days), clock=self.clock)

    @property
    def owner(self) -> Signatory:
        return self.signatory(Role.OWNER, "owner")

    def client(self, name: str) -> Signatory:
        return self.signatory(Role.CLIENT, name)


def release_by(by: Signatory, *, payload: bytes = PAYLOAD, clock: Clock = CLOCK, **changed: Any) -> ReleaseStatement:
    digest = Digest.of(payload).hex
    statement = ReleaseStatement(
        format=FORMAT,
        created=moment(clock),
        signer=by.signer,
        run="offline-1",
        round_id=1,
        lineage=Lineage(**_OF, emulator=digest),
        payload=Payload(digest=digest, size=len(payload)),
        codec="some-codec/1",
        licence="Apache-2.0",
        provenance=Provenance(model="random:blocks=6", datasets=("txt:public.txt",), software={"torch": "2.13"}),
        terms=Terms(
            recipients=("c1", "c2"),
            training=TrainingConfig(),
            window_tokens=65,
            train_windows=100,
            settings=CodecConfig(),
            sealing_key=bytes(PUBLIC_BYTES),
        ),
    )
    return msgspec.structs.replace(statement, **changed)


def return_by(by: Signatory, *, client: str, payload: bytes = PAYLOAD, clock: Clock = CLOCK, **changed: Any) -> ReturnStatement:
    statement = ReturnStatement(
        format=FORMAT,
        created=moment(clock),
        signer=by.signer,
        run="offline-1",
        round_id=1,
        lineage=Lineage(**_OF, emulator=Digest.of(b"emulator").hex),
        payload=Payload(digest=Digest.of(payload).hex, size=len(payload)),
        codec="some-codec/1",
        licence="",
        provenance=Provenance(model="random:blocks=6", datasets=(), software={"torch": "2.13"}),
        client=client,
        release=Digest.of(b"release").hex,
        protection="crypto_only",
        training=Training(windows=12, tokens=780, epochs=1, steps=2, lora_rank=None, privacy=None),
    )
    return msgspec.structs.replace(statement, **changed)


def written(path: Path, statement: Statement, *, by: Signatory, payload: bytes = PAYLOAD) -> Container:
    container = signed_container(statement, by=by, path=path)
    write_container(container, payload=[payload])
    return container


def stripped(container: Container) -> Container:
    """Return a bundle whose second signature was taken away."""
    return replace(container, endorsement=msgspec.structs.replace(container.endorsement, ml_dsa_65=None))


def pin(signer: Signer, folder: Path) -> Anchor:
    """Return trust in ``signer``, by way of a file."""
    write_pin(folder / "pinned.keys", signer)
    return load_anchor(folder / "pinned.keys")
