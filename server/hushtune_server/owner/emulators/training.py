"""How are parts of an emulator trained on public text? AdamW, warm-up, cosine, clipping, and a checkpoint now and then.

Which loss is made smaller is the method's; it comes as a `Lesson`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import cos, isfinite, pi

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from hushtune_common.adapter import Float32
from hushtune_common.errors import TrainerFailed
from hushtune_common.methods import Refining
from hushtune_server.owner.emulators.checkpoint import Ledger, Shelf, Stored

BETAS = (0.9, 0.95)
CLIP_NORM = 1.0
CHECKPOINT_STEPS = 25
"""Steps between two checkpoints: at most these are done again after a kill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """After one step: its number from 1, tokens predicted so far, the loss and the weighted terms that it is the sum of."""

    step: int
    steps: int
    tokens: int
    loss: float
    terms: Mapping[str, float]


Report = Callable[[Learned], None]


def unheard(_learned: Learned) -> None:
    """Tell nobody."""


def _nothing(_step: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a method trains.

    ``terms`` gives the terms of a step's loss by name, differentiable in ``parameters``; it depends on the parameters, on
    ``numbers`` and on the step only. ``after`` may change ``numbers``, in place, once a step is done. ``tokens`` are predicted
    in a step.
    """

    parameters: Mapping[str, nn.Parameter]
    terms: Callable[[int], Mapping[str, Tensor]]
    tokens: int
    after: Callable[[int], None] = _nothing
    numbers: list[float] = field(default_factory=list[float])


def train(lesson: Lesson, *, options: Refining, shelf: Shelf, report: Report) -> Stored:
    """Train to the end, or take the result that is there already; the same arguments give the same bits on a CPU.

    A training that was interrupted goes on from its last checkpoint. Raises `TrainerFailed` naming the step when the loss or a
    gradient stops being finite.
    """
    done = shelf.finished()
    if done is not None:
        return done
    course = _Course(lesson, rate=options.learning_rate)
    losses = course.restore(shelf.running())
    while len(losses) < options.steps and not _flat(losses, options=options):
        step = len(losses) + 1
        terms = course.step(step, rate=options.learning_rate * rate_share(step, options=options))
        lesson.after(step)
        losses.append(sum(terms.values()))
        if step % CHECKPOINT_STEPS == 0:
            shelf.save(course, course.ledger(losses))
        report(Learned(step=step, steps=options.steps, tokens=step * lesson.tokens, loss=losses[-1], terms=terms))
    shelf.finish(_Values(lesson.parameters), course.ledger(losses))
    result = shelf.finished()
    if result is None:
        raise TrainerFailed(f"the result in {shelf.folder} cannot be read back; is the disk sound?")
    return result


def rate_share(step: int, *, options: Refining) -> float:
    """Return the learning rate of ``step`` (from 1) as a share of the top one: a linear warm-up, then half a cosine towards 0."""
    warmup = max(1, round(options.warmup_share * options.steps))
    if step <= warmup:
        return step / warmup
    return 0.5 * (1.0 + cos(pi * (step - warmup) / (options.steps - warmup + 1)))


def _flat(losses: Sequence[float], *, options: Refining) -> bool:
    """Whether the last tenth of the steps improved on the tenth before by less than the plateau's share."""
    tenth = max(1, options.steps // 10)
    begun = max(1, round(options.warmup_share * options.steps)) + 2 * tenth
    if options.plateau_share == 0 or len(losses) < begun or len(losses) % tenth:
        return False
    last, before = (float(np.mean(part)) for part in (losses[-tenth:], losses[-2 * tenth : -tenth]))
    return before - last < options.plateau_share * abs(before)


class _Values:
    """The values of parameters, as `Weights`."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters

    def names(self) -> Sequence[str]:
        return sorted(self._parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._parameters[name].shape)

    def tensor(self, name: str) -> Float32:
        return np.array(self._parameters[name].detach().cpu().numpy(), dtype=np.float32, order="C")


_MOMENTS = ("exp_avg", "exp_avg_sq")


class _Course(_Values):
    """Parameters with their optimiser. As `Weights` it is everything that a checkpoint has to hold."""

    def __init__(self, lesson: Lesson, *, rate: float) -> None:
        super().__init__({})
        self._lesson = lesson
        self._trained = dict(lesson.parameters)
        for parameter in self._trained.values():
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(self._trained.values(), lr=rate, betas=BETAS, weight_decay=0.0, fused=True)
        self._collect()

    def step(self, step: int, *, rate: float) -> dict[str, float]:
        """Take one step down; return the terms of the loss before it."""
        terms = dict(self._lesson.terms(step))
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        for parameter in self._trained.values():
            parameter.grad = None
        loss.backward(inputs=list(self._trained.values()))
        norm = float(clip_grad_norm_(self._trained.values(), CLIP_NORM, foreach=False))
        if not (isfinite(float(loss.detach())) and isfinite(norm)):
            raise TrainerFailed(
                f"training the emulator: in step {step} the loss is {float(loss.detach())} and its gradient's norm {norm}; "
                "lower owner.emulator.learning_rate, or use compute.precision = 'fp32'"
            )
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def ledger(self, losses: Sequence[float]) -> Ledger:
        """Return what a checkpoint holds beside tensors, and take note of which tensors there are."""
        self._collect()
        updates = {n: int(s["step"]) for n, p in self._trained.items() if (s := self._optimizer.state.get(p))}
        return Ledger(losses=tuple(losses), updates=updates, numbers=tuple(self._lesson.numbers))

    def restore(self, stored: Stored | None) -> list[float]:
        """Go back to a checkpoint; return the losses up to it."""
        if stored is None:
            return []
        for name, updates in stored.ledger.updates.items():
            parameter = self._trained[name]
            kept = {what: torch.tensor(stored.tensors.tensor(f"{what}.{name}")).to(parameter.device) for what in _MOMENTS}
            count = torch.tensor(float(updates), device=parameter.device)
            self._optimizer.state[parameter] = {"step": count, **kept}
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(torch.tensor(stored.tensors.tensor(name)))
        self._lesson.numbers[:] = stored.ledger.numbers
        return list(stored.ledger.losses)

    def _collect(self) -> None:
        moments = {
            f"{what}.{name}": state[what]
            for name, parameter in self._trained.items()
            if (state := self._optimizer.state.get(parameter))
            for what in _MOMENTS
        }
        self._parameters = {**self._trained, **moments}
