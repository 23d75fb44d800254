"""How does a method's plan change when what it keeps frozen travels as small integers?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hushtune_common.methods import EmulatorOptions
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Keep, Quant, Slot
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic


@dataclass(frozen=True, slots=True)
class Quantising:
    """Another method, whose plan is quantised last. It chooses as if nothing were."""

    method: EmulatorMethod

    @property
    def options(self) -> EmulatorOptions:
        """Those of the method."""
        return self.method.options

    @property
    def needs(self) -> frozenset[Statistic]:
        """What the method needs."""
        return self.method.needs

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the method's plan with quantised frozen blocks."""
        return quantised_plan(self.method.plan(profile, request, seeds=seeds), self.options)

    def sizes(self, request: EmulatorRequest) -> Iterator["Quantising"]:
        """Yield the method's sizes, each of them quantised."""
        return (Quantising(method) for method in self.method.sizes(request))


def quantised_plan(plan: Plan, options: EmulatorOptions) -> Plan:
    """Return the plan with the matrices of its frozen blocks quantised as the options say; as it is when they say nothing.

    Adapter blocks, harmonizers and everything outside the blocks stay as they are; a shared block is what its source is.
    """
    if not options.quantise_bits:
        return plan
    quant = Quant(bits=options.quantise_bits, block=options.quantise_block)
    return replace(
        plan,
        slots=tuple(slot if slot.index in plan.adapter else _quantised(slot, quant) for slot in plan.slots),
        parameters={**plan.parameters, "quantise_bits": quant.bits, "quantise_block": quant.block},
    )


def _quantised(slot: Slot, quant: Quant) -> Slot:
    match slot:
        case Keep(index):
            return Compress(index=index, quant=quant)
        case Compress():
            return replace(slot, quant=quant)
        case _:
            return slot


_conforms: type[EmulatorMethod] = Quantising
