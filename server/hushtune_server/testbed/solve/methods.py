"""Which allocators can be asked by name? Each is imported when asked for, so that a missing one is missed alone."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal, get_args

from hushtune_common.errors import MissingPackage

if TYPE_CHECKING:
    from hushtune_common.seeding import SeedTree
    from hushtune_server.coordinator.allocators.solution import Solution
    from hushtune_server.coordinator.problems.instance import Instance

Method = Literal[
    "global",
    "conic",
    "alternating",
    "alternating-strict",
    "equal_share",
    "random",
    "communication_only",
    "computation_only",
    "secrecy_blind",
]
Solve = Callable[["Instance"], "Solution"]

METHODS: Final[tuple[Method, ...]] = get_args(Method)
SLOW: Final[frozenset[Method]] = frozenset(
    {"conic", "alternating", "alternating-strict", "communication_only", "computation_only"}
)
"""Those that build convex programs; seconds from some tens of clients on."""


def solver_of(method: Method, *, seeds: "SeedTree", admission: bool = False) -> Solve:
    """Return the allocator, everything it needs imported; the same seeds give the same answers.

    ``admission``: `global` may leave clients out; no other allocator can. `MissingPackage` where a package, or the allocator
    itself, is not installed here.
    """
    try:
        return _imported(method, seeds, admission)
    except ImportError as error:
        what = error.name or method
        raise MissingPackage(what.partition(".")[0], f"the allocator {method} is not available here: {error}") from error


def _imported(method: Method, seeds: "SeedTree", admission: bool) -> Solve:
    if method == "global":
        from hushtune_server.coordinator.allocators.structured import solve

        return partial(solve, admission=admission)
    if method == "conic":
        from hushtune_server.coordinator.allocators.conic import solve_conic

        return solve_conic
    if method in ("alternating", "alternating-strict"):
        from hushtune_server.coordinator.allocators.alternating import solve_alternating

        return partial(solve_alternating, variant="free" if method == "alternating" else "strict")
    from hushtune_server.coordinator.allocators import baselines

    if method in ("communication_only", "computation_only") and find_spec("cvxpy") is None:
        # They need it while they solve, which is too late to say so.
        raise MissingPackage("cvxpy", f"the allocator {method} needs it; run: pip install 'hushtune-server[coordinator]'")

    return {
        "equal_share": baselines.solve_equal_share,
        "random": partial(baselines.solve_random, seeds=seeds),
        "communication_only": baselines.solve_communication_only,
        "computation_only": baselines.solve_computation_only,
        "secrecy_blind": baselines.solve_secrecy_blind,
    }[method]
