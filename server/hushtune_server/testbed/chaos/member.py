"""A process of the suite: ``python -m hushtune_server.testbed.chaos.member SECONDS MODULE [ARGUMENT ...]``.

It ends when the suite does, however that ended. What it reads as the date is off by SECONDS; its TLS library asks the kernel,
whose date stays right, and what a wrong date does there is played by kits that were issued on a clock that is off (``identity``).
"""

import ctypes
import runpy
import signal
import sys
from datetime import datetime, timedelta

from hushtune_common.clock import SystemClock

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, shift the date of every `SystemClock` in it, then become MODULE."""
    seconds, module, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        # Here and not between fork and exec: the suite speaks gRPC, whose threads do not survive a fork.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    right, off = SystemClock.wall, timedelta(seconds=float(seconds))

    def wall(self: SystemClock) -> datetime:
        return right(self) + off

    SystemClock.wall = wall
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
