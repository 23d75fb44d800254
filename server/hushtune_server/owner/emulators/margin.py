"""Margin: an emulator that is worse than the model by so much, while its adapter gradients point the same way.

Reconstructed from an abstract (LLEOT, Findings of ACL 2026): the idea is theirs, the terms and weights are ours. Letters in
shapes: B windows, T tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hushtune_common.methods import MarginOptions
from hushtune_common.model.language import next_token_loss
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.distill import thinned
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.middles import Middle, relative_error
from hushtune_server.owner.emulators.ranking import most_droppable, needs_of


@dataclass(frozen=True, slots=True)
class Margin:
    """Drops the blocks that a ranking names, or puts harmonizers there; what stays is trained once the plan is made."""

    options: MarginOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """What the ranking needs."""
        return needs_of(self.options.ranking)

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``seeds`` are not used."""
        return thinned(self.options, profile, request, method="margin")

    def sizes(self, request: EmulatorRequest) -> Iterator["Margin"]:
        """Drop nothing, then one block more each time."""
        most = most_droppable(self.options.ranking, request)
        return (Margin(msgspec.structs.replace(self.options, drop=drop)) for drop in range(most + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a model makes of a batch: its loss, the state after the middle, the gradient of the loss in its adapter blocks."""

    loss: Tensor
    hidden: Tensor
    gradient: Sequence[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """The loss of training ``student`` to stay behind ``teacher``.

    ``(L_emulator - L_full - margin)^2 + gradient_weight (1 - cos(grad_A L_emulator, grad_A L_full)) + hidden_weight`` times the
    relative error after the middle; ``one_sided`` punishes only an emulator that is too good. The gradient's term takes second
    derivatives, so memory grows with the batch: take small ones.
    """

    teacher: Middle
    student: Middle
    batches: Batches
    options: MarginOptions
    adapter: tuple[int, ...]

    def terms(self, step: int) -> Mapping[str, Tensor]:
        """Return the weighted terms of a step's loss."""
        tokens = torch.from_numpy(self.batches.of(step)).to(self.teacher.model.device)
        full = self._seen(self.teacher, tokens, twice=False)
        found = self._seen(self.student, tokens, twice=True)
        excess = found.loss - full.loss.detach() - self.options.margin_nats
        terms = {"margin": (excess.clamp(max=0.0) if self.options.one_sided else excess).square()}
        if self.options.gradient_weight:
            terms["gradient"] = self.options.gradient_weight * (1.0 - cosine(found.gradient, full.gradient))
        if self.options.hidden_weight:
            terms["hidden"] = self.options.hidden_weight * relative_error(found.hidden, full.hidden.detach())
        return terms

    def _seen(self, middle: Middle, tokens: Tensor, *, twice: bool) -> _Seen:
        """Run a model over windows (B, T); its gradient can be differentiated again when ``twice``."""
        inner = list(middle.model.adapter_parameters(self.adapter).values()) if self.options.gradient_weight else []
        # Of the attention kernels only the plain one has second derivatives.
        with torch.set_grad_enabled(twice or bool(inner)), _trainable(inner), sdpa_kernel(SDPBackend.MATH):
            with middle.model.arithmetic():
                leaving = middle.through(middle.entering(tokens))
                loss = next_token_loss(middle.logits(leaving), tokens)
            gradient = torch.autograd.grad(loss, inner, create_graph=twice) if inner else ()
        return _Seen(loss=loss, hidden=leaving.hidden, gradient=gradient)


class _trainable:  # noqa: N801  a context, named as it reads
    """Lets gradients reach parameters for a while."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)


def cosine(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the cosine of two lists of tensors, each taken as one long vector; a scalar."""
    product = torch.stack([(a.float() * b.float()).sum() for a, b in zip(found, wanted, strict=True)]).sum()
    squares = [torch.stack([t.float().square().sum() for t in tensors]).sum() for tensors in (found, wanted)]
    return product * torch.rsqrt(squares[0] * squares[1] + 1e-30)


_conforms: type[EmulatorMethod] = Margin
