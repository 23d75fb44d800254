"""Which text is this client's own, and how does it become training windows? The only module that touches private text.

In a testbed all clients read the same package; each derives the same split from the scenario's seed and keeps only its own share.
A real data owner names its own file instead, which is not split. Text and tokens never enter a log, a message or the journal.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.model.data import deduplicate, load_records, share_out
from hushtune_common.model.tokens import Tokens
from hushtune_common.seeding import SeedTree


def own_records(scenario: Scenario, *, client_id: str, sources: Sequence[str], seeds: SeedTree) -> tuple[str, ...]:
    """Return this client's records: all of ``sources``, or its share of the scenario's private data without any.

    ``seeds`` is the scenario's root, the same for every client. Raises `ConfigError` or `MissingPackage`.
    """
    if sources:
        return deduplicate(record for source in sources for record in load_records(source))
    shares = share_out(
        load_records(scenario.data.private),
        clients=[client.id for client in scenario.clients],
        how=scenario.data.split,
        seeds=seeds.child("data"),
    )
    return shares.train[client_id]


def own_windows(records: Sequence[str], *, tokens: Tokens, scenario: Scenario) -> NDArray[np.int64]:
    """Return at most ``data.train_windows`` windows (N, T) of the records; `ConfigError` when they do not fill one."""
    length = scenario.data.window_tokens
    windows = tokens.windows(records, length=length, limit=scenario.data.train_windows)
    if not len(windows):
        raise ConfigError("data.private", f"{len(records)} records do not fill one window of {length} tokens; give more text")
    return windows
