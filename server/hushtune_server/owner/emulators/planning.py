"""Which plan the owner uses: the one that comes with the scenario, or a fresh one from public text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hushtune_common.config import ModelConfig
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.methods import EmulatorOptions, method_of
from hushtune_common.model.layout import layout_of
from hushtune_common.model.naming import block_of, inner_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource
from hushtune_server.owner.emulators.crash import Crash
from hushtune_server.owner.emulators.distill import Distill
from hushtune_server.owner.emulators.gradot import Gradot
from hushtune_server.owner.emulators.influence import Influence
from hushtune_server.owner.emulators.margin import Margin
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, both_ends
from hushtune_server.owner.emulators.quantising import Quantising
from hushtune_server.owner.emulators.ranked_drop import RankedDrop
from hushtune_server.owner.emulators.scaleot import Scaleot
from hushtune_server.owner.emulators.uniform import Uniform
from hushtune_server.owner.emulators.width import Width

METHODS: Mapping[str, Callable[[Any], EmulatorMethod]] = {
    "ablation": RankedDrop,
    "crash": Crash,
    "distill": Distill,
    "gradot": Gradot,
    "greedy": RankedDrop,
    "influence": Influence,
    "linear": Distill,
    "margin": Margin,
    "scaleot": Scaleot,
    "uniform": Uniform,
    "width": Width,
}


def method_for(options: EmulatorOptions) -> EmulatorMethod:
    """Return the method that has these options; what it ships is quantised last where they say so."""
    method = METHODS[method_of(options)](options)
    return Quantising(method) if options.quantise_bits else method


def request_of(model: ModelConfig, *, source: ModelSource) -> EmulatorRequest:
    """Return what the scenario asks of an emulator of this model; `ConfigError` when the model cannot give it."""
    count = source.block_count
    first = {inner_of(n): source.weights.shape(n) for n in source.names() if block_of(n) == 0}
    adapter = model.adapter_blocks or both_ends(count, bottom=model.adapter_bottom, top=model.adapter_top)
    return EmulatorRequest(base=source.base_digest, block_count=count, adapter=adapter, layout=layout_of(first))


def shipped_plan(options: EmulatorOptions, *, request: EmulatorRequest) -> Plan | None:
    """Return the scenario's plan file, or none when it names none; `ConfigError` when it was made for something else."""
    if options.plan is None:
        return None
    try:
        plan = Plan.from_json(Path(options.plan).read_bytes())
    except (OSError, MalformedUpdate) as error:
        raise ConfigError("owner.emulator.plan", f"cannot use {options.plan} ({error})") from error
    if plan.base != request.base:
        raise ConfigError(
            "owner.emulator.plan",
            f"was made for model {plan.base.short}, this is {request.base.short}; leave it out to make a new one",
        )
    asked = (method_of(options), request.adapter)
    found = (plan.method, plan.adapter)
    if asked != found:
        raise ConfigError("owner.emulator.plan", f"is for (method, adapter blocks) = {found}, the scenario asks {asked}")
    _require_same_options(plan, options)
    return plan


def _require_same_options(plan: Plan, options: EmulatorOptions) -> None:
    """Every option that the plan records must be the one that the scenario asks for."""
    recorded = {"quantise_bits": 0, **plan.parameters}
    for name in options.__struct_fields__:
        asked = getattr(options, name)
        if name in recorded and name not in ("plan", "profile_tokens") and recorded[name] != asked:
            raise ConfigError("owner.emulator.plan", f"was made with {name} = {recorded[name]!r}, the scenario asks {asked!r}")
