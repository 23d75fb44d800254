"""Did the update as a whole change by too much?"""

from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.measure import Changes, relative, whole


def size(found: Changes, *, norm_max: float) -> Finding | None:
    """Refuse a relative change |returned - shipped| / |shipped|, over all tensors together, above ``norm_max``."""
    ratio = relative(whole(found))
    if ratio <= norm_max:
        return None
    problem = f"the adapter changed by {ratio:.4g} of its norm"
    return Finding(setting="owner.gate.norm_max", value=ratio, limit=norm_max, problem=problem)
