"""Which adapters travel home? Those that clients' training on the emulator gives, one for every seed, trained once and kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hushtune_common.adapter import AdapterState, load_adapter, save_adapter
from hushtune_common.clock import Clock
from hushtune_common.codec.shipped import state_digest
from hushtune_common.errors import MalformedUpdate, TrainerFailed
from hushtune_common.messages import TensorSpec
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import Progress, Unpaced, finetune
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.codec.schema import CurveScenario
from hushtune_server.testbed.emulators.cells import Cell, Cells, Json
from hushtune_server.testbed.emulators.forge import Emulator, Forge
from hushtune_server.testbed.emulators.tasks import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """One adapter as it was shipped and as it came out of training, and the digests of both."""

    seed: int
    shipped: AdapterState
    returned: AdapterState
    shipped_digest: str
    returned_digest: str

    @property
    def key(self) -> Json:
        """What results about this adapter depend on."""
        return {"shipped": self.shipped_digest, "returned": self.returned_digest}


class Adapters:
    """Trains the adapter blocks of the scenario's emulator as a client does.

    Laws: one training for each seed, by the recipe and in the order of `hushtune emulator compare`; what was trained is found
    again, and trained again only when its file is gone or damaged.
    """

    def __init__(
        self,
        scenario: CurveScenario,
        *,
        forge: Forge,
        texts: Texts,
        cells: Cells,
        folder: Path,
        clock: Clock,
        stepped: Callable[[int, int], None],
    ) -> None:
        """Keep adapters in ``folder``; ``stepped`` hears of training steps done and in all."""
        self._comparison, self._entry = scenario.comparison, scenario.emulator
        self._forge, self._texts, self._cells, self._folder = forge, texts, cells, folder
        self._clock, self._stepped = clock, stepped
        folder.mkdir(parents=True, exist_ok=True)

    def emulator(self, seed: int) -> Emulator:
        """Return the emulator of a seed: the same for all where nothing trained it."""
        return self._forge.emulator(self._entry, seed=seed if seed in self._forge.seeds_of(self._entry) else None)

    def journey(self, seed: int) -> Journey:
        """Return the adapter of a seed; `TrainerFailed` when its training diverged."""
        cell = self._cell(seed)
        known = self._cells.known(cell)
        lost = known is not None and "failed" not in known and self._read(seed, known) is None
        found = self._cells.settle(cell, lambda: self._train(seed), again=lost)
        if "failed" in found:
            raise TrainerFailed(found["failed"])
        journey = self._read(seed, found)
        if journey is None:
            raise MalformedUpdate(f"{self._folder}: an adapter that was just written cannot be read")
        return journey

    def _cell(self, seed: int) -> Cell:
        c = self._comparison
        key = {
            **self.emulator(seed).key,
            "base": self._forge.request.base.hex,
            "texts": self._texts.digest.hex,
            "precision": c.compute.precision,
            "training": repr(c.training),
            "seed": seed,
        }
        return Cell(kind="adapter", title=f"adapter, seed {seed}", key=key)

    def _train(self, seed: int) -> Json:
        bundle = self._forge.bundle(self.emulator(seed))
        shipped = AdapterState(read_bundle(bundle).adapter_numpy())
        last: list[Progress] = []

        def report(now: Progress) -> None:
            last[:] = [now]
            self._stepped(now.step, now.steps)

        returned = finetune(
            bundle,
            self._texts.train,
            config=self._comparison.training,
            compute=self._comparison.compute,
            seeds=SeedTree(seed).child("training"),
            governor=Unpaced(clock=self._clock),
            report=report,
        )
        if not all(np.isfinite(t).all() for t in returned.tensors.values()):
            raise TrainerFailed("training left numbers that are not finite; lower training.learning_rate")
        tensors = {name: [*t.shape] for name, t in shipped.tensors.items()}
        states = {"shipped": self._write(shipped), "returned": self._write(returned)}
        return {**states, "tensors": tensors, "tokens": last[-1].tokens, "wall_s": float(last[-1].wall_s)}

    def _write(self, state: AdapterState) -> str:
        digest = state_digest(state).hex
        part = self._path(digest).with_suffix(".part")
        save_adapter(part, state)
        part.replace(self._path(digest))
        return digest

    def _read(self, seed: int, found: Json) -> Journey | None:
        """Return what a cell says was trained; none when a file is not there, or not what it was."""
        schema = [TensorSpec(name=n, shape=tuple(s), dtype="F32", block=0) for n, s in found["tensors"].items()]
        digests = (found["shipped"], found["returned"])
        try:
            states = [load_adapter(self._path(digest), schema) for digest in digests]
        except MalformedUpdate:
            return None
        if any(state_digest(state).hex != digest for state, digest in zip(states, digests, strict=True)):
            return None
        return Journey(seed=seed, shipped=states[0], returned=states[1], shipped_digest=digests[0], returned_digest=digests[1])

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest[:32]}.safetensors"
