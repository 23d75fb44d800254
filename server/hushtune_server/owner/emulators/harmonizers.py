"""A full model in which harmonizers can stand in for any of its middle blocks.

Letters in shapes: B windows, T tokens, H hidden size, R rank.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hushtune_common.model.language import LanguageModel, next_token_loss
from hushtune_common.model.layers import Harmonizer
from hushtune_common.model.layout import layout_of
from hushtune_common.model.naming import block_of, moved
from hushtune_common.model.resolve import State
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.middles import Middle, relative_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Harmonized:
    """A model and a harmonizer for each of its middle blocks."""

    model: LanguageModel
    harmonizers: Mapping[int, Harmonizer]

    @property
    def middle(self) -> Middle:
        """The blocks from the first to the last that has a harmonizer."""
        return Middle(model=self.model, first=min(self.harmonizers), last=max(self.harmonizers))

    def entering(self, tokens: Tensor) -> State:
        """Return the state in front of the middle for windows (B, T)."""
        return self.middle.entering(tokens)

    def through(self, entering: State, *, replaced: Collection[int]) -> State:
        """Return the state after the middle; a replaced block costs what its harmonizer costs."""
        state = entering
        for block in range(self.middle.first, self.middle.last + 1):
            if block in replaced:
                state = State(hidden=self.harmonizers[block](state.hidden), arguments=state.arguments, options=state.options)
            else:
                state = self.middle.alone(state, block=block)
        return state

    def terms(self, tokens: Tensor, *, replaced: Collection[int], hidden_weight: float) -> dict[str, Tensor]:
        """Return the loss on windows (B, T) with harmonizers in the place of blocks, and the middle's weighted error."""
        with self.model.arithmetic():
            entering = self.entering(tokens)
            leaving = self.through(entering, replaced=replaced)
            terms = {"language": next_token_loss(self.middle.logits(leaving), tokens)}
            if hidden_weight:
                with torch.no_grad():
                    wanted = self.middle.through(entering)
                terms["hidden"] = hidden_weight * relative_error(leaving.hidden, wanted.hidden)
        return terms

    def losses(self, tokens: Tensor, *, candidates: Collection[Collection[int]]) -> list[float]:
        """Return the loss on windows (B, T) for each choice of replaced blocks, in nats per token."""
        with torch.no_grad(), self.model.arithmetic():
            entering = self.entering(tokens)
            leaving = (self.through(entering, replaced=replaced) for replaced in candidates)
            return [float(next_token_loss(self.middle.logits(state), tokens)) for state in leaving]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the harmonizers' parameters by the names that they have in an emulator."""
        any_name = next(n for n, _ in self.model.module.named_parameters() if block_of(n) is not None)
        return {
            moved(any_name, to=block, inner=inner): parameter
            for block, harmonizer in sorted(self.harmonizers.items())
            for inner, parameter in harmonizer.named_parameters()
        }


def harmonized(model: LanguageModel, *, middle: Collection[int], rank: int, seeds: SeedTree) -> Harmonized:
    """Return the model with new harmonizers: W1 (R, H) normal with variance 1/H, the rest zero, so that each is no block yet.

    Never all zero: then nothing but the last bias could learn. (The published code starts so.)
    """
    hidden = layout_of({name: tuple(p.shape) for name, p in model.parts.blocks[0].named_parameters()}).hidden
    made = {block: Harmonizer(hidden, rank).to(model.device) for block in middle}
    with torch.no_grad():
        for block, harmonizer in made.items():
            draws = seeds.child("harmonizer", str(block)).generator().standard_normal((rank, hidden)) / hidden**0.5
            harmonizer.down.weight.copy_(torch.from_numpy(draws))
            for parameter in (harmonizer.down.bias, harmonizer.up.weight, harmonizer.up.bias):
                parameter.zero_()
    return Harmonized(model=model, harmonizers=made)
