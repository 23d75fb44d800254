"""Does a plan fit a model? Asked of names and shapes alone, before a single weight is read."""

from collections.abc import Mapping

from hushtune_common.errors import ConfigError
from hushtune_common.model.layout import BlockLayout, Matrix, layout_of
from hushtune_common.model.naming import block_of, inner_of, list_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Harmonize

Shapes = Mapping[str, tuple[int, ...]]


def require_fitting_plan(plan: Plan, shapes: Shapes) -> None:
    """Raise ``ValueError``, naming block and field, unless every slot of ``plan`` can be made of tensors of these ``shapes``.

    Refused are: another number of blocks than the plan has slots, a second list of blocks, slots that change a block whose
    layout is not understood or is unlike the first block's, matrices that the block has not, components and channels that the
    matrix has not, and a matrix that would lose both components and channels.
    """
    blocks = _blocks(shapes)
    if sorted(blocks) != list(range(len(plan.slots))):
        raise ValueError(f"slots: the plan has {len(plan.slots)}, the model's tensors are of blocks {sorted(blocks)}")
    for slot in plan.slots:
        if isinstance(slot, Compress | Harmonize):
            layout = _layout(slot, blocks[slot.index], like=blocks[0])
            if isinstance(slot, Compress):
                _require_compressible(slot, layout)


def _blocks(shapes: Shapes) -> dict[int, dict[str, tuple[int, ...]]]:
    """Return the shapes of every block by names inside it."""
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    lists = sorted({list_of(name) for name in shapes if block_of(name) is not None})
    if len(lists) > 1:
        raise ValueError(f"slots: the model counts blocks in {lists[0]!r} and in {lists[1]!r}; there must be one list")
    for name, shape in shapes.items():
        block = block_of(name)
        if block is not None:
            blocks.setdefault(block, {})[inner_of(name)] = shape
    return blocks


def _layout(slot: Compress | Harmonize, shapes: Shapes, *, like: Shapes) -> BlockLayout:
    what = "rank" if isinstance(slot, Harmonize) else "ranks, channels and quant"
    if shapes != like:
        raise ValueError(f"block {slot.index}: {what}: its shapes are not those of block 0; only Keep or Drop fit")
    try:
        return layout_of(shapes)
    except ConfigError as error:
        raise ValueError(f"block {slot.index}: {what}: the block is not understood ({error.problem})") from error


def _require_compressible(slot: Compress, layout: BlockLayout) -> None:
    known = {m.path: m for m in layout.matrices}
    for path, components in slot.ranks.items():
        at = f"block {slot.index}: ranks of {path}"
        if path not in known:
            raise ValueError(f"{at}: no such matrix; a block has {', '.join(known)}")
        _require_below(components[-1], _rank(known[path]), at=at, what="component")
        if slot.channels is not None and known[path] not in layout.attention:
            raise ValueError(f"{at}: the matrix loses channels too; take ranks or channels, not both")
    if slot.channels is not None:
        _require_below(slot.channels[-1], layout.inner, at=f"block {slot.index}: channels", what="channel")


def _rank(matrix: Matrix) -> int:
    return min(matrix.rows, matrix.columns)


def _require_below(index: int, count: int, *, at: str, what: str) -> None:
    if index >= count:
        raise ValueError(f"{at}: {what} {index} does not exist; there are {count}, counted from 0")
