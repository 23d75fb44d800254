"""How does an emulator's middle keep up with adapter blocks that change from round to round? It is aligned anew on public text.

The teacher is the model with the blocks that it has kept, the pupil the emulator with the same blocks: what FedBiOT's server
does before every round (arXiv:2406.17706). What the method trained is trained on from where it was; stand-ins that were only
fitted are fitted again. Never by touching an adapter block.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.config import OwnerConfig
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.methods import Refining, can_align, method_of, starts_fitted
from hushtune_common.model.bundle import Refinement
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.materialise import EmulatorTensors
from hushtune_common.model.naming import block_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.weights import TensorFile, write_tensors
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.checkpoint import Shelf, arithmetic_facts, digest_of_arrays, shelf
from hushtune_server.owner.emulators.engine import Workplace, told
from hushtune_server.owner.emulators.refine import NOT_OF_TRAINING, Pupil, arrays_of, lesson_of, unquantised
from hushtune_server.owner.emulators.regression import fit_harmonizers
from hushtune_server.owner.emulators.training import train

_KEPT = 2
"""Middles on disk: of the emulator that is published, and of the one that is being published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Aligns the emulators of one owner, of a ``plan``, with the model ``at`` hand.

    What public text made of an emulator, before quantising, lies in ``folder`` under the emulator's digest, so that a restart
    goes on from it.
    """

    options: Refining
    steps: int
    at: Workplace
    plan: Plan
    folder: Path

    @staticmethod
    def of(owner: OwnerConfig, *, at: Workplace, plan: Plan, folder: Path) -> "Alignment | None":
        """Return what the owner's settings ask for; none when the middle stays as it is."""
        options = owner.emulator
        if not owner.realign_steps or not can_align(options):
            return None
        return Alignment(options=options, steps=owner.realign_steps, at=at, plan=plan, folder=folder)

    def keep(self, trained: Mapping[str, Float32], *, of: Digest) -> None:
        """Put down the middle of an emulator, unless it lies there; the oldest goes."""
        file = self._file(of)
        if file.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        shapes = {name: tensor.shape for name, tensor in trained.items()}
        write_tensors(file, shapes=shapes, tensor=trained.__getitem__, metadata={"format": "hushtune-middle/1"})
        others = sorted((f for f in self.folder.glob("*.safetensors") if f != file), key=lambda f: f.stat().st_mtime_ns)
        for old in others[: 1 - _KEPT]:
            old.unlink(missing_ok=True)

    def aligned(self, adapter: AdapterState, *, after: Digest, round_id: int) -> Refinement:
        """Return the middle that goes with ``adapter``, which the model has now, from that of the emulator ``after``.

        The same arguments give the same bits on a CPU, and what was worked out once is not worked out again. `TrainerFailed` when
        numbers stop being finite.
        """
        before = self._read(after)
        at, options = self.at, msgspec.structs.replace(self.options, steps=self._steps)
        at.telling.phase("aligning the emulator with the model")
        settings: dict[str, Any] = {
            "method": method_of(options),
            "options": {k: v for k, v in msgspec.to_builtins(self.options).items() if k not in NOT_OF_TRAINING},
            "corpus": at.text.corpus.hex,
            "seeds": [at.seeds.root, *at.seeds.path],
            "realigned": {"round": round_id, "steps": self._steps, "after": digest_of_arrays(before)},
        }
        place = self._shelf(settings, adapter)
        stored = place.finished()
        trained = before if stored is None else arrays_of(stored)
        if stored is None:
            pupil = self._pupil(before, adapter, round_id=round_id)
            if pupil.parameters(options):
                lesson = lesson_of(options, pupil)
                trained = arrays_of(train(lesson, options=options, shelf=place, report=lambda s: told(at.telling, s)))
        return Refinement(settings=json.dumps(settings, sort_keys=True, separators=(",", ":")), trained=trained)

    def stored(self, refinement: Refinement) -> dict[str, Float32]:
        """Return the tensors of the aligned blocks as a bundle stores them: quantised where the plan quantises."""
        tensors = EmulatorTensors(self.at.source.weights, self.plan, trained=refinement.trained)
        blocks = {block_of(name) for name in refinement.trained}
        return {name: tensors.tensor(name) for name in tensors.names() if block_of(name) in blocks}

    @property
    def _steps(self) -> int:
        """Steps of training; none where everything is found by regression."""
        return self.steps if self.options.steps else 0

    def _pupil(self, before: Mapping[str, Float32], adapter: AdapterState, *, round_id: int) -> Pupil:
        at, plan = self.at, unquantised(self.plan)
        tensors = EmulatorTensors(at.source.weights, plan, trained=before)
        student = LanguageModel.build(at.source.config, tensors, slots=plan.slots, compute=at.compute)
        student.set_adapter(adapter.tensors)
        if not self._steps and starts_fitted(self.options):
            windows = at.text.spread(tokens=self.options.fit_tokens)
            fit_harmonizers(at.model, student, windows, ridge=self.options.ridge, progress=at.telling.progress)
        seeds = at.seeds.child("realign", str(round_id))
        batches = Batches(windows=at.text.windows, size=self.options.batch_windows, seeds=seeds)
        return Pupil(teacher=at.model, student=student, plan=plan, layout=tensors.layout, batches=batches)

    def _shelf(self, settings: Mapping[str, object], adapter: AdapterState) -> Shelf:
        facts = {
            **settings,
            "plan": self.plan.digest.hex,
            "adapter": digest_of_arrays(adapter.tensors),
            "windows": digest_of_arrays({"windows": self.at.text.windows}),
            "arithmetic": arithmetic_facts(self.at.model),
        }
        return shelf(self.at.work, facts=facts)

    def _read(self, emulator: Digest) -> Mapping[str, Float32]:
        path = self._file(emulator)
        try:
            file = TensorFile.open(path)
        except (OSError, MalformedUpdate) as error:
            problem = f"the middle of emulator {emulator.short} is gone or damaged ({error}); start with an empty state folder"
            raise ConfigError(str(path), problem) from error
        return {name: file.tensor(name) for name in file.names()}

    def _file(self, emulator: Digest) -> Path:
        return self.folder / f"{emulator.hex}.safetensors"
