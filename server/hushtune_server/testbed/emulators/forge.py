"""How does the comparison come by its emulators? The owner's own engine makes them; what it decided is kept, files are made anew.

Files of emulators are large and there are many of them, so only the one in use is on the disk.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import psutil

from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.messages import Digest
from hushtune_common.methods import EmulatorOptions, Refining
from hushtune_common.model.bundle import Refinement, emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.encoder import EncoderModel
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_common.tables import parse_method
from hushtune_server.owner.emulators.engine import Telling, Workplace, refine
from hushtune_server.owner.emulators.exposure import Exposure, exposure
from hushtune_server.owner.emulators.fitting import fit
from hushtune_server.owner.emulators.method import EmulatorMethod, Profile, Statistic
from hushtune_server.owner.emulators.planning import method_for, request_of
from hushtune_server.owner.emulators.profile import profile
from hushtune_server.owner.emulators.profile_file import read_profile, write_profile
from hushtune_server.owner.emulators.refine import changes
from hushtune_server.owner.emulators.text import PublicText, public_text
from hushtune_server.testbed.emulators.cells import Cell, Cells, Json
from hushtune_server.testbed.emulators.schema import Comparison, Entry

T = TypeVar("T")

_DECIDING = {Statistic.GREEDY_ORDER: ("drop",), Statistic.GRADIENT_SCORES: ("damping",)}
"""Options that a statistic depends on, beside the number of tokens."""
_AFTER_LEARNING = frozenset({"plan", "replace", "chosen", "rank_keep", "quantise_bits", "quantise_block"})
"""Options of scaleot that what is learned does not depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """An emulator as decided: its plan, what identifies its training on public text, its size, and what it cost the owner.

    ``options`` are those of the entry, at the size that fits the budget. ``seed`` is the one that its training drew from, none
    for emulators that nothing trained. ``bytes`` are those of the tensors.
    """

    entry: Entry
    options: EmulatorOptions
    seed: int | None
    plan: Plan
    refinement: str | None
    bytes: int
    parameters_per_token: int
    owner_cpu_s: float
    exposure: Exposure

    @property
    def key(self) -> dict[str, Any]:
        """What results of this emulator depend on."""
        return {"plan": self.plan.digest.hex, "refinement": self.refinement}


class Forge:
    """Makes emulators.

    Laws: plans depend on ``comparison.seed`` and public text only; the same comparison gives the same emulators bit for bit on a
    CPU, whether they were remembered or made anew.
    """

    def __init__(
        self, source: ModelSource, *, comparison: Comparison, cells: Cells, work: Path, telling: Telling, replan: bool = False
    ) -> None:
        """Keep intermediate results and the current emulator's file in ``work``; ``replan`` makes every plan again."""
        self.source = source
        self.request = request_of(comparison.model, source=source)
        self._comparison, self._cells, self._work, self._telling = comparison, cells, work, telling
        self._replan = replan
        self._profiles: dict[str, Profile] = {}
        self._emulators: dict[tuple[str, int | None], Emulator] = {}
        self._made: tuple[str, Path] | None = None
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def text(self) -> PublicText:
        """The public text."""
        data = self._comparison.data
        return public_text(load_records(data.public), tokens=self.source.tokens, length=data.window_tokens)

    @cached_property
    def model(self) -> LanguageModel | EncoderModel:
        """The full model; whoever changes it puts it back."""
        self._telling.phase("loading the model")
        if self._comparison.task == "classify":
            return self.source.encoder(self._comparison.compute)
        return self.source.load(self._comparison.compute)

    @cached_property
    def place(self) -> Workplace:
        """Where emulators are made; its seeds are those of what nothing trains."""
        return Workplace(
            source=self.source,
            model=self._measurable,
            text=self.text,
            compute=self._comparison.compute,
            seeds=SeedTree(self._comparison.seed).child("emulator"),
            work=self._work,
            telling=self._telling,
        )

    @property
    def _measurable(self) -> LanguageModel:
        # Methods that need a head say so when they ask for it; the others run blocks, which an encoder has as well.
        return cast(LanguageModel, self.model)

    def seeds_of(self, entry: Entry) -> tuple[int | None, ...]:
        """Return the seeds with which this emulator is made: all, or none where nothing is trained."""
        return self._comparison.seeds if trains(entry) else (None,)

    def emulator(self, entry: Entry, *, seed: int | None) -> Emulator:
        """Return an emulator, made when it is not known; `TrainerFailed` when its training diverged, now or in an earlier run."""
        if (entry.name, seed) not in self._emulators:
            self._emulators[entry.name, seed] = self._found(entry, seed)
        return self._emulators[entry.name, seed]

    def _found(self, entry: Entry, seed: int | None) -> Emulator:
        cell = self._cell(entry, seed)
        found = self._cells.settle(cell, lambda: self._make(entry, seed), again=self._replan)
        if "failed" in found:
            raise TrainerFailed(found["failed"])
        return Emulator(
            entry=entry,
            options=parse_method(found["options"], where=f"emulators.{entry.name}"),
            seed=seed,
            plan=Plan.from_json(found["plan"]),
            refinement=found["refinement"],
            bytes=found["bytes"],
            parameters_per_token=found["parameters_per_token"],
            owner_cpu_s=found["profile_cpu_s"] + found["refine_cpu_s"],
            exposure=Exposure(**found["exposure"]),
        )

    def bundle(self, emulator: Emulator) -> Path:
        """Return the file of an emulator; it is there until another one is asked for."""
        if self._made is None or self._made[0] != _name(emulator.plan, emulator.refinement):
            refinement, _ = self._refined(emulator.options, emulator.plan, seed=emulator.seed)
            self.written(emulator.plan, refinement)
        return self._require_made()

    def written(self, plan: Plan, refinement: Refinement | None = None) -> Path:
        """Write the emulator of a plan in place of the one before."""
        name = _name(plan, None if refinement is None else refinement.digest.hex)
        if self._made is None or self._made[0] != name:
            # Comparisons may share a folder of results; each process has its own emulator in hand.
            path = self._work / f"emulator-{os.getpid()}.safetensors"
            self._made = None
            write_bundle(path, source=self.source, plan=plan, refinement=refinement)
            self._made = (name, path)
        return self._require_made()

    def clear(self) -> None:
        """Delete the current emulator's file."""
        if self._made is not None:
            self._made[1].unlink(missing_ok=True)
            self._made = None

    def _require_made(self) -> Path:
        if self._made is None:
            raise ValueError("no emulator was written yet")
        return self._made[1]

    def _cell(self, entry: Entry, seed: int | None) -> Cell:
        c = self._comparison
        key = {
            "base": self.request.base.hex,
            "adapter": self.request.adapter,
            "options": msgspec.to_builtins(entry.options),
            "bytes_max": self._budget(entry),
            "corpus": self.text.corpus.hex,
            "window_tokens": c.data.window_tokens,
            "seeds": [c.seed, seed],
            "precision": c.compute.precision,
        }
        return Cell(kind="emulator", title=f"emulator {entry.name}" + ("" if seed is None else f", seed {seed}"), key=key)

    def _budget(self, entry: Entry) -> int | None:
        """Return the bytes that an emulator may have, none where its options say its size."""
        if not entry.fit:
            return None
        return self._allowed

    @cached_property
    def _allowed(self) -> int:
        yardstick = self._comparison.yardstick
        if yardstick is None:
            return self._comparison.budget.bytes
        return self.emulator(yardstick, seed=self.seeds_of(yardstick)[0]).bytes

    def _make(self, entry: Entry, seed: int | None) -> Json:
        method = self._fitted(entry)
        found = self.profile(method)
        plan = method.plan(found, self.request, seeds=_plan_seeds(self._comparison))
        refinement, refine_cpu_s = self._refined(method.options, plan, seed=seed)
        bundle = read_bundle(self.written(plan, refinement))
        self._telling.phase("measuring what the emulator shows of the model")
        shown = exposure(plan, base=self.source.weights, shipped=bundle.file)
        return {
            "options": msgspec.to_builtins(method.options),
            "plan": plan.to_json(),
            "plan_digest": plan.digest.hex,
            "refinement": None if refinement is None else refinement.digest.hex,
            "bytes": emulator_tensors(self.source, plan=plan, refinement=refinement).size_bytes,
            "parameters_per_token": bundle.parameters_per_token,
            "exposure": {"verbatim": shown.verbatim, "near": shown.near, "partial": shown.partial, "hidden": shown.hidden},
            "profile_cpu_s": found.cpu_s,
            "refine_cpu_s": refine_cpu_s,
        }

    def _fitted(self, entry: Entry) -> EmulatorMethod:
        method, budget = method_for(entry.options), self._budget(entry)
        if budget is None:
            return method
        try:
            return fit(
                method,
                self.profile(method),
                self.request,
                weights=self.source.weights,
                bytes_max=budget,
                seeds=_plan_seeds(self._comparison),
            )
        except ConfigError as error:
            raise ConfigError("budget", f"{entry.name}: {error.problem}") from error

    def profile(self, method: EmulatorMethod) -> Profile:
        """Return what a method needs to know; measured once for all that need the same, and kept in a file."""
        if not method.needs:
            return Profile()
        key = self._profile_key(method)
        if key not in self._profiles:
            path = self._work / "profiles" / f"{key}.safetensors"
            if not path.is_file():
                write_profile(path, self._measured(method))
            self._profiles[key] = read_profile(path, base=self.request.base)
        return self._profiles[key]

    def _profile_key(self, method: EmulatorMethod) -> str:
        """Return the digest of what a profile depends on; options of what follows are none of it."""
        options = msgspec.to_builtins(method.options)
        names = {name for s in method.needs for name in _DECIDING.get(s, ())}
        if Statistic.REPLACEMENT_SCORES in method.needs:
            names = {*options} - _AFTER_LEARNING
        body = [
            self.request.base.hex,
            self.request.adapter,
            self.text.corpus.hex,
            self._comparison.data.window_tokens,
            self._comparison.seed,
            self._comparison.compute.precision,
            sorted(method.needs),
            {name: options[name] for name in sorted({"profile_tokens", *names}) if name in options},
        ]
        return Digest.of(msgspec.json.encode(body, order="deterministic")).hex[:32]

    def _measured(self, method: EmulatorMethod) -> Profile:
        self._telling.phase(f"measuring on public text: {', '.join(sorted(method.needs))}")
        return profile(
            self._measurable,
            self.text,
            request=self.request,
            method=method,
            seeds=SeedTree(self._comparison.seed).child("emulator", "profile"),
            work=self._work,
            progress=self._telling.progress,
        )

    def _refined(self, options: EmulatorOptions, plan: Plan, *, seed: int | None) -> tuple[Refinement | None, float]:
        if not changes(options):
            return None, 0.0
        found = self.profile(method_for(options))
        place = self.place if seed is None else replace(self.place, seeds=SeedTree(seed).child("emulator"))
        return _timed(lambda: refine(options, plan, at=place, profile=found))


def trains(entry: Entry) -> bool:
    """Return whether this emulator is trained on public text, so that it differs from seed to seed."""
    return isinstance(entry.options, Refining) and entry.options.steps > 0


def _plan_seeds(comparison: Comparison) -> SeedTree:
    return SeedTree(comparison.seed).child("emulator", "plan")


def _name(plan: Plan, refinement: str | None) -> str:
    return f"{plan.digest.hex}/{refinement}"


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what ``work`` returns, and the processor seconds that this process spent on it."""
    process = psutil.Process()
    before = process.cpu_times()
    result = work()
    after = process.cpu_times()
    return result, (after.user - before.user) + (after.system - before.system)
