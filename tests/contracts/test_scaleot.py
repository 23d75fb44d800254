"""Does ScaleOT's search keep its laws, and does it find out which blocks matter?"""

from collections import Counter
from functools import partial
from math import ceil
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.adapter import Float32
from hushtune_common.config import ModelConfig
from hushtune_common.messages import Digest
from hushtune_common.methods import ScaleotOptions
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.naming import block_of
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.harmonizers import Harmonized, harmonized
from hushtune_server.owner.emulators.method import EmulatorRequest, Profile
from hushtune_server.owner.emulators.planning import request_of
from hushtune_server.owner.emulators.scaleot import Scaleot, groups, learn_replacements, raised, replaced, rewards, sampled
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.emulators.training import CHECKPOINT_STEPS, Learned, Report, unheard
from tests.models import some_windows, tiny_source

BASE = Digest.of(b"model")
SOURCE = tiny_source("random:blocks=10,hidden=32,heads=4,tied=0,seed=3")
REQUEST = EmulatorRequest(base=SOURCE.base_digest, block_count=10, adapter=(0, 9))

losses = st.lists(st.floats(0.0, 20.0), min_size=2, max_size=6)
scores = st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=23).map(lambda found: {2 + k: s for k, s in enumerate(found)})
samplers = st.sampled_from(["threshold", "gumbel_topk"])


@given(losses, st.booleans())
def test_rewards_sum_to_zero_and_a_lower_loss_never_earns_less(losses: list[float], standardised: bool) -> None:
    found = rewards(losses, standardised=standardised)
    assert abs(found.sum()) < 1e-9
    assert all(a >= b for k, a in enumerate(found) for j, b in enumerate(found) if losses[k] < losses[j])


def test_standardised_rewards_do_not_vanish_where_losses_are_large() -> None:
    assert rewards([9.0, 9.1, 9.3], standardised=True).std() == pytest.approx(1.0)
    assert rewards([700.0, 800.0], standardised=True) == pytest.approx([1.0, -1.0])
    assert np.abs(rewards([9.0, 9.1, 9.3], standardised=False)).max() < 1e-4


@given(st.integers(0, 40), st.integers(2, 6))
def test_groups_are_consecutive_and_none_is_alone(count: int, size: int) -> None:
    found = groups(list(range(count)), size=size)
    assert [block for group in found for block in group] == list(range(count))
    assert all(2 <= len(group) <= size + 1 for group in found) or count == 1


@given(scores, samplers, st.integers(2, 5), st.integers(0, 9))
def test_of_every_group_the_upper_half_stays(scores: dict[int, float], sampler: str, size: int, seed: int) -> None:
    options = msgspec.convert({"method": "scaleot", "sampler": sampler, "group": size}, ScaleotOptions)
    gone = sampled(scores, options=options, seeds=SeedTree(seed))
    for group in groups(sorted(scores), size=size):
        stays = ceil(len(group) / 2) if len(group) > 1 else 0
        assert len(group) - len(gone & set(group)) == stays
    assert gone <= set(scores)


@pytest.mark.parametrize("sampler", ["threshold", "gumbel_topk"])
def test_blocks_of_high_score_stay_more_often_and_equal_ones_equally_often(sampler: str) -> None:
    options = msgspec.convert({"method": "scaleot", "sampler": sampler}, ScaleotOptions)
    draws = 2000
    counts = Counter(
        block
        for seed in range(draws)
        for block in sampled({1: 2.0, 2: 0.0, 3: 0.0, 4: -2.0}, options=options, seeds=SeedTree(seed))
    )
    assert counts[1] < counts[2] < counts[4]
    # Four standard deviations of a fair share of the draws.
    assert abs(counts[2] - counts[3]) < 4 * np.sqrt(2 * draws * 0.25)


@given(scores, st.lists(st.floats(0.0, 9.0), min_size=2, max_size=4), st.integers(0, 9))
def test_rewarding_what_stays_equals_rewarding_against_what_goes(scores: dict[int, float], tried: list[float], seed: int) -> None:
    # Rewards sum to zero, so the update that sees kept blocks only is the symmetric one.
    gains = rewards(tried, standardised=False)
    choices = [sampled(scores, options=ScaleotOptions(), seeds=SeedTree(seed).child(str(k))) for k in range(len(tried))]
    found = raised(scores, tried=choices, gains=gains, rate=0.1)
    for block, score in scores.items():
        chance = 1 / (1 + np.exp(-score))
        signed = sum(g * (0.5 if block not in gone else -0.5) for g, gone in zip(gains, choices, strict=True))
        assert found[block] == pytest.approx(score + 0.1 * signed * chance * (1 - chance), abs=1e-9)


@given(scores, st.data(), st.sampled_from(["global", "group"]))
def test_exactly_the_asked_number_is_replaced(scores: dict[int, float], data: st.DataObject, chosen: str) -> None:
    count = data.draw(st.integers(0, len(scores)))
    options = msgspec.convert({"method": "scaleot", "replace": count, "chosen": chosen}, ScaleotOptions)
    gone = replaced(scores, options=options)
    assert len(gone) == count
    if chosen == "global" and 0 < count < len(scores):
        assert max(scores[b] for b in gone) <= min(scores[b] for b in scores.keys() - gone)


def test_by_group_every_group_loses_its_share() -> None:
    scores = dict(enumerate([0.0, 0.1, 0.2, 0.3, 5.0, 5.1, 5.2, 5.3]))
    assert replaced(scores, options=ScaleotOptions(replace=4)) == {0, 1, 2, 3}
    assert replaced(scores, options=ScaleotOptions(replace=4, chosen="group")) == {0, 1, 4, 5}


def test_the_plan_puts_harmonizers_in_and_cuts_the_rank_of_attention_elsewhere() -> None:
    source = tiny_source()
    request = request_with_layout()
    profile = Profile(replacement_scores={1: 0.3, 2: -0.1, 3: 0.2, 4: -0.2})
    plan = Scaleot(ScaleotOptions(replace=2, rank=7, rank_keep=0.4)).plan(profile, request, seeds=SeedTree(0))
    assert [slot for slot in plan.slots if isinstance(slot, Harmonize)] == [Harmonize(2, 7), Harmonize(4, 7)]
    cut = plan.slots[1]
    assert isinstance(cut, Compress)
    shapes = {name: source.weights.shape(f"model.layers.1.self_attn.{name}.weight") for name in ("q_proj", "k_proj")}
    for name, shape in shapes.items():
        assert cut.ranks[f"self_attn.{name}"] == tuple(range(ceil(0.4 * min(shape))))
    assert not any("mlp" in path for path in cut.ranks)


def request_with_layout() -> EmulatorRequest:
    return request_of(ModelConfig(source="random:", adapter_blocks=(0, 5)), source=tiny_source())


def test_scores_that_were_not_learned_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="block 1"):
        Scaleot(ScaleotOptions(replace=2)).plan(Profile(), REQUEST, seeds=SeedTree(0))


def ready(model: LanguageModel) -> Harmonized:
    return harmonized(model, middle=REQUEST.middle, rank=4, seeds=SeedTree(1))


def test_a_model_that_replaces_nothing_is_the_model_and_new_harmonizers_are_no_blocks() -> None:
    model, tokens = SOURCE.load(), torch.from_numpy(some_windows(4))
    harmonizing = ready(model)
    assert harmonizing.losses(tokens, candidates=[()]) == [pytest.approx(model.loss(some_windows(4)), rel=1e-6)]
    slots = [Drop(b) if b in (2, 5) else Keep(b) for b in range(10)]
    without = LanguageModel.build(SOURCE.config, SOURCE.weights, slots=slots)
    assert harmonizing.losses(tokens, candidates=[{2, 5}]) == [pytest.approx(without.loss(some_windows(4)), rel=1e-6)]


def counted(calls: list[int], position: int, _module: torch.nn.Module, _inputs: tuple[torch.Tensor, ...]) -> None:
    calls.append(position)


def test_a_replaced_block_is_never_computed() -> None:
    model = SOURCE.load()
    calls: list[int] = []
    for position in range(10):
        block = cast(torch.nn.Module, model.parts.blocks[position])
        block.register_forward_pre_hook(partial(counted, calls, position))
    ready(model).losses(torch.from_numpy(some_windows(2)), candidates=[{1, 2, 4}])
    assert calls == [0, 3, 5, 6, 7, 8, 9]


def planted(block: int, factor: float) -> tuple[LanguageModel, PublicText]:
    """Return a model in which one block adds ``factor`` times what it did and every other 0.3 times, and text as it writes it."""
    model = SOURCE.load()
    names = [f"model.layers.{b}.{path}.weight" for b in REQUEST.middle for path in ("self_attn.o_proj", "mlp.down_proj")]
    changed = {name: np.float32(factor if block_of(name) == block else 0.3) * SOURCE.tensor(name) for name in names}
    model.set_adapter(changed | {"lm_head.weight": 8 * SOURCE.tensor("lm_head.weight")})
    tokens = torch.from_numpy(some_windows(32, length=1))
    with torch.no_grad():
        for _ in range(16):
            tokens = torch.cat([tokens, model.logits(tokens)[:, -1:].argmax(-1)], dim=1)
    return model, PublicText(corpus=Digest.of(b"own"), windows=tokens.numpy())


SEARCH = ScaleotOptions(rank=2, steps=32, batch_windows=8, candidates=4, reward_rate=0.1, learning_rate=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["threshold", "gumbel_topk"])
def test_a_block_that_does_nothing_scores_lowest_and_a_vital_one_highest(tmp_path: Path, sampler: str) -> None:
    # One at a time: exactly half of a group stays, so a block is judged against its group, and a vital one pushes its own down.
    options = msgspec.convert({"method": "scaleot", **msgspec.to_builtins(SEARCH), "sampler": sampler}, ScaleotOptions)
    useless, _ = learned(*planted(3, 0.0), options=options, work=tmp_path)
    vital, _ = learned(*planted(6, 2.0), options=options, work=tmp_path / "vital")
    assert min(useless, key=useless.__getitem__) == 3
    assert max(vital, key=vital.__getitem__) == 6


def learned(
    model: LanguageModel, text: PublicText, *, options: ScaleotOptions, work: Path, report: Report = unheard
) -> tuple[dict[int, float], dict[str, Float32]]:
    return learn_replacements(
        model,
        text,
        request=REQUEST,
        options=options,
        seeds=SeedTree(4),
        work=work,
        progress=lambda done, total: None,
        report=report,
    )


class Killed(Exception):
    """Stands for a process that was killed."""


def killing(learned: Learned) -> None:
    if learned.step == CHECKPOINT_STEPS + 4:
        raise Killed


@pytest.mark.slow
def test_a_killed_search_goes_on_and_ends_bit_for_bit_as_if_nothing_had_been(tmp_path: Path) -> None:
    text = PublicText(corpus=Digest.of(b"public"), windows=some_windows(24))
    options = msgspec.structs.replace(SEARCH, steps=CHECKPOINT_STEPS + 8, batch_windows=2)
    whole = learned(SOURCE.load(), text, options=options, work=tmp_path / "a")
    with pytest.raises(Killed):
        learned(SOURCE.load(), text, options=options, work=tmp_path / "b", report=killing)
    steps: list[int] = []
    resumed = learned(SOURCE.load(), text, options=options, work=tmp_path / "b", report=lambda heard: steps.append(heard.step))
    assert steps[0] == CHECKPOINT_STEPS + 1
    assert resumed[0] == whole[0]
    assert resumed[1].keys() == whole[1].keys()
    assert all(np.array_equal(resumed[1][name], whole[1][name]) for name in whole[1])
    # What the second stage chooses costs no training.
    again = msgspec.structs.replace(options, replace=1, rank_keep=0.5, chosen="group")
    assert learned(SOURCE.load(), text, options=again, work=tmp_path / "b", report=killing)[0] == whole[0]


@pytest.mark.slow
def test_harmonizers_learn_while_the_search_goes_on(tmp_path: Path) -> None:
    model, text = planted(6, 2.0)
    heard: list[Learned] = []
    options = msgspec.structs.replace(SEARCH, rank=16, steps=40, learning_rate=1e-2)
    learned(model, text, options=options, work=tmp_path, report=heard.append)
    first, last = (np.mean([h.loss for h in part]) for part in (heard[:10], heard[-10:]))
    assert last < 0.9 * first
