"""What do the owner's own prompts say about an update: has something been unlearnt, or something been taught in secret?

Two sets of texts, each looked at by itself, since a mean over many hides what is done to one. A *canary* is a prompt that the
model is to stay good at; a *tripwire* is a text that nobody has a reason to train on, and whose loss falls when somebody did.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from hushtune_common.config import GateConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model.data import load_records
from hushtune_common.model.tokens import Tokens
from hushtune_server.owner.gatekeeper.finding import Finding

TEXTS_MAX = 64
"""Each text costs a pass through the model for every update."""

TOKENS_MAX = 512
"""Longer texts lose their end."""

Prompt = NDArray[np.int64]
"""Token ids of one text, (1, T)."""

Loss = Callable[[Prompt], float]
"""Mean next-token loss in nats of the model as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The owner's texts: canaries and tripwires, by a name for people."""

    canaries: Mapping[str, Prompt]
    tripwires: Mapping[str, Prompt]


def prompts(gate: GateConfig, *, tokens: Tokens, public: NDArray[np.int64]) -> Prompts:
    """Read the texts that the settings name; canaries are windows of the ``public`` text (N, T) unless they name some.

    `ConfigError` for a source that cannot be read, that holds too many texts, or a text of fewer than two tokens.
    """
    if gate.canary is None:
        spread = public[np.linspace(0, len(public) - 1, min(gate.canary_windows, len(public))).round().astype(int)]
        canaries = {f"public window {number}": window[None] for number, window in enumerate(spread, start=1)}
    else:
        canaries = _texts(gate.canary, setting="owner.gate.canary", tokens=tokens, count=gate.canary_windows)
    tripwires = {} if gate.tripwire is None else _texts(gate.tripwire, setting="owner.gate.tripwire", tokens=tokens)
    return Prompts(canaries=canaries, tripwires=tripwires)


def _texts(source: str, *, setting: str, tokens: Tokens, count: int | None = None) -> Mapping[str, Prompt]:
    records = load_records(source)[:count]
    if len(records) > TEXTS_MAX:
        raise ConfigError(setting, f"{len(records)} texts, at most {TEXTS_MAX} can be looked at for every update")
    found: dict[str, Prompt] = {}
    for number, record in enumerate(records, start=1):
        ids = tokens.encode(record)[:TOKENS_MAX]
        if len(ids) < 2:
            raise ConfigError(setting, f"text {number} has {len(ids)} tokens; nothing can be predicted with fewer than 2")
        found[f"text {number}"] = np.array([ids], dtype=np.int64)
    return found


class Canaries:
    """Holds a model against itself as it was.

    Law: what was found depends on the losses before and now only, so what many rounds do bit by bit adds up and is seen.
    """

    def __init__(self, watched: Prompts, *, loss: Loss, gate: GateConfig) -> None:
        """Take each prompt's ``loss`` now, on the owner's own model."""
        self._watched = watched
        self._gate = gate
        self._canaries = _losses(watched.canaries, loss=loss)
        self._tripwires = _losses(watched.tripwires, loss=loss)

    def findings(self, *, loss: Loss) -> Sequence[Finding]:
        """Return what is wrong with the model whose ``loss`` this is; at most one finding for each of the two sets."""
        return [*self._unlearnt(loss), *self._taught(loss)]

    def _unlearnt(self, loss: Loss) -> Sequence[Finding]:
        after = _losses(self._watched.canaries, loss=loss)
        rises = {name: after[name] - before for name, before in self._canaries.items()}
        limit = self._gate.canary_loss_increase_max_nats
        return _worst(
            rises, limit=limit, setting="owner.gate.canary_loss_increase_max_nats", what="the loss of canary", how="rises"
        )

    def _taught(self, loss: Loss) -> Sequence[Finding]:
        after = _losses(self._watched.tripwires, loss=loss)
        falls = {name: before - after[name] for name, before in self._tripwires.items()}
        limit = self._gate.tripwire_loss_decrease_max_nats
        name = "owner.gate.tripwire_loss_decrease_max_nats"
        return _worst(falls, limit=limit, setting=name, what="the loss of tripwire", how="falls")


def _losses(texts: Mapping[str, Prompt], *, loss: Loss) -> Mapping[str, float]:
    return {name: loss(prompt) for name, prompt in texts.items()}


def _worst(changes: Mapping[str, float], *, limit: float, setting: str, what: str, how: str) -> Sequence[Finding]:
    broken = {name: change for name, change in changes.items() if not change <= limit}
    if not broken:
        return ()
    name = max(broken, key=lambda n: broken[n] if isfinite(broken[n]) else np.inf)
    # A tripwire is not quoted: reasons travel to the client.
    return (Finding(setting=setting, value=broken[name], limit=limit, problem=f"{what} {name} {how} by {broken[name]:.3f} nats"),)
