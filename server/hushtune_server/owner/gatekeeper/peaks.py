"""Did single weights jump while the rest hardly moved?"""

from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.measure import Changes, whole


def spike(found: Changes, *, peak_max: float) -> Finding | None:
    """Refuse an update of which one weight changed by more than ``peak_max`` times the root mean square of all changes.

    The mean is over the whole update: in a small tensor a spike would be most of its own tensor's mean.
    """
    every = whole(found).rms
    if every == 0.0:
        return None
    name = max(found, key=lambda n: found[n].peak)
    ratio = found[name].peak / every
    if ratio <= peak_max:
        return None
    problem = f"a weight of {name} changed by {ratio:.3g}x the root mean square change"
    return Finding(setting="owner.gate.peak_max", value=ratio, limit=peak_max, problem=problem)
