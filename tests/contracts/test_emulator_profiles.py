"""Is what a profile says of a model true, by brute force on tiny models, and does it survive a file and an interruption?"""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hushtune_common.config import ModelConfig
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.language import LanguageModel, next_token_loss
from hushtune_common.model.layout import layout_of
from hushtune_common.model.slots import Drop, Keep
from hushtune_common.model.weights import TensorFile, write_tensors
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.gradients import Moments, each_blocks_moments, gradient_scores, weight_of
from hushtune_server.owner.emulators.hidden_states import cka
from hushtune_server.owner.emulators.method import EmulatorRequest, Profile, Scores
from hushtune_server.owner.emulators.planning import METHODS, request_of
from hushtune_server.owner.emulators.profile import profile, require_measured_for
from hushtune_server.owner.emulators.profile_file import read_profile, write_profile
from hushtune_server.owner.emulators.text import PublicText
from tests.emulators import BASE, every_name, options_of, profile_for, request_for
from tests.models import some_windows, tiny_source
from tests.tiny_families import FAMILIES, tiny

SOURCE = tiny_source()
REQUEST = request_of(ModelConfig(source="random:", adapter_blocks=(0, 2, 5)), source=SOURCE)
TEXT = PublicText(corpus=BASE, windows=some_windows(14))
Pass = Callable[[int, int], None]


def quiet(done: int, passes: int) -> None:
    """Tell nobody."""


def measured(name: str, work: Path, *, progress: Pass = quiet, **settings: object) -> Profile:
    """Profile for a method, on all of the text."""
    method = METHODS[name](options_of(name, profile_tokens=TEXT.windows.size, **settings))
    return profile(SOURCE.load(), TEXT, request=REQUEST, method=method, seeds=SeedTree(1), work=work, progress=progress)


def loss_without(*gone: int) -> float:
    slots = [Drop(b) if b in gone else Keep(b) for b in range(6)]
    return LanguageModel.build(SOURCE.config, SOURCE.weights, slots=slots).loss(TEXT.windows)


def test_ablation_losses_are_those_of_models_without_the_block(tmp_path: Path) -> None:
    seen = list[tuple[int, int]]()
    found = measured("ablation", tmp_path, progress=lambda done, passes: seen.append((done, passes)))
    assert found.loss == pytest.approx(loss_without(), rel=1e-6)
    assert found.ablation_losses == pytest.approx({b: loss_without(b) for b in (1, 3, 4)}, rel=1e-6)
    assert seen == [(k, 8) for k in range(1, 9)]


def test_greedy_drops_each_time_what_is_missed_least_in_what_is_left(tmp_path: Path) -> None:
    found, gone = measured("greedy", tmp_path, drop=3), list[int]()
    for block, loss in zip(found.greedy_order, found.greedy_losses, strict=True):
        losses = {b: loss_without(*gone, b) for b in (1, 3, 4) if b not in gone}
        assert block == min(losses, key=lambda b: losses[b])
        assert loss == pytest.approx(losses[block], rel=1e-6)
        gone.append(block)
    assert len(gone) == 3


class Interrupted(Exception):
    """Raised in the middle of a measurement."""


def test_an_interrupted_greedy_order_goes_on_where_it_was(tmp_path: Path) -> None:
    def break_off(done: int, passes: int) -> None:
        if done == 2 + 3 * 2 + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        measured("greedy", tmp_path / "a", drop=3, progress=break_off)
    seen = list[tuple[int, int]]()
    again = measured("greedy", tmp_path / "a", drop=3, progress=lambda done, passes: seen.append((done, passes)))
    assert again == measured("greedy", tmp_path / "b", drop=3)
    # Two batches; the whole model is looked at again, the first step with its three blocks is not.
    assert seen == [(1, 14), (2, 14), *((done, 14) for done in range(9, 15))]


def test_a_damaged_intermediate_result_is_measured_again(tmp_path: Path) -> None:
    first = measured("greedy", tmp_path, drop=2)
    for file in tmp_path.iterdir():
        file.write_bytes(b'{"blocks": [1, 1], "losses": [0.0]}')
    assert measured("greedy", tmp_path, drop=2) == first


def block_outputs(model: LanguageModel, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return input and output of every block in one plain pass through the model."""
    seen = list[tuple[Tensor, Tensor]]()

    def listen(_module: nn.Module, given: tuple[Tensor], returned: Tensor) -> None:
        seen.append((given[0].detach(), returned.detach()))

    hooks = [block.register_forward_hook(listen) for block in model.parts.blocks]
    with torch.no_grad():
        model.logits(tokens)
    for hook in hooks:
        hook.remove()
    return seen


def test_influence_is_one_minus_the_mean_cosine(tmp_path: Path) -> None:
    found = measured("influence", tmp_path)
    outputs = block_outputs(SOURCE.load(), torch.from_numpy(TEXT.windows[:, :-1]))
    for block in (1, 3, 4):
        before, after = (t.double().reshape(-1, 32).numpy() for t in outputs[block])
        cosines = [x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in zip(before, after, strict=True)]
        assert found.influences[block] == pytest.approx(1 - np.mean(cosines), abs=1e-7)
    assert found.loss == pytest.approx(loss_without(), rel=1e-6)


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton's formula with explicit centring matrices, by kernels."""
    count = len(x)
    h = np.eye(count) - np.ones((count, count)) / count

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ a.T @ h @ b @ b.T @ h))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


@pytest.mark.parametrize(("count", "size"), [(5, 9), (9, 5), (6, 6)])
def test_cka_equals_the_formula_by_kernels_whichever_product_is_smaller(count: int, size: int) -> None:
    samples = SeedTree(count).generator().normal(size=(4, count, size)) + 3.0
    samples[3] = 2.0 * samples[0] + 1.0
    found = cka(samples)
    expected = [[plain_cka(x, y) for y in samples] for x in samples]
    assert found == pytest.approx(np.array(expected), abs=1e-6)
    assert found[0, 3] == pytest.approx(1.0, abs=1e-6)


def test_outputs_that_do_not_vary_are_like_nothing_else() -> None:
    samples = SeedTree(1).generator().normal(size=(3, 5, 4))
    samples[1] = 7.0
    assert cka(samples)[1].tolist() == [0.0, 1.0, 0.0]


def test_similarity_compares_outputs_averaged_over_a_window(tmp_path: Path) -> None:
    found = measured("crash", tmp_path, drop=1)
    outputs = block_outputs(SOURCE.load(), torch.from_numpy(TEXT.windows))
    pooled = [after.double().mean(dim=1).numpy() for _, after in outputs]
    assert found.similarity == pytest.approx(np.array([[plain_cka(x, y) for y in pooled] for x in pooled]), abs=1e-5)


def test_neuron_norms_are_over_all_weights_of_a_neuron(tmp_path: Path) -> None:
    found = measured("width", tmp_path)
    for block in (1, 3, 4):
        gate, up, down = (SOURCE.tensor(f"model.layers.{block}.mlp.{m}_proj.weight") for m in ("gate", "up", "down"))
        expected = np.linalg.norm(np.concatenate([gate, up, down.T], axis=1), axis=1)
        assert found.neuron_norms[block] == pytest.approx(expected, rel=1e-5)
    assert (found.tokens, found.corpus) == (0, None)


def test_only_what_a_method_asks_for_is_measured(tmp_path: Path) -> None:
    def never(done: int, passes: int) -> None:
        raise AssertionError("looked at text")

    assert measured("uniform", tmp_path, progress=never) == Profile(base=REQUEST.base, adapter=REQUEST.adapter)
    found = measured("gradot", tmp_path)
    filled = {f.name for f in fields(found) if getattr(found, f.name) != getattr(Profile(), f.name)}
    assert filled == {"base", "corpus", "tokens", "loss", "cpu_s", "component_scores", "channel_scores", "adapter", "settings"}


def test_processor_seconds_are_counted_and_change_nothing(tmp_path: Path) -> None:
    ticks = iter([10.0, 12.5])
    method = METHODS["influence"](options_of("influence", drop=1))
    found = profile(
        SOURCE.load(),
        TEXT,
        request=REQUEST,
        method=method,
        seeds=SeedTree(1),
        work=tmp_path,
        progress=quiet,
        cpu_time=lambda: next(ticks),
    )
    assert found.cpu_s == 2.5
    assert found == replace(found, cpu_s=0.0)


def tiny_case(family: str) -> tuple[LanguageModel, EmulatorRequest]:
    """A model in double precision, so that differences of losses are exact enough, whose middle is its second block."""
    model = tiny(family)
    model.module.double()
    layout = layout_of({n: tuple(p.shape) for n, p in model.parts.blocks[0].named_parameters()})
    return model, EmulatorRequest(base=BASE, block_count=3, adapter=(0, 2), layout=layout)


def moments_of(model: LanguageModel, request: EmulatorRequest, *, damping: float = 0.0) -> dict[str, Moments]:
    found = dict[str, Moments]()
    each_blocks_moments(
        model, WINDOWS, request=request, damping=damping, found=lambda _block, moments: found.update(moments), progress=quiet
    )
    return found


WINDOWS = some_windows(14, length=9)


def stored_weight(model: LanguageModel, path: str) -> nn.Parameter:
    weight = model.parts.blocks[1].get_submodule(path).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def mean_loss(model: LanguageModel) -> Tensor:
    """Return the loss over all windows at once."""
    tokens = torch.from_numpy(WINDOWS)
    return next_token_loss(model.logits(tokens[:, :-1]), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_mean_gradients_are_those_of_the_whole_models_loss(family: str) -> None:
    model, request = tiny_case(family)
    assert request.layout is not None
    found = moments_of(model, request)
    for matrix in request.layout.matrices:
        weight = stored_weight(model, matrix.path).requires_grad_()
        (gradient,) = torch.autograd.grad(mean_loss(model), [weight])
        # LLaMA's norms compute in single precision.
        assert found[matrix.path].gradient == pytest.approx((gradient.T if matrix.transposed else gradient).numpy(), abs=1e-8)
        weight.requires_grad_(False)


def test_second_moments_are_means_over_tokens_and_damped_by_their_diagonals() -> None:
    model, request = tiny_case("gpt2")
    plain, damped = (moments_of(model, request, damping=d)["mlp.c_fc"] for d in (0.0, 0.5))
    seen = list[tuple[Tensor, Tensor]]()

    def listen(_module: nn.Module, given: tuple[Tensor], returned: Tensor) -> None:
        seen.append((given[0], returned.requires_grad_()))

    hook = model.parts.blocks[1].get_submodule("mlp.c_fc").register_forward_hook(listen)
    loss = mean_loss(model)
    hook.remove()
    count = WINDOWS.shape[0] * (WINDOWS.shape[1] - 1)
    ((x, y),) = seen
    d = torch.autograd.grad(loss, [y])[0].reshape(count, -1).numpy() * count
    rows = x.detach().reshape(count, -1).numpy()
    assert plain.inputs == pytest.approx(sum(np.outer(r, r) for r in rows) / count, abs=1e-9)
    assert plain.outputs == pytest.approx(sum(np.outer(r, r) for r in d) / count, abs=1e-9)
    assert damped.inputs - plain.inputs == pytest.approx(0.5 * np.trace(plain.inputs) / 32 * np.eye(32), abs=1e-9)


def change_of_loss(model: LanguageModel, removed: dict[str, np.ndarray], request: EmulatorRequest, *, family: str) -> float:
    """Return the slope of the loss as these parts of matrices fade, by central differences."""
    assert request.layout is not None
    # LLaMA's norms compute in single precision, and with small steps their rounding would be all that is seen; OPT has kinks.
    step, losses = 1e-2 if family == "llama" else 1e-4, list[float]()
    for sign in (1.0, -1.0):
        for path, part in removed.items():
            stored = part.T if request.layout.matrix(path).transposed else part
            stored_weight(model, path).data -= sign * step * torch.from_numpy(np.ascontiguousarray(stored))
        losses.append(float(mean_loss(model)))
        for path, part in removed.items():
            stored = part.T if request.layout.matrix(path).transposed else part
            stored_weight(model, path).data += sign * step * torch.from_numpy(np.ascontiguousarray(stored))
    return (losses[0] - losses[1]) / (2 * step)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_scores_of_components_are_the_fading_loss_and_the_dense_product(family: str) -> None:
    model, request = tiny_case(family)
    assert request.layout is not None
    scores = gradient_scores(model, WINDOWS, request=request, damping=1e-3, progress=quiet)
    moments = moments_of(model, request, damping=1e-3)
    assert scores.loss == pytest.approx(float(mean_loss(model)), rel=1e-12)
    for matrix in request.layout.attention:
        u, s, vt = np.linalg.svd(weight_of(model.parts.blocks[1], matrix), full_matrices=False)
        found = scores.components[1, matrix.path]
        for k in (0, len(s) - 1):
            part, at = s[k] * np.outer(u[:, k], vt[k]), moments[matrix.path]
            assert found.private[k] == pytest.approx(
                change_of_loss(model, {matrix.path: part}, request, family=family), rel=1e-3, abs=3e-7
            )
            assert found.preserve[k] == pytest.approx(np.abs(at.outputs @ part @ at.inputs).sum(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_scores_of_channels_are_the_fading_loss_and_the_dense_products(family: str) -> None:
    model, request = tiny_case(family)
    layout = request.layout
    assert layout is not None
    scores = gradient_scores(model, WINDOWS, request=request, damping=1e-3, progress=quiet).channels[1]
    moments = moments_of(model, request, damping=1e-3)
    for channel in (0, layout.inner - 1):
        removed = dict[str, np.ndarray]()
        for matrix in (*layout.up, layout.down):
            weight = weight_of(model.parts.blocks[1], matrix)
            removed[matrix.path] = np.zeros_like(weight)
            where = np.s_[:, channel] if matrix == layout.down else np.s_[channel, :]
            removed[matrix.path][where] = weight[where]
        dense = sum(np.abs(moments[p].outputs @ part @ moments[p].inputs).sum() for p, part in removed.items())
        assert scores.preserve[channel] == pytest.approx(dense, rel=1e-5)
        assert scores.private[channel] == pytest.approx(
            change_of_loss(model, removed, request, family=family), rel=1e-3, abs=3e-7
        )


def test_measuring_leaves_the_model_as_it_was() -> None:
    model, request = tiny_case("llama")
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    gradient_scores(model, WINDOWS, request=request, damping=1e-3, progress=quiet)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.module.named_parameters())
    assert len(block_outputs(model, torch.from_numpy(WINDOWS))) == 3


def equal(a: object, b: object) -> bool:
    """Compare down to the bits of arrays."""
    match a, b:
        case np.ndarray(), np.ndarray():
            return a.dtype == b.dtype and np.array_equal(a, b)
        case Scores(), Scores():
            return equal(a.preserve, b.preserve) and equal(a.private, b.private)
        case dict(), dict():
            return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
        case _:
            return a == b


@pytest.mark.slow
@given(st.integers(0, 9), st.integers(2, 8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_profile_comes_back_from_its_file_as_it_was(tmp_path: Path, seed: int, blocks: int) -> None:
    made = replace(profile_for(request_for(blocks, [0]), seed=seed), cpu_s=1.0 / 3.0)
    write_profile(tmp_path / "profile", made)
    found = read_profile(tmp_path / "profile", base=BASE)
    assert all(equal(getattr(made, f.name), getattr(found, f.name)) for f in fields(made))


@pytest.mark.parametrize("name", every_name())
def test_a_plan_from_a_file_is_that_of_the_profile(name: str, tmp_path: Path) -> None:
    request = request_for(9, [0, 8])
    made = profile_for(request, seed=5)
    write_profile(tmp_path / "profile", made)
    method = next(m for k, m in enumerate(METHODS[name](options_of(name)).sizes(request)) if k == 2)
    plans = [method.plan(p, request, seeds=SeedTree(1)) for p in (made, read_profile(tmp_path / "profile"))]
    assert plans[0] == plans[1]


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    write_profile(tmp_path / "profile", profile_for(request_for(4, [0]), seed=1))
    with pytest.raises(ConfigError, match="profile"):
        read_profile(tmp_path / "profile", base=Digest.of(b"other"))


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [("gradot", {"damping": 0.5}, "damping"), ("scaleot", {"rank": 3}, "rank"), ("scaleot", {"replace": 1}, None)],
)
def test_a_profile_for_other_options_is_refused_unless_they_come_later(
    tmp_path: Path, name: str, change: dict[str, object], field: str | None
) -> None:
    write_profile(tmp_path / "profile", measured(name, tmp_path))
    found, method = read_profile(tmp_path / "profile"), METHODS[name](options_of(name, **change))
    if field is None:
        require_measured_for(found, method=method, request=REQUEST)
    else:
        with pytest.raises(ConfigError, match=field):
            require_measured_for(found, method=method, request=REQUEST)


@pytest.mark.parametrize("name", ["greedy", "gradot"])
def test_a_profile_for_other_adapter_blocks_is_refused_where_they_matter(tmp_path: Path, name: str) -> None:
    found, other = measured(name, tmp_path), replace(REQUEST, adapter=(0, 5))
    require_measured_for(found, method=METHODS[name](options_of(name)), request=REQUEST)
    with pytest.raises(ConfigError, match=r"adapter blocks \[0, 2, 5\], not \[0, 5\]"):
        require_measured_for(found, method=METHODS[name](options_of(name)), request=other)
    require_measured_for(found, method=METHODS["ablation"](options_of("ablation")), request=other)


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    broken = Profile(neuron_norms={1: np.array([1.0, np.nan], dtype=np.float32)})
    for bad in (broken, Profile(loss=float("inf"))):
        with pytest.raises(ValueError, match="finite"):
            write_profile(tmp_path / "profile", bad)
    assert not list(tmp_path.iterdir())


def written(tmp_path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> Path:
    path = tmp_path / "spoilt"
    shapes = {name: t.shape for name, t in tensors.items()}
    write_tensors(path, shapes=shapes, tensor=lambda name: tensors[name].astype(np.float32), metadata=metadata)
    return path


@pytest.mark.parametrize(
    "names",
    [["similarity"], ["channels/1/preserve"], ["channels/1/private"], ["neurons/x"], ["trained"], ["components/1/a/b/c"]],
)
def test_tensors_that_belong_to_no_profile_are_refused(tmp_path: Path, names: list[str]) -> None:
    write_profile(tmp_path / "profile", Profile())
    metadata = TensorFile.open(tmp_path / "profile").metadata
    with pytest.raises(MalformedUpdate):
        read_profile(written(tmp_path, {n: np.ones(3) for n in names}, **metadata))


@pytest.mark.slow
@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spoilt_file_gives_a_typed_error_or_a_sound_profile(tmp_path: Path, data: st.DataObject) -> None:
    write_profile(tmp_path / "profile", profile_for(request_for(3, [0]), seed=1))
    content = bytearray((tmp_path / "profile").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "profile").write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    try:
        found = read_profile(tmp_path / "profile")
    except MalformedUpdate:
        return
    assert all(np.isfinite(norms).all() for norms in found.neuron_norms.values())
