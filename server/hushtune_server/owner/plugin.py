"""Does the owner's model get better or worse with these adapter blocks in it, and does it keep them?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState
from hushtune_common.messages import TensorSpec
from hushtune_common.model.adapter import extract, insert
from hushtune_common.model.language import LanguageModel

T = TypeVar("T")

_NATS_MAX = 700.0
"""Above this the exponential leaves double precision; such a model knows nothing anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the public text said about adapter blocks put into the full model. Losses are mean next-token nats."""

    loss_before: float
    loss_after: float
    kept: bool
    reason: str

    @property
    def perplexity_before(self) -> float:
        """Exponential of the loss before."""
        return perplexity(self.loss_before)

    @property
    def perplexity_after(self) -> float:
        """Exponential of the loss after; infinite when it is not a number."""
        return perplexity(self.loss_after)


def perplexity(loss_nats: float) -> float:
    """Return the exponential of a loss, infinite where that is too large or the loss is not a number."""
    return math.exp(loss_nats) if loss_nats < _NATS_MAX else math.inf


def finite(value: float) -> float | None:
    """Return ``value``, nothing where it is no number that JSON has."""
    return value if math.isfinite(value) else None


def decide(*, loss_before: float, loss_after: float, increase_max: float) -> tuple[bool, str]:
    """Return whether to keep a plug-in, and why not: its loss on public text may rise by ``increase_max`` nats at most.

    Laws: a loss that is not finite is never kept; a lower loss is kept whenever a higher one is.
    """
    if not math.isfinite(loss_after):
        return False, "the loss on public text is not finite"
    increase = loss_after - loss_before
    if increase > increase_max:
        limit = f"owner.gate.public_loss_increase_max_nats = {increase_max:g}"
        return False, f"the loss on public text rises by {increase:.3f} nats, more than {limit}"
    return True, ""


class Plugin:
    """The full model with one seat for adapter blocks. The model is held once; only the blocks in the seat change.

    Laws: after `ask` and `try_in`, and after a `keep` that was rolled back, the model is bit for bit what it was before; after a
    `keep` that was kept, its adapter blocks are exactly those given.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        schema: Sequence[TensorSpec],
        windows: NDArray[np.int64],
        increase_max: float,
    ) -> None:
        """Take the model, the tensors of its adapter blocks, and public ``windows`` (N, T) to judge on."""
        self._model = model
        self._schema = tuple(schema)
        self._windows = windows
        self._increase_max = increase_max
        self._seated = extract(model, sorted({spec.block for spec in schema}))
        self._loss = model.loss(windows)

    @property
    def seated(self) -> AdapterState:
        """The adapter blocks that the model holds now."""
        return self._seated

    @property
    def loss(self) -> float:
        """Loss on public text of the model as it is now, in nats."""
        return self._loss

    def ask(self, state: AdapterState, question: Callable[[], T]) -> T:
        """Return the answer of the model with ``state`` in the seat, then put back what was there."""
        try:
            insert(self._model, state, expected=self._schema)
            return question()
        finally:
            self._model.set_adapter(self._seated.tensors)

    def try_in(self, state: AdapterState) -> Trial:
        """Evaluate with ``state`` in the seat, then put back what was there; `MalformedUpdate` if it does not fit."""
        after = self.ask(state, lambda: self._model.loss(self._windows))
        kept, reason = decide(loss_before=self._loss, loss_after=after, increase_max=self._increase_max)
        return Trial(loss_before=self._loss, loss_after=after, kept=kept, reason=reason)

    def keep(self, state: AdapterState) -> Trial:
        """Evaluate ``state`` and leave it in the seat if the decision is to keep it."""
        trial = self.try_in(state)
        if trial.kept:
            insert(self._model, state, expected=self._schema)
            self._seated, self._loss = state, trial.loss_after
        return trial
