"""Uniform layer drop: an emulator of evenly spaced middle blocks."""

from dataclasses import dataclass
from typing import ClassVar

from hushtune_common.model.plan import Plan, kept_positions
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Keeps evenly spaced middle blocks and drops the rest. Measures nothing, draws nothing."""

    name: ClassVar[str] = "uniform"
    needs: ClassVar[frozenset[Statistic]] = frozenset()

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``profile`` and ``seeds`` are not looked at."""
        middle = request.middle
        kept = {middle[k] for k in kept_positions(len(middle) - request.drop, of=len(middle))}
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=request.slots(dropped=frozenset(middle) - kept),
            method=self.name,
            parameters={"drop": request.drop, "rounding": "half_up"},
        )


_conforms: type[EmulatorMethod] = Uniform
