"""Where do a model and its emulator part, and where do they meet again? Runs both over what lies between.

The middle reaches from the first to the last block that clients do not train; adapter blocks in between are in both and stay as
they are. Letters in shapes: B windows, T tokens, H hidden size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hushtune_common.model.language import LanguageModel
from hushtune_common.model.resolve import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Middle:
    """The blocks of a model from ``first`` to ``last``, by original index."""

    model: LanguageModel
    first: int
    last: int

    def entering(self, tokens: Tensor) -> State:
        """Return the state in front of the middle for windows (B, T); the last token is only predicted."""
        parts = self.model.parts
        return parts.run(parts.embed(tokens[:, :-1]), blocks=self._positions(range(self.first)))

    def outputs(self, entering: State) -> Iterator[tuple[int, State]]:
        """Yield the original index and the state after each block of the middle that there is."""
        state = entering
        for position in self._positions(range(self.first, self.last + 1)):
            state = self.model.parts.run(state, blocks=[position])
            yield self.model.blocks[position], state

    def through(self, entering: State) -> State:
        """Return the state after the middle."""
        return self.model.parts.run(entering, blocks=self._positions(range(self.first, self.last + 1)))

    def alone(self, state: State, *, block: int) -> State:
        """Return the state after one block, by its original index."""
        return self.model.parts.run(state, blocks=self._positions([block]))

    def logits(self, leaving: State) -> Tensor:
        """Return the predictions (B, T, V) from the state after the middle."""
        parts = self.model.parts
        above = range(self.last + 1, self.model.blocks[-1] + 1)
        return parts.predict(parts.run(leaving, blocks=self._positions(above)))

    def _positions(self, blocks: Iterable[int]) -> list[int]:
        wanted = set(blocks)
        return [position for position, block in enumerate(self.model.blocks) if block in wanted]


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference as a share of the mean square of what is ``wanted``, over everything; a scalar."""
    # A block that does nothing asks for nothing; the bound keeps its share finite.
    return (found.float() - wanted.float()).square().mean() / wanted.float().square().mean().clamp(min=1e-12)


def channel_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean over channels of the mean squared difference as a share of the variance of what is ``wanted``; a scalar."""
    difference = (found.float() - wanted.float()).square().flatten(0, -2).mean(dim=0)
    variance = wanted.float().flatten(0, -2).var(dim=0)
    return (difference / variance.clamp_min(torch.finfo(torch.float32).tiny)).mean()
