"""Do blockwise integers stand for the matrix that they should, and does a layer made of them compute with exactly that matrix?"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from hushtune_common.model.layers import Harmonizer, LowRank, Quantised
from hushtune_common.model.quantise import TOP, code_columns, dequantised, quantised, scale_columns
from hushtune_common.model.slots import Quant

quants = st.builds(Quant, bits=st.sampled_from((4, 8)), block=st.sampled_from((16, 18, 64)))


@st.composite
def matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    """Return small matrices, of odd widths and with zeros, of values from below the smallest scale to beyond the largest."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    powers = draw(st.lists(st.integers(-12, 9), min_size=rows, max_size=rows))
    matrix = rng.standard_normal((rows, columns)) * np.power(10.0, np.array(powers))[:, None]
    matrix[rng.random((rows, columns)) < draw(st.sampled_from((0.0, 0.5, 1.0)))] = 0.0
    return matrix.astype(np.float32)


def reference(row: list[float], quant: Quant) -> tuple[list[int], list[float]]:
    """Return codes and scales of one row, a number at a time."""
    top = 2 ** (quant.bits - 1) - 1
    codes: list[int] = []
    scales: list[float] = []
    for start in range(0, len(row), quant.block):
        part = row[start : start + quant.block]
        largest = np.float32(max(map(abs, part)))
        scale = float(np.float16(min(largest / np.float32(top), np.float32(65504.0))))
        scales.append(scale)
        for value in part:
            exact = 0 if scale == 0 else round(float(np.float32(value) / np.float32(scale)))
            codes.append(max(-top, min(top, exact)))
    return codes, scales


def unpacked(stored: NDArray[Any], *, columns: int, quant: Quant) -> list[list[int]]:
    if quant.bits == 8:
        return [[int(c) for c in row] for row in stored]
    return [[n - 8 for byte in row for n in (int(byte) % 16, int(byte) // 16)][:columns] for row in stored]


@given(matrices(), quants)
def test_codes_and_scales_are_those_of_the_rule_worked_out_number_by_number(matrix: NDArray[np.float32], quant: Quant) -> None:
    codes, scales = quantised(matrix, quant=quant)
    wanted = [reference([float(v) for v in row], quant) for row in matrix]
    assert unpacked(codes, columns=matrix.shape[1], quant=quant) == [c for c, _ in wanted]
    assert [[float(s) for s in row] for row in scales] == [s for _, s in wanted]
    assert codes.shape == (len(matrix), code_columns(matrix.shape[1], quant=quant))
    assert scales.shape == (len(matrix), scale_columns(matrix.shape[1], quant=quant))


@given(matrices(), quants)
def test_every_weight_comes_back_within_half_a_scale_and_the_rounding_of_the_scale(
    matrix: NDArray[np.float32], quant: Quant
) -> None:
    codes, scales = quantised(matrix, quant=quant)
    back = dequantised(codes, scales, columns=matrix.shape[1], quant=quant)
    top = TOP[quant.bits]
    spread = np.repeat(scales.astype(np.float64), quant.block, axis=1)[:, : matrix.shape[1]]
    ulp = np.repeat(np.spacing(np.minimum(scales, np.float16(32768))).astype(np.float64), quant.block, axis=1)[
        :, : matrix.shape[1]
    ]
    cut = np.clip(matrix.astype(np.float64), -top * 65504.0, top * 65504.0)
    assert np.all(np.abs(back - cut) <= 0.5 * spread * (1 + 1e-5) + 0.5 * ulp * top * (1 + 1e-5))


@given(matrices(), quants)
def test_zero_stays_zero_and_signs_are_kept(matrix: NDArray[np.float32], quant: Quant) -> None:
    codes, scales = quantised(matrix, quant=quant)
    back = dequantised(codes, scales, columns=matrix.shape[1], quant=quant)
    assert np.all(back[matrix == 0] == 0)
    assert np.all(back * matrix >= 0)
    mirrored = dequantised(*quantised(-matrix, quant=quant), columns=matrix.shape[1], quant=quant)
    assert np.array_equal(mirrored, -back)


@given(matrices(), quants)
def test_what_was_expanded_once_is_expanded_to_itself(matrix: NDArray[np.float32], quant: Quant) -> None:
    codes, scales = quantised(matrix.clip(-1e5, 1e5), quant=quant)
    back = dequantised(codes, scales, columns=matrix.shape[1], quant=quant)
    # Scales below float16's normal range are too coarse to come back as themselves.
    whole = scales.min() >= np.finfo(np.float16).smallest_normal
    full = np.abs(unpacked(codes, columns=matrix.shape[1], quant=quant)).max() == TOP[quant.bits]
    if whole and full and scales.shape[1] == 1 and len(matrix) == 1:
        again = quantised(back, quant=quant)
        assert np.array_equal(again[0], codes)
        assert np.array_equal(again[1], scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_values_beyond_the_largest_scale_are_cut_off_and_stay_finite(bits: Any) -> None:
    quant = Quant(bits=bits, block=16)
    back = dequantised(*quantised(np.array([[3e38, -3e38, 1.0]], np.float32), quant=quant), columns=3, quant=quant)
    assert back.tolist() == [[TOP[bits] * 65504.0, -TOP[bits] * 65504.0, 0.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_have_no_codes(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        quantised(np.array([[1.0, value]], np.float32), quant=Quant(bits=8))


# Layers.

SHAPES = [(5, 16), (8, 37), (3, 64), (7, 130)]
every_quant = pytest.mark.parametrize("quant", [Quant(bits=8, block=16), Quant(bits=4, block=64)], ids=["8", "4"])


def layer_of(rows: int, columns: int, quant: Quant) -> tuple[Quantised, nn.Linear]:
    """Return a quantised layer and the dense layer of its expanded matrix, expanded by numpy."""
    rng = np.random.default_rng(rows)
    matrix = rng.standard_normal((rows, columns)).astype(np.float32)
    codes, scales = quantised(matrix, quant=quant)
    layer, dense = Quantised(rows, columns, biased=True, quant=quant), nn.Linear(columns, rows)
    state = {"codes": torch.from_numpy(codes), "scales": torch.from_numpy(scales), "bias": dense.bias.detach().clone()}
    layer.load_state_dict(state)
    dense.weight.data.copy_(torch.from_numpy(dequantised(codes, scales, columns=columns, quant=quant)))
    return layer, dense


def inputs(columns: int, *, seed: int = 3) -> Tensor:
    return torch.randn(2, 5, columns, generator=torch.Generator().manual_seed(seed)).requires_grad_(True)


def close(a: Tensor, b: Tensor, relative: float) -> bool:
    return a.dtype == b.dtype and bool((a - b).abs().max() <= relative * b.abs().max())


@every_quant
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_quantised_layer_expands_to_the_matrix_of_the_file(rows: int, columns: int, quant: Quant) -> None:
    layer, dense = layer_of(rows, columns, quant)
    assert torch.equal(layer.weight(), dense.weight)


@every_quant
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_outputs_and_gradients_are_those_of_the_expanded_dense_layer(rows: int, columns: int, quant: Quant, half: bool) -> None:
    layer, dense = layer_of(rows, columns, quant)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for module in (layer, dense):
        x = inputs(columns)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            y = module(x)
        (y.float() ** 2).sum().backward()
        assert x.grad is not None
        assert module.bias is not None
        assert module.bias.grad is not None
        found.append((y.detach(), x.grad, module.bias.grad))
    # bfloat16 has 8 bits; the dense layer adds its bias before rounding, the other after.
    assert all(close(ours, theirs, 0.02 if half else 1e-6) for ours, theirs in zip(*found, strict=True))


@every_quant
def test_a_gradient_of_the_gradient_passes_through_a_quantised_layer(quant: Quant) -> None:
    layer, dense = layer_of(6, 20, quant)
    found: list[Tensor] = []
    for module in (layer, dense):
        x = inputs(20)
        (first,) = torch.autograd.grad(torch.tanh(module(x)).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x)
        found.append(second)
    assert close(found[0], found[1], 1e-5)


@every_quant
def test_gradients_per_sample_pass_through_a_quantised_layer(quant: Quant) -> None:
    layer, dense = layer_of(6, 20, quant)

    def per_sample(module: nn.Module) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return torch.tanh(module(x)).sum()

        return torch.func.vmap(torch.func.grad(loss))(inputs(20).detach())

    assert close(per_sample(layer), per_sample(dense), 1e-6)


def test_a_quantised_layer_keeps_no_expanded_matrix_for_the_gradient() -> None:
    layer, _ = layer_of(64, 512, Quant(bits=8))
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(inputs(512)).sum()
    assert sum(kept) < 64 * 512


def test_nothing_of_a_frozen_quantised_layer_asks_for_gradients() -> None:
    layer, _ = layer_of(4, 16, Quant(bits=8))
    layer.requires_grad_(False)
    assert not layer(inputs(16).detach()).requires_grad


def test_two_thin_maps_are_their_product() -> None:
    thin = LowRank(6, 9, 2, biased=True)
    parts = dict(thin.named_parameters())
    x = inputs(9)
    whole = parts["left.weight"] @ parts["right.weight"]
    assert torch.allclose(thin(x), nn.functional.linear(x, whole, parts["left.bias"]), atol=1e-6)


def test_a_harmonizer_is_its_formula() -> None:
    made = Harmonizer(8, 3)
    x = inputs(8).detach()
    w1, b1, w2, b2 = (
        t.detach().numpy().astype(np.float64) for t in (made.down.weight, made.down.bias, made.up.weight, made.up.bias)
    )
    wanted = x.numpy() + np.maximum(x.numpy() @ w1.T + b1, 0) @ w2.T + b2
    assert np.allclose(made(x, "mask", position=1).detach().numpy(), wanted, atol=1e-6)
