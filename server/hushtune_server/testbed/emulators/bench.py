"""Which arms does the comparison have, and how is each one computed? One cell for each, in a folder that outlives the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import Clock
from hushtune_common.errors import TrainerFailed
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.emulators.cells import Cell, Cells, Json
from hushtune_server.testbed.emulators.forge import Emulator, Forge
from hushtune_server.testbed.emulators.schema import Comparison
from hushtune_server.testbed.emulators.tasks import Trained, grid_of, scores, texts_of, train, with_state

Rates = Sequence[tuple[float, int]]
"""Learning rates and numbers of epochs to choose among."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Something to train: the file that holds it, which of its blocks are trained, and where the result is scored."""

    title: str
    plan: Plan
    refinement: str | None
    bundle: Callable[[], Path]
    in_full: bool
    """Whether the trained blocks are also scored in the full model (the plug-in)."""
    rate_share: float = 1.0


class Bench:
    """Computes the cells of a comparison, each once.

    Laws: nothing that chooses a rate sees the test windows; all arms see the same windows in the same order for a seed; the
    first seed chooses rate and epochs, the others take what it chose.
    """

    def __init__(
        self, *, comparison: Comparison, forge: Forge, cells: Cells, clock: Clock, stepped: Callable[[int, int], None]
    ) -> None:
        """Take the emulators' forge and the folder of cells; ``stepped`` hears of training steps done and in all."""
        self.comparison, self.forge = comparison, forge
        self._cells, self._clock, self._stepped = cells, clock, stepped
        self.texts = texts_of(comparison, source=forge.source)

    def full_zero_shot(self) -> Json:
        """Score the full model as it is."""
        cell = self._cell("score", "full model, zero-shot", key={"plan": None, "refinement": None}, seed=None)
        return self._cells.settle(cell, lambda: {"losses": {"full": scores(self.forge.model, self.texts.test)}})

    def emulator_zero_shot(self, emulator: Emulator) -> Json:
        """Score an emulator as it is shipped."""
        title = f"{emulator.entry.name}, emulator zero-shot"
        cell = self._cell("score", title, key=emulator.key, seed=None)
        return self._cells.settle(cell, lambda: {"losses": {"emulator": self._shipped_scores(emulator)}})

    def full_fine_tuned(self) -> list[Json]:
        """Train all blocks of the full model, once for each seed."""
        blocks = tuple(range(self.forge.source.block_count))
        return self._all_seeds(self._whole("full fine-tuning", blocks, rate_share=self.comparison.selection.full_rate_share))

    def bound(self) -> list[Json]:
        """Train the adapter blocks in the full model, once for each seed."""
        return self._all_seeds(self._whole("bound", self.forge.request.adapter, rate_share=1.0))

    def fine_tuned(self, emulators: Sequence[Emulator]) -> list[Json]:
        """Train the adapter blocks of an emulator, once for each seed; one emulator for all seeds, or one for each."""
        seeds = self.comparison.seeds
        each = emulators if len(emulators) == len(seeds) else [emulators[0]] * len(seeds)
        results: list[Json] = []
        for seed, emulator in zip(seeds, each, strict=True):
            results.append(self._trained(self._emulated(emulator), seed=seed, chosen=_chosen(results)))
        return results

    def _emulated(self, emulator: Emulator) -> Arm:
        return Arm(
            title=f"{emulator.entry.name}, adapter blocks trained on the emulator",
            plan=emulator.plan,
            refinement=emulator.refinement,
            bundle=lambda: self.forge.bundle(emulator),
            in_full=True,
        )

    def _whole(self, title: str, blocks: tuple[int, ...], *, rate_share: float) -> Arm:
        plan = Plan.keep_all(self.forge.source, adapter=blocks)
        return Arm(
            title=title,
            plan=plan,
            refinement=None,
            bundle=lambda: self.forge.written(plan),
            in_full=False,
            rate_share=rate_share,
        )

    def _all_seeds(self, arm: Arm) -> list[Json]:
        results: list[Json] = []
        for seed in self.comparison.seeds:
            results.append(self._trained(arm, seed=seed, chosen=_chosen(results)))
        return results

    def _trained(self, arm: Arm, *, seed: int, chosen: tuple[float, int] | None) -> Json:
        rates = grid_of(self.comparison, rate_share=arm.rate_share) if chosen is None else [chosen]
        key = {
            "plan": arm.plan.digest.hex,
            "refinement": arm.refinement,
            "in_full": arm.in_full,
            "rates": rates,
            "training": self._training(0.0, 0),
        }
        cell = self._cell("train", f"{arm.title}, seed {seed}", key=key, seed=seed)
        return self._cells.settle(cell, lambda: self._train_and_score(arm, rates, seed=seed))

    def _train_and_score(self, arm: Arm, rates: Rates, *, seed: int) -> Json:
        bundle = arm.bundle()
        model = read_bundle(bundle).load(self.comparison.compute)
        grid: list[Json] = []
        best: tuple[float, Trained, tuple[float, int]] | None = None
        for rate, epochs in rates:
            row: Json = {"learning_rate": rate, "epochs": epochs}
            try:
                trained = self._train(bundle, rate, epochs, seed=seed)
                model.set_adapter(trained.state.tensors)
                held = fmean(scores(model, self.texts.select))
                row["held_out_nats"] = held
                if best is None or held < best[0]:
                    best = (held, trained, (rate, epochs))
            except TrainerFailed as error:
                row["failed"] = str(error)
            grid.append(row)
        if best is None:
            raise TrainerFailed(f"no learning rate worked: {grid[0]['failed']}")
        _, trained, chosen = best
        model.set_adapter(trained.state.tensors)
        losses = {"emulator": scores(model, self.texts.test)}
        del model
        if arm.in_full:
            losses["full"] = self._plugged(trained.state)
        costs = {"tokens": trained.tokens, "cpu_s": trained.cpu_s, "wall_s": trained.wall_s}
        return {"losses": losses, "grid": grid, "chosen": list(chosen), **costs}

    def _train(self, bundle: Path, rate: float, epochs: int, *, seed: int) -> Trained:
        config = msgspec.structs.replace(self.comparison.training, learning_rate=rate, epochs=epochs)
        return train(
            bundle,
            self.texts.train,
            config=config,
            compute=self.comparison.compute,
            seeds=SeedTree(seed).child("training"),
            clock=self._clock,
            progress=self._stepped,
        )

    def _plugged(self, state: AdapterState) -> list[float]:
        model = self.forge.model
        return with_state(model, state.tensors, then=lambda: scores(model, self.texts.test))

    def _shipped_scores(self, emulator: Emulator) -> list[float]:
        return scores(read_bundle(self.forge.bundle(emulator)).load(self.comparison.compute), self.texts.test)

    def _training(self, rate: float, epochs: int) -> Any:
        # Rate and epochs are beside it, among those to choose from.
        return {**msgspec.to_builtins(self.comparison.training), "learning_rate": rate, "epochs": epochs}

    def _cell(self, kind: str, title: str, *, key: Json, seed: int | None) -> Cell:
        base = {
            "base": self.forge.request.base.hex,
            "texts": self.texts.digest.hex,
            "precision": self.comparison.compute.precision,
        }
        return Cell(kind=kind, title=title, key={**base, **key, "seed": seed})


def _chosen(results: Sequence[Json]) -> tuple[float, int] | None:
    """Return what the first seed that got anywhere chose."""
    for result in results:
        if "chosen" in result:
            rate, epochs = result["chosen"]
            return float(rate), int(epochs)
    return None
