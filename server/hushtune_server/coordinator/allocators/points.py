"""Which numbers describe the resource problem around a point: what a convex program made there has for parameters.

A point is a choice with the spectral efficiency q = ln((1 + a x) / (1 + e x)), x = power / band, in place of the power.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, log

import numpy as np

from hushtune_server.coordinator.problems.instance import Choice, Evaluation, Instance, evaluate
from hushtune_server.coordinator.problems.utility import Floats, Utility

Numbers = Floats | float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """Where a program starts from, (N,) each: share, band in MHz, efficiency in nats, clocks in TFLOP/s."""

    share: Floats
    band: Floats
    nats: Floats
    clock: Floats
    server: Floats


def efficiency(instance: Instance, *, band: Floats, power: Floats) -> Floats:
    """Return q = ln((1 + a p/b) / (1 + e p/b)) in nats (N,)."""
    a, e, x = instance.gain_main_mhz_per_w, instance.gain_tap_mhz_per_w, power / band
    return np.log1p((a - e) * x / (1.0 + e * x))


def power_at(instance: Instance, point: Point) -> Floats:
    """Return the power in W that the point's band and efficiency need, the inverse of `efficiency`."""
    a, e, z = instance.gain_main_mhz_per_w, instance.gain_tap_mhz_per_w, np.expm1(point.nats)
    return np.minimum(point.band * z / (a - e - e * z), instance.power_max_w)


def choice_at(instance: Instance, point: Point) -> Choice:
    """Return the point as a choice, its time as short as it can be."""
    choice = Choice(
        share=point.share,
        bandwidth_mhz=point.band,
        power_w=power_at(instance, point),
        clock_tflops=point.clock,
        server_tflops=point.server,
        time_s=inf,
    )
    return replace(choice, time_s=evaluate(instance, choice).time_s)


def point_at(instance: Instance, choice: Choice) -> Point:
    """Return the choice as a point; everyone takes part in it."""
    return Point(
        share=choice.share,
        band=choice.bandwidth_mhz,
        nats=efficiency(instance, band=choice.bandwidth_mhz, power=choice.power_w),
        clock=choice.clock_tflops,
        server=choice.server_tflops,
    )


def _times(i: Instance, point: Point) -> dict[str, Floats]:
    """Return the parts of every client's time in s: its fixed and its share's training, the upload, the plug-in."""
    fixed, share = i.train_tflop * i.train_fixed_share, i.train_tflop * (1.0 - i.train_fixed_share) * point.share
    return {
        "time_fixed": fixed / point.clock,
        "time_share": share / point.clock,
        "time_air": i.update_mbit * point.share * log(2.0) / (point.band * point.nats),
        "time_plug": i.plug_in_tflop * point.share / point.server,
    }


def _energies(i: Instance, point: Point, times: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the energies in J that go with `_times`."""
    draw = i.clock_energy_w_per_tflops3 * point.clock**3
    return {
        "energy_fixed": draw * times["time_fixed"],
        "energy_share": draw * times["time_share"],
        "energy_air": power_at(i, point) * times["time_air"],
        "energy_plug": i.server_energy_w_per_tflops3 * i.plug_in_tflop * point.share * point.server**2,
    }


def program_numbers(instance: Instance, point: Point, *, found: Evaluation) -> dict[str, Numbers]:
    """Return the parameters of the program around ``point``: times over its time, energies and worth over its cost."""
    i, u = instance, instance.utility
    times = _times(i, point)
    weight = i.energy_weight_per_j / found.cost
    a, e, power, z = i.gain_main_mhz_per_w, i.gain_tap_mhz_per_w, power_at(i, point), np.expm1(point.nats)
    half = 0.5 * point.nats
    value, unit = u.value(point.share), _unit(i, found, point)
    slope = point.share * u.slope(point.share) / unit
    bend = _bend(u, point.share)
    rate_low = np.maximum(i.rate_min_mbps * log(2.0), 1e-9 * point.band * point.nats) / (point.band * point.nats)
    return {
        **{name: numbers / found.time_s for name, numbers in times.items()},
        **{name: numbers * weight for name, numbers in _energies(i, point, times).items()},
        "start": i.start_s / found.time_s,
        "time_weight": i.time_weight_per_s * found.time_s / found.cost,
        "deadline": (i.deadline_s or 0.0) / found.time_s,
        "band": point.band / i.bandwidth_mhz,
        "server": point.server / i.server_tflops,
        "share_low": np.log(i.share_min / point.share),
        "share_high": np.log(i.share_max / point.share),
        "clock_high": np.log(i.clock_max_tflops / point.clock),
        "power_high": np.log(i.power_max_w / power),
        "rate_low": np.log(rate_low),
        # q/2, and q**2 times the slope of L by q**2: (y coth y - 1) / 2 with y = q/2.
        "even": half,
        "square": np.where(half < 1e-2, half * half / 6.0, 0.5 * (half / np.tanh(half) - 1.0)),
        "from_ratio": 1.0 - e * z / (a - e),
        "from_tap": e * z / (a - e),
        "slope": slope,
        "bend": bend,
        "scale": slope / bend,
        "worth_at": value / unit,
        "floor": ((i.objective.utility_min or 0.0) - float(value.sum())) / unit,
    }


def _unit(instance: Instance, found: Evaluation, point: Point) -> float:
    """Return how much utility weighs as much as the point's cost (Dinkelbach's parameter times the cost)."""
    match instance.objective.kind:
        case "ratio":
            return found.utility
        case "max_min":
            return float(instance.utility.value(point.share).min())
        case "difference":
            return (instance.objective.price or 0.0) * found.cost
        case "cost":
            return float((point.share * instance.utility.slope(point.share)).sum())


def _bend(utility: Utility, share: Floats) -> Floats:
    """Return r (N,) so that u + share u' (1 - exp(-r ln(new / share))) / r is below u(new) and touches at ``share``.

    Exact for ``scaling``; for ``exponential`` by exp(t) >= 1 + t; not used for the others, whose tangents in ln share are below.
    """
    return utility.shape if utility.kind == "scaling" else utility.shape * share


def block_numbers(instance: Instance, choice: Choice) -> dict[str, Numbers]:
    """Return the parameters of a `ResourceBlock` around ``choice``: times in units of its time, energies of its cost."""
    i, found = instance, evaluate(instance, choice)
    times, weight = _times(i, point_at(i, choice)), i.energy_weight_per_j / found.cost
    density = choice.power_w / choice.bandwidth_mhz
    own, tap = i.gain_main_mhz_per_w * density, i.gain_tap_mhz_per_w * density
    return {
        "start": i.start_s / found.time_s,
        "train": (times["time_fixed"] + times["time_share"]) / found.time_s,
        "air": times["time_air"] / found.time_s,
        "plug": times["time_plug"] / found.time_s,
        "energy_train": found.compute_energy_j * weight,
        "energy_air": 0.5 * found.radio_energy_j * weight,
        "energy_plug": found.server_energy_j * weight,
        "time_weight": i.time_weight_per_s * found.time_s / found.cost,
        "band": choice.bandwidth_mhz / i.bandwidth_mhz,
        "server": choice.server_tflops / i.server_tflops,
        "power_high": i.power_max_w / choice.power_w,
        "clock_high": i.clock_max_tflops / choice.clock_tflops,
        "deadline": (i.deadline_s or 0.0) / found.time_s,
        "rate_low": i.rate_min_mbps / found.secret_rate_mbps,
        **_rate_numbers(own, tap),
    }


def _rate_numbers(own: Floats, tap: Floats) -> dict[str, Floats]:
    """Return the parameters of both forms of the rate from the signal-to-noise ratios of the owner and the eavesdropper, (N,)."""
    lead = (own - tap) / (1.0 + tap)
    nats = np.log1p(lead)
    weak = tap < 1.0
    return {
        "by_entropy": 1.0 / nats,
        # b ln(1 + own p/b) = b ln(1 + own) - rel_entr(b, (b + own p) / (1 + own)), minus the tangent of the same with tap.
        "inside_band": 1.0 / (1.0 + own),
        "inside_power": own / (1.0 + own),
        "by_band": (nats + tap / (1.0 + tap)) / nats,
        "by_power": tap / (1.0 + tap) / nats,
        # b ln(1 + lead m/b) = b ln(1 + lead) - rel_entr(b, (b + lead m) / (1 + lead)), everything over its value at the choice.
        "lead_band": 1.0 / (1.0 + lead),
        "lead_parallel": lead / (1.0 + lead),
        "total_band": 1.0 / (1.0 + tap),
        "total_power": tap / (1.0 + tap),
        "below": np.where(weak, 1.0, 0.0),
        "above": np.where(weak, 0.0, 1.0),
        "by_below": np.where(weak, 1.0 + tap, 0.0),
        "by_above": np.where(weak, 0.0, (1.0 + tap) / np.maximum(tap, 1.0)),
        "by_square": np.where(weak, tap, 1.0 / np.maximum(tap, 1.0)),
    }
