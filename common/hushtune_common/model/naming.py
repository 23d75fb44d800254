"""Which block a tensor belongs to, read from its name."""

import re
from collections.abc import Sequence

# The first number in a name counts the repeated blocks: model.layers.27..., transformer.h.3..., encoder.layer.0...
_BLOCK = re.compile(r"((?:[^.]+\.)*?)(0|[1-9][0-9]{0,3})\.(.+)", re.DOTALL)


def block_of(name: str) -> int | None:
    """Return the block index in a tensor name such as ``model.layers.27.mlp.up_proj.weight``; none for other tensors."""
    match = _BLOCK.fullmatch(name)
    return None if match is None else int(match[2])


def list_of(name: str) -> str:
    """Return where the blocks are counted, ``model.layers.``, read from a tensor's name; ``ValueError`` when it is in none."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is in no block")
    return match[1]


def inner_of(name: str) -> str:
    """Return the part of a tensor's name inside its block, ``mlp.up_proj.weight``; ``ValueError`` when it is in none."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is in no block")
    return match[3]


def moved(name: str, *, to: int, inner: str | None = None) -> str:
    """Return the name of the same tensor, or of ``inner``, in block ``to``; ``ValueError`` when it is in none."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is in no block")
    return f"{match[1]}{to}.{match[3] if inner is None else inner}"


def renumbered(name: str, *, to: Sequence[int]) -> str:
    """Return the name with block position k replaced by original index ``to[k]``; names outside the blocks stay."""
    block = block_of(name)
    return name if block is None else moved(name, to=to[block])
