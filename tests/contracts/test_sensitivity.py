"""Does the owner measure what its model's loss minds, does the emulator carry it, and does the codec then lose less by it?"""

from pathlib import Path

import numpy as np
import pytest
import torch

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.config import CodecConfig
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import TensorSpec
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.revision import revise
from hushtune_common.model.weights import TensorFile, write_tensors
from hushtune_server.owner.emulators.sensitivity import moments
from hushtune_server.owner.fingerprint.key import MarkKey
from hushtune_server.owner.fingerprint.marking import write_marked
from tests.models import tiny_bundle
from tests.tiny_families import FAMILIES, tiny


def unheard(done: int, total: int) -> None:
    assert 0 < done <= total


@pytest.mark.parametrize("family", FAMILIES)
def test_with_one_predicted_token_the_moments_are_those_of_its_gradient(family: str) -> None:
    model, blocks = tiny(family), [0, 2]
    parameters = model.adapter_parameters(blocks)
    tokens = np.array([[7, 40]])
    found = moments(model, parameters, tokens, progress=unheard)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(model.batch_loss(torch.from_numpy(tokens)), [*parameters.values()])
    for (name, (columns, rows)), gradient in zip(found.items(), gradients, strict=True):
        seen = gradient.double().reshape(len(gradient), -1).numpy()
        # One token's gradient is an outer product, so that its two sides' moments multiply to that of the whole.
        np.testing.assert_allclose(float(rows.sum()) * columns, seen.T @ seen, rtol=2e-3, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(rows * np.trace(columns), np.square(seen).sum(axis=1), rtol=2e-3, atol=1e-12, err_msg=name)


def test_tokens_add_up_and_the_model_is_left_as_it_was() -> None:
    model = tiny("llama")
    parameters = model.adapter_parameters([1])
    windows = np.random.default_rng(3).integers(0, 256, (4, 9))
    both = moments(model, parameters, windows, progress=unheard)
    parts = [moments(model, parameters, half, progress=unheard) for half in (windows[:2], windows[2:])]
    for name, (columns, rows) in both.items():
        np.testing.assert_allclose(columns, (parts[0][name][0] + parts[1][name][0]) / 2, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(rows, (parts[0][name][1] + parts[1][name][1]) / 2, rtol=1e-4, atol=1e-12)
    assert not any(p.requires_grad for p in model.module.parameters())
    assert not any(m._forward_hooks for m in model.module.modules())  # pyright: ignore[reportPrivateUsage]


def test_at_equal_bytes_a_measured_sensitivity_costs_the_model_less() -> None:
    model = tiny("llama")
    parameters = model.adapter_parameters([0, 1, 2])
    schema = [TensorSpec(name=n, shape=tuple(p.shape), dtype="F32", block=0) for n, p in parameters.items()]
    rng = np.random.default_rng(5)
    # Text of few tokens, so that what comes into a layer lies along few directions, as it does in trained models; and a change so
    # small that what its errors cost is quadratic in them.
    windows = rng.integers(0, 4, (24, 17))
    shipped = AdapterState({n: p.detach().numpy().copy() for n, p in parameters.items()})
    change = {n: (2e-3 * rng.standard_normal(t.shape)).astype(np.float32) for n, t in shipped.tensors.items()}
    returned = AdapterState({n: t + change[n] for n, t in shipped.tensors.items()})
    measured = Sensitivity.of_moments(moments(model, parameters, windows, progress=unheard))

    def divergence(sensitivity: Sensitivity | None) -> float:
        codec = make_codec(CodecConfig(), shipped=shipped, sensitivity=sensitivity)
        read = codec.decode(codec.encode(returned, budget_bytes=3 * shipped.count // 8), tuple(schema))
        return float(torch.nn.functional.kl_div(predicted(read), wanted, log_target=True, reduction="batchmean"))

    def predicted(state: AdapterState) -> torch.Tensor:
        model.set_adapter(state.tensors)
        with torch.no_grad():
            return model.logits(torch.from_numpy(windows)).log_softmax(dim=-1)

    wanted = predicted(returned)
    assert divergence(measured) < 0.7 * divergence(None)


@pytest.fixture
def known(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    """Return an emulator's file that brings a sensitivity, and what it should be."""
    plain = read_bundle(tiny_bundle(tmp_path))
    rng = np.random.default_rng(9)
    sizes = {s.name: (s.shape[0], s.count // s.shape[0]) for s in plain.schema}
    wide = {
        n: (np.cov(rng.standard_normal((c, 40))).reshape(c, c).astype(np.float32), rng.random(r, np.float32) + 0.1)
        for n, (r, c) in sizes.items()
    }
    arrays = Sensitivity.of_moments(wide).to_arrays()
    beside = {f"sensitivity/{n}": a for n, a in arrays.items()}
    path = tmp_path / "known.safetensors"
    write_tensors(
        path,
        shapes={n: plain.stored.shape(n) for n in plain.stored.names()} | {n: a.shape for n, a in beside.items()},
        tensor=lambda n: beside[n] if n in beside else plain.stored.tensor(n),
        metadata=plain.stored.metadata,
        dtype=lambda n: "F32" if n in beside else plain.stored.dtype(n),
    )
    return path, arrays


def test_what_an_emulator_brings_for_the_codec_is_no_part_of_the_model(
    known: tuple[Path, dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]], tmp_path: Path
) -> None:
    path, arrays = known
    bundle, plain = read_bundle(path), read_bundle(tiny_bundle(tmp_path))
    found = bundle.sensitivity
    assert found is not None
    assert {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    assert bundle.file.names() == plain.file.names()
    assert (bundle.schema, bundle.parameters_per_token) == (plain.schema, plain.parameters_per_token)
    assert plain.sensitivity is None


def test_copies_of_an_emulator_bring_it_along(
    known: tuple[Path, dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]], tmp_path: Path
) -> None:
    path, arrays = known
    bundle = read_bundle(path)
    name = bundle.schema[0].name
    revise(tmp_path / "next", base=bundle.stored, changed={name: bundle.file.tensor(name) + 1}, notes={})
    write_marked(tmp_path / "marked", bundle=path, key=MarkKey.generate(), recipient="alice", strength=0.01)
    for copy in ("next", "marked"):
        brought = read_bundle(tmp_path / copy).sensitivity
        assert brought is not None
        assert {n: a.tolist() for n, a in brought.items()} == {n: a.tolist() for n, a in arrays.items()}


def test_a_sensitivity_that_is_none_of_the_adapter_is_malformed(
    known: tuple[Path, dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]],
) -> None:
    path, arrays = known
    bundle = read_bundle(path)
    shipped = AdapterState(bundle.adapter_numpy())
    first = min(arrays)
    for damaged in (
        {n: a for n, a in arrays.items() if n != first},
        arrays | {"nobody/rows": arrays[first]},
        arrays | {first: np.full_like(arrays[first], np.nan)},
        arrays | {first: arrays[first][:-1]},
    ):
        with pytest.raises(MalformedUpdate, match="sensitivity"):
            make_codec(CodecConfig(), shipped=shipped, sensitivity=damaged)
    assert TensorFile.open(path).metadata == bundle.stored.metadata
