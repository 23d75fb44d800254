"""Does a thief get what an emulator holds, and as much as can be made of it? Every attack has to find what is planted."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from hushtune_common.adapter import Float32
from hushtune_common.config import DpConfig, LoraConfig, TrainingConfig
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.model.bundle import emulator_tensors, read_bundle, write_bundle
from hushtune_common.model.finetune import finetune
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.language import EXACT, LanguageModel
from hushtune_common.model.materialise import EmulatorTensors
from hushtune_common.model.naming import block_of, inner_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Quant, Share, Slot
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.expanded import Expanded, Recipe, expanded
from hushtune_server.testbed.attacks.attack import ATTACKS, AttackName, attack
from hushtune_server.testbed.attacks.reinsertion import FILLS, Filling, reinserted
from hushtune_server.testbed.attacks.thief import Loot, opened, taught, tuned
from tests.fakes import FakeClock
from tests.models import ADAPTER, some_windows, tiny_source

CONFIG = TrainingConfig(learning_rate=3e-3, batch_windows=4, epochs=2)
TRAIN, PUBLIC, TEST = some_windows(8), some_windows(8, seed=6), some_windows(4, seed=7)
RANKS = {"self_attn.q_proj": tuple(range(4)), "self_attn.o_proj": (0, 2, 3, 5)}
SLOTS: Mapping[str, Slot] = {
    "share": Share(2, 3),
    "share of an adapter block": Share(2, 1),
    "harmonize": Harmonize(2, 4),
    "ranks": Compress(index=2, ranks=RANKS),
    "channels": Compress(index=2, channels=tuple(range(0, 64, 2))),
    "int8": Compress(index=2, quant=Quant(bits=8, block=16)),
    "int4": Compress(index=2, quant=Quant(bits=4, block=32)),
    "all at once": Compress(index=2, ranks=RANKS, channels=tuple(range(40)), quant=Quant(bits=4, block=16)),
}


def plan_with(source: ModelSource, *changed: Slot) -> Plan:
    by_index = {slot.index: slot for slot in changed}
    slots = tuple(by_index.get(b, Keep(b)) for b in range(source.block_count))
    return Plan(base=source.base_digest, adapter=ADAPTER, slots=slots, method="by_hand")


def bundle_with(folder: Path, *changed: Slot) -> Path:
    source, path = tiny_source(), folder / "bundle.safetensors"
    write_bundle(path, source=source, plan=plan_with(source, *changed))
    return path


def run(name: AttackName, bundle: Path, *, seed: int = 1) -> Loot:
    return attack(
        name,
        bundle,
        train_windows=TRAIN,
        public_windows=PUBLIC,
        config=CONFIG,
        compute=EXACT,
        seeds=SeedTree(seed),
        progress=lambda _done, _all: None,
    )


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(torch.from_numpy(TEST))


@pytest.mark.parametrize("kind", SLOTS)
def test_what_a_thief_writes_out_computes_what_the_emulator_computes(tmp_path: Path, kind: str) -> None:
    path = bundle_with(tmp_path, SLOTS[kind])
    theirs, own = logits(opened(path, compute=EXACT).model), logits(read_bundle(path).load())
    torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SLOTS)
def test_a_thief_holds_no_integers_no_thin_factors_and_no_shared_blocks(kind: str) -> None:
    source = tiny_source()
    plan = plan_with(source, SLOTS[kind])
    held = expanded(plan, emulator_tensors(source, plan=plan))
    forms = {inner_of(n): source.weights.shape(n) for n in source.names() if block_of(n) == 2}
    found = {name: recipe.shape for name, recipe in held.block(2).items()}
    assert not any(isinstance(slot, Share) for slot in held.slots)
    if kind not in ("harmonize", "channels", "all at once"):
        assert held.slots[2] == Keep(2)
        assert found == forms
    assert all(held.tensor(name).shape == held.shape(name) for name in held.names())


def test_transposed_storage_with_biases_is_written_out_as_the_model_stores_it() -> None:
    base = FusedBlocks()
    slot = Compress(index=1, ranks={"attn.c_attn": (0, 1)}, channels=(0, 3, 5), quant=Quant(bits=8, block=16))
    plan = Plan(base=tiny_source().base_digest, adapter=(0,), slots=(Keep(0), slot), method="by_hand")
    held = expanded(plan, EmulatorTensors(base, plan))
    attention = base.tensor("h.1.attn.c_attn.weight").astype(np.float64)
    u, s, vt = np.linalg.svd(attention, full_matrices=False)
    np.testing.assert_allclose(held.tensor("h.1.attn.c_attn.weight"), (u[:, :2] * s[:2]) @ vt[:2], atol=0.05)
    np.testing.assert_array_equal(held.tensor("h.1.attn.c_attn.bias"), base.tensor("h.1.attn.c_attn.bias"))
    np.testing.assert_allclose(held.tensor("h.1.mlp.c_fc.weight"), base.tensor("h.1.mlp.c_fc.weight")[:, [0, 3, 5]], atol=0.02)
    np.testing.assert_array_equal(held.tensor("h.1.mlp.c_fc.bias"), base.tensor("h.1.mlp.c_fc.bias")[[0, 3, 5]])
    np.testing.assert_allclose(held.tensor("h.1.mlp.c_proj.weight"), base.tensor("h.1.mlp.c_proj.weight")[[0, 3, 5]], atol=0.02)


def test_the_literature_s_attack_is_the_client_s_own_training(tmp_path: Path) -> None:
    path = bundle_with(tmp_path, Drop(2), Harmonize(3, 4))
    governor = Unpaced(clock=FakeClock())
    state = finetune(
        path, TRAIN, config=CONFIG, compute=EXACT, seeds=SeedTree(1), governor=governor, report=lambda _progress: None
    )
    found = run("adapter", path).model.adapter_parameters(ADAPTER)
    assert all(np.array_equal(found[n].detach().numpy(), value) for n, value in state.tensors.items())


@pytest.mark.slow
def test_on_an_emulator_that_keeps_everything_the_attack_is_full_fine_tuning(tmp_path: Path) -> None:
    path = bundle_with(tmp_path)
    full = tiny_source().load()
    whole = Loot(model=full, trained=tuple(full.module.parameters()), cost=opened(path, compute=EXACT).cost)
    tuned(whole, TRAIN, config=CONFIG, seeds=SeedTree(1), progress=lambda _done, _all: None)
    stolen = run("full", path)
    assert torch.equal(logits(stolen.model), logits(full))
    assert stolen.model.loss(TRAIN) < run("adapter", path).model.loss(TRAIN) < tiny_source().load().loss(TRAIN)


def test_everything_that_was_shipped_is_trained_and_shared_blocks_go_their_own_ways(tmp_path: Path) -> None:
    path = bundle_with(tmp_path, Share(2, 3), Compress(index=4, quant=Quant(bits=8, block=16)))
    before = {n: p.detach().clone() for n, p in opened(path, compute=EXACT).model.module.named_parameters()}
    after = dict(run("full", path).model.module.named_parameters())
    assert len(after) == 2 + 6 * 9
    assert all(not torch.equal(after[n], value) for n, value in before.items())
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(before[name.format(2)], before[name.format(3)])
    assert not torch.equal(after[name.format(2)], after[name.format(3)])


def test_healing_lowers_the_loss_on_public_text(tmp_path: Path) -> None:
    start = opened(bundle_with(tmp_path, Drop(2), Drop(3)), compute=EXACT)
    before = start.model.loss(PUBLIC)
    healed = tuned(start, PUBLIC, config=CONFIG, seeds=SeedTree(1), progress=lambda _done, _all: None)
    assert healed.model.loss(PUBLIC) < before - 0.05


@pytest.mark.slow
def test_answers_of_the_full_model_bring_a_thief_closer_to_it_and_each_token_is_asked_about_once(tmp_path: Path) -> None:
    full, path = tiny_source().load(), bundle_with(tmp_path, Drop(2), Drop(3))

    def divergence(model: LanguageModel) -> float:
        ours, theirs = (torch.distributions.Categorical(logits=logits(m)) for m in (model, full))
        return float(torch.distributions.kl_divergence(theirs, ours).mean())

    before = divergence(opened(path, compute=EXACT).model)
    by_count: list[float] = []
    for count in (4, 64):
        asked = some_windows(count, seed=8)
        loot = opened(path, compute=EXACT)
        config = TrainingConfig(learning_rate=3e-3, batch_windows=4, epochs=2)
        found = taught(loot, asked, api=full.logits, config=config, seeds=SeedTree(1), progress=lambda _done, _all: None)
        assert found.cost.queried == count * 16
        by_count.append(divergence(found.model))
    assert by_count[1] < by_count[0] < before


def test_a_thief_s_gradient_of_everything_is_the_one_of_the_plain_loss(tmp_path: Path) -> None:
    model = opened(bundle_with(tmp_path), compute=EXACT).model
    model.module.requires_grad_(True)
    tokens = torch.from_numpy(TRAIN)
    plain = torch.nn.functional.cross_entropy(model.logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    names, parameters = zip(*model.module.named_parameters(), strict=True)
    wanted = torch.autograd.grad(plain, parameters)
    found = torch.autograd.grad(model.batch_loss(tokens), parameters)
    assert "model.embed_tokens.weight" in names
    for name, ours, theirs in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7, msg=name)


def test_putting_back_the_true_blocks_gives_the_full_model(tmp_path: Path) -> None:
    source = tiny_source()

    def planted(held: Expanded, index: int) -> Filling:
        def reader(name: str) -> Recipe:
            return Recipe(source.weights.shape(name), lambda: source.tensor(name))

        return Keep(index), {inner_of(n): reader(n) for n in source.names() if block_of(n) == index}

    found = opened(bundle_with(tmp_path, Drop(2), Harmonize(3, 4)), compute=EXACT, fill=planted)
    assert torch.equal(logits(found.model), logits(source.load()))


def test_blocks_that_do_nothing_yet_leave_the_emulator_as_it_was(tmp_path: Path) -> None:
    path = bundle_with(tmp_path, Drop(2), Drop(3))
    filled = opened(path, compute=EXACT, fill=FILLS["identity"])
    assert filled.model.blocks == tuple(range(6))
    torch.testing.assert_close(logits(filled.model), logits(read_bundle(path).load()))


def test_copies_are_of_the_nearest_block_and_means_lie_between_the_neighbours() -> None:
    source = tiny_source()
    plan = plan_with(source, Drop(2), Drop(3))
    held = expanded(plan, emulator_tensors(source, plan=plan))
    inner = "self_attn.q_proj.weight"

    def of(filled: Expanded, block: int) -> Float32:
        return filled.tensor(filled.name_of(inner, block=block))

    copies, means = reinserted(held, FILLS["copy"]), reinserted(held, FILLS["interpolate"])
    np.testing.assert_array_equal(of(copies, 2), of(held, 1))
    np.testing.assert_array_equal(of(copies, 3), of(held, 4))
    np.testing.assert_allclose(of(means, 2), (2 * of(held, 1) + of(held, 4)) / 3, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(of(means, 3), (of(held, 1) + 2 * of(held, 4)) / 3, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_learns_the_text_and_says_what_it_took(tmp_path: Path, name: AttackName) -> None:
    path = bundle_with(tmp_path, Drop(2), Share(3, 4))
    before = read_bundle(path).load().loss(TRAIN)
    loot = run(name, path)
    assert loot.model.loss(TRAIN) < before - 0.05
    trainings = 2 if ATTACKS[name].heals else 1
    assert (loot.cost.steps, loot.cost.tokens) == (4 * trainings, 2 * TRAIN.size * trainings)
    assert loot.cost.parameters == sum(p.numel() for p in loot.trained)


@pytest.mark.slow
def test_the_same_arguments_give_the_same_loot_and_another_seed_another(tmp_path: Path) -> None:
    path = bundle_with(tmp_path, Drop(2), Harmonize(3, 4))
    first, again, other = (run("interpolate", path, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(logits(first.model), logits(again.model))
    assert not torch.equal(logits(first.model), logits(other.model))


def test_an_attack_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    path = bundle_with(tmp_path, Drop(2))
    before = path.read_bytes()
    run("full", path)
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_attack(tmp_path: Path) -> None:
    start = opened(bundle_with(tmp_path), compute=EXACT)
    wild = TrainingConfig(learning_rate=1e30, batch_windows=2, epochs=3, warmup_share=0.0)
    with pytest.raises(TrainerFailed, match="step 2"):
        tuned(start, TRAIN, config=wild, seeds=SeedTree(1), progress=lambda _done, _all: None)


@pytest.mark.parametrize("config", [TrainingConfig(lora=LoraConfig()), TrainingConfig(dp=DpConfig())])
def test_settings_that_a_thief_has_no_use_for_are_refused_by_name(tmp_path: Path, config: TrainingConfig) -> None:
    start = opened(bundle_with(tmp_path), compute=EXACT)
    with pytest.raises(ConfigError, match=r"training\.(lora|dp)"):
        tuned(start, TRAIN, config=config, seeds=SeedTree(1), progress=lambda _done, _all: None)


class FusedBlocks:
    """Two blocks in the storage of GPT-2: matrices as (inputs, outputs), query, key and value in one, biases everywhere."""

    SHAPES: Mapping[str, tuple[int, ...]] = {
        "attn.c_attn.weight": (16, 48),
        "attn.c_attn.bias": (48,),
        "attn.c_proj.weight": (16, 16),
        "attn.c_proj.bias": (16,),
        "mlp.c_fc.weight": (16, 64),
        "mlp.c_fc.bias": (64,),
        "mlp.c_proj.weight": (64, 16),
        "mlp.c_proj.bias": (16,),
        "ln_1.weight": (16,),
        "ln_1.bias": (16,),
    }

    def names(self) -> list[str]:
        return sorted(f"h.{b}.{inner}" for b in (0, 1) for inner in self.SHAPES)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.SHAPES[inner_of(name)]

    def tensor(self, name: str) -> Float32:
        return SeedTree(3).child(name).generator().standard_normal(self.shape(name)).astype(np.float32)
