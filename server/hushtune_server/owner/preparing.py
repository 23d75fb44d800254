"""How does the owner come by its model, the plan of an emulator, and the emulator? Once, before the first round."""

from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.model.bundle import emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.engine import Built, Telling, Workplace, build
from hushtune_server.owner.emulators.fidelity import Fidelity, fidelity
from hushtune_server.owner.emulators.method import EmulatorRequest
from hushtune_server.owner.emulators.planning import request_of, shipped_plan
from hushtune_server.owner.emulators.realign import Alignment
from hushtune_server.owner.emulators.sensitivity import known_to_both
from hushtune_server.owner.emulators.text import public_text

MIDDLES = "middles"
"""Name of the folder in the owner's state where alignment goes on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The owner's model in memory, the plan of its emulator, and the public windows (N, T) it is judged on.

    ``fidelity`` is unknown of an emulator that was made in an earlier life of this process.
    """

    place: Workplace
    plan: Plan
    windows: NDArray[np.int64]
    fidelity: Fidelity | None = None

    @property
    def source(self) -> ModelSource:
        """Where the model comes from."""
        return self.place.source

    @property
    def model(self) -> LanguageModel:
        """The model."""
        return self.place.model


def prepare(scenario: Scenario, *, cache: Path, bundle: Path, seeds: SeedTree, telling: Telling) -> Prepared:
    """Load the model, find or make the plan, write the emulator to ``bundle``. Minutes for a large model.

    A plan that was made for another model or another request is refused before anything is loaded or written.
    """
    source = _source(scenario, cache=cache, telling=telling)
    request = request_of(scenario.model, source=source)
    plan = _shipped(scenario, request)
    place, windows = _opened(scenario, source, cache=cache, seeds=seeds, telling=telling)
    built = build(scenario.owner.emulator, request, at=place, plan=plan)
    codes = not isinstance(scenario.owner.aggregation, SecureConfig)  # what is added is not coded
    known = known_to_both(scenario.codec, built.plan, at=place) if codes else None
    telling.phase("writing the emulator")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(bundle, source=source, plan=built.plan, refinement=built.refinement, sensitivity=known)
    telling.phase("comparing gradients with the model's")
    alike = _fidelity(place, built, scenario, probe=windows[: scenario.data.public_windows // 3 or 1])
    alignment = Alignment.of(scenario.owner, at=place, plan=built.plan, folder=bundle.parent / MIDDLES)
    if alignment is not None:
        alignment.keep({} if built.refinement is None else built.refinement.trained, of=_digest(bundle))
    return Prepared(place=place, plan=built.plan, windows=windows, fidelity=alike)


def reopen(scenario: Scenario, *, cache: Path, bundle: Path, seeds: SeedTree, telling: Telling) -> Prepared:
    """Load the model for an emulator that was published in an earlier life of this process."""
    source = _source(scenario, cache=cache, telling=telling)
    place, windows = _opened(scenario, source, cache=cache, seeds=seeds, telling=telling)
    return Prepared(place=place, plan=read_bundle(bundle).plan, windows=windows)


def _source(scenario: Scenario, *, cache: Path, telling: Telling) -> ModelSource:
    torch.set_num_threads(scenario.compute.threads)
    telling.phase("loading the model")
    return open_source(scenario.model.source, cache=cache)


def _opened(
    scenario: Scenario, source: ModelSource, *, cache: Path, seeds: SeedTree, telling: Telling
) -> tuple[Workplace, NDArray[np.int64]]:
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
    return place, windows


def _fidelity(place: Workplace, built: Built, scenario: Scenario, *, probe: NDArray[np.int64]) -> Fidelity:
    """Return how alike the adapter blocks' gradients are on a few public windows."""
    tensors = emulator_tensors(place.source, plan=built.plan, refinement=built.refinement)
    emulator = LanguageModel.build(place.source.config, tensors, slots=built.plan.slots, compute=scenario.compute)
    return fidelity(place.model, emulator, probe, adapter=built.plan.adapter)


def _digest(file: Path) -> Digest:
    with file.open("rb") as stream:
        return Digest(file_digest(stream, "sha256").digest())


def _shipped(scenario: Scenario, request: EmulatorRequest) -> Plan | None:
    try:
        return shipped_plan(scenario.owner.emulator, request=request)
    except ConfigError as error:
        if error.field != "owner.emulator.plan":
            raise
        advice = "recompute it with: hushtune emulator plan SCENARIO --out PLAN"
        raise ConfigError(error.field, f"{error.problem}; {advice}") from error
