"""How do feed-forward networks with fewer neurons learn to give what the whole ones gave? (FedPFT)

Each block is compared on the teacher's own input, so that blocks learn independently of each other. Letters in shapes: B windows,
T tokens, H hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hushtune_common.errors import ConfigError
from hushtune_common.methods import WidthOptions
from hushtune_common.model.language import next_token_loss
from hushtune_common.model.resolve import State
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.middles import Middle, relative_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowing:
    """The loss of training the feed-forward networks of ``student``.

    ``hidden_weight`` times the mean over the ``narrowed`` blocks of the relative error of what a block adds to the hidden state,
    + ``language_weight`` times the loss of the whole emulator. (What is added, not the sum: a few huge entries of the hidden
    state would hide everything else. Reconstructed.)
    """

    teacher: Middle
    student: Middle
    batches: Batches
    options: WidthOptions
    narrowed: frozenset[int]

    def __post_init__(self) -> None:
        """There is something to learn from."""
        if not (self.options.hidden_weight or self.options.language_weight):
            raise ConfigError("owner.emulator.hidden_weight", "every weight of the loss is 0; there is nothing to learn from")

    def terms(self, step: int) -> Mapping[str, Tensor]:
        """Return the weighted terms of a step's loss."""
        tokens = torch.from_numpy(self.batches.of(step)).to(self.teacher.model.device)
        terms: dict[str, Tensor] = {}
        with self.teacher.model.arithmetic():
            with torch.no_grad():
                entering = self.teacher.entering(tokens)
            if self.options.hidden_weight:
                terms["hidden"] = self.options.hidden_weight * self._errors(entering).mean()
            if self.options.language_weight:
                loss = next_token_loss(self.student.logits(self.student.through(entering)), tokens)
                terms["language"] = self.options.language_weight * loss
        return terms

    def _errors(self, entering: State) -> Tensor:
        """Return the relative error of every narrowed block, (blocks,)."""
        before, errors = entering, list[Tensor]()
        with torch.no_grad():
            states = list(self.teacher.outputs(entering))
        for block, after in states:
            if block in self.narrowed:
                found = self.student.alone(before, block=block)
                errors.append(relative_error(found.hidden - before.hidden, after.hidden - before.hidden))
            before = after
        return torch.stack(errors)
