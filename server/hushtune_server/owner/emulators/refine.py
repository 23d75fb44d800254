"""How does training on public text improve an emulator? Never by touching an adapter block."""

from collections.abc import Callable
from pathlib import Path

from hushtune_common.config import ComputeConfig
from hushtune_common.methods import EmulatorOptions
from hushtune_common.model.bundle import Refinement
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import Profile
from hushtune_server.owner.emulators.text import PublicText


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
    progress: Callable[[int, int], None],
) -> Refinement | None:
    """Return what training makes of the emulator of ``plan``; none for methods that train nothing."""
    return None
