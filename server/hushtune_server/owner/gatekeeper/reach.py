"""Did training move a weight further than it can?"""

from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.measure import Changes


def overreach(found: Changes, *, reach: float, reach_max: float) -> Finding | None:
    """Refuse an update of which a weight moved by more than ``reach_max`` times ``reach``."""
    name = max(found, key=lambda n: found[n].peak)
    ratio = found[name].peak / reach
    if ratio <= reach_max:
        return None
    problem = f"a weight of {name} moved by {found[name].peak:.3g}, {ratio:.3g}x what the scenario's training can reach"
    return Finding(setting="owner.gate.reach_max", value=ratio, limit=reach_max, problem=problem)
