"""Width: the feed-forward neurons of largest norm stay, in every middle block (FedPFT, arXiv 2404.11536)."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from hushtune_common.methods import WidthOptions
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Keep, Slot
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic, require_layout
from hushtune_server.owner.emulators.shares import SHARES, count_of, largest

DIGITS = 4
"""Decimals of norms that decide."""


@dataclass(frozen=True, slots=True)
class Width:
    """Cuts the same share of feed-forward neurons in every middle block; attention stays whole. Draws nothing here.

    What stays is trained on public text afterwards. The published recipe also ranks by the clients' activations; those are
    theirs, so it is not offered.
    """

    options: WidthOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """The norms of the neurons; no text is looked at."""
        return frozenset({Statistic.NEURON_NORMS})

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``seeds`` are not used, ``ValueError`` when a block's norms were not measured."""
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=tuple(self._slot(block, profile, request) for block in request.blocks),
            method="width",
            parameters={"channel_keep": self.options.channel_keep},
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Width"]:
        """Keep every neuron, then fewer in steps of a fortieth, down to a twentieth."""
        return (Width(msgspec.structs.replace(self.options, channel_keep=share)) for share in SHARES)

    def _slot(self, block: int, profile: Profile, request: EmulatorRequest) -> Slot:
        inner = require_layout(request).inner
        keep = count_of(self.options.channel_keep, inner)
        if block in request.adapter or keep == inner:
            return Keep(block)
        norms = profile.neuron_norms.get(block)
        if norms is None or len(norms) != inner:
            raise ValueError(f"the profile has no norms of the {inner} neurons of block {block}")
        return Compress(index=block, channels=largest(np.round(norms.astype(np.float64), DIGITS), count=keep))


_conforms: type[EmulatorMethod] = Width
