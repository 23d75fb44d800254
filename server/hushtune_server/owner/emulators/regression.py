"""Which affine map stands in best for a block? Found in closed form on public text, nothing is trained.

A block adds something to the hidden state; much of what middle blocks add is nearly affine in what enters them. So each
harmonizer starts as the reduced-rank ridge regression of what its block adds, fitted one after the other on the states that the
emulator really has at that depth, so that a later stand-in also makes up for what the earlier ones got wrong. (Replacing a span
of blocks by one linear map: ReplaceMe, arXiv 2505.02819. Fitting block by block on the emulator's own states, in the form of a
harmonizer, is ours.)

Letters in shapes: N tokens, H hidden size, R rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.adapter import Float32
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.layers import Harmonizer
from hushtune_common.model.resolve import State

OPEN_AT = 3.0
"""The harmonizer's rectifier lies this many standard deviations below the mean of what it gets: it bends for outliers only."""

_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """The tensors of a harmonizer: ``x + up relu(down x + down_bias) + up_bias`` with down (R, H) and up (H, R)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def added(self, x: Tensor) -> Tensor:
        """Return what is added to states (N, H)."""
        return torch.relu(x @ self.down.T + self.down_bias) @ self.up.T + self.up_bias

    def put_into(self, harmonizer: Harmonizer) -> None:
        """Overwrite the values of a harmonizer of the same rank."""
        with torch.no_grad():
            harmonizer.down.weight.copy_(self.down)
            harmonizer.down.bias.copy_(self.down_bias)
            harmonizer.up.weight.copy_(self.up)
            harmonizer.up.bias.copy_(self.up_bias)


def stand_in(x: Tensor, added: Tensor, *, rank: int, ridge: float) -> StandIn:
    """Return the harmonizer of this ``rank`` that predicts what a block ``added`` (N, H) to states ``x`` (N, H).

    Ridge regression with a penalty of ``ridge`` times each input's own variance, then the best map of the rank for errors that
    are measured in standard deviations of the output channels (reduced-rank regression, Izenman 1975). The rectifier stays open
    up to `OPEN_AT` standard deviations; the last bias takes up the mean of what is left.
    """
    mean, centre = x.double().mean(dim=0), added.double().mean(dim=0)
    inputs, outputs = x.double() - mean, added.double() - centre
    gram = inputs.T @ inputs
    penalty = ridge * torch.diag(gram) + 1e-12 * torch.trace(gram) / len(gram) + 1e-30
    gram = gram + torch.diag(penalty)
    scale = (x + added).double().std(dim=0) + 1e-9
    weights = torch.linalg.solve(gram, inputs.T @ outputs) / scale
    # The singular directions of the fitted values, by the Cholesky factor of the inputs' covariance.
    factor = torch.linalg.cholesky(gram)
    right = torch.linalg.svd(factor.T @ weights, full_matrices=False)[2]
    keep = right[: min(rank, len(right))]
    keep = keep * torch.sign(keep.gather(1, keep.abs().argmax(dim=1, keepdim=True)))
    down, up = (weights @ keep.T).T, (keep * scale).T
    down, up = _padded(down, rank=rank, dim=0), _padded(up, rank=rank, dim=1)
    passed = x.double() @ down.T
    opened = OPEN_AT * passed.std(dim=0) - passed.mean(dim=0)
    bias = (added.double() - torch.relu(passed + opened) @ up.T).mean(dim=0)
    return StandIn(down=down.float(), down_bias=opened.float(), up=up.float(), up_bias=bias.float())


def _padded(matrix: Tensor, *, rank: int, dim: int) -> Tensor:
    missing = rank - matrix.shape[dim]
    if missing <= 0:
        return matrix
    shape = [missing if d == dim else extent for d, extent in enumerate(matrix.shape)]
    return torch.cat([matrix, torch.zeros(shape, dtype=matrix.dtype)], dim=dim)


def fit_harmonizers(
    teacher: LanguageModel,
    student: LanguageModel,
    windows: NDArray[np.int64],
    *,
    ridge: float,
    progress: Callable[[int, int], None],
) -> Mapping[str, Float32]:
    """Fit every harmonizer of ``student`` on ``windows`` (N windows, T tokens) of public text, from the bottom up, in place.

    Returns the fitted tensors by name. Holds two hidden states of every token. Blocks that stay run as they are; ``progress`` is
    told blocks done and in all.
    """
    fitted = [b for k, b in enumerate(student.blocks) if isinstance(student.parts.blocks[k], Harmonizer)]
    if not fitted:
        return {}
    with torch.inference_mode():
        ours, theirs = _Walk(student, windows), _Walk(teacher, windows)
        for block in range(fitted[-1] + 1):
            theirs.advance(block)
            if block in fitted:
                _fit_one(ours, theirs, student, block=block, ridge=ridge)
                progress(fitted.index(block) + 1, len(fitted))
            if block in student.blocks:
                ours.advance(block)
    return {n: np.array(p.detach().cpu().numpy(), order="C") for n, p in student.adapter_parameters(fitted).items()}


class _Walk:
    """The states of many tokens as they go through a model, block by block."""

    def __init__(self, model: LanguageModel, windows: NDArray[np.int64]) -> None:
        self._model = model
        self._position = {block: k for k, block in enumerate(model.blocks)}
        with model.arithmetic():
            batches = torch.from_numpy(windows).to(model.device).split(_BATCH)
            self._states = [model.parts.embed(tokens[:, :-1]) for tokens in batches]

    @property
    def hidden(self) -> Tensor:
        """All states (N, H) in float32."""
        return torch.cat([state.hidden.float().flatten(0, 1) for state in self._states])

    def advance(self, block: int) -> None:
        with self._model.arithmetic():
            self._states = [self._moved(state, block) for state in self._states]

    def _moved(self, state: State, block: int) -> State:
        after = self._model.parts.run(state, blocks=[self._position[block]])
        return State(hidden=after.hidden.float(), arguments=after.arguments, options=after.options)


def _fit_one(ours: _Walk, theirs: _Walk, student: LanguageModel, *, block: int, ridge: float) -> None:
    module = student.parts.blocks[student.blocks.index(block)]
    if not isinstance(module, Harmonizer):
        raise ValueError(f"block {block} of the emulator is no harmonizer")
    x = ours.hidden
    stand_in(x, theirs.hidden - x, rank=module.down.out_features, ridge=ridge).put_into(module)
