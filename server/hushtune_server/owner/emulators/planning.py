"""Which plan the owner uses: the one that comes with the scenario, or a fresh one from public text."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hushtune_common.config import EmulatorConfig, Scenario
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.model.data import corpus_digest
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.ablation import Ablation
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile
from hushtune_server.owner.emulators.profile import profile
from hushtune_server.owner.emulators.uniform import Uniform

METHODS: Mapping[str, EmulatorMethod] = {"ablation": Ablation(), "uniform": Uniform()}


def request_of(scenario: Scenario, *, source: ModelSource) -> EmulatorRequest:
    """Return what the scenario asks of an emulator of this model; `ConfigError` when the model cannot give it."""
    return EmulatorRequest(
        base=source.base_digest,
        block_count=source.block_count,
        adapter_bottom=scenario.model.adapter_bottom,
        adapter_top=scenario.model.adapter_top,
        drop=scenario.owner.emulator.drop,
    )


def shipped_plan(config: EmulatorConfig, *, request: EmulatorRequest) -> Plan | None:
    """Return the scenario's plan file, or none when it names none; `ConfigError` when it was made for something else."""
    if config.plan is None:
        return None
    try:
        plan = Plan.from_json(Path(config.plan).read_bytes())
    except (OSError, MalformedUpdate) as error:
        raise ConfigError("owner.emulator.plan", f"cannot use {config.plan} ({error})") from error
    if plan.base != request.base:
        raise ConfigError(
            "owner.emulator.plan",
            f"was made for model {plan.base.short}, this is {request.base.short}; leave it out to make a new one",
        )
    asked = (config.method, request.adapter, request.drop)
    found = (plan.method, plan.adapter, len(plan.dropped))
    if asked != found:
        raise ConfigError("owner.emulator.plan", f"is for (method, adapter blocks, drop) = {found}, the scenario asks {asked}")
    return plan


def fresh_plan(
    scenario: Scenario,
    *,
    source: ModelSource,
    model: LanguageModel,
    public: Sequence[str],
    seeds: SeedTree,
    progress: Callable[[int, int], None],
) -> Plan:
    """Profile the ``public`` records as far as the method needs it, and plan. The windows lie at even distances over the text."""
    config = scenario.owner.emulator
    method = METHODS[config.method]
    request = request_of(scenario, source=source)
    found = Profile()
    if method.needs:
        length = scenario.data.window_tokens
        windows = source.tokens.spread_windows(public, length=length, count=-(-config.profile_tokens // length))
        if not len(windows):
            raise ConfigError("data.public", f"holds fewer than {length} tokens; there is nothing to profile on")
        corpus = corpus_digest(public)
        found = profile(model, windows, request=request, wanted=method.needs, corpus=corpus, progress=progress)
    return method.plan(found, request, seeds=seeds)
