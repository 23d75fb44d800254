"""The owner's bench with the tiny model on it, and all that a client needs to send it something."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from types import MappingProxyType

import numpy as np

from hushtune_common import config
from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.clock import SystemClock
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import Scenario
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, Part, RunId, UpdateKey
from hushtune_common.model.adapter import extract
from hushtune_common.model.bundle import read_bundle
from hushtune_common.secagg.layout import payload_id
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.book import Judgement
from hushtune_server.owner.emulators.engine import Telling
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.preparing import Prepared, prepare
from hushtune_server.owner.sums import SumTable
from hushtune_server.owner.workshop import Workshop
from tests.models import SPEC
from tests.radio import link_seed, qpsk_design
from tests.secagg import verify

RUN = RunId("run-1")
NAMES = ("c1", "c2", "c3")
LINES = tuple(f"everybody may read line {n}" for n in range(40))
NOTHING_BUT_PUBLIC_TEXT = {"reach_max": inf, "canary_windows": 0}
"""These updates are noise, which no training makes."""


@dataclass(frozen=True)
class Owner:
    """A bench with what a client needs to send it something."""

    bench: Workshop
    prepared: Prepared
    scenario: Scenario
    manifest: EmulatorManifest
    shipped: AdapterState
    codec: AdapterCodec
    folder: Path
    sums: SumTable | None = None

    def send(self, client: str, *, by: float) -> AdapterState:
        """Have the bench judge blocks moved ``by`` this much and return what arrives of them."""
        rng = SeedTree(3).child(client).generator()
        state = AdapterState(
            {n: (t + by * rng.standard_normal(t.shape)).astype(np.float32) for n, t in self.shipped.tensors.items()}
        )
        payload = self.codec.encode(state, budget_bytes=self.codec.bytes_max)
        key = UpdateKey(run=RUN, round_id=self.manifest.round_id, client=ClientId(client), attempt=1)
        judgement = self.judge(payload, key=key)
        assert judgement.accepted, judgement.reason
        return self.codec.decode(payload, self.manifest.adapter)

    def judge(self, payload: bytes, *, key: UpdateKey, dither: bytes | None = None) -> Judgement:
        """Have the bench judge what comes sealed by ``key.client``, under another ``dither`` than its sender announced."""
        emulator, codec = self.manifest.emulator, self.manifest.codec
        sealing = envelope.seal(payload, recipient=PRIVATE.public, key=key, emulator=emulator, codec=codec, secret=SECRET)
        links: dict[Part, Link] = {}
        for part in Part:
            seed = link_seed(DESIGN)
            said = envelope.link_tag(
                sealing.link_key, part=part, design=DESIGN, toeplitz=seed.toeplitz, dither=dither or seed.dither
            )
            links[part] = Link(design=DESIGN, seed=replace(seed, tag=said))
        return self.bench.judge(envelope.to_bytes(sealing.update), key=key, links=links, secret=SECRET)

    def adapter(self, name: str) -> AdapterState:
        return load_adapter(self.folder / "adapters" / f"{name}.safetensors", self.manifest.adapter)


PRIVATE = HybridPrivateKey.generate()
DESIGN = qpsk_design()
SECRET = bytes(range(32))
MEAN: Mapping[str, object] = {"kind": "mean"}
UNIFORM: Mapping[str, object] = {"method": "uniform", "drop": 2}
EXACT: Mapping[str, object] = {"kind": "blockwise", "bits": 8}
"""A codec that changes noise by next to nothing."""


def owner(
    folder: Path,
    *,
    increase_max: float = 100.0,
    emulator: Mapping[str, object] = UNIFORM,
    rounds: int = 1,
    realign_steps: int = 0,
    written: Mapping[str, object] = MappingProxyType({}),
    admit: Callable[[Path], None] = lambda _: None,
    coordinator: Mapping[str, object] | None = None,
    training: Mapping[str, object] | None = None,
    train_windows: int = 100,
    lines: Sequence[str] = LINES,
    aggregation: Mapping[str, object] = MEAN,
    gate: Mapping[str, object] = MappingProxyType({}),
) -> Owner:
    """Make an emulator and a bench for it; where updates are only added, on the table ``Owner.sums``."""
    (folder / "public.txt").write_text("\n".join(lines), encoding="utf-8")
    clients = [{"id": name, "position": {"x_m": 10.0, "y_m": 0.0}} for name in NAMES]
    tree = {
        "name": "bench",
        "seed": 1,
        "model": {"source": SPEC, "adapter_bottom": 1, "adapter_top": 1},
        "data": {"private": "txt:nobody", "public": f"txt:{folder / 'public.txt'}", "window_tokens": 17, "public_windows": 4}
        | {"train_windows": train_windows},
        "owner": {
            "emulator": emulator,
            "realign_steps": realign_steps,
            "aggregation": aggregation,
            "gate": {"norm_max": 100.0, "public_loss_increase_max_nats": increase_max, **NOTHING_BUT_PUBLIC_TEXT, **gate},
        },
        "codec": written,
        "coordinator": coordinator or {"rounds": rounds},
        "training": training or {},
        "clients": clients,
    }
    scenario, bundle = config.parse(tree), folder / "bundle.safetensors"
    telling = Telling(phase=lambda phase: None, progress=lambda done, total: None)
    prepared = prepare(scenario, cache=folder, bundle=bundle, seeds=SeedTree(1), telling=telling)
    about = read_bundle(bundle)
    shipped = AdapterState(about.adapter_numpy())
    codec = make_codec(scenario.codec, shipped=shipped, sensitivity=about.sensitivity)
    manifest = EmulatorManifest(
        emulator=Digest.of(bundle.read_bytes()),
        size_bytes=bundle.stat().st_size,
        base=about.base_digest,
        plan=about.plan.digest,
        tokenizer=about.tokens.digest,
        adapter=about.schema,
        sealing_key=PRIVATE.public.to_bytes(),
        codec=payload_id(scenario, about.schema),
    )
    sums = SumTable.of(scenario, about.schema, folder=folder / "sums", verify=verify, clock=SystemClock())
    if sums is not None:
        sums.enter(RUN)
    bench = Workshop(
        prepared,
        scenario=scenario,
        bundle=bundle,
        manifest=manifest,
        private=PRIVATE,
        state_dir=folder,
        accepted={},
        admit=admit,
        sums=sums,
    )
    return Owner(
        bench=bench,
        prepared=prepared,
        scenario=scenario,
        manifest=manifest,
        shipped=shipped,
        codec=codec,
        folder=folder,
        sums=sums,
    )


def went_on(at: Owner, *, round_id: int) -> Owner:
    """Let the bench make and take up the emulator of another round; it must be another one."""
    renewal = at.bench.renew(round_id)
    assert renewal is not None
    bundle = renewal.bundle.replace(at.folder / f"bundle-{round_id}.safetensors")
    manifest = replace(at.manifest, emulator=Digest.of(bundle.read_bytes()), size_bytes=bundle.stat().st_size, round_id=round_id)
    at.bench.take_up(manifest, bundle)
    about = read_bundle(bundle)
    shipped = AdapterState(about.adapter_numpy())
    codec = make_codec(at.scenario.codec, shipped=shipped, sensitivity=about.sensitivity)
    return replace(at, manifest=manifest, shipped=shipped, codec=codec)


def equal(a: AdapterState, b: AdapterState) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(np.array_equal(t, b.tensors[n]) for n, t in a.tensors.items())


def seated(at: Owner) -> AdapterState:
    return extract(at.prepared.model, at.prepared.plan.adapter)
