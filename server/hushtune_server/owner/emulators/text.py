"""Which public text may the owner look at, and in which portions?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.model.data import corpus_digest
from hushtune_common.model.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicText:
    """All of the public text as windows (N, T) of token ids in order, and the digest that names it. Nothing of any client."""

    corpus: Digest
    windows: NDArray[np.int64]

    def spread(self, *, tokens: int) -> NDArray[np.int64]:
        """Return windows of at least so many tokens in all, at even distances over the text; all of them when it has fewer."""
        total, length = self.windows.shape
        count = min(total, -(-tokens // length))
        return self.windows[[(2 * k + 1) * total // (2 * count) for k in range(count)]]


def public_text(records: Sequence[str], *, tokens: Tokens, length: int) -> PublicText:
    """Cut the records into windows; `ConfigError` when there is not even one."""
    windows = tokens.windows(records, length=length)
    if not len(windows):
        raise ConfigError("data.public", f"holds fewer than {length} tokens; there is nothing to profile on")
    return PublicText(corpus=corpus_digest(records), windows=windows)
