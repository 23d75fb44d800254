"""Did one tensor change by far more than in the updates that were accepted before?"""

from collections.abc import Mapping, Sequence
from statistics import median

from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.measure import Changes

EARLIER_MIN = 3
"""With fewer earlier updates one of them would be the median."""

EARLIER_MAX = 32
"""Only the last ones count: training changes less from round to round."""

_SMALL = 0.25
"""A tensor that hardly ever changed is taken to have changed by this share of what the most changed one of an update did.

A small budget leaves nothing of many tensors; a client with a larger one must not stand out by sending them.
"""


def profile(found: Changes) -> Mapping[str, float]:
    """Return what is kept of an accepted update for those that come after: root mean square changes, by tensor."""
    return {name: change.rms for name, change in found.items()}


def unprecedented(found: Changes, *, earlier: Sequence[Mapping[str, float]], history_max: float) -> Finding | None:
    """Refuse an update of which a tensor changed by more than ``history_max`` times its median over the ``earlier`` profiles.

    Says nothing before there are `EARLIER_MIN` of them.
    """
    known = earlier[-EARLIER_MAX:]
    if len(known) < EARLIER_MIN:
        return None
    typical = {name: median(p.get(name, 0.0) for p in known) for name in found}
    least = _SMALL * median(max(p.values(), default=0.0) for p in known)
    if least == 0.0:
        return None
    ratios = {name: change.rms / max(typical[name], least) for name, change in found.items()}
    name = max(ratios, key=lambda n: ratios[n])
    if ratios[name] <= history_max:
        return None
    problem = f"{name} changed by {ratios[name]:.3g}x its median over the last {len(known)} accepted updates"
    return Finding(setting="owner.gate.history_norm_max", value=ratios[name], limit=history_max, problem=problem)
