"""How compiled code is made: one decorator, and the spreading of rows over threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` without bounds checks and without the interpreter's lock, and keep the machine code on disk.

    Where no folder for machine code can be written, each process compiles for itself (seconds).
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        return cast(Callable[P, R], njit(function, cache=True, **options))
    except RuntimeError:  # numba found no writable place beside the source or in the user's cache
        return cast(Callable[P, R], njit(function, **options))


def spread(work: Callable[[int, int], None], *, count: int, threads: int) -> None:
    """Call ``work(start, stop)`` on contiguous ranges that cover ``count`` rows, on ``threads`` threads; wait for all.

    The work must be compiled (or otherwise release the lock) to gain anything, and must write to its own rows only.
    """
    threads = max(1, min(threads, count))
    if threads == 1:
        return work(0, count)
    bounds = [count * k // threads for k in range(threads + 1)]
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for done in [pool.submit(work, a, b) for a, b in pairwise(bounds)]:
            done.result()
    return None
