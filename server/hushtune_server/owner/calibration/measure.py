"""What does an update of each size keep of what training gained? Measured on public text, before any client trains.

The owner plays a client: it trains the adapter blocks on its own emulator with public text by the clients' recipe, writes what
came out with the scenario's codec at several shares of a full update, reads it back, plugs it into the full model, and scores
public windows that trained nothing. Every number is kept under the digest of all that it depends on.

Letters in shapes: N held-out windows, K shares.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import Clock
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.codec.shipped import state_digest
from hushtune_common.config import CodecConfig, TrainingConfig
from hushtune_common.errors import BudgetTooSmall, ConfigError, TrainerFailed
from hushtune_common.messages import Digest, TensorSpec
from hushtune_common.model.adapter import extract, insert
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import Unpaced, finetune
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.checkpoint import Held, Ledger, Stored, arithmetic_facts, shelf
from hushtune_server.owner.emulators.engine import Workplace

Windows = NDArray[np.int64]
Floats = NDArray[np.float64]

FORMAT = "hushtune-calibration/1"
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: at which shares, with how many public windows that train, and that score."""

    shares: tuple[float, ...]
    train_windows: int
    held_windows: int

    def __post_init__(self) -> None:
        """Refuse what gives no curve."""
        if len(set(self.shares)) < 3 or not all(0.0 < share <= 1.0 for share in self.shares):
            raise ValueError(f"at least three different shares, above 0 and at most 1, got {self.shares}")
        if self.train_windows < 1 or self.held_windows < 2:
            raise ValueError(f"at least 1 window trains and 2 score, got {self.train_windows} and {self.held_windows}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Losses on the same held-out public windows, in nats per token.

    ``before`` (N,) of the full model as it is, ``uncompressed`` (N,) with the adapter as it was trained, ``losses`` (K, N) and
    ``sizes`` (K,), in bytes, with what was read of it at ``shares`` (K,), increasing. ``too_small`` are shares that no file fits.
    """

    shares: Floats
    sizes: NDArray[np.int64]
    losses: Floats
    before: Floats
    uncompressed: Floats
    too_small: tuple[float, ...]
    emulator: str
    """SHA-256 of the emulator's file."""
    codec: str
    """Id of the codec's byte format."""


def shares_from(share_min: float, *, count: int = 9) -> tuple[float, ...]:
    """Return shares from ``share_min`` to 1 with equal ratios, each rounded to three digits that a person can type."""
    return tuple(sorted({float(f"{share:.3g}") for share in np.geomspace(share_min, 1.0, count)}))


class Calibration:
    """Measures one emulator with one codec.

    Laws: the full model is left as it was; windows that score train nothing; all shares get the same adapter and the same
    windows; equal arguments give equal numbers on a CPU, and what is known is not computed again.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        at: Workplace,
        training: TrainingConfig,
        codec: CodecConfig,
        clock: Clock,
        rounds: int = 1,
    ) -> None:
        """Take the emulator's file and the owner's workplace; ``rounds`` share a budget of privacy, if training has one."""
        self._bundle, self._at, self._training, self._config, self._clock = bundle, at, training, codec, clock
        self._rounds = rounds
        shipped = read_bundle(bundle)
        self._schema: Sequence[TensorSpec] = shipped.schema
        self._shipped = AdapterState(shipped.adapter_numpy())
        self._sensitivity = shipped.sensitivity

    def measure(self, plan: Plan) -> Measurement:
        """Return what every share keeps; `ConfigError` when the public text is too short, or all shares but two are too small."""
        train, held = parted(self._at.text.spread(tokens=self._tokens(plan)), plan=plan)
        before = self._scored("the model as it is", held, state=None)
        trained = self._trained(train)
        uncompressed = self._scored("the adapter as trained", held, state=trained)
        found: list[tuple[float, int, Floats]] = []
        too_small: list[float] = []
        for share in sorted(set(plan.shares)):
            try:
                found.append((share, *self._sent(trained, held, share=share)))
            except BudgetTooSmall:
                too_small.append(share)
        if len(found) < 3:
            raise ConfigError("--shares", f"no file is as small as {too_small} of a full one; give at least three larger shares")
        return Measurement(
            shares=np.array([share for share, _, _ in found]),
            sizes=np.array([size for _, size, _ in found], dtype=np.int64),
            losses=np.array([losses for _, _, losses in found]),
            before=before,
            uncompressed=uncompressed,
            too_small=tuple(too_small),
            emulator=self._emulator,
            codec=self._codec.id,
        )

    def _tokens(self, plan: Plan) -> int:
        return (plan.train_windows + plan.held_windows) * self._at.text.windows.shape[1]

    @cached_property
    def _emulator(self) -> str:
        with self._bundle.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def _codec(self) -> AdapterCodec:
        return make_codec(self._config, shipped=self._shipped, sensitivity=self._sensitivity)

    def _trained(self, windows: Windows) -> AdapterState:
        """Return the adapter blocks after training on public windows, as a client would."""
        facts = {
            **self._facts,
            "what": "adapter",
            "training": msgspec.to_builtins(self._training),
            "rounds": self._rounds,
            "windows": _digest(windows),
            "seed": repr(self._seeds),
        }
        place = shelf(self._at.work, facts=facts)
        known = place.finished()
        if known is None or sorted(known.tensors.names()) != sorted(self._shipped.tensors):
            self._at.telling.phase(f"training the adapter blocks on {len(windows)} public windows")
            state = self._finetuned(windows)
            place.finish(Held(state.tensors), Ledger(losses=(), updates={}, numbers=()))
            return state
        return AdapterState({spec.name: np.array(known.tensors.tensor(spec.name)) for spec in self._schema})

    def _finetuned(self, windows: Windows) -> AdapterState:
        # Public text needs no privacy, but clients' noise is part of what their updates look like, so it is drawn, repeatably.
        noise = None if self._training.dp is None else self._seeds.child("noise").generator()
        state = finetune(
            self._bundle,
            windows,
            config=self._training,
            compute=self._at.compute,
            seeds=self._seeds,
            governor=Unpaced(clock=self._clock),
            report=lambda now: self._at.telling.progress(now.step, now.steps),
            rounds=self._rounds,
            noise=noise,
        )
        if not all(np.isfinite(tensor).all() for tensor in state.tensors.values()):
            raise TrainerFailed("training on public text left numbers that are not finite; lower training.learning_rate")
        return state

    def _sent(self, trained: AdapterState, held: Windows, *, share: float) -> tuple[int, Floats]:
        """Return how many bytes a share took, and the losses (N,) with what was read from them."""
        budget = budget_bytes(self._schema, config=self._config, share=share)
        facts = {
            **self._facts,
            "what": "share",
            "codec": self._codec.id,
            "settings": msgspec.to_builtins(self._config),
            "budget": budget,
            "adapter": state_digest(trained).hex,
            "held": _digest(held),
        }
        stored = self._kept(facts, lambda: self._write(trained, held, share=share, budget=budget))
        return int(stored.ledger.numbers[0]), np.array(stored.ledger.losses)

    def _write(self, trained: AdapterState, held: Windows, *, share: float, budget: int) -> Ledger:
        self._at.telling.phase(f"share {share:g}: writing at most {budget / 1e6:.2f} MB")
        blob = self._codec.encode(trained, budget_bytes=budget)
        losses = self._plugged_in(self._codec.decode(blob, tuple(self._schema)), held)
        return Ledger(losses=losses, updates={}, numbers=(float(len(blob)),))

    def _scored(self, title: str, held: Windows, *, state: AdapterState | None) -> Floats:
        facts = {
            **self._facts,
            "what": "score",
            "adapter": None if state is None else state_digest(state).hex,
            "held": _digest(held),
        }

        def score() -> Ledger:
            self._at.telling.phase(f"scoring {title} on {len(held)} public windows")
            losses = window_losses(self._at.model, held) if state is None else self._plugged_in(state, held)
            return Ledger(losses=losses, updates={}, numbers=())

        return np.array(self._kept(facts, score).ledger.losses)

    def _kept(self, facts: Mapping[str, object], compute: Callable[[], Ledger]) -> Stored:
        """Return what is on the shelf of these facts, put there when it is not."""
        place = shelf(self._at.work, facts=facts)
        found = place.finished()
        if found is None:
            place.finish(Held({}), compute())
            found = place.finished()
        if found is None:
            raise TrainerFailed(f"the result in {place.folder} cannot be read back; is the disk sound?")
        return found

    def _plugged_in(self, state: AdapterState, held: Windows) -> tuple[float, ...]:
        """Return the losses of the full model with these adapter blocks; afterwards its own are back, bit for bit."""
        model = self._at.model
        own = extract(model, sorted({spec.block for spec in self._schema}))
        try:
            insert(model, state, expected=self._schema)
            return window_losses(model, held)
        finally:
            model.set_adapter(own.tensors)

    @cached_property
    def _facts(self) -> dict[str, object]:
        """What every number depends on."""
        return {
            "format": FORMAT,
            "base": self._at.source.base_digest.hex,
            "emulator": self._emulator,
            "shipped": state_digest(self._shipped).hex,
            "arithmetic": arithmetic_facts(self._at.model),
        }

    @property
    def _seeds(self) -> SeedTree:
        return self._at.seeds.child("calibration")


def parted(windows: Windows, *, plan: Plan) -> tuple[Windows, Windows]:
    """Return windows to train on and to score on, both spread over the text; `ConfigError` when there are not enough."""
    if len(windows) < plan.train_windows + plan.held_windows:
        raise ConfigError(
            "data.public",
            f"has {len(windows)} windows, and {plan.train_windows} shall train and {plan.held_windows} score; give more text, or "
            "ask for fewer",
        )
    total = len(windows)
    held = np.zeros(total, dtype=bool)
    held[[(2 * k + 1) * total // (2 * plan.held_windows) for k in range(plan.held_windows)]] = True
    return windows[~held][: plan.train_windows], windows[held]


def window_losses(model: LanguageModel, windows: Windows) -> tuple[float, ...]:
    """Return the loss of each window in nats per token; `TrainerFailed` when one is not finite."""
    tokens = torch.from_numpy(windows).to(model.device)
    with torch.inference_mode():
        found = torch.cat([model.token_losses(part).mean(dim=1) for part in tokens.split(_BATCH)])
    if not bool(torch.isfinite(found).all()):
        raise TrainerFailed("the loss on public text is not finite; lower training.learning_rate")
    return tuple(found.double().tolist())


def _digest(windows: Windows) -> str:
    return Digest.of(f"{windows.shape}".encode() + np.ascontiguousarray(windows, dtype="<i8").tobytes()).hex
