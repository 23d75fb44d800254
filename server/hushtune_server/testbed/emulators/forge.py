"""How does the comparison come by its emulators? The owner's own engine makes them; what it decided is kept, files are made anew.

Files of emulators are large and there are many of them, so only the one in use is on the disk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from hushtune_common.methods import EmulatorOptions, Refining
from hushtune_common.model.bundle import Refinement, emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.data import load_records
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.materialise import EmulatorTensors
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.engine import Telling, Workplace, refine
from hushtune_server.owner.emulators.method import EmulatorMethod, Profile, Statistic
from hushtune_server.owner.emulators.planning import method_for, request_of
from hushtune_server.owner.emulators.profile import profile
from hushtune_server.owner.emulators.text import PublicText, public_text
from hushtune_server.testbed.emulators.cells import Cell, Cells, Json
from hushtune_server.testbed.emulators.schema import Comparison, Entry

T = TypeVar("T")

_WIDTHS = {"F32": 4, "F16": 2, "I8": 1, "U8": 1}
_FREE_OF_OPTIONS = frozenset({Statistic.ABLATION_LOSS, Statistic.INFLUENCE, Statistic.SIMILARITY, Statistic.NEURON_NORMS})
"""What is measured the same whatever a method's options are, but for the number of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """An emulator as decided: its plan, what identifies its training on public text, its size, and what it cost the owner.

    ``seed`` is the one that its training drew from, none for emulators that nothing trained. ``bytes`` are those of the tensors.
    """

    entry: Entry
    seed: int | None
    plan: Plan
    refinement: str | None
    bytes: int
    parameters_per_token: int
    owner_cpu_s: float

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
        """Keep intermediate results and the current emulator's file in ``work``; ``replan`` takes no remembered plan."""
        self.source = source
        self.request = request_of(comparison.model, source=source)
        self._comparison, self._cells, self._work, self._telling = comparison, cells, work, telling
        self._replan = replan
        self._profiles: dict[str, tuple[Profile, float]] = {}
        self._made: tuple[str, Path] | None = None
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def text(self) -> PublicText:
        """The public text."""
        data = self._comparison.data
        return public_text(load_records(data.public), tokens=self.source.tokens, length=data.window_tokens)

    @cached_property
    def model(self) -> LanguageModel:
        """The full model; whoever changes it puts it back."""
        self._telling.phase("loading the model")
        return self.source.load(self._comparison.compute)

    def seeds_of(self, entry: Entry) -> tuple[int | None, ...]:
        """Return the seeds with which this emulator is made: all, or none where nothing is trained."""
        return self._comparison.seeds if trains(entry) else (None,)

    def emulator(self, entry: Entry, *, seed: int | None) -> Emulator:
        """Return an emulator, made when it is not known."""
        cell = self._cell(entry, seed)
        found = self._cells.settle(cell, lambda: self._make(entry, seed), again=self._replan)
        return Emulator(
            entry=entry,
            seed=seed,
            plan=Plan.from_json(found["plan"]),
            refinement=found["refinement"],
            bytes=found["bytes"],
            parameters_per_token=found["parameters_per_token"],
            owner_cpu_s=found["profile_cpu_s"] + found["refine_cpu_s"],
        )

    def bundle(self, emulator: Emulator) -> Path:
        """Return the file of an emulator; it is there until another one is asked for."""
        if self._made is None or self._made[0] != _name(emulator.plan, emulator.refinement):
            refinement, _ = self._refined(emulator.entry.options, emulator.plan, seed=emulator.seed)
            self.written(emulator.plan, refinement)
        return self._require_made()

    def written(self, plan: Plan, refinement: Refinement | None = None) -> Path:
        """Write the emulator of a plan in place of the one before."""
        name = _name(plan, None if refinement is None else refinement.digest.hex)
        if self._made is None or self._made[0] != name:
            path = self._work / "emulator.safetensors"
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
            "corpus": self.text.corpus.hex,
            "window_tokens": c.data.window_tokens,
            "seeds": [c.seed, seed],
            "precision": c.compute.precision,
        }
        return Cell(kind="emulator", title=f"emulator {entry.name}" + ("" if seed is None else f", seed {seed}"), key=key)

    def _make(self, entry: Entry, seed: int | None) -> Json:
        method = method_for(entry.options)
        found, profile_cpu_s = self.profile(method)
        plan = method.plan(found, self.request, seeds=SeedTree(self._comparison.seed).child("emulator", "plan"))
        refinement, refine_cpu_s = self._refined(entry.options, plan, seed=seed)
        bundle = read_bundle(self.written(plan, refinement))
        return {
            "plan": plan.to_json(),
            "plan_digest": plan.digest.hex,
            "refinement": None if refinement is None else refinement.digest.hex,
            "bytes": size_bytes(emulator_tensors(self.source, plan=plan, refinement=refinement)),
            "parameters_per_token": bundle.parameters_per_token,
            "profile_cpu_s": profile_cpu_s,
            "refine_cpu_s": refine_cpu_s,
        }

    def profile(self, method: EmulatorMethod) -> tuple[Profile, float]:
        """Return what a method needs to know and the processor seconds that this took; measured once for all that need it."""
        if not method.needs:
            return Profile(), 0.0
        known = [sorted(method.needs), method.options.profile_tokens]
        if not method.needs <= _FREE_OF_OPTIONS:
            known.append(msgspec.to_builtins(method.options))
        key = msgspec.json.encode(known, order="deterministic").decode()
        if key not in self._profiles:
            self._telling.phase("profiling blocks on public text")
            model = self.model
            self._profiles[key] = _timed(
                lambda: profile(
                    model,
                    self.text,
                    request=self.request,
                    method=method,
                    seeds=SeedTree(self._comparison.seed).child("emulator", "profile"),
                    work=self._work,
                    progress=self._telling.progress,
                )
            )
        return self._profiles[key]

    def _refined(self, options: EmulatorOptions, plan: Plan, *, seed: int | None) -> tuple[Refinement | None, float]:
        if seed is None:
            return None, 0.0
        found, _ = self.profile(method_for(options))
        place = Workplace(
            source=self.source,
            model=self.model,
            text=self.text,
            compute=self._comparison.compute,
            seeds=SeedTree(seed).child("emulator"),
            work=self._work,
            telling=self._telling,
        )
        return _timed(lambda: refine(options, plan, at=place, profile=found))


def trains(entry: Entry) -> bool:
    """Return whether this emulator is trained on public text, so that it differs from seed to seed."""
    return isinstance(entry.options, Refining) and entry.options.steps > 0


def size_bytes(tensors: EmulatorTensors) -> int:
    """Return the bytes that the tensors of an emulator take in its file."""
    return sum(prod(tensors.shape(name)) * _WIDTHS[tensors.dtype(name)] for name in tensors.names())


def _name(plan: Plan, refinement: str | None) -> str:
    return f"{plan.digest.hex}/{refinement}"


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what ``work`` returns, and the processor seconds that this process spent on it."""
    process = psutil.Process()
    before = process.cpu_times()
    result = work()
    after = process.cpu_times()
    return result, (after.user - before.user) + (after.system - before.system)
