"""Can bytes that no encoder made bring a decoder to anything but a refusal or a finite adapter? A million tries and more.

    python benchmarks/codec_fuzz.py --blobs 1000000 --seed 1

Each try takes a blob that a codec made of a small adapter, changes one to three things in it, computes the digest at the end
anew, and has it decoded. What is changed knows the format: section lengths, the form, numbers of the head, tables, words, low
bits, gains, frames; sections are cut, stretched, swapped, and taken from other blobs. A part of the tries leaves the digest
wrong, or changes nothing. Every other outcome than `MalformedUpdate` or a finite adapter of the expected shapes stops the run and
prints what makes it again. Time is that of the processor; memory is what Python's allocator saw, in one of 200 tries.

With `NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(mktemp -d)` before the command, every access of the compiled loops is checked too.
"""

import argparse
import resource
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the mutations are those of the tests

from tests.codec_fuzz import MEMORY_MAX, Tally, run, targets


def main() -> None:
    """Run, with progress every 20,000 blobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blobs", type=int, default=1_000_000, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first blob, to go on after a pause or repeat one")
    options = parser.parse_args()
    warnings.simplefilter("error")
    tally, known, start = Tally(), targets(), time.perf_counter()
    done = 0
    while done < options.blobs:
        count = min(20_000, options.blobs - done)
        run(options.seed, first=options.first + done, count=count, tally=tally, known=known)
        done += count
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{done:>9,} of {options.blobs:,} in {time.perf_counter() - start:.0f} s, slowest {1e3 * tally.slowest_s:.0f} ms,"
            f" memory {tally.memory / 1e6:.1f} MB, resident {resident:.0f} MB, {dict(sorted(tally.outcomes.items()))}",
            flush=True,
        )
    sys.exit(0 if tally.memory <= MEMORY_MAX else "a blob took more memory than any may")


if __name__ == "__main__":
    main()
