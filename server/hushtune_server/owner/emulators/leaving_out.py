"""What does public text lose when blocks are left out?

Letters in shapes: N windows, B of them at a time, T tokens.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.messages import Digest
from hushtune_common.model.language import LanguageModel, next_token_loss
from hushtune_server.owner.emulators.method import EmulatorRequest
from hushtune_server.owner.emulators.ranking import DIGITS

BATCH = 12


class _Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a greedy order: the blocks that went, and the loss after each."""

    blocks: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyOrder:
    """The blocks in the order in which they go, the loss after each, and the loss before the first, in nats per token."""

    loss: float
    blocks: tuple[int, ...]
    losses: tuple[float, ...]


def ablation_losses(
    model: LanguageModel, windows: NDArray[np.int64], *, request: EmulatorRequest, progress: Callable[[int, int], None]
) -> tuple[float, dict[int, float]]:
    """Return the loss on ``windows`` (N, T) of the whole model, and with each middle block left out, in nats per token."""
    passes = len(_parts(model, windows)) * (1 + len(request.middle))
    counted = _Counted(progress, done=0, passes=passes)
    return _losses(model, windows, middle=request.middle, gone=(), counted=counted)


def greedy_order(
    model: LanguageModel,
    windows: NDArray[np.int64],
    *,
    request: EmulatorRequest,
    drop: int,
    work: Path,
    progress: Callable[[int, int], None],
) -> GreedyOrder:
    """Return the first ``drop`` blocks to go: each time the one whose absence costs least once the earlier ones are gone.

    Losses are rounded before they decide; equal ones let the lower index go. Every step is kept under ``work``, so that an
    interrupted measurement goes on where it was, and a longer one begins with what a shorter one found.
    """
    count, middle = len(_parts(model, windows)), request.middle
    wanted = min(drop, len(middle))
    counted = _Counted(progress, done=0, passes=count * (1 + sum(len(middle) - k for k in range(wanted))))
    loss, _ = _losses(model, windows, middle=(), gone=(), counted=counted)
    file = work / f"greedy-{_key(loss, windows, request=request).hex[:32]}.json"
    steps = _read(file, middle=middle)
    counted.skip(count * sum(len(middle) - k for k in range(min(wanted, len(steps.blocks)))))
    while len(steps.blocks) < wanted:
        rest = tuple(b for b in middle if b not in steps.blocks)
        _, losses = _losses(model, windows, middle=rest, gone=steps.blocks, counted=counted, whole=False)
        block = min(rest, key=lambda b: (round(losses[b], DIGITS), b))
        steps = _Steps(blocks=(*steps.blocks, block), losses=(*steps.losses, losses[block]))
        _write(file, steps)
    return GreedyOrder(loss=loss, blocks=steps.blocks[:wanted], losses=steps.losses[:wanted])


@dataclass(slots=True)
class _Counted:
    """Tells how many passes are done."""

    progress: Callable[[int, int], None]
    done: int
    passes: int

    def one(self) -> None:
        self.done += 1
        self.progress(self.done, self.passes)

    def skip(self, count: int) -> None:
        self.done += count


def _parts(model: LanguageModel, windows: NDArray[np.int64]) -> Sequence[Tensor]:
    return torch.from_numpy(windows).to(model.device).split(BATCH)


def _losses(
    model: LanguageModel,
    windows: NDArray[np.int64],
    *,
    middle: Sequence[int],
    gone: Sequence[int],
    counted: _Counted,
    whole: bool = True,
) -> tuple[float, dict[int, float]]:
    """Return the loss without the blocks that are ``gone`` (0 unless ``whole``), and without each of ``middle`` too."""
    totals: dict[int | None, float] = dict.fromkeys([None, *middle], 0.0)
    with torch.inference_mode():
        for tokens in _parts(model, windows):
            for block, loss in _losses_without_each(model, tokens, middle=middle, gone=gone, whole=whole):
                totals[block] += float(loss) * len(tokens) / len(windows)
                counted.one()
    full = totals.pop(None)
    return full, {block: loss for block, loss in totals.items() if block is not None}


def _losses_without_each(
    model: LanguageModel, tokens: Tensor, *, middle: Sequence[int], gone: Sequence[int], whole: bool
) -> Iterator[tuple[int | None, Tensor]]:
    """Yield the loss with each middle block left out, then with all that is not ``gone``, keyed by none.

    What comes before the missing block is computed once: on average that halves the work.
    """
    parts, count = model.parts, len(model.blocks)

    def left(begin: int, end: int) -> list[int]:
        return [b for b in range(begin, end) if b not in gone]

    state, done = parts.embed(tokens[:, :-1]), 0
    for block in middle:
        state, done = parts.run(state, blocks=left(done, block)), block
        yield block, next_token_loss(parts.predict(parts.run(state, blocks=left(block + 1, count))), tokens)
    if whole:
        yield None, next_token_loss(parts.predict(parts.run(state, blocks=left(done, count))), tokens)


def _key(loss: float, windows: NDArray[np.int64], *, request: EmulatorRequest) -> Digest:
    # The loss, to its last bit, stands for everything that changes numbers: weights, device, kernels.
    text = [request.base.hex, list(request.middle), loss.hex(), list(windows.shape)]
    return Digest.of(b"hushtune/greedy/1" + msgspec.json.encode(text) + np.ascontiguousarray(windows, dtype="<i8").tobytes())


def _read(file: Path, *, middle: Sequence[int]) -> _Steps:
    """Return the steps found earlier; none when there is no file, or one that was damaged."""
    try:
        steps = msgspec.json.decode(file.read_bytes(), type=_Steps)
    except (OSError, msgspec.DecodeError):
        return _Steps()
    sound = len(steps.blocks) == len(steps.losses) == len(set(steps.blocks)) and set(steps.blocks) <= set(middle)
    return steps if sound else _Steps()


def _write(file: Path, steps: _Steps) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.write_bytes(msgspec.json.encode(steps))
    partial.replace(file)
