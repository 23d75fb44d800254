"""Which attacks on a shipped emulator are there, and what does each one come to?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.attacks.reinsertion import FILLS, FillName
from hushtune_server.testbed.attacks.thief import Loot, Told, Windows, opened, tuned

AttackName = Literal["adapter", "full", "heal", "copy", "interpolate", "identity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What a thief does: trains the adapter blocks alone or everything, heals on public text first, fills gaps first."""

    title: str
    adapter_only: bool = False
    heals: bool = False
    fill: FillName | None = None


ATTACKS: Mapping[AttackName, Attack] = {
    "adapter": Attack(title="adapter blocks alone, as the literature measures", adapter_only=True),
    "full": Attack(title="everything that was shipped"),
    "heal": Attack(title="healed on public text, then everything", heals=True),
    "copy": Attack(title="gaps filled with copies of neighbours, healed, then everything", heals=True, fill="copy"),
    "interpolate": Attack(title="gaps filled with means of neighbours, healed, then everything", heals=True, fill="interpolate"),
    "identity": Attack(title="gaps filled with blocks that do nothing yet, healed, then everything", heals=True, fill="identity"),
}


def attack(
    name: AttackName,
    bundle_path: Path,
    *,
    train_windows: Windows,
    public_windows: Windows,
    config: TrainingConfig,
    compute: ComputeConfig,
    seeds: SeedTree,
    progress: Told,
    healing: TrainingConfig | None = None,
) -> Loot:
    """Return the model that attack ``name`` makes of a bundle, and what it cost.

    ``config`` trains on the private ``train_windows`` (N, T), ``healing``, or the same, on the ``public_windows``; attacks that
    do not heal look at no public text. ``progress`` hears of steps done and in all, of one training after the other. The same
    arguments give the same model on a CPU. Raises `TrainerFailed` when a loss is not finite.
    """
    start = prepared(
        name,
        bundle_path,
        public_windows=public_windows,
        healing=config if healing is None else healing,
        compute=compute,
        seeds=seeds,
        progress=progress,
    )
    return tuned(start, train_windows, config=config, seeds=seeds, progress=progress)


def prepared(
    name: AttackName,
    bundle_path: Path,
    *,
    public_windows: Windows,
    healing: TrainingConfig,
    compute: ComputeConfig,
    seeds: SeedTree,
    progress: Told,
) -> Loot:
    """Return what the thief has before it trains on private text; the same for every learning rate that it then tries."""
    how = ATTACKS[name]
    fill = None if how.fill is None else FILLS[how.fill]
    start = opened(bundle_path, compute=compute, adapter_only=how.adapter_only, fill=fill)
    if not how.heals:
        return start
    return tuned(start, public_windows, config=healing, seeds=seeds.child("healing"), progress=progress)
