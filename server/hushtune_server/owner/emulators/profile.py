"""What public text tells about the blocks of the full model.

Letters in shapes: N windows, B of them at a time, T tokens, H hidden size.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.messages import Digest
from hushtune_common.model.language import LanguageModel, next_token_loss
from hushtune_server.owner.emulators.method import EmulatorRequest, Profile, Statistic

BATCH = 12


def profile(
    model: LanguageModel,
    windows: NDArray[np.int64],
    *,
    request: EmulatorRequest,
    wanted: frozenset[Statistic],
    corpus: Digest,
    progress: Callable[[int, int], None],
) -> Profile:
    """Measure the ``wanted`` statistics of the full ``model`` on ``windows`` (N, T) of public text.

    ``progress`` is called with passes done and passes in all. Only middle blocks are measured; adapter blocks are never dropped.
    """
    if Statistic.ABLATION_LOSS not in wanted:
        return Profile()
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
    losses = {block: loss for block, loss in totals.items() if block is not None}
    return Profile(corpus=corpus, tokens=int(windows.size), loss=full, ablation_losses=losses)


def _losses_without_each(model: LanguageModel, tokens: Tensor, *, middle: range) -> Iterator[tuple[int | None, Tensor]]:
    """Yield the loss with each middle block left out, then of the whole model, keyed by none.

    What comes before the missing block is computed once: on average that halves the work.
    """
    parts, count = model.parts, len(model.blocks)
    hidden = parts.run(parts.embed(tokens[:, :-1]), blocks=range(middle.start))  # (B, T, H)
    for block in middle:
        rest = parts.run(hidden, blocks=range(block + 1, count))
        yield block, next_token_loss(parts.predict(rest), tokens)
        hidden = parts.run(hidden, blocks=[block])
    yield None, next_token_loss(parts.predict(parts.run(hidden, blocks=range(middle.stop, count))), tokens)
