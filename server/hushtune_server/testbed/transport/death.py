"""How long does a client that is gone stay unnoticed? One is killed, another stops without a word; timing is the default."""

import asyncio
import signal
from pathlib import Path
from typing import Any

from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_server.testbed.transport.app import noticed_after
from hushtune_server.testbed.transport.crowd import scenario_of

Json = dict[str, Any]


def measure_death(folder: Path, *, clock: Clock) -> Json:
    """Return the seconds until the coordinator takes either for dead."""
    idle_s = TimingConfig().idle_s
    scenario = scenario_of(clients=3, rounds=1, idle_s=idle_s)
    blows = {"c2": signal.SIGKILL, "c3": signal.SIGSTOP}
    found = asyncio.run(noticed_after(scenario, folder=folder, blows=blows, clock=clock))
    return {"idle_s": idle_s, "killed_s": round(found["c2"], 2), "stopped_s": round(found["c3"], 2)}
