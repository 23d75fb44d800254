"""How can a model be run block by block without knowing its family?

By its own forward pass: the list of blocks is replaced by one that, when the model walks over it, shows a single stand-in, which
is handed the hidden state and whatever this family tells its blocks (masks, positions). So embeddings, positions, final norm and
head are always the model's own code.

Letters in shapes: B sequences, T tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hushtune_common.errors import ConfigError

Walk = Callable[[Tensor, tuple[Any, ...], Mapping[str, Any]], Tensor]
"""Gets the hidden state and what else blocks are called with, returns the hidden state after the blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """In front of a block: the hidden state (B, T, H) and what else this family tells its blocks."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


class Blocks(nn.ModuleList):
    """A list of blocks that can be walked as one stand-in. Names of parameters are those of an ordinary list."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        """Take the blocks in order."""
        super().__init__(blocks)
        self._walk: Walk | None = None

    def walked(self, walk: Walk, forward: Callable[[], Tensor]) -> Tensor:
        """Return what ``forward`` gives while ``walk`` stands in for all of the blocks."""
        self._walk = walk
        try:
            return forward()
        finally:
            self._walk = None

    def __iter__(self) -> Iterator[nn.Module]:
        """Iterate over the blocks, or over the stand-in while there is one."""
        return super().__iter__() if self._walk is None else iter([self._stand_in(self._walk)])

    def __getitem__(self, index: Any) -> Any:
        """Return a block; a slice, which is how models walk over all of their blocks, is the stand-in while there is one."""
        if self._walk is not None and isinstance(index, slice):
            return [self._stand_in(self._walk)]
        return super().__getitem__(index)

    def _stand_in(self, walk: Walk) -> nn.Module:
        return cast(nn.Module, _StandIn(walk, like=super().__getitem__(0)))


class _StandIn:
    """Is called like a block, and has the attributes of the first one."""

    def __init__(self, walk: Walk, *, like: nn.Module) -> None:
        self._walk, self._like = walk, like

    def __call__(self, hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return self._walk(hidden, arguments, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._like, name)


class BlockModel:
    """A model that runs block by block. Law: all blocks in order give bit for bit what the module itself gives."""

    def __init__(self, module: nn.Module) -> None:
        """Take a transformers model, whose longest list of modules becomes `Blocks`; `ConfigError` when it has none."""
        lists = [
            (parent, name, child)
            for parent in module.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.ModuleList)
        ]
        if not lists:
            raise ConfigError("model.source", f"{type(module).__name__} has no list of blocks")
        parent, name, found = max(lists, key=lambda entry: len(entry[2]))
        self.module = module
        self.blocks = found if isinstance(found, Blocks) else Blocks(found)
        _require_alike(self.blocks)
        setattr(parent, name, self.blocks)
        # The part of the model that walks over the blocks, without a head.
        self._body = cast(nn.Module, getattr(module, str(getattr(module, "base_model_prefix", "")), module))

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of token ids."""
        return cast(nn.Embedding, cast(Any, self.module).get_input_embeddings())

    def embed(self, tokens: Tensor, *, mask: Tensor | None = None) -> State:
        """Return the state in front of the first block for token ids (B, T); ``mask`` (B, T) is 0 at padding."""
        seen: list[State] = []

        def walk(hidden: Tensor, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
            seen.append(State(hidden=hidden, arguments=arguments, options=options))
            return hidden

        self.blocks.walked(walk, lambda: self._body_output(tokens, mask))
        return seen[0]

    def run(self, state: State, *, blocks: Iterable[int]) -> State:
        """Return the state after the blocks at these positions."""
        hidden = state.hidden
        for index in blocks:
            hidden = self.blocks[index](hidden, *state.arguments, **state.options)
        return State(hidden=hidden, arguments=state.arguments, options=state.options)

    def finish(self, state: State) -> Tensor:
        """Return what the body makes of the last block's output: (B, T, H) after the final norm, if there is one."""
        return self.blocks.walked(_always(state.hidden), lambda: self._body_output(_blank(state.hidden), None))

    def predict(self, state: State) -> Tensor:
        """Return logits (B, T, V) from the last block's output; only for models with a head."""
        forward = cast(Callable[..., Any], self.module)
        return self.blocks.walked(_always(state.hidden), lambda: forward(input_ids=_blank(state.hidden)).logits)

    def _body_output(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        masked = {} if mask is None else {"attention_mask": mask}
        return cast(Callable[..., Any], self._body)(input_ids=tokens, **masked).last_hidden_state


def _always(hidden: Tensor) -> Walk:
    def walk(_hidden: Tensor, _arguments: tuple[Any, ...], _options: Mapping[str, Any]) -> Tensor:
        return hidden

    return walk


def _blank(hidden: Tensor) -> Tensor:
    """Return token ids to satisfy a forward pass whose embeddings are not used."""
    return torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)


def _require_alike(blocks: Blocks) -> None:
    kinds = {getattr(block, "attention_type", None) for block in blocks}
    if len(kinds) > 1:
        raise ConfigError("model.source", f"its blocks attend in different ways ({', '.join(map(str, kinds))}); not supported")
