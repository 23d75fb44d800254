"""Does a run come to its right end although its processes are killed at random, again and again?

``python benchmarks/kill.py [--kills 30] [--seed 0] [--pause 4] [--folder DIR]``: small runs of six rounds, in which a process
drawn by the seed is killed with SIGKILL at a moment drawn by the seed, and started again at once, until that many were killed.
After each run everything that is left on disk is compared (`tests/killing.py`). A failure names its run and the folder.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hushtune_common.clock import SystemClock
from tests.killing import CLIENTS, SCENARIO, Campaign, begin, faults
from tests.troupe import on_stage

_RUN_S = 900.0
_ROUNDS = 6


def play(folder: Path, *, seed: int, kills: int, pause_s: float) -> tuple[int, list[str]]:
    """One run in ``folder``; how many processes were killed, and what did not hold."""
    folder.mkdir(parents=True)
    clock = SystemClock()
    began_s = clock.monotonic()
    with on_stage(folder, scenario=SCENARIO.replace("{rounds}", str(_ROUNDS)), clients=CLIENTS) as troupe:
        begin(troupe)
        campaign = Campaign(troupe, random.Random(seed), kills_max=kills, pause_max_s=pause_s)
        try:
            campaign.play(within_s=_RUN_S)
            troupe.stop()  # the air and the eavesdropper know of no end
            found = faults(troupe, rounds=_ROUNDS)
        except TimeoutError as error:
            found = [str(error)]
    for at_s, victim, after in campaign.killed:
        print(f"  {at_s:6.1f} s  {victim:<13} {after}", flush=True)
    print(f"seed {seed}: {len(campaign.killed)} killed, {clock.monotonic() - began_s:.0f} s, {len(found)} faults", flush=True)
    return len(campaign.killed), found


def main() -> int:
    """Kill, compare, and say what came of it."""
    parser = argparse.ArgumentParser(description="Kill processes of small runs at random and compare what is left.")
    parser.add_argument("--kills", type=int, default=30, help="in all runs together")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each further one has the next")
    parser.add_argument("--pause", type=float, default=4.0, help="longest pause between two of them, in seconds")
    parser.add_argument("--folder", type=Path, help="where the runs lie; a temporary folder by default")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="hushtune-kill-"))
    killed, seed, failed = 0, given.seed, 0
    while killed < given.kills:
        count, found = play(folder / f"seed-{seed}", seed=seed, kills=given.kills - killed, pause_s=given.pause)
        for problem in found:
            print(f"  FAULT {problem}", flush=True)
        killed, seed, failed = killed + count, seed + 1, failed + bool(found)
    print(f"{killed} processes killed in {seed - given.seed} runs, {failed} of them with faults; {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
