"""Which resource problems are worth trying: random instances, of a plausible cell and of extreme scales."""

from typing import Literal, get_args

import numpy as np

from hushtune_common.seeding import NoiseRng, SeedTree
from hushtune_common.units import NOISE_DENSITY_W_PER_HZ
from hushtune_server.coordinator.problems.instance import Instance
from hushtune_server.coordinator.problems.utility import Floats, Objective, Utility, UtilityKind

Scale = Literal["default", "extreme"]

_NOISE_W_PER_MHZ = 1e6 * NOISE_DENSITY_W_PER_HZ
_NEAREST_KM = 0.01
_DRAWS_MAX = 1000


def random_instance(*, clients: int, seeds: SeedTree, scale: Scale = "default", usable_only: bool = True) -> Instance:
    """Return a random problem with the objective ratio, its utilities in the class where optimality can be proven.

    ``default``: clients uniform in a cell of 0.5 km, one eavesdropper 0.3 to 0.6 km from the owner, path loss
    128.1 + 37.6 log10(d/km) dB, 8 dB log-normal shadowing, -174 dBm/Hz, devices of 1 to 5 TFLOP/s. ``extreme``: one of four
    utilities, and every scale drawn over decades. ``usable_only`` redraws clients that the eavesdropper hears at least as well.
    """
    if clients < 1 or scale not in get_args(Scale):
        raise ValueError(f"expected at least one client and a scale of {get_args(Scale)}, got {clients} and {scale!r}")
    draw = seeds.child("instance", scale, str(clients)).generator()
    return _default(clients, draw, usable_only) if scale == "default" else _extreme(clients, draw, usable_only)


def _gains(n: int, draw: NoiseRng, usable_only: bool) -> tuple[Floats, Floats]:
    """Return gains over the noise density to the owner (at the origin) and to one eavesdropper."""
    radius, angle = draw.uniform(0.3, 0.6), draw.uniform(0.0, 2.0 * np.pi)
    tap = radius * np.exp(1j * angle)
    main, overheard = np.empty(n), np.empty(n)
    todo = np.arange(n)
    for _ in range(_DRAWS_MAX):
        k = todo.size
        at = 0.5 * np.sqrt(draw.uniform(size=k)) * np.exp(2j * np.pi * draw.uniform(size=k))
        main[todo], overheard[todo] = _gain(np.abs(at), draw), _gain(np.abs(at - tap), draw)
        if not usable_only:
            break
        todo = todo[main[todo] <= overheard[todo]]
        if not todo.size:
            break
    return main, overheard


def _gain(distance_km: Floats, draw: NoiseRng) -> Floats:
    loss_db = 128.1 + 37.6 * np.log10(np.maximum(distance_km, _NEAREST_KM)) + 8.0 * draw.standard_normal(distance_km.size)
    return 10.0 ** (-loss_db / 10.0) / _NOISE_W_PER_MHZ


def _default(n: int, draw: NoiseRng, usable_only: bool) -> Instance:
    main, tap = _gains(n, draw, usable_only)
    return Instance(
        names=_names(n),
        gain_main_mhz_per_w=main,
        gain_tap_mhz_per_w=tap,
        power_max_w=np.full(n, 0.2),
        clock_max_tflops=draw.uniform(1.0, 5.0, size=n),
        clock_energy_w_per_tflops3=draw.uniform(0.3, 1.0, size=n),
        update_mbit=draw.uniform(32.0, 160.0, size=n),
        train_tflop=draw.uniform(10.0, 60.0, size=n),
        train_fixed_share=np.full(n, 0.3),
        plug_in_tflop=draw.uniform(20.0, 100.0, size=n),
        start_s=np.zeros(n),
        share_min=np.full(n, 0.1),
        share_max=np.ones(n),
        rate_min_mbps=np.zeros(n),
        bandwidth_mhz=20.0,
        server_tflops=500.0,
        server_energy_w_per_tflops3=1e-3,
        time_weight_per_s=1.0,
        energy_weight_per_j=0.01,
        utility=Utility(kind="log", weight=draw.uniform(0.5, 1.5, size=n), shape=draw.uniform(10.0, 40.0, size=n)),
        objective=Objective(kind="ratio"),
    )


def _extreme(n: int, draw: NoiseRng, usable_only: bool) -> Instance:
    main = _decades(draw, 0.0, 8.0, n)
    lead = _decades(draw, -4.0, 0.0, n) if usable_only else _decades(draw, -4.0, 0.3, n)
    tap = np.where(draw.uniform(size=n) < 0.1, 0.0, main * lead)
    share_min = np.full(n, draw.uniform(0.01, 0.5))
    return Instance(
        names=_names(n),
        gain_main_mhz_per_w=main,
        gain_tap_mhz_per_w=np.minimum(tap, main * (1.0 - 1e-3)) if usable_only else tap,
        power_max_w=_decades(draw, -3.0, 1.0, n),
        clock_max_tflops=_decades(draw, -1.0, 1.5, n),
        clock_energy_w_per_tflops3=_decades(draw, -2.0, 1.0, n),
        update_mbit=100.0 * np.exp(draw.standard_normal(n)),
        train_tflop=30.0 * np.exp(draw.standard_normal(n)),
        train_fixed_share=np.full(n, draw.choice([0.0, 0.3, 0.7, 0.95])),
        plug_in_tflop=50.0 * np.exp(draw.standard_normal(n)),
        start_s=draw.choice([0.0, 1.0, 20.0]) * draw.uniform(size=n),
        share_min=share_min,
        share_max=np.maximum(share_min, draw.choice([0.6, 1.0], size=n)),
        rate_min_mbps=np.zeros(n),
        bandwidth_mhz=float(10.0 ** draw.uniform(np.log10(0.05), 2.0)),
        server_tflops=float(10.0 ** draw.uniform(0.0, 4.0)),
        server_energy_w_per_tflops3=float(10.0 ** draw.uniform(-5.0, -1.0)),
        time_weight_per_s=1.0,
        energy_weight_per_j=float(10.0 ** draw.uniform(-5.0, np.log10(3.0))),
        utility=_curved(n, draw, share_min),
        objective=Objective(kind="ratio"),
    )


def _curved(n: int, draw: NoiseRng, share_min: Floats) -> Utility:
    """Return utilities of a random kind whose relative risk aversion is at least one half from ``share_min`` on."""
    kinds: tuple[UtilityKind, ...] = ("log", "exponential", "power", "scaling")
    kind = kinds[int(draw.integers(len(kinds)))]
    weight = np.exp(draw.standard_normal(n))
    match kind:
        case "log":
            return Utility(kind=kind, weight=weight, shape=draw.uniform(1.0, 20.0, size=n) / share_min)
        case "exponential":
            return Utility(kind=kind, weight=weight, shape=draw.uniform(0.5, 5.0, size=n) / share_min)
        case "power":
            return Utility(kind=kind, weight=weight, shape=draw.uniform(0.05, 0.5, size=n))
        case _:
            shape = draw.uniform(0.1, 1.0, size=n)
            return Utility(kind="scaling", weight=weight, shape=shape, offset=weight * share_min**-shape * draw.uniform(1.1, 3.0))


def _decades(draw: NoiseRng, low: float, high: float, n: int) -> Floats:
    return 10.0 ** draw.uniform(low, high, size=n)


def _names(n: int) -> tuple[str, ...]:
    return tuple(f"client-{k + 1}" for k in range(n))
