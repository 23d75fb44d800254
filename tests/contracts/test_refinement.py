"""Does training on public text improve an emulator, leave the adapter blocks alone, and survive being killed?"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig, ModelConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.messages import Digest
from hushtune_common.methods import DistillOptions, EmulatorOptions, MarginOptions, ScaleotOptions, WidthOptions, method_of
from hushtune_common.model.bundle import Refinement, emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.language import EXACT, LanguageModel
from hushtune_common.model.naming import block_of
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.distill import divergence
from hushtune_server.owner.emulators.engine import Telling, Workplace, build
from hushtune_server.owner.emulators.planning import request_of
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.emulators.training import CHECKPOINT_STEPS, Learned, rate_share, unheard
from tests.models import ADAPTER, some_windows, tiny_source

SOURCE = tiny_source()
REQUEST = request_of(ModelConfig(source="random:", adapter_blocks=ADAPTER), source=SOURCE)
DISTILL = DistillOptions(drop=2, ranking="uniform", steps=30, batch_windows=4, learning_rate=3e-3)


def workplace(work: Path, *, learned: Callable[[Learned], None] = unheard, compute: ComputeConfig = EXACT) -> Workplace:
    return Workplace(
        source=SOURCE,
        model=SOURCE.load(compute),
        text=PublicText(corpus=Digest.of(b"public"), windows=some_windows(24)),
        compute=compute,
        seeds=SeedTree(3),
        work=work,
        telling=Telling(phase=lambda phase: None, progress=lambda done, total: None, learned=learned),
    )


def made(options: EmulatorOptions, at: Workplace) -> tuple[Plan, Refinement]:
    built = build(options, REQUEST, at=at)
    assert built.refinement is not None
    return built.plan, built.refinement


def emulator(plan: Plan, refinement: Refinement | None) -> LanguageModel:
    tensors = emulator_tensors(SOURCE, plan=plan, refinement=refinement)
    return LanguageModel.build(SOURCE.config, tensors, slots=plan.slots)


def middle_error(plan: Plan, refinement: Refinement | None) -> float:
    """Return the mean square of the difference after block 4, the last of the middle, as a share of the model's mean square."""
    tokens = torch.from_numpy(some_windows(8, seed=77))
    full, found = SOURCE.load(), emulator(plan, refinement)
    with torch.no_grad():
        wanted = hidden_before(full, tokens, block=5)
        return float((hidden_before(found, tokens, block=5) - wanted).square().mean() / wanted.square().mean())


def hidden_before(model: LanguageModel, tokens: torch.Tensor, *, block: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    place = cast(torch.nn.Module, model.parts.blocks[model.blocks.index(block)])
    hook = place.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.logits(tokens)
    hook.remove()
    return seen[0]


@pytest.mark.slow
def test_distilling_brings_the_middle_closer_to_the_whole_one(tmp_path: Path) -> None:
    plan, refinement = made(DISTILL, workplace(tmp_path))
    assert middle_error(plan, refinement) < 0.9 * middle_error(plan, None)


REFINING = [
    DISTILL,
    DistillOptions(drop=3, ranking="uniform", harmonizer_rank=4, steps=4, logits_weight=1.0, layerwise_weight=1.0),
    MarginOptions(drop=1, ranking="uniform", steps=3, batch_windows=2, hidden_weight=1.0),
    ScaleotOptions(replace=2, rank=4, steps=3, rank_keep=0.5, hidden_weight=1.0),
    WidthOptions(channel_keep=0.5, steps=3, language_weight=1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", REFINING, ids=["distill", "distill all terms", "margin", "scaleot", "width"])
@pytest.mark.parametrize("bits", [0, 4])
def test_training_changes_what_the_plan_keeps_frozen_and_never_an_adapter_block(
    tmp_path: Path, options: EmulatorOptions, bits: int
) -> None:
    options = msgspec.structs.replace(options, quantise_bits=bits, quantise_block=16)
    at = workplace(tmp_path)
    plan, refinement = made(options, at)
    assert {block_of(name) for name in refinement.trained} <= set(plan.stored) - set(ADAPTER)
    write_bundle(tmp_path / "bundle", source=SOURCE, plan=plan, refinement=refinement)
    bundle = read_bundle(tmp_path / "bundle")
    for name, value in bundle.adapter_numpy().items():
        assert np.array_equal(value, SOURCE.tensor(name)), name
    assert np.isfinite(bundle.load().loss(some_windows(2)))
    # The teacher is used after this; it is as it was, and nothing of it will be trained by accident.
    assert at.model.loss(some_windows(3)) == SOURCE.load().loss(some_windows(3))
    assert not any(p.requires_grad for p in at.model.module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("options", REFINING, ids=["distill", "distill all terms", "margin", "scaleot", "width"])
def test_the_same_arguments_train_the_same_emulator(tmp_path: Path, options: EmulatorOptions) -> None:
    first, second = (made(options, workplace(tmp_path / name))[1] for name in "ab")
    assert first.digest == second.digest
    assert first.settings == second.settings


@pytest.mark.slow
@pytest.mark.parametrize(("family", "adapter"), [("llama", (0, 3)), ("gpt2", (2,)), ("opt", (0, 1, 5)), ("gpt_neox", (1, 3, 5))])
def test_every_family_trains_wherever_its_adapter_blocks_lie(tmp_path: Path, family: str, adapter: tuple[int, ...]) -> None:
    source = tiny_source(f"random:blocks=6,hidden=32,heads=4,seed=1,family={family}")
    request = request_of(ModelConfig(source="random:", adapter_blocks=adapter), source=source)
    at = replace(workplace(tmp_path), source=source, model=source.load())
    for options in REFINING[1:]:
        built = build(msgspec.structs.replace(options, steps=1, batch_windows=2), request, at=at)
        assert built.refinement is not None
        assert not {block_of(name) for name in built.refinement.trained} & set(adapter)
        tensors = emulator_tensors(source, plan=built.plan, refinement=built.refinement)
        trained = LanguageModel.build(source.config, tensors, slots=built.plan.slots)
        assert np.isfinite(trained.loss(some_windows(2)))


@pytest.mark.slow
def test_quantising_comes_on_top_of_the_same_training(tmp_path: Path) -> None:
    _, plain = made(DISTILL, workplace(tmp_path / "a"))
    _, quantised = made(msgspec.structs.replace(DISTILL, quantise_bits=8), workplace(tmp_path / "b"))
    assert plain.digest == quantised.digest


@pytest.mark.slow
def test_harmonizers_learn_to_fill_the_gap(tmp_path: Path) -> None:
    options = DistillOptions(
        drop=3, ranking="uniform", harmonizer_rank=16, steps=60, batch_windows=8, learning_rate=1e-2, language_weight=0.0
    )
    plan, refinement = made(options, workplace(tmp_path))
    assert {block_of(name) for name in refinement.trained} == {2, 3, 4}
    assert middle_error(plan, refinement) < 0.9 * middle_error(plan, None)


class Killed(Exception):
    """Stands for a process that was killed."""


def killed_after(steps: int) -> Callable[[Learned], None]:
    def learned(learned: Learned) -> None:
        if learned.step == steps:
            raise Killed

    return learned


LONG: dict[str, Any] = {"steps": CHECKPOINT_STEPS + 5, "batch_windows": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        DistillOptions(drop=2, ranking="uniform", harmonizer_rank=2, **LONG),
        MarginOptions(drop=2, ranking="uniform", **LONG),
        WidthOptions(channel_keep=0.5, **LONG),
    ],
    ids=method_of,
)
def test_a_killed_training_goes_on_and_ends_bit_for_bit_as_if_nothing_had_been(tmp_path: Path, options: EmulatorOptions) -> None:
    _, whole = made(options, workplace(tmp_path / "a"))
    with pytest.raises(Killed):
        made(options, workplace(tmp_path / "b", learned=killed_after(CHECKPOINT_STEPS + 3)))
    steps: list[int] = []
    _, resumed = made(options, workplace(tmp_path / "b", learned=lambda learned: steps.append(learned.step)))
    assert steps[0] == CHECKPOINT_STEPS + 1
    assert resumed.digest == whole.digest


@pytest.mark.slow
def test_a_finished_training_is_not_repeated_and_another_one_does_not_take_its_result(tmp_path: Path) -> None:
    _, first = made(DISTILL, workplace(tmp_path))
    _, again = made(DISTILL, workplace(tmp_path, learned=killed_after(1)))
    assert again.digest == first.digest
    with pytest.raises(Killed):
        made(msgspec.structs.replace(DISTILL, hidden_weight=29.0), workplace(tmp_path, learned=killed_after(1)))


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_costs_time_only(tmp_path: Path) -> None:
    options = msgspec.structs.replace(DISTILL, steps=CHECKPOINT_STEPS + 2)
    with pytest.raises(Killed):
        made(options, workplace(tmp_path / "a", learned=killed_after(CHECKPOINT_STEPS)))
    for file in (tmp_path / "a").rglob("running*"):
        file.write_bytes(file.read_bytes()[:100])
    steps: list[int] = []
    _, resumed = made(options, workplace(tmp_path / "a", learned=lambda learned: steps.append(learned.step)))
    assert steps[0] == 1
    assert resumed.digest == made(options, workplace(tmp_path / "b"))[1].digest


def test_a_training_that_diverges_says_in_which_step_and_what_to_lower(tmp_path: Path) -> None:
    options = msgspec.structs.replace(DISTILL, learning_rate=1e30)
    with pytest.raises(TrainerFailed, match=r"step \d+ .*lower owner\.emulator\.learning_rate"):
        made(options, workplace(tmp_path))


@pytest.mark.parametrize(("share", "stopped"), [(0.0, False), (0.9, True)])
def test_training_stops_on_a_plateau_if_asked(tmp_path: Path, share: float, stopped: bool) -> None:
    steps: list[int] = []
    options = msgspec.structs.replace(DISTILL, plateau_share=share)
    made(options, workplace(tmp_path, learned=lambda learned: steps.append(learned.step)))
    assert (len(steps) < options.steps) == stopped


def test_a_person_hears_the_loss_its_terms_and_the_tokens_of_every_step(tmp_path: Path) -> None:
    heard: list[Learned] = []
    made(msgspec.structs.replace(DISTILL, steps=3), workplace(tmp_path, learned=heard.append))
    assert [(h.step, h.steps, h.tokens) for h in heard] == [(1, 3, 64), (2, 3, 128), (3, 3, 192)]
    assert all(h.loss == pytest.approx(h.terms["hidden"] + h.terms["language"]) for h in heard)


def test_ten_times_in_all_a_phase_tells_the_loss_against_tokens(tmp_path: Path) -> None:
    phases: list[str] = []
    telling = Telling(phase=phases.append, progress=lambda done, total: None)
    made(msgspec.structs.replace(DISTILL, steps=20), replace(workplace(tmp_path), telling=telling))
    told = [phase for phase in phases if "tokens of training" in phase]
    assert len(told) == 10
    assert told[0].startswith("after 128 tokens of training the loss is ")


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    nothing = msgspec.structs.replace(DISTILL, hidden_weight=0.0, language_weight=0.0)
    with pytest.raises(ConfigError, match=r"owner\.emulator\.hidden_weight"):
        build(nothing, REQUEST, at=workplace(tmp_path))


def test_an_emulator_without_a_middle_has_nothing_to_train(tmp_path: Path) -> None:
    options = msgspec.structs.replace(DISTILL, drop=3)
    assert build(options, REQUEST, at=workplace(tmp_path)).refinement is None


def test_the_divergence_of_logits_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    target, found = rng.normal(size=(2, 2, 3, 5))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (target, found))
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert float(divergence(torch.from_numpy(target), torch.from_numpy(found))) == pytest.approx(expected, rel=1e-5)


def test_the_first_loss_is_that_of_the_definition(tmp_path: Path) -> None:
    heard: list[Learned] = []
    options = msgspec.structs.replace(DISTILL, steps=1, batch_windows=24, layerwise_weight=2.0, logits_weight=3.0)
    plan, _ = made(options, workplace(tmp_path, learned=heard.append))
    tokens = torch.from_numpy(some_windows(24))
    full, found = SOURCE.load(), emulator(plan, None)
    with torch.no_grad():
        after_kept = [hidden_before(m, tokens[:, :-1], block=4 if m is full else 5).numpy() for m in (full, found)]
        after = [hidden_before(m, tokens[:, :-1], block=5).numpy() for m in (full, found)]
        logits = [m.logits(tokens[:, :-1]) for m in (full, found)]
    assert plan.kept == (0, 1, 3, 5)
    assert heard[0].terms["hidden"] == pytest.approx(30 * relative(*after), rel=1e-4)
    assert heard[0].terms["layerwise"] == pytest.approx(2 * relative(*after_kept), rel=1e-4)
    assert heard[0].terms["language"] == pytest.approx(found.loss(some_windows(24)), rel=1e-5)
    assert heard[0].terms["logits"] == pytest.approx(3 * float(divergence(*logits)), rel=1e-4)


def relative(wanted: Float32, found: Float32) -> float:
    scale = np.sqrt(np.mean(wanted.astype(np.float64) ** 2))
    return float(np.mean(((wanted - found) / scale) ** 2))


@pytest.mark.slow
def test_a_shipped_plan_of_learned_replacements_gets_its_harmonizers(tmp_path: Path) -> None:
    options = ScaleotOptions(replace=2, rank=4, steps=3)
    plan, refinement = made(options, workplace(tmp_path / "a"))
    shipped = build(options, REQUEST, at=workplace(tmp_path / "b"), plan=plan)
    assert shipped.plan == plan
    assert shipped.refinement is not None
    assert shipped.refinement.digest == refinement.digest


@given(st.integers(1, 20), st.integers(1, 12), st.integers(1, 3))
def test_every_epoch_visits_every_window_once_and_no_batch_depends_on_another(count: int, size: int, epochs: int) -> None:
    batches = Batches(windows=np.arange(count)[:, None], size=size, seeds=SeedTree(2))
    steps = range(1, 1 + epochs * count)
    seen = np.concatenate([batches.of(step) for step in steps])[: epochs * count, 0]
    assert all(set(seen[k * count : (k + 1) * count]) == set(range(count)) for k in range(epochs))
    assert np.array_equal(batches.of(3), batches.of(3))


def test_the_learning_rate_warms_up_and_falls_to_almost_nothing() -> None:
    options = DistillOptions(steps=100, warmup_share=0.1)
    shares = [rate_share(step, options=options) for step in range(1, 101)]
    assert shares[9] == max(shares) == 1.0
    assert shares[0] == pytest.approx(0.1)
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert 0 < shares[-1] < 0.001


def gap_and_cosine(plan: Plan, refinement: Refinement | None) -> tuple[float, float]:
    """Return by how much the emulator's loss is higher than the model's, and the cosine of the adapter's gradients."""
    tokens, losses, gradients = torch.from_numpy(some_windows(24)), list[float](), list[Float32]()
    for model in (SOURCE.load(), emulator(plan, refinement)):
        adapter = list(model.adapter_parameters(ADAPTER).values())
        for parameter in adapter:
            parameter.requires_grad_(True)
        loss = model.batch_loss(tokens)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(np.concatenate([cast(torch.Tensor, p.grad).numpy().ravel() for p in adapter]))
    lengths = [float(np.linalg.norm(g)) for g in gradients]
    return losses[1] - losses[0], float(gradients[0] @ gradients[1]) / (lengths[0] * lengths[1])


@pytest.mark.slow
def test_with_a_margin_the_gap_approaches_it_and_the_gradients_turn_the_same_way(tmp_path: Path) -> None:
    options = MarginOptions(drop=2, ranking="uniform", steps=40, batch_windows=8, learning_rate=1e-2, margin_nats=0.5)
    plan, refinement = made(options, workplace(tmp_path))
    (gap, turned), (gap_before, turned_before) = gap_and_cosine(plan, refinement), gap_and_cosine(plan, None)
    assert abs(gap - 0.5) < 0.3 * abs(gap_before - 0.5)
    assert turned > turned_before + 0.05


@pytest.mark.parametrize("margin", [0.0, 2.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_a_margin_is_punished_from_both_sides_or_from_one(tmp_path: Path, margin: float, one_sided: bool) -> None:
    heard: list[Learned] = []
    options = MarginOptions(drop=2, ranking="uniform", steps=1, batch_windows=24, margin_nats=margin, one_sided=one_sided)
    plan, _ = made(options, workplace(tmp_path, learned=heard.append))
    gap, turned = gap_and_cosine(plan, None)
    expected = 0.0 if one_sided and gap > margin else (gap - margin) ** 2
    assert heard[0].terms["margin"] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert heard[0].terms["gradient"] == pytest.approx(1 - turned, rel=1e-3)


@pytest.mark.slow
def test_feed_forward_networks_that_lost_neurons_learn_and_attention_stays(tmp_path: Path) -> None:
    heard: list[Learned] = []
    options = WidthOptions(channel_keep=0.5, steps=80, batch_windows=24, learning_rate=3e-3)
    _, refinement = made(options, workplace(tmp_path, learned=heard.append))
    assert all(".mlp." in name for name in refinement.trained)
    assert heard[-1].loss < 0.8 * heard[0].loss
