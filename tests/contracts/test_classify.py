"""Does a classifier learn what can be learned, and change nothing else?"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.config import DpConfig, TrainingConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.model.bundle import emulator_tensors
from hushtune_common.model.encoder import EncoderModel, padded
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Drop, Harmonize, Keep
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.emulators.classify import Head, Step, accuracy, classify, correct, linear_probe
from tests.models import tiny_source

SOURCE = "random:family=bert,blocks=4,hidden=32,heads=4"
CONFIG = TrainingConfig(learning_rate=2e-3, batch_windows=16, epochs=4)


def questions(count: int, *, seed: int) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Return texts of which the class is the token that stands more often than another at odd places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    texts = [rng.integers(0, 200, rng.integers(6, 14)) for _ in range(count)]
    for text, label in zip(texts, labels, strict=True):
        text[1::2] = 210 + label
        text[0::2] = np.where(rng.random(len(text[0::2])) < 0.5, 211 - label, text[0::2])
    return [text.tolist() for text in texts], labels


def emulator(*middle: Drop | Harmonize) -> EncoderModel:
    source = tiny_source(SOURCE)
    at = {slot.index: slot for slot in middle}
    slots = tuple(at.get(b, Keep(b)) for b in range(4))
    plan = Plan(base=source.base_digest, adapter=(0, 3), slots=slots, method="by_hand")
    return EncoderModel.build(source.config, emulator_tensors(source, plan=plan), slots=slots)


def test_training_finds_the_class_of_unseen_texts_through_an_emulator_and_plugged_in() -> None:
    texts, labels = questions(160, seed=1)
    unseen, truth = questions(100, seed=2)
    model = emulator(Drop(1), Harmonize(2, 4))
    state, head = classify(model, texts, labels, trained_blocks=(0, 3), config=CONFIG, seeds=SeedTree(1))
    assert accuracy(model, head, unseen, truth) > 0.9
    full = tiny_source(SOURCE).encoder()
    before = accuracy(full, linear_probe(full.features(texts), labels), unseen, truth)
    full.set_adapter(state.tensors)
    assert accuracy(full, head, unseen, truth) > max(0.6, before - 0.2)


def test_only_the_trained_blocks_change() -> None:
    texts, labels = questions(32, seed=1)
    model = emulator(Drop(1))
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    state, _ = classify(model, texts, labels, trained_blocks=(0, 3), config=CONFIG, seeds=SeedTree(1))
    own = {id(p) for p in model.adapter_parameters((0, 3)).values()}
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in own), name
    assert {name.split(".")[2] for name in state.tensors} == {"0", "3"}


def test_the_same_seeds_give_the_same_result_and_others_another() -> None:
    texts, labels = questions(32, seed=1)
    results = [
        classify(emulator(Drop(2)), texts, labels, trained_blocks=(0, 3), config=CONFIG, seeds=SeedTree(seed))[1].weight
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_every_step_is_reported() -> None:
    texts, labels = questions(40, seed=1)
    seen: list[Step] = []
    classify(emulator(), texts, labels, trained_blocks=(3,), config=CONFIG, seeds=SeedTree(1), report=seen.append)
    assert [s.step for s in seen] == list(range(1, 3 * 4 + 1))
    assert seen[-1].loss < seen[0].loss


def test_a_loss_that_is_not_finite_ends_training_with_its_step() -> None:
    texts, labels = questions(32, seed=1)
    wild = TrainingConfig(learning_rate=1e30, batch_windows=8, epochs=2)
    with pytest.raises(TrainerFailed, match=r"step \d+ is (nan|inf); lower training.learning_rate"):
        classify(emulator(), texts, labels, trained_blocks=(0, 3), config=wild, seeds=SeedTree(1))


def test_options_of_language_models_are_refused() -> None:
    config = TrainingConfig(dp=DpConfig(epsilon=8.0, delta=1e-5))
    with pytest.raises(ConfigError, match="lora and dp"):
        classify(emulator(), *questions(8, seed=1), trained_blocks=(3,), config=config, seeds=SeedTree(1))


def test_the_probe_stands_where_the_gradient_of_its_objective_is_zero() -> None:
    features, labels = blobs()
    head = linear_probe(features, labels, penalty=0.1)
    # In standardised features the objective is strictly convex, so a zero gradient is the minimum.
    centre, spread = features.mean(axis=0), features.std(axis=0)
    x, weight = (features - centre) / spread, head.weight * spread
    scores = np.exp(head.scores(features) - head.scores(features).max(axis=1, keepdims=True))
    surplus = scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[labels]
    assert np.abs(surplus.T @ x / len(x) + 0.1 * weight).max() < 1e-4
    assert np.abs(surplus.mean(axis=0)).max() < 1e-4


def test_accuracy_is_the_mean_of_what_is_correct() -> None:
    texts, labels = questions(30, seed=1)
    model = tiny_source(SOURCE).encoder()
    head = linear_probe(model.features(texts), labels)
    found = [int(np.argmax(head.scores(model.features([text])))) for text in texts]
    assert np.array_equal(correct(model, head, texts, labels), np.array(found) == labels)
    assert accuracy(model, head, texts, labels) == pytest.approx(np.mean(np.array(found) == labels))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="a head of weight"):
        Head(weight=np.zeros((3, 4), np.float32), bias=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="labels of shape"):
        linear_probe(np.zeros((3, 4), np.float32), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="at least one token"):
        padded([[1], []])


def blobs() -> tuple[Float32, NDArray[np.int64]]:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 90)
    return (rng.standard_normal((90, 5)) + 2.0 * np.eye(5)[labels]).astype(np.float32), labels
