"""How late are bytes on the way to a server, where the kernel cannot make them late itself? A process that holds them back.

``python -m tests.lateness UP_S:DOWN_S:JITTER_S:HOST:PORT ...`` prints one address for each server as a line of JSON, and forwards
until it is killed. What it knows about are bytes, not packets: rate and loss stay with the kernel.
"""

import asyncio
import json
import sys

from hushtune_common.clock import SystemClock
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.chaos.proxy import FaultProxy, Way, Weather


async def forward(ways: list[str]) -> None:
    addresses: list[str] = []
    for way in ways:
        up, down, jitter, target = way.split(":", 3)
        proxy = FaultProxy(clock=SystemClock(), seeds=SeedTree(1).child("late", target))
        proxy.target = target
        proxy.weather = {
            Way.UP: Weather(delay_s=float(up), jitter_s=float(jitter)),
            Way.DOWN: Weather(delay_s=float(down), jitter_s=float(jitter)),
        }
        addresses.append(await proxy.open())
    print(json.dumps(addresses), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(forward(sys.argv[1:]))
