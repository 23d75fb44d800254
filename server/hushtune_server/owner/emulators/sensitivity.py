"""How much does the full model's loss mind an error in each adapter weight? Measured on public text, shipped with the emulator.

Letters in shapes: N windows, T tokens, R rows and C columns of a stored matrix.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hushtune_common.adapter import Float32
from hushtune_common.codec.pipeline import weighs_errors
from hushtune_common.codec.sensitivity import Sensitivity
from hushtune_common.config import CodecConfig
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import TensorSpec
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_server.owner.emulators.checkpoint import Held, Ledger, arithmetic_facts, shelf
from hushtune_server.owner.emulators.engine import Workplace

TOKENS: Final = 4096
"""Public tokens that are looked at. On SmolLM2 three thousand already halve the bytes twice over at an equal loss."""
_MATRIX: Final = 2


def known_to_both(codec: CodecConfig, plan: Plan, *, at: Workplace) -> dict[str, Float32] | None:
    """Return what the emulator of ``plan`` has to bring along for this codec: a sensitivity where it makes use of one."""
    return sensitivity_of(plan.adapter, at=at).to_arrays() if weighs_errors(codec) else None


def sensitivity_of(blocks: Iterable[int], *, at: Workplace) -> Sensitivity:
    """Return what the full model's loss minds about the tensors of its adapter ``blocks``.

    The same arguments give the same numbers on a CPU. What was measured before is found again in ``at.work``.
    """
    parameters = at.model.adapter_parameters(blocks)
    schema = [TensorSpec(name=n, shape=tuple(p.shape), dtype="F32", block=0) for n, p in parameters.items()]
    facts = {
        "what": "sensitivity/1",
        "base": at.source.base_digest.hex,
        "corpus": at.text.corpus.hex,
        "windows": [*at.text.windows.shape],
        "tokens": TOKENS,
        "tensors": sorted(parameters),
        "arithmetic": arithmetic_facts(at.model),
    }
    place = shelf(at.work, facts=facts)
    if (known := place.finished()) is not None:
        try:
            return Sensitivity.from_arrays({n: np.array(known.tensors.tensor(n)) for n in known.tensors.names()}, schema)
        except MalformedUpdate:
            at.telling.phase("what the loss minds was kept damaged; measuring it again")
    at.telling.phase("measuring what the loss minds about the adapter blocks")
    windows = at.text.spread(tokens=TOKENS)
    found = Sensitivity.of_moments(moments(at.model, parameters, windows, progress=at.telling.progress))
    place.finish(Held(found.to_arrays()), Ledger(losses=(), updates={}, numbers=()))
    return found


def moments(
    model: LanguageModel,
    parameters: Mapping[str, nn.Parameter],
    windows: NDArray[np.int64],
    *,
    progress: Callable[[int, int], None],
) -> dict[str, tuple[Float32, Float32]]:
    """Return per parameter the covariance (C, C) on its columns' side and the mean square (R,) on that of its rows.

    Of a matrix that is stored as (outputs, inputs), columns see what comes in and rows the gradient at what goes out; stored
    the other way round, the other way round. What is no matrix of a linear layer has columns that are all alike and the mean
    square of its gradient. One pass forth and one back over ``windows`` (N, T), one window at a time.
    """
    owners = {id(p): module for module in model.module.modules() for p in module.parameters(recurse=False)}
    taps = {n: _Tap(owners[id(p)], p) for n, p in parameters.items() if _is_matrix(owners[id(p)], p)}
    squares = {n: torch.zeros_like(p) for n, p in parameters.items() if n not in taps}
    with _trained(model, parameters.values()), _listening(taps.values()):
        for done, tokens in enumerate(torch.from_numpy(windows).to(model.device).split(1), start=1):
            loss = model.batch_loss(tokens) * tokens[:, 1:].numel()
            for name, gradient in zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
                if name in squares:
                    squares[name] += gradient.detach().float() ** 2
            progress(done, len(windows))
    seen = windows.shape[0] * (windows.shape[1] - 1)
    plain = {n: (np.eye(total[0].numel(), dtype=np.float32), _rows(total) / np.float32(seen)) for n, total in squares.items()}
    return {n: taps[n].moments(tokens=seen) if n in taps else plain[n] for n in parameters}


class _Tap:
    """Adds up the second moments of what goes into one linear layer and of the gradients at what comes out."""

    def __init__(self, module: nn.Module, parameter: nn.Parameter) -> None:
        self.module = module
        self._swapped = isinstance(module, Conv1D)
        outputs, inputs = parameter.shape[::-1] if self._swapped else parameter.shape
        self._inputs = _Second(inputs, whole=not self._swapped, like=parameter)
        self._outputs = _Second(outputs, whole=self._swapped, like=parameter)

    def listen(self, _module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        """Take what passes forth, and have what passes back taken."""
        self._inputs.add(arguments[0].detach())
        output.register_hook(partial(self._outputs.add))

    def moments(self, *, tokens: int) -> tuple[Float32, Float32]:
        """Return covariance (C, C) and mean square (R,) per token."""
        columns, rows = (self._outputs, self._inputs) if self._swapped else (self._inputs, self._outputs)
        return columns.total / np.float32(tokens), rows.total / np.float32(tokens)


class _Second:
    """A second moment: all of it (K, K), or its diagonal (K,)."""

    def __init__(self, size: int, *, whole: bool, like: Tensor) -> None:
        self._total = torch.zeros((size, size) if whole else (size,), device=like.device)
        self._whole = whole

    def add(self, seen: Tensor) -> None:
        flat = seen.reshape(-1, seen.shape[-1]).float()
        self._total += flat.T @ flat if self._whole else (flat**2).sum(dim=0)

    @property
    def total(self) -> Float32:
        return self._total.cpu().numpy()


def _is_matrix(module: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim == _MATRIX and isinstance(module, nn.Linear | Conv1D)


def _rows(total: Tensor) -> Float32:
    """Return the mean over everything but the rows."""
    return total.reshape(len(total), -1).mean(dim=1).cpu().numpy()


@contextmanager
def _listening(taps: Iterable[_Tap]) -> Generator[None]:
    hooks = [tap.module.register_forward_hook(tap.listen) for tap in taps]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _trained(model: LanguageModel, parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Have gradients found for these parameters and no others, for as long as it takes."""
    before = {p: p.requires_grad for p in model.module.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
