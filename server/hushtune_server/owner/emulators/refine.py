"""How does training on public text improve an emulator? Never by touching an adapter block.

A plan that quantises is trained as if it did not: quantising comes on top of what was trained.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import msgspec
from torch import nn

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.methods import (
    DistillOptions,
    EmulatorOptions,
    MarginOptions,
    Refining,
    ScaleotOptions,
    WidthOptions,
    method_of,
    starts_fitted,
)
from hushtune_common.model.bundle import Refinement, emulator_tensors
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.layout import BlockLayout
from hushtune_common.model.naming import block_of, inner_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Harmonize, Keep, Slot, slot_body
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.checkpoint import Stored, arithmetic_facts, digest_of_arrays, shelf
from hushtune_server.owner.emulators.distill import Distillation
from hushtune_server.owner.emulators.margin import Contrast
from hushtune_server.owner.emulators.method import Profile
from hushtune_server.owner.emulators.middles import Middle
from hushtune_server.owner.emulators.narrowing import Narrowing
from hushtune_server.owner.emulators.regression import fit_harmonizers
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.emulators.training import Lesson, Report, train

NOT_OF_TRAINING = ("plan", "profile_tokens", "quantise_bits", "quantise_block")
"""Options that training does not depend on once the plan is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pupil:
    """An emulator that is about to be trained, its teacher, and what it is trained on."""

    teacher: LanguageModel
    student: LanguageModel
    plan: Plan
    layout: BlockLayout
    batches: Batches

    @property
    def middle(self) -> tuple[int, ...]:
        """Original indices of the blocks that are not adapter blocks."""
        return tuple(slot.index for slot in self.plan.slots if slot.index not in self.plan.adapter)

    @property
    def narrowed(self) -> frozenset[int]:
        """Blocks that lost feed-forward neurons."""
        return frozenset(s.index for s in self.plan.slots if isinstance(s, Compress) and s.channels is not None)

    def parameters(self, options: Refining) -> dict[str, nn.Parameter]:
        """Return what training changes: of blocks that lost neurons the feed-forward networks, else all but adapter blocks."""
        if isinstance(options, WidthOptions):
            paths = {matrix.path for matrix in (*self.layout.up, self.layout.down)}
            inside = self.student.adapter_parameters(sorted(self.narrowed))
            return {name: p for name, p in inside.items() if inner_of(name).rpartition(".")[0] in paths}
        if not options.steps:
            return self.student.adapter_parameters(s.index for s in self.plan.slots if isinstance(s, Harmonize))
        return self.student.adapter_parameters(b for b in self.student.blocks if b not in self.plan.adapter)

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
    fitted: Callable[[int, int], None],
) -> Refinement | None:
    """Return what training makes of the emulator of ``plan``; none for methods that train nothing.

    The same arguments give the same bits on a CPU. A training that was interrupted goes on from its last checkpoint below
    ``work``; one that is over is not repeated. ``report`` hears of every step, ``fitted`` of every harmonizer that was found by
    regression. Raises `TrainerFailed` when numbers stop being finite.
    """
    if not changes(options):
        return None
    plain = unquantised(plan)
    settings = {
        "method": method_of(options),
        "options": {k: v for k, v in msgspec.to_builtins(options).items() if k not in NOT_OF_TRAINING},
        "corpus": text.corpus.hex,
        "seeds": [seeds.root, *seeds.path],
    }
    place = shelf(work, facts=settings | _surroundings(plain, text=text, teacher=teacher))
    if isinstance(options, ScaleotOptions):
        trained = _learned_before(plain, profile)
    elif (stored := place.finished()) is not None:
        trained = arrays_of(stored)
    else:
        pupil = _pupil(
            options, source=source, teacher=teacher, plan=plain, text=text, compute=compute, seeds=seeds, fitted=fitted
        )
        trained = arrays_of(train(lesson_of(options, pupil), options=options, shelf=place, report=report)) if pupil else {}
    if not trained:
        return None
    return Refinement(settings=json.dumps(settings, sort_keys=True, separators=(",", ":")), trained=trained)


def changes(options: EmulatorOptions) -> TypeGuard[Refining]:
    """Whether public text changes anything of an emulator once it is planned."""
    return isinstance(options, Refining) and (options.steps > 0 or starts_fitted(options))


def unquantised(plan: Plan) -> Plan:
    """Return the plan without its quantising."""
    return replace(plan, slots=tuple(_unquantised(slot) for slot in plan.slots))


def _unquantised(slot: Slot) -> Slot:
    if not isinstance(slot, Compress) or slot.quant is None:
        return slot
    whole = not slot.ranks and slot.channels is None
    return Keep(slot.index) if whole else replace(slot, quant=None)


def _surroundings(plan: Plan, *, text: PublicText, teacher: LanguageModel) -> dict[str, object]:
    """Return what else the result depends on, down to the last bit."""
    return {
        "base": plan.base.hex,
        "adapter": list(plan.adapter),
        "slots": [slot_body(slot) for slot in plan.slots],
        "windows": digest_of_arrays({"windows": text.windows}),
        "arithmetic": arithmetic_facts(teacher),
    }


def _learned_before(plan: Plan, profile: Profile) -> dict[str, Float32]:
    """Return the harmonizers of the plan that were trained while scores were learned; ``ValueError`` when one was not."""
    wanted = {slot.index for slot in plan.slots if isinstance(slot, Harmonize)}
    trained = {name: tensor for name, tensor in profile.trained.items() if block_of(name) in wanted}
    missing = sorted(wanted - {block_of(name) for name in trained})
    if missing:
        raise ValueError(f"the profile has no trained harmonizer of block {missing[0]}")
    return trained


def arrays_of(stored: Stored) -> dict[str, Float32]:
    """Return the tensors of a training."""
    return {name: stored.tensors.tensor(name) for name in stored.tensors.names()}


def _pupil(
    options: Refining,
    *,
    source: ModelSource,
    teacher: LanguageModel,
    plan: Plan,
    text: PublicText,
    compute: ComputeConfig,
    seeds: SeedTree,
    fitted: Callable[[int, int], None],
) -> Pupil | None:
    """Return the emulator as the plan alone gives it; none when there is nothing in it to train."""
    tensors = emulator_tensors(source, plan=plan)
    student = LanguageModel.build(source.config, tensors, slots=plan.slots, compute=compute)
    batches = Batches(windows=text.windows, size=options.batch_windows, seeds=seeds.child("batches"))
    if starts_fitted(options):
        windows = text.spread(tokens=options.fit_tokens)
        fit_harmonizers(teacher, student, windows, ridge=options.ridge, progress=fitted)
    pupil = Pupil(teacher=teacher, student=student, plan=plan, layout=tensors.layout, batches=batches)
    return pupil if pupil.parameters(options) else None


def lesson_of(options: Refining, pupil: Pupil) -> Lesson:
    """Return what the method trains of the pupil, and towards what."""
    teacher, student, batches = pupil.between(pupil.teacher), pupil.between(pupil.student), pupil.batches
    match options:
        case DistillOptions():
            kept = pupil.plan.kept
            loss = Distillation(teacher=teacher, student=student, batches=batches, options=options, compared=kept)
        case MarginOptions():
            adapter = pupil.plan.adapter
            loss = Contrast(teacher=teacher, student=student, batches=batches, options=options, adapter=adapter)
        case WidthOptions():
            narrowed = pupil.narrowed
            loss = Narrowing(teacher=teacher, student=student, batches=batches, options=options, narrowed=narrowed)
        case _:
            raise ValueError(f"{method_of(options)} is not trained here")
    return Lesson(parameters=pupil.parameters(options), terms=loss.terms, tokens=batches.tokens)
