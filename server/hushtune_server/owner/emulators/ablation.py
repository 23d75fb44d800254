"""Ablation-ranked layer drop: leaves out the middle blocks that public text misses least, each by itself."""

from dataclasses import dataclass
from typing import ClassVar

from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """Drops the blocks with the smallest rise in loss when left out alone; equal rises drop the lower index. Draws nothing.

    The blocks of small deep models are very unequal, and evenly spaced ones hit indispensable blocks by accident. The ranking is
    of single blocks and does not see how they interact.
    """

    name: ClassVar[str] = "ablation"
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.ABLATION_LOSS})

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan, with the measured rises in its parameters so that a person can see why; ``seeds`` are not used."""
        missing = sorted(set(request.middle) - set(profile.ablation_losses))
        if missing:
            raise ValueError(f"the profile has no ablation loss of block {missing[0]}")
        # Rounded first, so that the ranking is the one that the plan shows and last-digit differences of machines do not decide.
        rises = {b: round(profile.ablation_losses[b] - profile.loss, 4) for b in request.middle}
        dropped = sorted(request.middle, key=lambda b: (rises[b], b))[: request.drop]
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=frozenset(dropped)),
            method=self.name,
            parameters={
                "drop": request.drop,
                "profile_tokens": profile.tokens,
                "loss_nats": round(profile.loss, 4),
                "loss_rise_nats": {str(b): rise for b, rise in rises.items()},
            },
            corpus=profile.corpus,
        )


_conforms: type[EmulatorMethod] = Ablation
