"""What public text tells about the blocks of the full model.

Letters in shapes: N windows, B of them at a time, T tokens, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.model.language import LanguageModel, next_token_loss
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.text import PublicText

BATCH = 12


def profile(
    model: LanguageModel,
    text: PublicText,
    *,
    request: EmulatorRequest,
    method: EmulatorMethod,
    seeds: SeedTree,
    work: Path,
    progress: Callable[[int, int], None],
) -> Profile:
    """Measure what ``method`` needs of the full ``model`` on public ``text``.

    ``progress`` is called with passes done and passes in all; ``work`` is a folder for intermediate results of long measurements.
    """
    windows = text.spread(tokens=method.options.profile_tokens)
    if Statistic.ABLATION_LOSS not in method.needs:
        return Profile()
    full, losses = ablation_losses(model, windows, request=request, progress=progress)
    return Profile(corpus=text.corpus, tokens=int(windows.size), loss=full, ablation_losses=losses)


def ablation_losses(
    model: LanguageModel, windows: NDArray[np.int64], *, request: EmulatorRequest, progress: Callable[[int, int], None]
) -> tuple[float, dict[int, float]]:
    """Return the loss on ``windows`` (N, T) of the whole model, and with each middle block left out, in nats per token."""
    parts = torch.from_numpy(windows).to(model.device).split(BATCH)
    passes = len(parts) * (1 + len(request.middle))
    totals = dict.fromkeys([None, *request.middle], 0.0)
    done = 0
    with torch.inference_mode():
        for tokens in parts:
            for block, loss in _losses_without_each(model, tokens, middle=request.middle):
                totals[block] += float(loss) * len(tokens) / len(windows)
                done += 1
                progress(done, passes)
    full = totals.pop(None)
    return full, {block: loss for block, loss in totals.items() if block is not None}


def _losses_without_each(model: LanguageModel, tokens: Tensor, *, middle: Sequence[int]) -> Iterator[tuple[int | None, Tensor]]:
    """Yield the loss with each middle block left out, then of the whole model, keyed by none.

    What comes before the missing block is computed once: on average that halves the work.
    """
    parts, count = model.parts, len(model.blocks)
    state, done = parts.embed(tokens[:, :-1]), 0
    for block in middle:
        state, done = parts.run(state, blocks=range(done, block)), block
        yield block, next_token_loss(parts.predict(parts.run(state, blocks=range(block + 1, count))), tokens)
    yield None, next_token_loss(parts.predict(parts.run(state, blocks=range(done, count))), tokens)
