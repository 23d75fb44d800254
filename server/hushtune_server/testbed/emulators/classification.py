"""What is trained and measured where the model is an encoder: classes of texts, scored text by text as right (0) or wrong (1).

A linear head beside the adapter blocks is the client's own. Before training it is the linear probe on the frozen model's
features; the plug-in is scored with the head that was trained on the emulator, for nobody has both full model and texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import Clock
from hushtune_common.config import ComputeConfig, TrainingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.encoder import EncoderModel
from hushtune_common.model.finetune import Unpaced
from hushtune_common.model.indexed import IndexedModel
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.expanded import expanded
from hushtune_server.testbed.attacks.attack import AttackName
from hushtune_server.testbed.emulators.arms import Session, Spent, Stepped, Task
from hushtune_server.testbed.emulators.classify import Head, Labels, classify, correct, linear_probe
from hushtune_server.testbed.emulators.labelled import Labelled, load_labelled, split_labelled
from hushtune_server.testbed.emulators.schema import Comparison
from hushtune_server.testbed.emulators.tasks import with_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Texts as token ids, special ones included, with their classes (N,)."""

    texts: Sequence[Sequence[int]]
    labels: Labels

    @property
    def key(self) -> bytes:
        """What identifies it."""
        return repr([list(ids) for ids in self.texts]).encode() + np.ascontiguousarray(self.labels, dtype="<i8").tobytes()


class ClassifyTask:
    """Telling classes of texts apart."""

    unit = "error"

    def __init__(self, comparison: Comparison, *, source: ModelSource, clock: Clock, stepped: Stepped) -> None:
        """Draw training and test texts; the last training texts choose learning rates and train nothing."""
        data, share = comparison.data, comparison.selection.share
        tree = SeedTree(comparison.seed).child("data")
        train, test = split_labelled(load_labelled(data.private), train=data.train_windows, test=data.test_windows, seeds=tree)
        held = max(1, round(share * len(train.texts)))
        if len(train.texts) <= held:
            raise ConfigError("data.train_windows", "leaves no text to train on beside those that choose learning rates")
        cut = len(train.texts) - held
        self.train = _part(train.chosen(np.arange(cut)), source, length_max=data.window_tokens)
        self.select = _part(train.chosen(np.arange(cut, cut + held)), source, length_max=data.window_tokens)
        self.test = _part(test, source, length_max=data.window_tokens)
        self.compute, self.clock, self.stepped = comparison.compute, clock, stepped

    @property
    def digest(self) -> Digest:
        """What identifies all texts and classes."""
        return Digest.of(b"|".join(part.key for part in (self.train, self.select, self.test)))

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many texts train, choose and score."""
        return {"train": len(self.train.texts), "select": len(self.select.texts), "test": len(self.test.texts)}

    def full_scores(self, model: IndexedModel) -> list[float]:
        """Return the errors of the linear probe on the full model."""
        return self._probed(_encoder(model))

    def shipped_scores(self, bundle: Path) -> list[float]:
        """Return the errors of the linear probe on an emulator."""
        return self._probed(_emulator(read_bundle(bundle), compute=self.compute))

    def _probed(self, model: EncoderModel) -> list[float]:
        head = linear_probe(model.features(self.train.texts), self.train.labels)
        return errors(model, head, self.test)

    def client(self, bundle: Path, *, seed: int, full: Callable[[], IndexedModel] | None) -> Session:
        """Train adapter blocks and a head."""
        return ClassifySession(bundle, task=self, seed=seed, thief=False, full=full)

    def thief(self, name: AttackName, bundle: Path, *, seed: int, healing: TrainingConfig) -> Session:
        """Train all blocks and a head; an encoder's public text has no classes, so nothing can be healed on it."""
        return ClassifySession(bundle, task=self, seed=seed, thief=name == "full", full=None)


class ClassifySession:
    """Blocks of an encoder's emulator and a head, trained together; as a thief all blocks, written out as floats."""

    def __init__(
        self, bundle: Path, *, task: ClassifyTask, seed: int, thief: bool, full: Callable[[], IndexedModel] | None
    ) -> None:
        """Open the emulator."""
        self._bundle, self._task, self._thief, self._full = read_bundle(bundle), task, thief, full
        self._seeds = SeedTree(seed).child("training")
        self._trained: tuple[EncoderModel, AdapterState, Head] | None = None

    def train(self, config: TrainingConfig) -> Spent:
        """Train from the blocks as they were shipped."""
        torch.manual_seed(self._seeds.child("torch").integer())
        task = self._task
        model = (_stolen if self._thief else _emulator)(self._bundle, compute=task.compute)
        governor = Unpaced(clock=task.clock)
        governor.step_began()
        state, head = classify(
            model,
            task.train.texts,
            task.train.labels,
            trained_blocks=model.blocks if self._thief else self._bundle.plan.adapter,
            config=config,
            seeds=self._seeds,
            report=lambda step: task.stepped(step.step, step.steps),
        )
        governor.step_ended()
        self._trained = (model, state, head)
        seen = config.epochs * sum(len(ids) for ids in task.train.texts)
        return Spent(tokens=seen, cpu_s=float(governor.cpu_s), wall_s=float(governor.wall_s))

    def held_out(self) -> list[float]:
        """Return the errors on the texts that choose."""
        model, _, head = self._require_trained()
        return errors(model, head, self._task.select)

    def final(self) -> Mapping[str, list[float]]:
        """Return the errors on the test texts, of the emulator and of the full model with the same blocks and head."""
        model, state, head = self._require_trained()
        test = self._task.test
        found = {"emulator": errors(model, head, test)}
        if self._full is not None:
            full = _encoder(self._full())
            found["full"] = with_state(full, state.tensors, then=lambda: errors(full, head, test))
        return found

    def _require_trained(self) -> tuple[EncoderModel, AdapterState, Head]:
        if self._trained is None:
            raise ValueError("nothing was trained yet")
        return self._trained


def errors(model: EncoderModel, head: Head, part: Part) -> list[float]:
    """Return 1 for every text whose class is missed, 0 for the others."""
    return [0.0 if right else 1.0 for right in correct(model, head, part.texts, part.labels)]


def _part(data: Labelled, source: ModelSource, *, length_max: int) -> Part:
    return Part(texts=source.tokens.sequences(data.texts, length_max=length_max), labels=data.labels)


def _emulator(bundle: Bundle, *, compute: ComputeConfig) -> EncoderModel:
    return EncoderModel.build(bundle.config, bundle.file, slots=bundle.plan.slots, compute=compute)


def _stolen(bundle: Bundle, *, compute: ComputeConfig) -> EncoderModel:
    held = expanded(bundle.plan, bundle.file)
    return EncoderModel.build(bundle.config, held, slots=held.slots, compute=compute)


def _encoder(model: IndexedModel) -> EncoderModel:
    if not isinstance(model, EncoderModel):
        raise ConfigError("task", '"classify" needs an encoder; this model predicts next tokens')
    return model


_conforms: tuple[type[Task], type[Session]] = (ClassifyTask, ClassifySession)
