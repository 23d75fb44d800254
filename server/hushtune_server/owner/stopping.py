"""Is another round worth it? As long as the best loss on public text still falls."""

from collections.abc import Sequence
from math import log

from hushtune_server.owner.book import Closing


def rounds_in_vain(closings: Sequence[Closing], *, improvement_nats: float) -> int:
    """Return how many of the last rounds, in a row, did not lower the best loss on public text by ``improvement_nats``.

    ``closings`` are a run's, from its first round on. A round lowers the loss when its average was kept, and is compared with the
    best state of the model before it, that before the first round included. Laws: a round that averaged nothing, or whose average
    was rolled back, is in vain; it never matters by how much a round in vain missed.
    """
    best: float | None = None
    vain = 0
    for closing in closings:
        if best is None and closing.perplexity_before is not None:
            best = log(closing.perplexity_before)
        after = log(closing.perplexity_after) if closing.kept and closing.perplexity_after is not None else None
        if after is not None and best is not None and after <= best - improvement_nats:
            best, vain = after, 0
        else:
            vain += 1
    return vain


def why_stop(closings: Sequence[Closing], *, patience: int, improvement_nats: float) -> str:
    """Return why no further round is wanted after these, nothing while one is; a ``patience`` of 0 never ends."""
    vain = rounds_in_vain(closings, improvement_nats=improvement_nats)
    if not patience or vain < patience:
        return ""
    said = "round" if vain == 1 else f"{vain} rounds in a row"
    return (
        f"the last {said} did not lower the best loss on public text by {improvement_nats:g} nats (owner.patience = {patience})"
    )
