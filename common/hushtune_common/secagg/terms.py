"""What do all agree on before a round of secure aggregation? Each works it out from the scenario.

The coordinator knows nothing of tensors: what it needs of the numbers' layout the owner tells it. Every digest names the terms,
so whoever was told other ones fails to take part and can do no other harm.
"""

from dataclasses import dataclass

from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import TimingConfig
from hushtune_common.messages import Digest, RunId
from hushtune_common.secagg.messages import WORDS_MAX, Terms
from hushtune_common.units import Second


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Of the numbers' layout, what it takes to speak of sums: its digest, and the words of a payload."""

    grid: Digest
    words: int

    def __post_init__(self) -> None:
        """Refuse payloads that cannot be."""
        if not 1 <= self.words <= WORDS_MAX:
            raise ValueError(f"words: from 1 to {WORDS_MAX}, got {self.words}")


def terms_of(options: SecureConfig, *, members_max: int, run: RunId, round_id: int, layout: Layout) -> Terms:
    """Return the terms of one round of a scenario with so many clients."""
    return Terms(
        run=run,
        round_id=round_id,
        grid=layout.grid,
        words=layout.words,
        members_min=options.members_min,
        members_max=members_max,
        share=options.share,
        degree=options.neighbours,
        colluders=options.colluders,
    )


def deal_s(timing: TimingConfig) -> Second:
    """Return how long shares are waited for once the roster is known."""
    return Second(timing.round_s / 3)


def vow_s(timing: TimingConfig) -> Second:
    """Return how long vows are waited for once the survivors are named."""
    return Second(timing.round_s / 6)


def opening_s(timing: TimingConfig) -> Second:
    """Return how long the owner waits for shares once it has named the survivors: for the vows, and as long again."""
    return Second(2.0 * vow_s(timing))
