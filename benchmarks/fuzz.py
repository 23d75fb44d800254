"""How long do the decoders of a peer's bytes stand hostile ones?

``python benchmarks/fuzz.py [--target NAME] [--seconds 60] [--seed 0] [--count N]``: damaged and extreme inputs for every decoder,
or for one; each gets an equal part of the time. A finding is told with the command that shows it again.
"""

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzz.harness import Finding, fuzz, memory
from tests.fuzz.targets import targets


def main() -> int:
    """Fuzz and say what came of it."""
    parser = argparse.ArgumentParser(description="Fuzz every decoder of a peer's bytes.")
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="the first input")
    parser.add_argument("--count", type=int, default=10**9, help="inputs for each target, at most")
    given = parser.parse_args()
    findings = 0
    with tempfile.TemporaryDirectory(prefix="hushtune-fuzz-", dir=memory()) as folder:
        chosen = [t for t in targets(Path(folder)) if given.target in (None, t.name)]
        if not chosen:
            parser.error(f"no target {given.target!r}")
        for target in chosen:
            try:
                tally = fuzz(target, first=given.seed, count=given.count, seconds=given.seconds / len(chosen))
            except Finding as finding:
                findings += 1
                print(f"{target.name:<22} FOUND {finding}")
                traceback.print_exception(finding.__cause__, limit=-4) if finding.__cause__ else None
            else:
                print(f"{target.name:<22} {tally.taken:>8} taken {tally.refused:>8} refused")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
