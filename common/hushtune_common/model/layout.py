"""Which matrices does a block have, and what are they for? Read from names and shapes alone.

Letters in shapes: H hidden size, F feed-forward size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hushtune_common.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A linear map inside a block: module path, extents as a map from ``columns`` inputs to ``rows`` outputs, and its storage."""

    path: str
    rows: int
    columns: int
    biased: bool
    transposed: bool
    """Stored as (columns, rows), as GPT-2 does."""

    def thinner(self, rank: int) -> bool:
        """Whether two factors of this rank have fewer numbers than the matrix; otherwise their product travels instead."""
        return rank * (self.rows + self.columns) < self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """The matrices of one block: of attention, into the feed-forward neurons (with their gate, if any) and out of them."""

    attention: tuple[Matrix, ...]
    up: tuple[Matrix, ...]
    down: Matrix
    hidden: int
    inner: int

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All of them."""
        return (*self.attention, *self.up, self.down)

    def matrix(self, path: str) -> Matrix:
        """Return the matrix at a module path; ``ValueError`` names the known ones."""
        for matrix in self.matrices:
            if matrix.path == path:
                return matrix
        raise ValueError(f"no matrix {path!r} in a block; it has {', '.join(m.path for m in self.matrices)}")


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> BlockLayout:
    """Return the layout of a block from the ``shapes`` of its tensors by name inside the block.

    Attention is what lies below a module whose name speaks of attention; of the other matrices, those that give more or other
    numbers than the hidden size lead into the feed-forward neurons. `ConfigError` when that does not describe the block.
    """
    hidden = _hidden(shapes)
    turned = _transposed(shapes)
    named = sorted((n, s) for n, s in shapes.items() if len(s) == 2 and n.endswith(".weight"))
    matrices = [_matrix(name, shape, shapes, turned=turned) for name, shape in named]
    attention = tuple(m for m in matrices if "att" in m.path)
    rest = [m for m in matrices if m not in attention]
    up = tuple(m for m in rest if m.columns == hidden and m.rows != hidden)
    down = [m for m in rest if m.rows == hidden and m.columns != hidden]
    if not attention or not up or len(down) != 1 or {m.rows for m in up} != {down[0].columns} or len(up) + 1 != len(rest):
        found = ", ".join(f"{m.path} {m.rows} x {m.columns}" for m in matrices)
        raise ConfigError("model.source", f"its blocks are not attention and one feed-forward network: {found or 'no matrices'}")
    return BlockLayout(attention=attention, up=up, down=down[0], hidden=hidden, inner=down[0].columns)


def _hidden(shapes: Mapping[str, tuple[int, ...]]) -> int:
    # Every block has a norm over the hidden state, whose weight is a vector.
    norms = {s[0] for n, s in shapes.items() if len(s) == 1 and n.endswith("weight")}
    if not norms:
        raise ConfigError("model.source", "its blocks have no norm, so their hidden size is unknown")
    return max(norms)


def _transposed(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    # A bias has as many entries as its matrix has outputs; square matrices tell nothing, so the others decide for all.
    telling = [
        (shape, shapes[bias][0])
        for name, shape in shapes.items()
        if len(shape) == 2 and shape[0] != shape[1] and (bias := f"{name.removesuffix('weight')}bias") in shapes
    ]
    return bool(telling) and all(shape[1] == outputs for shape, outputs in telling)


def _matrix(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], *, turned: bool) -> Matrix:
    path = name.removesuffix(".weight")
    rows, columns = (shape[1], shape[0]) if turned else shape
    return Matrix(path=path, rows=rows, columns=columns, biased=f"{path}.bias" in shapes, transposed=turned)
