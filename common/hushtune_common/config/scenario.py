"""The scenario as a whole: its digest, and what of it may travel."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import msgspec
from msgspec import Meta

from hushtune_common.config.air import AirConfig, ClientConfig, EavesdropperConfig, SecrecyConfig
from hushtune_common.config.codec import CodecConfig
from hushtune_common.config.coordinator import CoordinatorConfig, LimitsConfig, StateConfig, TimingConfig
from hushtune_common.config.learning import ComputeConfig, DataConfig, ModelConfig, TrainingConfig
from hushtune_common.config.owner import OwnerConfig
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.schema import Name, Section


class Scenario(Section, frozen=True):
    """One experiment."""

    name: Name
    """What the experiment is called, in run directories and reports."""
    seed: int
    """Root of all simulated randomness. Secrets do not come from it, and the eavesdropper does not get it."""
    model: ModelConfig
    data: DataConfig
    clients: Annotated[tuple[ClientConfig, ...], Meta(min_length=1)]
    compute: ComputeConfig = ComputeConfig()
    owner: OwnerConfig = OwnerConfig()
    training: TrainingConfig = TrainingConfig()
    codec: CodecConfig = CodecConfig()
    air: AirConfig = AirConfig()
    eavesdropper: EavesdropperConfig = EavesdropperConfig()
    secrecy: SecrecyConfig = SecrecyConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    timing: TimingConfig = TimingConfig()
    limits: LimitsConfig = LimitsConfig()
    state: StateConfig = StateConfig()

    @property
    def digest(self) -> Digest:
        """Digest of all but the seed, which the eavesdropper must not learn, and what differs by machine: folders, ``state``."""
        body = cast(dict[str, object], msgspec.to_builtins(without_folders(self)))
        body.pop("seed")
        body.pop("state")
        return Digest(hashlib.sha256(msgspec.json.encode(body, order="sorted")).digest())

    def client(self, client_id: str) -> ClientConfig:
        """Return the client of that id; ``ConfigError`` names the known ones."""
        for client in self.clients:
            if client.id == client_id:
                return client
        raise ConfigError("clients", f"no client {client_id!r}; the scenario has {', '.join(c.id for c in self.clients)}")


def without_seed(scenario: Scenario) -> Scenario:
    """Return what the eavesdropper may know: the scenario with its seed set to zero."""
    return msgspec.structs.replace(scenario, seed=0)


def without_folders(scenario: Scenario) -> Scenario:
    """Return the scenario with the bare names of its files, which is what may travel; the digest is the same."""
    return map_paths(scenario, lambda path: Path(path).name)


def map_paths(scenario: Scenario, change: Callable[[str], str]) -> Scenario:
    """Return the scenario with every path in it replaced by what ``change`` makes of it; packages and names stay."""

    def source(text: str) -> str:
        kind, colon, rest = text.partition(":")
        return f"{kind}:{change(rest)}" if colon and kind in {"txt", "jsonl", "csv", "dir", "gguf"} else text

    replace = msgspec.structs.replace
    emulator, gate = scenario.owner.emulator, scenario.owner.gate
    if emulator.plan is not None:
        emulator = replace(emulator, plan=change(emulator.plan))
    watched = {name: text and source(text) for name, text in (("canary", gate.canary), ("tripwire", gate.tripwire))}
    return replace(
        scenario,
        model=replace(scenario.model, source=source(scenario.model.source)),
        data=replace(scenario.data, private=source(scenario.data.private), public=source(scenario.data.public)),
        owner=replace(scenario.owner, emulator=emulator, gate=replace(gate, **watched)),
    )
