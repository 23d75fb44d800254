"""How is something trained and scored: adapter blocks as a client does, or whatever a thief trains of what it was given?

Every session trains afresh for each learning rate that is tried, on the same windows in the same order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import Clock
from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.messages import Digest
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import Progress, Unpaced, finetune
from hushtune_common.model.indexed import IndexedModel
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.attacks.attack import ATTACKS, AttackName, prepared
from hushtune_server.testbed.attacks.thief import Loot, tuned
from hushtune_server.testbed.emulators.tasks import Texts, Windows, scores, with_state

Stepped = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all arms of a comparison share."""

    texts: Texts
    public: Windows
    compute: ComputeConfig
    clock: Clock
    stepped: Stepped


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one training took: tokens seen, processor and wall seconds."""

    tokens: int
    cpu_s: float
    wall_s: float


class Session(Protocol):
    """Trains one arm, from the same start every time.

    Laws: `held_out` and `final` are about the latest `train`; equal arguments give equal results on a CPU.
    """

    def train(self, config: TrainingConfig) -> Spent:
        """Train afresh; `TrainerFailed` when numbers stop being finite."""
        ...

    def held_out(self) -> list[float]:
        """Return the losses on the windows that choose learning rates."""
        ...

    def final(self) -> Mapping[str, list[float]]:
        """Return the losses on the test windows, by the model that was scored."""
        ...


class Task(Protocol):
    """What all arms are trained for and scored on.

    Laws: scores are losses, lower is better, one for each test item in the same order for every arm; equal arguments give equal
    scores on a CPU.
    """

    @property
    def unit(self) -> str:
        """``nats`` per token, or ``error``, 1 for a text that is misjudged."""
        ...

    @property
    def digest(self) -> Digest:
        """What identifies the text."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many items train, choose learning rates (``select``) and score (``test``)."""
        ...

    def full_scores(self, model: IndexedModel) -> list[float]:
        """Score the full model as it is."""
        ...

    def shipped_scores(self, bundle: Path) -> list[float]:
        """Score an emulator as it is shipped."""
        ...

    def client(self, bundle: Path, *, seed: int, full: Callable[[], IndexedModel] | None) -> "Session":
        """Begin to train adapter blocks as a client does; ``full`` is the model to plug them into."""
        ...

    def thief(self, name: AttackName, bundle: Path, *, seed: int, healing: TrainingConfig) -> "Session":
        """Begin an attack; ``full`` on the whole model's file is full fine-tuning."""
        ...


class LanguageTask:
    """Predicting the next token of private text."""

    unit = "nats"

    def __init__(self, setting: Setting) -> None:
        """Take text and tools."""
        self._setting = setting

    @property
    def digest(self) -> Digest:
        """What identifies the windows."""
        return self._setting.texts.digest

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many windows train, choose and score."""
        texts = self._setting.texts
        return {"train": len(texts.train), "select": len(texts.select), "test": len(texts.test)}

    def full_scores(self, model: IndexedModel) -> list[float]:
        """Return the losses of the full model."""
        return scores(_language(model), self._setting.texts.test)

    def shipped_scores(self, bundle: Path) -> list[float]:
        """Return the losses of an emulator."""
        return scores(read_bundle(bundle).load(self._setting.compute), self._setting.texts.test)

    def client(self, bundle: Path, *, seed: int, full: Callable[[], IndexedModel] | None) -> "Session":
        """Train adapter blocks by the client's own recipe."""
        return AdapterSession(bundle, seed=seed, setting=self._setting, full=full)

    def thief(self, name: AttackName, bundle: Path, *, seed: int, healing: TrainingConfig) -> "Session":
        """Attack an emulator file."""
        return ThiefSession(name, bundle, seed=seed, setting=self._setting, healing=healing)


class AdapterSession:
    """Adapter blocks of an emulator file, trained as a client does; scored in the emulator and, if asked, in ``full``."""

    def __init__(self, bundle: Path, *, seed: int, setting: Setting, full: Callable[[], IndexedModel] | None) -> None:
        """Load the emulator."""
        self._bundle, self._setting, self._full = bundle, setting, full
        self._seeds = SeedTree(seed).child("training")
        self._emulator = read_bundle(bundle).load(setting.compute)
        self._state: AdapterState | None = None

    def train(self, config: TrainingConfig) -> Spent:
        """Train the adapter blocks as they were shipped."""
        last: list[Progress] = []

        def report(now: Progress) -> None:
            last[:] = [now]
            self._setting.stepped(now.step, now.steps)

        state = finetune(
            self._bundle,
            self._setting.texts.train,
            config=config,
            compute=self._setting.compute,
            seeds=self._seeds,
            governor=Unpaced(clock=self._setting.clock),
            report=report,
        )
        if not all(np.isfinite(t).all() for t in state.tensors.values()):
            raise TrainerFailed(f"training at rate {config.learning_rate:g} left numbers that are not finite; lower the rate")
        self._emulator.set_adapter(state.tensors)
        self._state = state
        return Spent(tokens=last[-1].tokens, cpu_s=float(last[-1].cpu_s), wall_s=float(last[-1].wall_s))

    def held_out(self) -> list[float]:
        """Return what the client can see: losses of the emulator."""
        return scores(self._emulator, self._setting.texts.select)

    def final(self) -> Mapping[str, list[float]]:
        """Return losses of the emulator, and of the full model with the same blocks plugged in."""
        if self._state is None:
            raise ValueError("nothing was trained yet")
        test = self._setting.texts.test
        found = {"emulator": scores(self._emulator, test)}
        if self._full is not None:
            model = _language(self._full())
            found["full"] = with_state(model, self._state.tensors, then=lambda: scores(model, test))
        return found


class ThiefSession:
    """An attack on an emulator file; ``full`` on the whole model's file is full fine-tuning."""

    def __init__(self, name: AttackName, bundle: Path, *, seed: int, setting: Setting, healing: TrainingConfig) -> None:
        """Open the loot, and heal it where the attack does."""
        self._setting = setting
        self._seeds = SeedTree(seed).child("training")
        self._start = prepared(
            name,
            bundle,
            public_windows=setting.public,
            healing=healing,
            compute=setting.compute,
            seeds=self._seeds,
            progress=setting.stepped,
        )
        self._before = [p.detach().clone() for p in self._start.trained]

    def train(self, config: TrainingConfig) -> Spent:
        """Train from the opened, perhaps healed, loot."""
        with torch.no_grad():
            for parameter, value in zip(self._start.trained, self._before, strict=True):
                parameter.copy_(value)
        governor = Unpaced(clock=self._setting.clock)
        governor.step_began()
        loot = tuned(self._start, self._setting.texts.train, config=config, seeds=self._seeds, progress=self._setting.stepped)
        governor.step_ended()
        return Spent(tokens=_tokens(loot, self._start), cpu_s=float(governor.cpu_s), wall_s=float(governor.wall_s))

    def held_out(self) -> list[float]:
        """Return losses of what the thief has."""
        return scores(self._start.model, self._setting.texts.select)

    def final(self) -> Mapping[str, list[float]]:
        """Return losses of what the thief has."""
        return {"emulator": scores(self._start.model, self._setting.texts.test)}


def trains_adapter_only(name: AttackName) -> bool:
    """Return whether an attack trains adapter blocks only, at their learning rates."""
    return ATTACKS[name].adapter_only


def _language(model: IndexedModel) -> LanguageModel:
    if not isinstance(model, LanguageModel):
        raise ConfigError("task", '"language" needs a causal language model; take task = "classify" for an encoder')
    return model


def _tokens(after: Loot, before: Loot) -> int:
    return after.cost.tokens - before.cost.tokens


_conforms: tuple[type[Task], type[Session], type[Session]] = (LanguageTask, AdapterSession, ThiefSession)
