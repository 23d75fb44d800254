"""The method ``global``: the resource problem solved by its structure, in O(N) per sweep, with a certificate on request.

What may be asked for decides the way: shares in ranges (one balance of prices, or several outside the convex class), shares of a
few levels, the worst-off client, clients that need not take part. Clients that the eavesdropper hears at least as well as the
owner are always left out, and the solution says so.
"""

from dataclasses import replace

import numpy as np

from hushtune_common.errors import Infeasible
from hushtune_server.coordinator.allocators.admission import admit
from hushtune_server.coordinator.allocators.continuous import solve_continuous, start_of
from hushtune_server.coordinator.allocators.extensions import solve_max_min, spread_out
from hushtune_server.coordinator.allocators.levels import solve_levels
from hushtune_server.coordinator.allocators.solution import Solution
from hushtune_server.coordinator.problems.instance import Instance


def solve(instance: Instance, *, start: Solution | None = None, tolerance: float = 1e-10, admission: bool = False) -> Solution:
    """Return the best choice found.

    ``start``: the solution of a similar instance with the same clients, for speed only. ``tolerance``: of the relative balance of
    every shared resource. ``admission``: clients may be left out where that raises the objective (any but max_min).
    Raises ``Infeasible`` that names client, constraint and the least change that helps, or ``SolverFailed`` with the residual.
    """
    usable = instance.usable
    if not usable.any():
        lead = instance.gain_tap_mhz_per_w / instance.gain_main_mhz_per_w
        n = int(lead.argmin())
        raise Infeasible(
            f"no client has a secret rate: the eavesdropper hears all of them at least as well as the owner; the closest is "
            f"{instance.names[n]}, whose gain_tap_mhz_per_w would have to be below {instance.gain_main_mhz_per_w[n]:.6g}"
        )
    part = instance if usable.all() else instance.select(usable)
    begin = None if start is None or start.choice.share.shape != usable.shape else start_of(start)
    if begin is not None and begin.states.shape[0] != part.clients:
        begin = None
    if admission:
        found = admit(part)
    elif part.share_levels is not None:
        found = solve_levels(part)
    elif part.objective.kind == "max_min":
        found = solve_max_min(part, tolerance=tolerance)
    else:
        found = solve_continuous(part, start=begin, tolerance=tolerance)
    return found if part is instance else _with_unusable(instance, found)


def _with_unusable(instance: Instance, found: Solution) -> Solution:
    out = np.flatnonzero(~instance.usable)
    names = tuple(instance.names[n] for n in out)
    whole = spread_out(instance, found, instance.usable)
    lead = 10.0 * np.log10(instance.gain_tap_mhz_per_w[out] / instance.gain_main_mhz_per_w[out])
    why = tuple(
        f"client {name} takes no part: the eavesdropper hears it {ahead:.1f} dB better than the owner"
        for name, ahead in zip(names, lead, strict=True)
    )
    return replace(whole, excluded=(*names, *found.excluded), notes=(*found.notes, *why))
