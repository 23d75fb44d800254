"""How are the codec's inner loops compiled? By one decorator."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` without bounds checks and without the interpreter's lock, and keep the machine code on disk.

    Products and sums stay apart (no fused multiply-add is asked for), so that equal inputs give equal bits. Where no folder for
    machine code can be written, each process compiles for itself (seconds).
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        return cast(Callable[P, R], njit(function, cache=True, **options))
    except RuntimeError:  # numba found no writable place beside the source or in the user's cache
        return cast(Callable[P, R], njit(function, **options))
