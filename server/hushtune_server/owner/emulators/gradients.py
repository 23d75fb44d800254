"""What would cutting ranks and channels do to the adapter's gradients, and to the loss? GradOT's scores (arXiv 2507.04455).

The loss is that of public text, in nats per token. For a matrix W: the mean gradient g, the second moment A of its inputs and G
of the gradients at its outputs (Kronecker factors of the curvature). Removing a part D of W changes the loss by <g, D> to first
order, and gradients by G D A.

Letters in shapes: N windows, T tokens, H hidden size, F feed-forward size, O outputs and I inputs of a matrix, K singular values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hushtune_common.model.decompose import decomposed
from hushtune_common.model.language import LanguageModel, next_token_loss
from hushtune_common.model.layout import BlockLayout, Matrix
from hushtune_common.model.resolve import State
from hushtune_server.owner.emulators.method import EmulatorRequest, Scores, require_layout

BATCH = 12

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Of one matrix, over all tokens: ``inputs`` A (I, I), ``outputs`` G (O, O), and ``gradient`` g (O, I) of the mean loss.

    Damped: a share of the mean of their diagonals is added to the diagonals of A and G.
    """

    inputs: Floats
    outputs: Floats
    gradient: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientScores:
    """The loss in nats per token, scores of components by block and module path, and scores of channels by block."""

    loss: float
    components: Mapping[tuple[int, str], Scores]
    channels: Mapping[int, Scores]


def gradient_scores(
    model: LanguageModel,
    windows: NDArray[np.int64],
    *,
    request: EmulatorRequest,
    damping: float,
    progress: Callable[[int, int], None],
) -> GradientScores:
    """Score every singular component of attention and every feed-forward channel of the middle on ``windows`` (N, T).

    One pass forward, one backward that computes each block again; second moments of one block are in memory at a time.
    ``ValueError`` when the request has no layout.
    """
    layout = require_layout(request)
    components: dict[tuple[int, str], Scores] = {}
    channels: dict[int, Scores] = {}

    def score(block: int, found: Mapping[str, Moments]) -> None:
        weights = {m.path: weight_of(model.parts.blocks[block], m) for m in layout.matrices}
        for matrix in layout.attention:
            components[block, matrix.path] = component_scores(weights[matrix.path], found[matrix.path])
        channels[block] = channel_scores(weights, found, layout=layout)

    loss = each_blocks_moments(model, windows, request=request, damping=damping, found=score, progress=progress)
    return GradientScores(loss=loss, components=components, channels=channels)


def component_scores(weight: Floats, moments: Moments) -> Scores:
    """Return the scores (K,) of removing each singular component of a matrix (O, I), the largest first.

    In closed form, with D = -s u v': ``|G D A|`` summed over entries is ``s |G u| |A v|``, and <g, D> is ``-s u' g v``.
    """
    # Decomposed as the emulator's tensors are, so that a component has the same number there.
    u, s, vt = decomposed(np.ascontiguousarray(weight, dtype=np.float32))
    preserve = s * np.abs(moments.outputs @ u).sum(axis=0) * np.abs(moments.inputs @ vt.T).sum(axis=0)
    private = -s * np.einsum("ok,ok->k", u, moments.gradient @ vt.T)
    return Scores(preserve=preserve.astype(np.float32), private=private.astype(np.float32))


def channel_scores(weights: Mapping[str, Floats], moments: Mapping[str, Moments], *, layout: BlockLayout) -> Scores:
    """Return the scores (F,) of removing each feed-forward neuron: its row of every matrix up, its column of the one down.

    ``|G D A|`` of a row r in place c is ``|G[:, c]| |A r|``, of a column k in place c ``|G k| |A[:, c]|``; both scores are sums
    over the matrices.
    """
    preserve, private = np.zeros(layout.inner), np.zeros(layout.inner)
    for matrix in layout.up:
        at, weight = moments[matrix.path], weights[matrix.path]
        preserve += np.abs(at.outputs).sum(axis=0) * np.abs(at.inputs @ weight.T).sum(axis=0)
        private -= np.sum(at.gradient * weight, axis=1)
    at, weight = moments[layout.down.path], weights[layout.down.path]
    preserve += np.abs(at.outputs @ weight).sum(axis=0) * np.abs(at.inputs).sum(axis=0)
    private -= np.sum(at.gradient * weight, axis=0)
    return Scores(preserve=preserve.astype(np.float32), private=private.astype(np.float32))


def weight_of(block: nn.Module, matrix: Matrix) -> Floats:
    """Return the weights (O, I) of a matrix of a block, however the model stores them."""
    stored = cast(Tensor, block.get_submodule(matrix.path).weight).detach().double().cpu().numpy()
    return stored.T if matrix.transposed else stored


def each_blocks_moments(
    model: LanguageModel,
    windows: NDArray[np.int64],
    *,
    request: EmulatorRequest,
    damping: float,
    found: Callable[[int, Mapping[str, Moments]], None],
    progress: Callable[[int, int], None],
) -> float:
    """Call ``found`` with each middle block, the last first, and its moments by module path; return the loss in nats per token.

    ``damping`` is a share of the mean of a second moment's diagonal. ``ValueError`` when the request has no layout.
    """
    matrices = require_layout(request).matrices
    parts, count = model.parts, len(model.blocks)
    first = min(request.middle, default=count)
    batches = torch.from_numpy(windows).to(model.device).split(BATCH)
    passes, done = len(batches) * (1 + count - first), 0
    entering: list[dict[int, State]] = []
    gradients: list[Tensor] = []
    total = 0.0
    for tokens in batches:
        states, loss, gradient = _forward(model, tokens, first=first)
        entering.append(states)
        gradients.append(gradient)
        total += loss
        done += 1
        progress(done, passes)
    tokens_seen = windows.shape[0] * (windows.shape[1] - 1)
    for block in reversed(range(first, count)):
        taps = {m.path: _Tap(m) for m in matrices} if block in request.middle else {}
        for k in range(len(batches)):
            before = entering[k].pop(block)
            gradients[k] = _backward(parts.blocks[block], before, gradients[k], taps=taps)
            done += 1
            progress(done, passes)
        if taps:
            found(block, {path: tap.moments(tokens=tokens_seen, damping=damping) for path, tap in taps.items()})
    return total / tokens_seen


def _forward(model: LanguageModel, tokens: Tensor, *, first: int) -> tuple[dict[int, State], float, Tensor]:
    """Return the states in front of the blocks from ``first`` on, the summed loss, and its gradient behind the last block."""
    parts, states = model.parts, dict[int, State]()
    with torch.no_grad():
        state = parts.embed(tokens[:, :-1])
        for block in range(len(model.blocks)):
            if block >= first:
                states[block] = state
            state = parts.run(state, blocks=[block])
    with torch.enable_grad():
        last = _leaf(state)
        loss = next_token_loss(parts.predict(last), tokens) * tokens[:, 1:].numel()
        (gradient,) = torch.autograd.grad(loss, [last.hidden])
    return states, float(loss.detach()), gradient


def _backward(block: nn.Module, before: State, gradient: Tensor, *, taps: Mapping[str, "_Tap"]) -> Tensor:
    """Return the gradient in front of a block from the one behind it; the taps take what passes their matrices."""
    hooks = [block.get_submodule(path).register_forward_hook(tap.listen) for path, tap in taps.items()]
    try:
        with torch.enable_grad():
            leaf = _leaf(before)
            after = block(leaf.hidden, *leaf.arguments, **leaf.options)
            (found,) = torch.autograd.grad(after, [leaf.hidden], grad_outputs=[gradient])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _leaf(state: State) -> State:
    return State(hidden=state.hidden.detach().requires_grad_(), arguments=state.arguments, options=state.options)


class _Tap:
    """Adds up the second moments of what goes into one matrix and of the gradients at what comes out, for one batch at a time."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._inputs = torch.zeros(matrix.columns, matrix.columns, dtype=torch.float64)
        self._outputs = torch.zeros(matrix.rows, matrix.rows, dtype=torch.float64)
        self._gradient = torch.zeros(matrix.rows, matrix.columns, dtype=torch.float64)

    def listen(self, _module: nn.Module, given: tuple[Any, ...], returned: Tensor) -> None:
        """Take what a matrix was given, and wait for the gradient at what it returned."""
        x = cast(Tensor, given[0]).detach().reshape(-1, self._matrix.columns)
        self._inputs += (x.T @ x).cpu()

        def arrived(gradient: Tensor) -> None:
            d = gradient.reshape(-1, self._matrix.rows)
            self._outputs += (d.T @ d).cpu()
            self._gradient += (d.T @ x).cpu()

        returned.register_hook(arrived)

    def moments(self, *, tokens: int, damping: float) -> Moments:
        """Return the means over so many tokens, damped; nothing is copied, so this is the end of the tap."""
        self._gradient /= tokens
        for moment in (self._inputs, self._outputs):
            moment /= tokens
            moment.diagonal().add_(damping * float(moment.diagonal().mean()))
        return Moments(inputs=self._inputs.numpy(), outputs=self._outputs.numpy(), gradient=self._gradient.numpy())
