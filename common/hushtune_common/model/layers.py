"""What stands in for a block or for a matrix: harmonizers, low-rank maps and quantised maps.

Letters in shapes: B sequences, T tokens, H hidden size, R rank.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from hushtune_common.model.quantise import code_columns, scale_columns
from hushtune_common.model.slots import Quant


class Harmonizer(nn.Module):
    """``x + W2 relu(W1 x + b1) + b2`` in place of a block (ScaleOT, arXiv 2412.09812). Law: W2 and b2 zero is no block."""

    def __init__(self, hidden: int, rank: int) -> None:
        """Make one without values; ``down`` is W1 (R, H), ``up`` is W2 (H, R)."""
        super().__init__()
        self.down = nn.Linear(hidden, rank)
        self.up = nn.Linear(rank, hidden)

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return (B, T, H); what a block is told of masks and positions is not needed."""
        return hidden + self.up(torch.relu(self.down(hidden)))


class LowRank(nn.Module):
    """A linear map as two thin ones: ``left (right x) + bias``."""

    def __init__(self, rows: int, columns: int, rank: int, *, biased: bool) -> None:
        """Make one without values."""
        super().__init__()
        self.right: nn.Module = nn.Linear(columns, rank, bias=False)
        self.left: nn.Module = nn.Linear(rank, rows, bias=biased)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., rows) for (..., columns)."""
        return self.left(self.right(x))


class Quantised(nn.Module):
    """A frozen linear map whose weights stay integers in memory; they are expanded for the time of one product."""

    def __init__(self, rows: int, columns: int, *, biased: bool, quant: Quant) -> None:
        """Make one without values."""
        super().__init__()
        self.columns, self.quant = columns, quant
        width = code_columns(columns, quant=quant)
        kind = torch.int8 if quant.bits == 8 else torch.uint8
        self.register_buffer("codes", torch.empty(rows, width, dtype=kind))
        self.register_buffer("scales", torch.empty(rows, scale_columns(columns, quant=quant), dtype=torch.float16))
        self.bias = nn.Parameter(torch.empty(rows)) if biased else None

    def weight(self) -> Tensor:
        """Return the expanded matrix (rows, columns), float32."""
        codes, scales = cast(Tensor, self.codes), cast(Tensor, self.scales)
        # Whole blocks, so that a scale is multiplied in once; what lies beyond the last column is cut off again.
        wide = torch.empty(codes.shape[0], scales.shape[1] * self.quant.block, device=codes.device)
        if self.quant.bits == 8:
            wide[:, : self.columns] = codes
        else:
            pairs = wide[:, : 2 * codes.shape[1]].unflatten(1, (-1, 2))
            pairs[:, :, 0], pairs[:, :, 1] = codes & 15, codes >> 4
            pairs -= 8
        wide.unflatten(1, (-1, self.quant.block)).mul_(scales.float().unsqueeze(2))
        return wide[:, : self.columns]

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., rows) for (..., columns), in the type that a dense layer would give, under autocast too."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        product = cast(Tensor, _Product.apply(x.to(dtype), self))
        return product if self.bias is None else product + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """``x W^T`` with a matrix that is expanded anew for the gradient, so that no copy of it is kept in between."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: Quantised) -> Tensor:
        return x @ layer.weight().to(x.dtype).T

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Quantised], output: Tensor) -> None:
        cast(Any, ctx).layer = inputs[1]

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None]:
        # Linear in the gradient, so a gradient of the gradient is right as well.
        gradient = cast(Tensor, grads[0])
        return gradient @ cast(Any, ctx).layer.weight().to(gradient.dtype), None
