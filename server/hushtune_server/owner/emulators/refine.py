"""How does training on public text improve an emulator? Never by touching an adapter block.

A plan that quantises is trained as if it did not: quantising comes on top of what was trained.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from hushtune_common.config import ComputeConfig
from hushtune_common.methods import DistillOptions, EmulatorOptions, Refining, method_of
from hushtune_common.model.bundle import Refinement, emulator_tensors
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Keep, Slot, slot_body
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.checkpoint import digest_of_arrays, shelf
from hushtune_server.owner.emulators.distill import Distillation
from hushtune_server.owner.emulators.method import Profile
from hushtune_server.owner.emulators.middles import Middle
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.emulators.training import Lesson, Report, train

_NOT_OF_TRAINING = ("plan", "profile_tokens", "quantise_bits", "quantise_block")
"""Options that training does not depend on once the plan is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pupil:
    """An emulator that is about to be trained, its teacher, and what it is trained on."""

    teacher: LanguageModel
    student: LanguageModel
    plan: Plan
    batches: Batches

    @property
    def middle(self) -> tuple[int, ...]:
        """Original indices of the blocks that are not adapter blocks."""
        return tuple(slot.index for slot in self.plan.slots if slot.index not in self.plan.adapter)

    @property
    def trained_blocks(self) -> list[int]:
        """Blocks of the emulator that training may change."""
        return [block for block in self.student.blocks if block not in self.plan.adapter]

    def between(self, model: LanguageModel) -> Middle:
        """Return the middle of the teacher or of the student."""
        return Middle(model=model, first=self.middle[0], last=self.middle[-1])


def refined(
    options: EmulatorOptions,
    *,
    source: ModelSource,
    teacher: LanguageModel,
    plan: Plan,
    profile: Profile,
    text: PublicText,
    compute: ComputeConfig,
    seeds: SeedTree,
    work: Path,
    report: Report,
) -> Refinement | None:
    """Return what training makes of the emulator of ``plan``; none for methods that train nothing.

    The same arguments give the same bits on a CPU. A training that was interrupted goes on from its last checkpoint below
    ``work``; one that is over is not repeated. ``report`` hears of every step. Raises `TrainerFailed` when numbers stop being
    finite.
    """
    if not isinstance(options, Refining) or not options.steps or not _trainable(plan):
        return None
    settings = {
        "method": method_of(options),
        "options": {k: v for k, v in msgspec.to_builtins(options).items() if k not in _NOT_OF_TRAINING},
        "corpus": text.corpus.hex,
        "seeds": [seeds.root, *seeds.path],
    }
    plain = unquantised(plan)
    place = shelf(work, facts=settings | _surroundings(plain, text=text, teacher=teacher))
    stored = place.finished()
    if stored is None:
        tensors = emulator_tensors(source, plan=plain)
        student = LanguageModel.build(source.config, tensors, slots=plain.slots, compute=compute)
        batches = Batches(windows=text.windows, size=options.batch_windows, seeds=seeds.child("batches"))
        lesson = _lesson(options, Pupil(teacher=teacher, student=student, plan=plain, batches=batches))
        stored = train(lesson, options=options, shelf=place, report=report)
    trained = {name: stored.tensors.tensor(name) for name in stored.tensors.names()}
    return Refinement(settings=json.dumps(settings, sort_keys=True, separators=(",", ":")), trained=trained)


def unquantised(plan: Plan) -> Plan:
    """Return the plan without its quantising."""
    return replace(plan, slots=tuple(_unquantised(slot) for slot in plan.slots))


def _unquantised(slot: Slot) -> Slot:
    if not isinstance(slot, Compress) or slot.quant is None:
        return slot
    whole = not slot.ranks and slot.channels is None
    return Keep(slot.index) if whole else replace(slot, quant=None)


def _trainable(plan: Plan) -> bool:
    return any(block not in plan.adapter for block in plan.stored)


def _surroundings(plan: Plan, *, text: PublicText, teacher: LanguageModel) -> dict[str, object]:
    """Return what else the result depends on, down to the last bit."""
    with teacher.arithmetic():
        half = torch.is_autocast_enabled(teacher.device.type)
    return {
        "base": plan.base.hex,
        "adapter": list(plan.adapter),
        "slots": [slot_body(slot) for slot in plan.slots],
        "windows": digest_of_arrays({"windows": text.windows}),
        "arithmetic": [teacher.device.type, half, torch.get_num_threads(), torch.__version__],
    }


def _lesson(options: Refining, pupil: Pupil) -> Lesson:
    parameters = pupil.student.adapter_parameters(pupil.trained_blocks)
    match options:
        case DistillOptions():
            loss = Distillation(
                teacher=pupil.between(pupil.teacher),
                student=pupil.between(pupil.student),
                batches=pupil.batches,
                options=options,
                compared=pupil.plan.kept,
            )
        case _:
            raise ValueError(f"{method_of(options)} trains nothing")
    return Lesson(parameters=parameters, terms=loss.terms, tokens=pupil.batches.tokens)
