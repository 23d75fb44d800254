"""What every world of a delivery has in common, and what differs: one client near the owner, and the weather."""

from dataclasses import dataclass, replace

import numpy as np
from msgspec import structs

from hushtune_common.config import Scenario
from hushtune_common.messages import (
    Assignment,
    ClientId,
    RunId,
)
from hushtune_common.units import Hertz, Watt
from tests import loopback, radio
from tests.simulation.network import NetworkWeather

RUN, CLIENT, ROUND = RunId("run-1"), ClientId("c1"), 1
DESIGN = radio.qpsk_design(codewords=1)
FAULTS_S = 120.0
PATIENCE_S = 900.0
PART_BYTES, SYNC_BYTES = 512, 2048
QUOTA_BYTES = 1 << 20
ATTEMPTS_MAX = 40
POWER, BANDWIDTH = Watt(2e-5), Hertz(1e6)
NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How bad a world is besides its network.

    Mean seconds between crashes of a machine, the share of them that cut the power, the share of syncs in which the power fails,
    the share of blocks that the owner cannot decode, and the skews of clocks.
    """

    network: NetworkWeather
    air_crash_s: float
    client_crash_s: float
    power: float
    strike: float
    lost: float
    skew_s: float
    skew_rate: float

    @staticmethod
    def drawn(rng: np.random.Generator) -> "Weather":
        """Draw a mix: each fault is absent in about every third world."""

        def share(top: float) -> float:
            return 0.0 if rng.random() < 0.3 else float(rng.random()) * top

        def mean_s(shortest: float) -> float:
            return NEVER if rng.random() < 0.3 else shortest * float(1.0 + 4.0 * rng.random())

        network = NetworkWeather(
            delay_s=0.01 + share(0.5), breaks=share(0.12), half_open=share(1.0), twice=share(0.5), damage=share(0.1)
        )
        return Weather(
            network=network,
            air_crash_s=mean_s(4.0),
            client_crash_s=mean_s(5.0),
            power=share(1.0),
            strike=share(0.06),
            lost=share(0.7),
            skew_s=float(rng.uniform(-600.0, 600.0)),
            skew_rate=share(0.1),
        )


def assignment() -> Assignment:
    granted = loopback.assignment_of(ROUND, client=CLIENT)
    return replace(granted, design=DESIGN, power=POWER, bandwidth=BANDWIDTH)


def scenario_of() -> Scenario:
    scenario = radio.scenario(air={"shadowing_db": 0.0, "metered_blocks": 0}, secrecy={"codewords": 1})
    limits = structs.replace(scenario.limits, attempts_max=ATTEMPTS_MAX)
    compute = structs.replace(scenario.compute, link_threads=1)
    return structs.replace(scenario, limits=limits, compute=compute)
