"""Does every decoder of a peer's bytes answer hostile ones with a typed error, in bounded memory and time?

A *target* turns bytes into a value or raises one of the errors that it promises. Anything else is a finding: another exception, a
warning, memory out of proportion, or a single input that takes seconds. Inputs come from a seed, so a finding is a replay:
``python benchmarks/fuzz.py --target NAME --seed SEED --count 1``.
"""

import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.fuzz.mutate import damaged

MEMORY_MAX = 48 << 20
"""Bytes that one input of some kilobytes may make a decoder hold at once."""
SECONDS_MAX = 5.0
_MEMORY_EVERY = 16


class Finding(AssertionError):
    """A decoder did what it must not."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A decoder: ``decode`` raises ``refuses`` for whatever is not valid; ``seeds`` are valid inputs.

    ``mend`` puts right what would hide the rest of the decoder, such as a checksum over the damage. With ``make`` most inputs are
    drawn, and not damaged seeds.
    """

    name: str
    decode: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    mend: Callable[[bytes], bytes] = field(default=lambda data: data)
    make: Callable[[np.random.Generator], bytes] | None = None

    def input_of(self, seed: int) -> bytes:
        """Return the input that a seed stands for."""
        rng = np.random.Generator(np.random.Philox(key=seed))
        if self.make is not None and rng.random() < 0.7:
            return self.make(rng)
        base = self.seeds[int(rng.integers(len(self.seeds)))]
        data = damaged(base, self.seeds, rng)
        return self.mend(data) if rng.random() < 0.8 else data


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What came of many inputs."""

    taken: int
    refused: int


def fuzz(target: Target, *, first: int, count: int, seconds: float) -> Tally:
    """Try the inputs of ``count`` seeds from ``first`` on, for at most ``seconds``; raises `Finding`."""
    taken = refused = 0
    until = time.monotonic() + seconds
    for seed in range(first, first + count):
        if _tried(target, seed, memory=seed % _MEMORY_EVERY == 0):
            taken += 1
        else:
            refused += 1
        if time.monotonic() > until:
            break
    return Tally(taken=taken, refused=refused)


def _tried(target: Target, seed: int, *, memory: bool) -> bool:
    """Whether the decoder took the input."""
    data = target.input_of(seed)
    began_at = time.monotonic()
    if memory:
        tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.decode(data)
    except target.refuses:
        return False
    except Exception as error:
        raise Finding(f"{_where(target, seed)}: {type(error).__name__}: {error}") from error
    finally:
        peak = tracemalloc.get_traced_memory()[1] if memory else 0
        if memory:
            tracemalloc.stop()
        took = time.monotonic() - began_at
        if peak > MEMORY_MAX + len(data):
            raise Finding(f"{_where(target, seed)}: {peak} bytes of memory for an input of {len(data)}")
        if took > SECONDS_MAX:
            raise Finding(f"{_where(target, seed)}: {took:.1f} s for an input of {len(data)} bytes")
    return True


def _where(target: Target, seed: int) -> str:
    return f"{target.name}, seed {seed} (python benchmarks/fuzz.py --target {target.name} --seed {seed} --count 1)"


def memory() -> str | None:
    """Return a folder in memory for the files of targets, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
