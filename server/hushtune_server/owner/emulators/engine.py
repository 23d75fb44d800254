"""From a model, public text and options to an emulator: profile, plan, refine.

What was worked out is kept in a folder under the digest of everything that it depends on, so that a repeated or interrupted build
goes on where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hushtune_common.config import ComputeConfig
from hushtune_common.methods import EmulatorOptions
from hushtune_common.model.bundle import Refinement
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.planning import method_for
from hushtune_server.owner.emulators.profile import profile
from hushtune_server.owner.emulators.refine import changes, refined
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.emulators.training import Learned, Report, unheard

TOLD = 10
"""How often in all a phase says what training has come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """Whom to tell what is being done: a phase in words, steps done and in all, and what every step of training came to."""

    phase: Callable[[str], None]
    progress: Callable[[int, int], None]
    learned: Report = unheard


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The full model in memory and all that making an emulator of it takes; ``work`` is a folder for intermediate results."""

    source: ModelSource
    model: LanguageModel
    text: PublicText
    compute: ComputeConfig
    seeds: SeedTree
    work: Path
    telling: Telling


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An emulator as decided: its plan, what training on public text changed, and what was measured for it."""

    plan: Plan
    refinement: Refinement | None
    profile: Profile


def build(options: EmulatorOptions, request: EmulatorRequest, *, at: Workplace, plan: Plan | None = None) -> Built:
    """Make the emulator that the ``options`` ask for; a ``plan`` that is there already is taken as it is.

    The same arguments give the same emulator bit for bit on a CPU.
    """
    method = method_for(options)
    found = Profile()
    # Scores that are learned come with what was trained to get them, which the emulator of a ready plan needs too.
    if method.needs and (plan is None or Statistic.REPLACEMENT_SCORES in method.needs):
        at.telling.phase("profiling blocks on public text")
        found = profile(
            at.model,
            at.text,
            request=request,
            method=method,
            seeds=at.seeds.child("profile"),
            work=at.work,
            progress=at.telling.progress,
        )
    if plan is None:
        plan = method.plan(found, request, seeds=at.seeds.child("plan"))
    return Built(plan=plan, refinement=refine(options, plan, at=at, profile=found), profile=found)


def refine(options: EmulatorOptions, plan: Plan, *, at: Workplace, profile: Profile) -> Refinement | None:
    """Train what the method trains of the emulator of ``plan``; none when it trains nothing."""
    if changes(options):
        at.telling.phase("training the emulator on public text" if options.steps else "fitting stand-ins to public text")
    return refined(
        options,
        source=at.source,
        teacher=at.model,
        plan=plan,
        profile=profile,
        text=at.text,
        compute=at.compute,
        seeds=at.seeds.child("refine"),
        work=at.work,
        report=lambda learned: told(at.telling, learned),
        fitted=at.telling.progress,
    )


def told(telling: Telling, learned: Learned) -> None:
    """Pass on what a step of training came to, and say it in words now and then."""
    telling.progress(learned.step, learned.steps)
    telling.learned(learned)
    # How many tokens are enough is what people ask first, so the loss is told against them, ten times in all.
    if learned.step * TOLD // learned.steps != (learned.step - 1) * TOLD // learned.steps:
        terms = ", ".join(f"{name} {value:.4f}" for name, value in sorted(learned.terms.items()))
        telling.phase(f"after {learned.tokens} tokens of training the loss is {learned.loss:.4f} ({terms})")
