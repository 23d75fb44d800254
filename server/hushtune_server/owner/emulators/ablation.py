"""Ablation-ranked layer drop: leaves out the middle blocks that public text misses least, each by itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from hushtune_common.methods import AblationOptions
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic


@dataclass(frozen=True, slots=True)
class Ablation:
    """Drops the blocks with the smallest rise in loss when left out alone; equal rises drop the lower index. Draws nothing.

    The blocks of small deep models are very unequal, and evenly spaced ones hit indispensable blocks by accident. The ranking is
    of single blocks and does not see how they interact.
    """

    options: AblationOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """The loss without each block."""
        return frozenset({Statistic.ABLATION_LOSS})

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan, with the measured rises in its parameters so that a person can see why; ``seeds`` are not used."""
        request.require_droppable(self.options.drop, option="drop")
        rises = ablation_rises(profile, request)
        dropped = least_missed(rises)[: self.options.drop]
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=frozenset(dropped)),
            method="ablation",
            parameters={
                "drop": self.options.drop,
                "profile_tokens": profile.tokens,
                "loss_nats": round(profile.loss, 4),
                "loss_rise_nats": {str(b): rise for b, rise in rises.items()},
            },
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Ablation"]:
        """Drop nothing, then one block more each time."""
        return (Ablation(msgspec.structs.replace(self.options, drop=drop)) for drop in range(len(request.middle) + 1))


def ablation_rises(profile: Profile, request: EmulatorRequest) -> dict[int, float]:
    """Return by how many nats the loss rises without each middle block; ``ValueError`` when that was not measured."""
    missing = sorted(set(request.middle) - set(profile.ablation_losses))
    if missing:
        raise ValueError(f"the profile has no ablation loss of block {missing[0]}")
    # Rounded, so that the ranking is the one that the plan shows and last-digit differences of machines do not decide.
    return {b: round(profile.ablation_losses[b] - profile.loss, 4) for b in request.middle}


def least_missed(rises: dict[int, float]) -> list[int]:
    """Return the blocks in the order in which they can go; equal rises let the lower index go first."""
    return sorted(rises, key=lambda b: (rises[b], b))


_conforms: type[EmulatorMethod] = Ablation
