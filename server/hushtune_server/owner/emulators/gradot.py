"""GradOT (arXiv 2507.04455): cuts ranks and channels where the adapter's gradients stay and the loss goes up. Trains nothing.

Published are the score, the share of singular values that always stays, and separate weights for attention and feed-forward.
Reconstructed, and so ours: both parts of the score are divided by their medians before they are set against each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hushtune_common.methods import GradotOptions
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Keep, Slot
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import (
    EmulatorMethod,
    EmulatorRequest,
    Profile,
    Scores,
    Statistic,
    require_layout,
)
from hushtune_server.owner.emulators.shares import SHARES, count_of, largest

DIGITS = 4
"""Decimals of normalised scores that decide."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gradot:
    """Removes the components and channels of lowest score, in one order over all middle blocks each. Draws nothing.

    The score of a part is how much its absence would change gradients, less a weight times how much it raises the loss: gradients
    are to survive, the loss is not. Singular values among the largest ``top_keep`` of their matrix stay whatever their score, and
    so does at least one part of every matrix and of every feed-forward network.
    """

    options: GradotOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """Both scores of every part."""
        return frozenset({Statistic.GRADIENT_SCORES})

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``seeds`` are not used, ``ValueError`` when a block's scores were not measured."""
        ranks = self._ranks(profile, request)
        channels = self._channels(profile, request)
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=tuple(_slot(block, ranks=ranks.get(block, {}), channels=channels.get(block)) for block in request.blocks),
            method="gradot",
            parameters={**self._settings(), "profile_tokens": profile.tokens, "loss_nats": round(profile.loss, 4)},
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Gradot"]:
        """Keep everything, then less of ranks and channels alike in steps of a fortieth, down to a twentieth."""
        return (Gradot(msgspec.structs.replace(self.options, attention_keep=share, channel_keep=share)) for share in SHARES)

    def _settings(self) -> dict[str, Any]:
        names = ("attention_keep", "channel_keep", "top_keep", "attention_lambda", "channel_lambda", "damping")
        return {name: getattr(self.options, name) for name in names}

    def _ranks(self, profile: Profile, request: EmulatorRequest) -> dict[int, dict[str, tuple[int, ...]]]:
        """Return the components that stay, by block and module path; matrices that stay whole are left out."""
        attention = require_layout(request).attention
        keys = [(block, matrix.path) for block in request.middle for matrix in attention]
        sizes = [min(matrix.rows, matrix.columns) for _ in request.middle for matrix in attention]
        scores = [_of_size(profile.component_scores.get(key), size, what=key) for key, size in zip(keys, sizes, strict=True)]
        sure = [count_of(self.options.top_keep, size) for size in sizes]
        chosen = kept_parts(scores, share=self.options.attention_keep, weight=self.options.attention_lambda, sure=sure)
        ranks: dict[int, dict[str, tuple[int, ...]]] = {}
        for (block, path), size, stays in zip(keys, sizes, chosen, strict=True):
            if len(stays) < size:
                ranks.setdefault(block, {})[path] = stays
        return ranks

    def _channels(self, profile: Profile, request: EmulatorRequest) -> dict[int, tuple[int, ...]]:
        """Return the channels that stay, by block; blocks that keep all of them are left out."""
        inner = require_layout(request).inner
        scores = [_of_size(profile.channel_scores.get(block), inner, what=block) for block in request.middle]
        chosen = kept_parts(scores, share=self.options.channel_keep, weight=self.options.channel_lambda, sure=None)
        return {block: stays for block, stays in zip(request.middle, chosen, strict=True) if len(stays) < inner}


def kept_parts(scores: Sequence[Scores], *, share: float, weight: float, sure: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Return which parts of each group stay when a ``share`` of all of them does: those of highest score over all groups.

    A score is ``preserve - weight * private``, both divided by the median of their magnitudes over all groups. The first
    ``sure[k]`` parts of group k stay in any case; where that is none, its best one does. Equal scores keep the earlier part.
    """
    if not scores:
        return []
    values = gradient_preserving(scores, weight=weight)
    for k, group in enumerate(values):
        certain = [int(group.argmax())] if sure is None else range(sure[k])
        group[list(certain)] = np.inf
    everything = np.concatenate(values)
    count = max(count_of(share, len(everything)), int(np.isinf(everything).sum()))
    ends = np.cumsum([len(group) for group in values])
    stays = np.zeros(len(everything), dtype=bool)
    stays[list(largest(everything, count=count))] = True
    return [tuple(int(part) for part in np.flatnonzero(group)) for group in np.split(stays, ends[:-1])]


def gradient_preserving(scores: Sequence[Scores], *, weight: float) -> list[Floats]:
    """Return ``preserve - weight * private`` of every group, each divided by its median magnitude over all of them, rounded."""
    preserve = _median(np.concatenate([group.preserve for group in scores]))
    private = _median(np.concatenate([group.private for group in scores]))
    return [np.round(group.preserve / preserve - weight * group.private / private, DIGITS) for group in scores]


def _median(values: NDArray[np.float32]) -> float:
    # Where most are zero there is nothing to scale by.
    return float(np.median(np.abs(values.astype(np.float64)))) or 1.0


def _slot(block: int, *, ranks: Mapping[str, tuple[int, ...]], channels: tuple[int, ...] | None) -> Slot:
    return Compress(index=block, ranks=ranks, channels=channels) if ranks or channels is not None else Keep(block)


def _of_size(scores: Scores | None, size: int, *, what: object) -> Scores:
    if scores is None or len(scores.preserve) != size:
        raise ValueError(f"the profile has no scores of {size} parts of {what}")
    return scores


_conforms: type[EmulatorMethod] = Gradot
