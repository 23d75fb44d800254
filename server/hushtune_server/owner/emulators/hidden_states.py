"""How do blocks change the hidden state, and how alike are their outputs?

Letters in shapes: N windows, B of them at a time, T tokens, H hidden size, L blocks.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hushtune_common.adapter import Float32
from hushtune_common.model.language import LanguageModel, next_token_loss
from hushtune_server.owner.emulators.method import EmulatorRequest

BATCH = 12

Floats = NDArray[np.float64]


def influences(
    model: LanguageModel, windows: NDArray[np.int64], *, request: EmulatorRequest, progress: Callable[[int, int], None]
) -> tuple[float, dict[int, float]]:
    """Return the model's loss on ``windows`` (N, T) in nats per token, and how far each middle block turns the hidden state.

    That is one minus the cosine between what goes into a block and what comes out, averaged over tokens: the block influence of
    ShortGPT (arXiv 2403.03853). One pass over the text.
    """
    parts, loss = model.parts, 0.0
    turned = dict.fromkeys(request.middle, 0.0)
    batches = torch.from_numpy(windows).to(model.device).split(BATCH)
    with torch.inference_mode():
        for done, tokens in enumerate(batches, start=1):
            share = len(tokens) / len(windows)
            state = parts.embed(tokens[:, :-1])
            for block in request.blocks:
                after = parts.run(state, blocks=[block])
                if block in turned:
                    cosines = functional.cosine_similarity(state.hidden.double(), after.hidden.double(), dim=-1)
                    turned[block] += (1.0 - float(cosines.mean())) * share
                state = after
            loss += float(next_token_loss(parts.predict(state), tokens)) * share
            progress(done, len(batches))
    return loss, turned


def similarities(
    model: LanguageModel, windows: NDArray[np.int64], *, request: EmulatorRequest, progress: Callable[[int, int], None]
) -> Float32:
    """Return the CKA (L, L) of the blocks' outputs, each averaged over the tokens of a window: N samples of size H per block."""
    pooled = np.empty((request.block_count, len(windows), model.parts.embedding.embedding_dim))
    batches = torch.from_numpy(windows).to(model.device).split(BATCH)
    begin = 0
    with torch.inference_mode():
        for done, tokens in enumerate(batches, start=1):
            state = model.parts.embed(tokens)
            for block in request.blocks:
                state = model.parts.run(state, blocks=[block])
                pooled[block, begin : begin + len(tokens)] = state.hidden.double().mean(dim=1).cpu().numpy()
            begin += len(tokens)
            progress(done, len(batches))
    return cka(pooled)


def cka(samples: Floats) -> Float32:
    """Return the linear centred kernel alignment (L, L) of ``samples`` (L, N, H), between 0 and 1.

    ``|Y' X|^2 / (|X' X| |Y' Y|)`` with centred columns and Frobenius norms (Kornblith et al., arXiv 1905.00414), by whichever of
    the products of size N or H is smaller. Samples that do not vary are like nothing else.
    """
    centred = samples - samples.mean(axis=1, keepdims=True)
    count, size = centred.shape[1:]
    found = _by_kernels(centred) if count <= size else _by_features(centred)
    own = np.sqrt(np.diagonal(found))
    norms = np.outer(own, own)
    varying = norms > 1e-12 * norms.max(initial=0.0)
    return np.where(varying, found / np.where(varying, norms, 1.0), np.eye(len(found))).astype(np.float32)


def _by_kernels(centred: Floats) -> Floats:
    # |Y' X|^2 is the inner product of the kernels X X' and Y Y', each (N, N).
    kernels = (centred @ centred.swapaxes(1, 2)).reshape(len(centred), -1)
    return kernels @ kernels.T


def _by_features(centred: Floats) -> Floats:
    found = np.empty((len(centred), len(centred)))
    for a, left in enumerate(centred):
        for b, right in enumerate(centred[: a + 1]):
            found[a, b] = found[b, a] = np.sum(np.square(left.T @ right))
    return found
