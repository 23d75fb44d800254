"""Distillation: blocks are dropped, and those that stay learn to give the whole middle's output (offsite-tuning, 2302.04870).

Letters in shapes: B windows, T tokens, H hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from hushtune_common.errors import ConfigError
from hushtune_common.methods import DistillOptions, MarginOptions, method_of
from hushtune_common.model.language import next_token_loss
from hushtune_common.model.plan import Plan
from hushtune_common.model.resolve import State
from hushtune_common.model.slots import Drop, Harmonize, Keep, Slot
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.middles import Middle, channel_error, relative_error
from hushtune_server.owner.emulators.ranking import evidence, most_droppable, needs_of, ranked


@dataclass(frozen=True, slots=True)
class Distill:
    """Drops the blocks that a ranking names, or puts harmonizers there; what stays is trained once the plan is made."""

    options: DistillOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """What the ranking needs."""
        return needs_of(self.options.ranking)

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``seeds`` are not used. `ConfigError` when nothing would be learned."""
        chosen = self.options
        if not any((chosen.language_weight, chosen.hidden_weight, chosen.layerwise_weight, chosen.logits_weight)):
            raise ConfigError("owner.emulator.hidden_weight", "every weight of the loss is 0; there is nothing to learn from")
        return thinned(chosen, profile, request, method=method_of(chosen))

    def sizes(self, request: EmulatorRequest) -> Iterator["Distill"]:
        """Drop nothing, then one block more each time."""
        most = most_droppable(self.options.ranking, request)
        return (Distill(msgspec.structs.replace(self.options, drop=drop)) for drop in range(most + 1))


def thinned(options: DistillOptions | MarginOptions, profile: Profile, request: EmulatorRequest, *, method: str) -> Plan:
    """Return the plan of a ``method`` that leaves out ranked blocks, or harmonizes them, and trains the rest."""
    gone = ranked(options.ranking, profile, request, options.drop)
    rank = _rank(options, request)
    return Plan(
        base=request.base,
        adapter=request.adapter,
        slots=tuple(_slot(block, gone=gone, rank=rank) for block in request.blocks),
        method=method,
        parameters={
            "drop": options.drop,
            "ranking": options.ranking,
            "harmonizer_rank": options.harmonizer_rank,
            **_start_of(options),
            **evidence(options.ranking, profile, request, options.drop),
        },
        corpus=profile.corpus,
    )


def _rank(options: DistillOptions | MarginOptions, request: EmulatorRequest) -> int:
    """Return the rank of harmonizers; an affine map needs no more than the hidden size."""
    if isinstance(options, DistillOptions) and options.harmonizer_start == "regression" and request.layout is not None:
        return min(options.harmonizer_rank, request.layout.hidden)
    return options.harmonizer_rank


def _start_of(options: DistillOptions | MarginOptions) -> dict[str, Any]:
    if isinstance(options, MarginOptions) or options.harmonizer_start == "nothing":
        return {}
    return {name: getattr(options, name) for name in ("harmonizer_start", "fit_tokens", "ridge")}


def _slot(block: int, *, gone: frozenset[int], rank: int) -> Slot:
    if block not in gone:
        return Keep(block)
    return Harmonize(block, rank) if rank else Drop(block)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """The loss of distilling ``teacher`` into ``student``.

    ``language_weight`` CE + ``hidden_weight`` mean(((hT - hS) / rms(hT))^2), or by channel, after the middle,
    + ``layerwise_weight`` times the sum of the same after every block of the middle that stayed, + ``logits_weight``
    KL(teacher || student) per token. A term of weight 0 costs nothing.
    """

    teacher: Middle
    student: Middle
    batches: Batches
    options: DistillOptions
    compared: Sequence[int]
    """Blocks after which the hidden states are compared, when ``layerwise_weight`` is not 0."""

    def terms(self, step: int) -> Mapping[str, Tensor]:
        """Return the weighted terms of a step's loss."""
        tokens = torch.from_numpy(self.batches.of(step)).to(self.teacher.model.device)
        with self.teacher.model.arithmetic():
            with torch.no_grad():
                entering = self.teacher.entering(tokens)
                wanted = self._states(self.teacher, entering)
            found = self._states(self.student, entering)
            return self._hidden_terms(found, wanted) | self._prediction_terms(found, wanted, tokens=tokens)

    def _states(self, middle: Middle, entering: State) -> dict[int, State]:
        """Return the states after the compared blocks, and after the whole middle at the index -1."""
        states: dict[int, State] = {-1: entering}
        for block, state in middle.outputs(entering):
            states[-1] = state
            if self.options.layerwise_weight and block in self.compared:
                states[block] = state
        return states

    def _hidden_terms(self, found: Mapping[int, State], wanted: Mapping[int, State]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.options.hidden_weight:
            terms["hidden"] = self.options.hidden_weight * self._error(found[-1].hidden, wanted[-1].hidden)
        between = sorted(found.keys() - {-1})
        if between:
            errors = [self._error(found[block].hidden, wanted[block].hidden) for block in between]
            terms["layerwise"] = self.options.layerwise_weight * torch.stack(errors).sum()
        return terms

    def _error(self, found: Tensor, wanted: Tensor) -> Tensor:
        return channel_error(found, wanted) if self.options.hidden_scale == "channel" else relative_error(found, wanted)

    def _prediction_terms(self, found: Mapping[int, State], wanted: Mapping[int, State], *, tokens: Tensor) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if not (self.options.language_weight or self.options.logits_weight):
            return terms
        logits = self.student.logits(found[-1])
        if self.options.language_weight:
            terms["language"] = self.options.language_weight * next_token_loss(logits, tokens)
        if self.options.logits_weight:
            with torch.no_grad():
                target = self.teacher.logits(wanted[-1])
            terms["logits"] = self.options.logits_weight * divergence(target, logits)
        return terms


def divergence(target: Tensor, found: Tensor) -> Tensor:
    """Return the mean over tokens of KL(target || found) of two sets of logits (B, T, V), in nats."""
    flat = [functional.log_softmax(logits.float().flatten(0, 1), dim=-1) for logits in (found, target)]
    return functional.kl_div(flat[0], flat[1], reduction="batchmean", log_target=True)


_conforms: type[EmulatorMethod] = Distill
