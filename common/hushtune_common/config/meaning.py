"""What no table can say for itself: which settings fit together?"""

from math import ceil, isfinite

from hushtune_common.aggregation import SecureConfig, require_possible
from hushtune_common.config.codec import CodecConfig
from hushtune_common.config.coordinator import AllocatorConfig
from hushtune_common.config.owner import GateConfig
from hushtune_common.config.scenario import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.methods import can_align, method_of

_TAKEN = frozenset({"owner", "coordinator", "air", "eavesdropper", "referee", "aggregate"})
"""Names of folders and files beside those of the clients."""
_DIRECTIVES_PER_ROUND = 8
"""A client hears of an opening, an assignment, four stages of a sum and a close; channels that change bring more assignments."""


def check_meaning(scenario: Scenario) -> None:
    """Raise ``ConfigError`` where settings of different tables contradict each other."""
    ids = [c.id for c in scenario.clients]
    doubled = sorted({i for i in ids if ids.count(i) > 1})
    if doubled:
        raise ConfigError("clients", f"id {doubled[0]!r} appears more than once; every client needs its own")
    taken = sorted(_TAKEN & {*ids})
    if taken:
        raise ConfigError("clients", f"id {taken[0]!r} is the name of something else; choose another")
    if len(ids) > scenario.limits.clients_max:
        raise ConfigError("clients", f"{len(ids)} clients, but limits.clients_max is {scenario.limits.clients_max}")
    if len(set(scenario.secrecy.protections)) < len(scenario.secrecy.protections):
        raise ConfigError("secrecy.protections", "names a protection twice")
    _check_rounds(scenario)
    check_aggregation(scenario)
    for index, move in enumerate(scenario.air.moves):
        where = f"air.moves[{index}]"
        if move.client not in ids:
            raise ConfigError(f"{where}.client", f"no client {move.client!r}; the scenario has {', '.join(ids)}")
        if not (isfinite(move.position.x_m) and isfinite(move.position.y_m)):
            raise ConfigError(f"{where}.position", "coordinates must be finite")
    for index, client in enumerate(scenario.clients):
        if not (isfinite(client.position.x_m) and isfinite(client.position.y_m)):
            raise ConfigError(f"clients[{index}].position", "coordinates must be finite")


def _check_rounds(scenario: Scenario) -> None:
    owner, rounds = scenario.owner, scenario.coordinator.rounds
    if rounds > 1 and scenario.codec.noise is not None and scenario.training.error_feedback:
        raise ConfigError(
            "training.error_feedback",
            "would take the noise of codec.noise back in the next round, after it was paid for; set it false",
        )
    if owner.patience >= rounds:
        raise ConfigError(
            "owner.patience", f"{owner.patience} rounds in vain cannot end a run of {rounds} early; take fewer, or more rounds"
        )
    if scenario.limits.directives_max < _DIRECTIVES_PER_ROUND * rounds:
        raise ConfigError(
            "limits.directives_max",
            f"{scenario.limits.directives_max} are too few for {rounds} rounds; take at least {_DIRECTIVES_PER_ROUND * rounds}",
        )
    if not owner.realign_steps:
        return
    if rounds == 1:
        raise ConfigError("owner.realign_steps", "is for the emulators of later rounds, and coordinator.rounds is 1")
    if not can_align(owner.emulator):
        raise ConfigError(
            "owner.realign_steps",
            f"method {method_of(owner.emulator)!r} trains and fits nothing that could be aligned anew; take distill or linear",
        )


def check_aggregation(scenario: Scenario) -> None:
    """Raise ``ConfigError`` where updates are to be added unseen and another setting forbids it, or would do nothing."""
    options, clients = scenario.owner.aggregation, len(scenario.clients)
    if not isinstance(options, SecureConfig):
        return
    require_possible(options, clients=clients, needed=_needed(scenario), weight_max=weight_max(scenario))
    useless = _without_use(scenario)
    if useless is not None:
        raise ConfigError(useless, "does nothing when owner.aggregation.kind is secure; leave it out, or take kind mean")
    if scenario.training.lora is not None:
        raise ConfigError(
            "training.lora", "its products have no bound that everybody knows, which owner.aggregation.kind = secure needs"
        )


def weight_max(scenario: Scenario) -> int:
    """Return the most that the weights of a round's updates add up to, with secure aggregation."""
    options, clients = scenario.owner.aggregation, len(scenario.clients)
    by_windows = isinstance(options, SecureConfig) and options.weights == "windows"
    return clients * (scenario.data.train_windows if by_windows else 1)


def _needed(scenario: Scenario) -> int:
    """Return with how few clients a round may close."""
    stragglers, clients = scenario.coordinator.stragglers, len(scenario.clients)
    match stragglers.kind:
        case "quorum":
            return max(1, ceil(stragglers.share * clients - 1e-9))
        case "everyone":
            return clients
        case "deadline":
            return 1


def _without_use(scenario: Scenario) -> str | None:
    """Return a setting that was changed and that nothing looks at when updates are only added."""
    gate, allocator = scenario.owner.gate, scenario.coordinator.allocator
    judging = ("history_norm_max", "round_norm_max", "direction_min", "quarantine_count_max", "quarantine_bytes_max")
    for name in judging:
        if getattr(gate, name) != getattr(GateConfig(), name):
            return f"owner.gate.{name}"
    if scenario.codec != CodecConfig():
        return "codec"
    if allocator.utility.kind == "measured":
        return "coordinator.allocator.utility.kind"
    for name in ("share_min", "levels"):
        if getattr(allocator, name) != getattr(AllocatorConfig(), name):
            return f"coordinator.allocator.{name}"
    return None
