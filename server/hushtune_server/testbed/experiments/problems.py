"""Which problems do the experiments ask: one quantity of the system varied, all else as drawn."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hushtune_common.seeding import NoiseRng, SeedTree
from hushtune_common.units import NOISE_DENSITY_W_PER_HZ
from hushtune_server.coordinator.allocators.baselines import even_split
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.instance import Instance, evaluate
from hushtune_server.coordinator.problems.utility import Floats
from hushtune_server.testbed.experiments.contenders import START_SHARE

CLIENTS_MOST: Final = 50
_CELL_KM: Final = 0.5
_NEAREST_KM: Final = 0.01
_DRAWS_MAX: Final = 10_000

Build = Callable[[SeedTree, int, float], Instance]
"""Seeds of one repetition, number of clients, and the varied quantity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One quantity and the values it takes; ``column`` names it with its unit, ``says`` what stays and what moves."""

    name: str
    column: str
    label: str
    says: str
    points: tuple[float, ...]
    build: Build
    logarithmic: bool = True
    rises: int = 0
    """Expected sign of the best ratio over the quantity: 1 rises, -1 falls, 0 nothing is claimed."""


def default(seeds: SeedTree, clients: int) -> Instance:
    """Return the problem that all sweeps vary; with fewer clients the first ones of the same cell, up to 50."""
    whole = random_instance(clients=CLIENTS_MOST, seeds=seeds)
    return whole.select(np.arange(CLIENTS_MOST) < clients)


def bandwidth(seeds: SeedTree, clients: int, megahertz: float) -> Instance:
    """Return the default problem with this band for all together."""
    return replace(default(seeds, clients), bandwidth_mhz=megahertz)


def power(seeds: SeedTree, clients: int, watt: float) -> Instance:
    """Return the default problem with this top power for every client."""
    return replace(default(seeds, clients), power_max_w=np.full(clients, watt))


def client_clock(seeds: SeedTree, clients: int, factor: float) -> Instance:
    """Return the default problem with every client's top clock multiplied."""
    drawn = default(seeds, clients)
    return replace(drawn, clock_max_tflops=factor * drawn.clock_max_tflops)


def owner_clock(seeds: SeedTree, clients: int, tflops: float) -> Instance:
    """Return the default problem with this speed of the owner's machine."""
    return replace(default(seeds, clients), server_tflops=tflops)


def owners(seeds: SeedTree, clients: int, number: float) -> Instance:
    """Return the default problem with this number of data owners; a larger number contains the smaller ones."""
    del clients
    return default(seeds, int(number))


def weight(seeds: SeedTree, clients: int, part: float) -> Instance:
    """Return the default problem with the cost w T / T_ref + (1 - w) E / E_ref, references from the average allocation."""
    drawn = default(seeds, clients)
    average = evaluate(drawn, even_split(drawn, share=np.full(clients, START_SHARE)))
    return replace(drawn, time_weight_per_s=part / average.time_s, energy_weight_per_j=(1.0 - part) / average.energy_j)


def eavesdropper(seeds: SeedTree, clients: int, kilometres: float) -> Instance:
    """Return the default devices with the eavesdropper this far from the owner, on a fixed ray, at least the cell's radius away.

    From there on, every step outwards takes it away from every client. Shadowing stays; positions are drawn such that the owner
    hears everyone better even with the eavesdropper at the edge of the cell, so that the same clients take part at any distance.
    """
    draw = seeds.child("eavesdropper").generator()
    kept = [_place(draw) for _ in range(clients)]
    at, main_db, tap_db = np.array(kept).T
    return replace(
        default(seeds, clients),
        gain_main_mhz_per_w=_gain(np.abs(at), main_db.real),
        gain_tap_mhz_per_w=_gain(np.abs(at - kilometres), tap_db.real),
    )


def _place(draw: NoiseRng) -> tuple[complex, float, float]:
    """Return a position in km and the shadowing in dB towards owner and eavesdropper."""
    for _ in range(_DRAWS_MAX):
        at = complex(_CELL_KM * np.sqrt(draw.uniform()) * np.exp(2j * np.pi * draw.uniform()))
        main_db, tap_db = 8.0 * draw.standard_normal(2)
        if _gain(np.abs(at), main_db) > _gain(np.abs(at - _CELL_KM), tap_db):
            return at, float(main_db), float(tap_db)
    raise AssertionError("half of all positions are nearer to the owner")


def _gain(distance_km: Floats, shadowing_db: Floats) -> Floats:
    """Return the gain over the noise density in MHz/W: path loss 128.1 + 37.6 log10(d/km) dB."""
    loss_db = 128.1 + 37.6 * np.log10(np.maximum(distance_km, _NEAREST_KM)) + shadowing_db
    return 10.0 ** (-loss_db / 10.0) / (1e6 * NOISE_DENSITY_W_PER_HZ)


SWEEPS: Final = (
    Sweep(
        name="bandwidth",
        column="bandwidth_mhz",
        label="bandwidth B, MHz",
        says="The band that all clients share.",
        points=(5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
        build=bandwidth,
        logarithmic=False,
        rises=1,
    ),
    Sweep(
        name="power",
        column="power_max_w",
        label="top power of a client, W",
        says="The top transmit power, the same for every client.",
        points=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
        build=power,
        rises=1,
    ),
    Sweep(
        name="client_clock",
        column="client_clock_factor",
        label="clients' top clocks, multiples of those drawn (1 to 5 TFLOP/s)",
        says="Every client's top clock, multiplied; the power that a given clock draws stays.",
        points=(0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0),
        build=client_clock,
        rises=1,
    ),
    Sweep(
        name="owner_clock",
        column="server_tflops",
        label="the model owner's machine, TFLOP/s",
        says="The speed of the model owner's machine, which the clients' plug-ins share.",
        points=(10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
        build=owner_clock,
        rises=1,
    ),
    Sweep(
        name="owners",
        column="data_owners",
        label="number of data owners N",
        says="More data owners in the same cell with the same band and machine; each number contains the smaller ones.",
        points=(2.0, 5.0, 10.0, 20.0, 30.0, 50.0),
        build=owners,
        logarithmic=False,
    ),
    Sweep(
        name="weight",
        column="time_weight_w",
        label="weight of time w",
        says=(
            "Time against energy: S = w T / T_ref + (1 - w) E / E_ref, with T_ref and E_ref those of the average allocation. "
            "U/S at different w is in different units of cost."
        ),
        points=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        build=weight,
        logarithmic=False,
    ),
    Sweep(
        name="eavesdropper",
        column="eavesdropper_distance_km",
        label="eavesdropper's distance from the owner, km",
        says=(
            "The eavesdropper on a ray from the edge of the cell outwards. Positions are drawn such that the owner hears every "
            "client better even with the eavesdropper at the edge; the default of the other sweeps draws them differently."
        ),
        points=(0.5, 0.6, 0.75, 1.0, 1.5, 2.0, 3.0),
        build=eavesdropper,
        rises=1,
    ),
)
