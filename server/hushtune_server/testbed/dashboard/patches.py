"""What has to change in one tree of plain values to make it another? JSON merge patches (RFC 7396), made and applied.

A tree has no `None` in it: in a patch that means "take this away". Parts that two trees share are never looked into, so that a
difference costs as much as what has changed. Lists are replaced as a whole.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

Tree = Mapping[str, Any]
EMPTY: Final[Tree] = {}


def at(tree: Tree, *path: str) -> Tree:
    """Return the part of a tree at ``path``; an empty one where there is none."""
    found: Any = tree
    for name in path:
        found = cast(Tree, found).get(name) if isinstance(found, Mapping) else None
    return cast(Tree, found) if isinstance(found, Mapping) else EMPTY


def merged(tree: Tree, patch: Tree) -> dict[str, Any]:
    """Return ``tree`` changed by ``patch``; neither is touched, and what does not change is shared."""
    made = dict(tree)
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, Mapping):
            below = made.get(key)
            made[key] = merged(cast(Tree, below) if isinstance(below, Mapping) else {}, cast(Tree, value))
        else:
            made[key] = value
    return made


def difference(old: Tree, new: Tree) -> dict[str, Any]:
    """Return the patch that makes ``new`` of ``old``; empty where they are equal."""
    if old is new:
        return {}
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if before is value:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            below = difference(cast(Tree, before), cast(Tree, value))
            if below:
                patch[key] = below
        elif before != value or type(before) is not type(value):
            patch[key] = value
    return patch
