"""What is trained and what is measured: next tokens of private text, scored window by window."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.messages import Digest
from hushtune_common.model.data import load_records, share_out
from hushtune_common.model.indexed import IndexedModel
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.loss import token_losses
from hushtune_common.model.sources import ModelSource
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.emulators.schema import Comparison

Windows = NDArray[np.int64]

_BATCH = 8
_EVERYBODY = "everybody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Windows (N, T) of private text: to train on, to choose learning rates on, and to score on. Disjoint."""

    train: Windows
    select: Windows
    test: Windows

    @property
    def digest(self) -> Digest:
        """What identifies all three."""
        parts = (self.train, self.select, self.test)
        return Digest.of(b"".join(f"{p.shape}".encode() + np.ascontiguousarray(p, dtype="<i8").tobytes() for p in parts))


def texts_of(comparison: Comparison, *, source: ModelSource) -> Texts:
    """Divide the private records as a run does, cut them into windows; the last training windows are for selection only.

    `ConfigError` when the text is too short for every part to have a window.
    """
    data = comparison.data
    shares = share_out(load_records(data.private), clients=[_EVERYBODY], how="iid", seeds=SeedTree(comparison.seed).child("data"))
    windows = source.tokens.windows(shares.train[_EVERYBODY], length=data.window_tokens, limit=data.train_windows)
    test = source.tokens.windows(shares.test, length=data.window_tokens, limit=data.test_windows)
    held = max(1, round(comparison.selection.share * len(windows)))
    if len(windows) <= held or not len(test):
        raise ConfigError(
            "data.private",
            f"gives {len(windows)} windows of {data.window_tokens} tokens to train on, {len(test)} to score on; give more text",
        )
    return Texts(train=windows[:-held], select=windows[-held:], test=test)


def scores(model: LanguageModel, windows: Windows) -> list[float]:
    """Return the loss of each window in nats per token; `TrainerFailed` when one is not finite."""
    tokens = torch.from_numpy(windows).to(model.device)
    found: list[float] = []
    with torch.inference_mode(), model.arithmetic():
        for part in tokens.split(_BATCH):
            found += token_losses(model.hidden(part[:, :-1]), part, head=model.head).mean(dim=1).tolist()
    if not all(isfinite(loss) for loss in found):
        raise TrainerFailed("the loss on held-out text is not finite; lower the learning rates")
    return found


def with_state(model: IndexedModel, state: Mapping[str, NDArray[np.float32]], *, then: Callable[[], list[float]]) -> list[float]:
    """Return what ``then`` finds while the tensors of ``state`` are in the model; afterwards its own are back, bit for bit."""
    own = model.adapter_parameters(model.blocks)
    before = {name: np.array(own[name].detach().cpu().numpy(), copy=True) for name in state}
    model.set_adapter(state)
    try:
        return then()
    finally:
        model.set_adapter(before)


def grid_of(comparison: Comparison, *, rate_share: float) -> Sequence[tuple[float, int]]:
    """Return the learning rates and numbers of epochs to choose among, in the order of the file."""
    epochs = comparison.selection.epochs or (comparison.training.epochs,)
    return [(rate * rate_share, count) for count in epochs for rate in comparison.selection.learning_rates]
