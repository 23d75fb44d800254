"""Does a returned adapter give away which windows it was trained on? Measured by an owner who tries to find out.

The attacker holds the base model and the returned blocks, and guesses of a window whether it was among those trained on. What
tells is how much better the tuned model predicts it than the base model does (after LoRA-Leak, arXiv:2507.18302, and Watson et
al. 2022): the base model's loss says how hard the window is for anybody. Scores are higher for likelier members.

Letters in shapes: M members, N others, W windows, T predicted tokens, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree

Floats = NDArray[np.float64]
Windows = NDArray[np.int64]

HARDEST_SHARE = 0.2
"""Share of a window's tokens, the least expected ones, that min-k looks at (Shi et al. 2024)."""
CONTROLS = ("base model's loss", "base model's min-k")
"""Scores that never saw the adapter: what they tell apart, the two sets of windows tell by themselves."""
RESAMPLES = 2000
FALSE_ALARMS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """How well one score tells members from others, with 95 % bootstrap intervals.

    ``auc`` is the chance that a member scores above another window; ``hits`` the share of members found at a threshold that at
    most 1 % of the others pass, which with fewer than 100 others means none of them.
    """

    score: str
    auc: float
    auc_low: float
    auc_high: float
    hits: float
    hits_low: float
    hits_high: float

    @property
    def tells(self) -> bool:
        """Whether the interval of the area is clear of chance."""
        return self.auc_low > 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipReport:
    """What the attack found about one adapter; the last guesses are the controls."""

    members: int
    nonmembers: int
    guesses: tuple[Guess, ...]

    def guess(self, score: str) -> Guess:
        """Return the guess by that score; ``KeyError`` names the known ones."""
        for guess in self.guesses:
            if guess.score == score:
                return guess
        raise KeyError(f"no score {score!r}; there are {', '.join(g.score for g in self.guesses)}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"members": self.members, "nonmembers": self.nonmembers, "guesses": [asdict(g) for g in self.guesses]}


def membership(
    model: LanguageModel, reference: LanguageModel, *, members: Windows, nonmembers: Windows, seeds: SeedTree
) -> MembershipReport:
    """Attack the blocks plugged into ``model``, with the base model as ``reference``, on windows (M, T + 1) and (N, T + 1).

    ``ValueError`` when either set is empty.
    """
    both = [np.asarray(w) for w in (members, nonmembers)]
    return judged([losses_of(model, w) for w in both], [losses_of(reference, w) for w in both], seeds=seeds)


def losses_of(model: LanguageModel, windows: Windows, *, batch: int = 8) -> Floats:
    """Return the loss in nats of every predicted token, (W, T)."""
    parts = torch.from_numpy(windows).to(model.device).split(batch)
    return np.concatenate([model.token_losses(part).cpu().numpy().astype(np.float64) for part in parts])


def judged(tuned: Sequence[Floats], base: Sequence[Floats], *, seeds: SeedTree) -> MembershipReport:
    """Return how well each score tells; ``tuned`` and ``base`` are token losses of members (M, T) and of others (N, T)."""
    member, other = (scores(t, b) for t, b in zip(tuned, base, strict=True))
    guesses = tuple(guessed(name, member[name], other[name], seeds=seeds.child(name)) for name in member)
    return MembershipReport(members=len(tuned[0]), nonmembers=len(tuned[1]), guesses=guesses)


def scores(tuned: Floats, base: Floats) -> Mapping[str, Floats]:
    """Return the score of every window (W) by name, from token losses (W, T) of the tuned and of the base model."""
    return {
        "loss against base": base.mean(axis=1) - tuned.mean(axis=1),
        "min-k against base": hardest(base) - hardest(tuned),
        "loss": -tuned.mean(axis=1),
        "min-k": -hardest(tuned),
        CONTROLS[0]: -base.mean(axis=1),
        CONTROLS[1]: -hardest(base),
    }


def hardest(losses: Floats) -> Floats:
    """Return the mean loss of the least expected tokens of every window."""
    count = max(1, round(HARDEST_SHARE * losses.shape[1]))
    return np.sort(losses, axis=1)[:, -count:].mean(axis=1)


def area(member: Floats, other: Floats) -> float:
    """Return the chance that a member scores above another window, ties counting half."""
    return float(_wins(member, other).mean())


def hit_share(member: Floats, other: Floats) -> float:
    """Return the share of members above the threshold that at most 1 % of the others pass."""
    return float((member > _thresholds(other, np.ones((1, len(other))))[0]).mean())


def guessed(name: str, member: Floats, other: Floats, *, seeds: SeedTree) -> Guess:
    """Return how well the scores of members (M) and of others (N) lie apart; ``ValueError`` when there are none of either."""
    if not len(member) or not len(other):
        raise ValueError(f"nothing to tell apart: {len(member)} members, {len(other)} others")
    rng = seeds.generator()
    # Members and others are drawn anew separately; a resample is how often each was drawn.
    drawn_m = rng.multinomial(len(member), np.full(len(member), 1 / len(member)), size=RESAMPLES) / len(member)  # (R, M)
    drawn_n = rng.multinomial(len(other), np.full(len(other), 1 / len(other)), size=RESAMPLES)  # (R, N)
    areas = ((drawn_m @ _wins(member, other)) * (drawn_n / len(other))).sum(axis=1)
    hits = ((member > _thresholds(other, drawn_n)[:, None]) * drawn_m).sum(axis=1)
    (auc_low, auc_high), (hits_low, hits_high) = (np.quantile(found, [0.025, 0.975]).tolist() for found in (areas, hits))
    return Guess(
        score=name,
        auc=area(member, other),
        auc_low=auc_low,
        auc_high=auc_high,
        hits=hit_share(member, other),
        hits_low=hits_low,
        hits_high=hits_high,
    )


def _wins(member: Floats, other: Floats) -> Floats:
    """Return (M, N): 1 where the member scores higher, 1/2 where both score the same."""
    return 0.5 * ((member[:, None] > other) + (member[:, None] >= other).astype(np.float64))


def _thresholds(other: Floats, drawn: NDArray[Any]) -> Floats:
    """Return (R): the score that at most 1 % of the others exceed, when each was drawn as often as ``drawn`` (R, N) says."""
    falling = np.argsort(-other)
    allowed = int(FALSE_ALARMS * len(other))
    at = np.argmax(np.cumsum(drawn[:, falling], axis=1) > allowed, axis=1)
    return other[falling][at]
