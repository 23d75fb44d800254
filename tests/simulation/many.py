"""How are thousands of drawn worlds played, on several processors, and what is told meanwhile and at the end?

A kind of world is played by seed; a world that breaks a law is told with the command that replays it, and the others are played
all the same. Progress goes to the standard error, and one line at the end to the standard output::

    python -m tests.simulation.delivery 0 10000 --jobs 2
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tests.simulation.simulator import Violation

TOLD_EVERY_S = 5.0
_CHUNK = 10
_FAILURES_TOLD = 20
Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of world: ``play`` plays that of a seed and counts what happened in it, ``replay`` shows it with its trace.

    Both are functions of modules, so that they can be sent to another process.
    """

    name: str
    play: Callable[[int], Counts]
    replay: Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one world; ``problem`` is empty unless a law was broken or the world could not be played."""

    seed: int
    seconds: float
    counts: Counts = field(default_factory=dict[str, int])
    problem: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of the worlds played so far."""

    of: int
    played: int = 0
    busy_s: float = 0.0
    longest_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter[str])
    failures: list[Outcome] = field(default_factory=list[Outcome])

    def add(self, outcome: Outcome) -> None:
        """Count one more world."""
        self.played += 1
        self.busy_s += outcome.seconds
        self.longest_s = max(self.longest_s, outcome.seconds)
        self.counts.update(outcome.counts)
        if outcome.problem:
            self.failures.append(outcome)

    @property
    def mean_s(self) -> float:
        """Seconds of a processor per world."""
        return self.busy_s / max(1, self.played)


def played(play: Callable[[int], Counts], seed: int) -> Outcome:
    """Play one world; whatever ends it early is its problem, not that of the others."""
    began = time.monotonic()
    try:
        counts = play(seed)
    except Violation as violation:
        return Outcome(seed=seed, seconds=time.monotonic() - began, problem=str(violation))
    except Exception as error:
        problem = f"seed {seed}: {type(error).__name__}: {error}"
        return Outcome(seed=seed, seconds=time.monotonic() - began, problem=problem)
    return Outcome(seed=seed, seconds=time.monotonic() - began, counts=counts)


def _played(play: Callable[[int], Counts], seeds: range) -> list[Outcome]:
    return [played(play, seed) for seed in seeds]


def outcomes(play: Callable[[int], Counts], seeds: range, *, jobs: int) -> Iterator[Outcome]:
    """Yield what came of each world as it is known; with several ``jobs`` in processes of their own, in no order."""
    if jobs == 1:
        yield from (played(play, seed) for seed in seeds)
        return
    chunks = [seeds[k : k + _CHUNK] for k in range(0, len(seeds), _CHUNK)]
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        for done in as_completed([pool.submit(partial(_played, play), chunk) for chunk in chunks]):
            yield from done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def tallied(kind: Kind, seeds: range, *, jobs: int, tell: Callable[[str], None]) -> Tally:
    """Play all worlds and tell of failures at once and of progress every few seconds; what was played counts when interrupted."""
    tally, began = Tally(of=len(seeds)), time.monotonic()
    told = began
    try:
        for outcome in outcomes(kind.play, seeds, jobs=jobs):
            tally.add(outcome)
            if outcome.problem and len(tally.failures) <= _FAILURES_TOLD:
                tell(f"{kind.name}: {outcome.problem}")
            now = time.monotonic()
            if now - told >= TOLD_EVERY_S:
                told = now
                left_s = (now - began) / tally.played * (tally.of - tally.played)
                about = f"{tally.played} of {tally.of} worlds, {len(tally.failures)} failures"
                tell(f"{kind.name}: {about}, {now - began:.0f} s, about {left_s:.0f} s left")
    except KeyboardInterrupt:
        tell(f"{kind.name}: interrupted")
    return tally


def summary(kind: Kind, tally: Tally, seeds: range, *, jobs: int, seconds: float) -> str:
    """Return the one line that says what was played, on which commit, and what came of it."""
    worlds = f"{tally.played} worlds" if tally.played == tally.of else f"{tally.played} of {tally.of} worlds"
    failed = f"{len(tally.failures)} failures"
    if tally.failures:
        failed += f" (seeds {', '.join(str(o.seed) for o in tally.failures[:_FAILURES_TOLD])})"
    took = f"{seconds:.0f} s in {jobs} process{'es' if jobs > 1 else ''}"
    each = f"{1000 * tally.mean_s:.1f} ms each, the longest {1000 * tally.longest_s:.0f} ms"
    counted = ", ".join(f"{count:,} {name}" for name, count in tally.counts.items())
    where = f"seeds {seeds.start} to {seeds.stop - 1}, commit {_commit()}"
    return f"{kind.name}: {worlds} ({where}), {failed}, {took}, {each}; {counted}"


def _commit() -> str:
    """Return which commit is checked out, with a plus where files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(kind: Kind, seeds: range, *, jobs: int) -> int:
    """Play the worlds and print the line on them; return 1 if a law was broken, 130 if not all were played."""
    began = time.monotonic()
    tally = tallied(kind, seeds, jobs=jobs, tell=lambda line: print(line, file=sys.stderr, flush=True))
    print(summary(kind, tally, seeds, jobs=jobs, seconds=time.monotonic() - began), flush=True)
    if tally.failures:
        return 1
    return 0 if tally.played == tally.of else 130


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Return what every kind of world understands on its command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=_natural, help="the seed of the only or the first world")
    parser.add_argument("count", type=_positive, nargs="?", help="play so many worlds; without it, one with its trace")
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="play in so many processes (default: %(default)s)")
    return parser


def main(kind: Kind, *, about: str | None, words: Sequence[str] | None = None) -> None:
    """Replay one world with its trace, or play many: what a kind's module does when it is run."""
    options = arguments(about).parse_args(words)
    if options.count is None:
        kind.replay(options.first)
    else:
        sys.exit(run(kind, range(options.first, options.first + options.count), jobs=options.jobs))


def _natural(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of at least 0, got {word!r}")
    return int(word)


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"a number of at least 1, got {word!r}")
    return int(word)
