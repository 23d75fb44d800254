"""What does the owner do with weights, one thing at a time? Loads, plans, judges updates, merges them. Blocks while it works."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, load_adapter, save_adapter
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import Scenario
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import ConfigError, ProtocolFault
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, Part, UpdateKey
from hushtune_common.model.bundle import emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.aggregate import mean
from hushtune_server.owner.book import Judgement, refusal
from hushtune_server.owner.emulators.engine import Built, Telling, Workplace, build
from hushtune_server.owner.emulators.fidelity import Fidelity, fidelity
from hushtune_server.owner.emulators.method import EmulatorRequest
from hushtune_server.owner.emulators.planning import request_of, shipped_plan
from hushtune_server.owner.emulators.text import public_text
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.intake import Intake
from hushtune_server.owner.plugin import Plugin, Trial
from hushtune_server.owner.ports import Bench

AGGREGATE = "aggregate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The owner's model in memory, the plan of its emulator, and the public windows (N, T) it is judged on."""

    source: ModelSource
    model: LanguageModel
    plan: Plan
    windows: NDArray[np.int64]
    fidelity: Fidelity


def prepare(scenario: Scenario, *, cache: Path, bundle: Path, seeds: SeedTree, telling: Telling) -> Prepared:
    """Load the model, find or make the plan, write the emulator to ``bundle``. Minutes for a large model.

    A plan that was made for another model or another request is refused before anything is loaded or written.
    """
    torch.set_num_threads(scenario.compute.threads)
    telling.phase("loading the model")
    source = open_source(scenario.model.source, cache=cache)
    request = request_of(scenario.model, source=source)
    plan = _shipped(scenario, request)
    public = load_records(scenario.data.public)
    windows = source.tokens.spread_windows(public, length=scenario.data.window_tokens, count=scenario.data.public_windows)
    if not len(windows):
        raise ConfigError("data.public", f"holds fewer than {scenario.data.window_tokens} tokens; give more public text")
    place = Workplace(
        source=source,
        model=source.load(scenario.compute),
        text=public_text(public, tokens=source.tokens, length=scenario.data.window_tokens),
        compute=scenario.compute,
        seeds=seeds,
        work=cache / "emulators",
        telling=telling,
    )
    built = build(scenario.owner.emulator, request, at=place, plan=plan)
    telling.phase("writing the emulator")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(bundle, source=source, plan=built.plan, refinement=built.refinement)
    telling.phase("comparing gradients with the model's")
    alike = _fidelity(place, built, scenario, probe=windows[: scenario.data.public_windows // 3 or 1])
    return Prepared(source=source, model=place.model, plan=built.plan, windows=windows, fidelity=alike)


def _fidelity(place: Workplace, built: Built, scenario: Scenario, *, probe: NDArray[np.int64]) -> Fidelity:
    """Return how alike the adapter blocks' gradients are on a few public windows."""
    tensors = emulator_tensors(place.source, plan=built.plan, refinement=built.refinement)
    emulator = LanguageModel.build(place.source.config, tensors, slots=built.plan.slots, compute=scenario.compute)
    return fidelity(place.model, emulator, probe, adapter=built.plan.adapter)


class Workshop:
    """The full model on the bench, with everything that updates are checked against.

    Laws: `judge` leaves the model as it was; a refused update leaves nothing behind; `merge` changes the model only when it keeps
    the mean.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        scenario: Scenario,
        bundle: Path,
        manifest: EmulatorManifest,
        private: HybridPrivateKey,
        state_dir: Path,
        accepted: Mapping[UpdateKey, Digest],
    ) -> None:
        """Set up the bench; ``accepted`` are the updates of an earlier life of this process."""
        gate = scenario.owner.gate
        shipped = AdapterState(read_bundle(bundle).adapter_numpy())
        self._schema = manifest.adapter
        self._adapters = state_dir / "adapters"
        # What the model kept has to survive a restart only if another round is going to build on it.
        self._seat = state_dir / "seated.safetensors" if scenario.coordinator.rounds > 1 else None
        self._adapters.mkdir(parents=True, exist_ok=True)
        self._intake = Intake(
            manifest=manifest,
            private=private,
            codec=make_codec(scenario.codec, shipped=shipped),
            gate=gate,
            shipped=shipped,
            accepted=accepted,
        )
        increase_max = gate.public_loss_increase_max_nats
        self._plugin = Plugin(prepared.model, schema=self._schema, windows=prepared.windows, increase_max=increase_max)
        if self._seat is not None and self._seat.exists():
            self._plugin.keep(load_adapter(self._seat, self._schema))

    @property
    def bytes_max(self) -> int:
        """Largest sealed update that can be genuine, known from the shapes alone."""
        return self._intake.bytes_max

    def judge(self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], secret: bytes) -> Judgement:
        """Check a whole sealed update, store its adapter, and try it in the model."""
        digest = Digest.of(blob)
        try:
            state = self._intake.accept(blob, key=key, links=links, secret=secret)
        except ProtocolFault as fault:
            return refusal(key, fault, digest=digest)
        save_adapter(self._path(key.client), state)
        trial = self._plugin.try_in(state)
        return Judgement(
            key=key,
            accepted=True,
            kept=trial.kept,
            reason=trial.reason,
            digest=digest,
            perplexity_before=_finite(trial.perplexity_before),
            perplexity_after=_finite(trial.perplexity_after),
        )

    def merge(self, clients: Sequence[ClientId]) -> Trial:
        """Average the adapters of ``clients``, each counting the same, and keep the mean in the model or roll back."""
        merged = mean([(load_adapter(self._path(client), self._schema), 1.0) for client in clients])
        save_adapter(self._path(AGGREGATE), merged)
        trial = self._plugin.keep(merged)
        if trial.kept and self._seat is not None:
            save_adapter(self._seat, merged)
        return trial

    def _path(self, name: str) -> Path:
        return self._adapters / f"{name}.safetensors"


def _shipped(scenario: Scenario, request: EmulatorRequest) -> Plan | None:
    try:
        return shipped_plan(scenario.owner.emulator, request=request)
    except ConfigError as error:
        if error.field != "owner.emulator.plan":
            raise
        advice = "recompute it with: hushtune emulator plan SCENARIO --out PLAN"
        raise ConfigError(error.field, f"{error.problem}; {advice}") from error


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


_conforms: type[Bench] = Workshop
