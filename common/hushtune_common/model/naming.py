"""Which block a tensor belongs to, read from its name."""

import re
from collections.abc import Sequence

_BLOCK = re.compile(r"^(.*?\blayers\.)(\d{1,4})(\..+)$")


def block_of(name: str) -> int | None:
    """Return the block index in a tensor name such as ``model.layers.27.mlp.up_proj.weight``; none for other tensors."""
    match = _BLOCK.match(name)
    return None if match is None else int(match[2])


def renumbered(name: str, *, to: Sequence[int]) -> str:
    """Return the name with block position k replaced by original index ``to[k]``; names outside the blocks stay."""
    match = _BLOCK.match(name)
    return name if match is None else f"{match[1]}{to[int(match[2])]}{match[3]}"
