"""Which arms does the comparison have, and how is each computed? One cell for each, in a folder that outlives the run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import msgspec

from hushtune_common.clock import Clock
from hushtune_common.config import TrainingConfig
from hushtune_common.errors import TrainerFailed
from hushtune_common.model.plan import Plan
from hushtune_server.testbed.attacks.attack import AttackName
from hushtune_server.testbed.emulators.arms import LanguageTask, Session, Setting, Spent, Stepped, Task, trains_adapter_only
from hushtune_server.testbed.emulators.cells import Cell, Cells, Json, beyond_defaults
from hushtune_server.testbed.emulators.classification import ClassifyTask
from hushtune_server.testbed.emulators.forge import Emulator, Forge
from hushtune_server.testbed.emulators.schema import Comparison
from hushtune_server.testbed.emulators.tasks import grid_of, texts_of

Rate = tuple[float, int]
"""A learning rate and a number of epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Something to train: its name, what it depends on, its share of the learning rates, and how a session begins."""

    title: str
    key: Json
    rate_share: float
    begin: Callable[[int], Session]


class Bench:
    """Computes the cells of a comparison, each once.

    Laws: nothing that chooses a rate sees the test windows; all arms see the same windows in the same order for a seed; the
    first seed chooses rate and epochs, the others take what it chose.
    """

    def __init__(self, *, comparison: Comparison, forge: Forge, cells: Cells, clock: Clock, stepped: Stepped) -> None:
        """Take the emulators' forge and the folder of cells; ``stepped`` hears of training steps done and in all."""
        self.comparison, self.forge = comparison, forge
        self._cells = cells
        self.task = task_of(comparison, forge=forge, clock=clock, stepped=stepped)

    def full_zero_shot(self) -> Json:
        """Score the full model as it is."""
        cell = self._cell("score", "full model, zero-shot", key={"plan": None, "refinement": None})
        return self._cells.settle(cell, lambda: {"losses": {"full": self.task.full_scores(self.forge.model)}})

    def emulator_zero_shot(self, emulator: Emulator) -> Json:
        """Score an emulator as it is shipped."""
        cell = self._cell("score", f"{emulator.entry.name}, emulator zero-shot", key=emulator.key)
        return self._cells.settle(cell, lambda: {"losses": {"emulator": self.task.shipped_scores(self.forge.bundle(emulator))}})

    def full_fine_tuned(self) -> list[Json]:
        """Train the full model, all blocks or everything, once for each seed."""
        everything = self.comparison.selection.full == "everything"
        blocks = tuple(range(self.forge.source.block_count))
        plan = Plan.keep_all(self.forge.source, adapter=blocks)
        share = self.comparison.selection.full_rate_share
        key: Json = {"plan": plan.digest.hex, "refinement": None, "attack": "full" if everything else None, "in_full": False}

        def begin(seed: int) -> Session:
            bundle = self.forge.written(plan)
            if everything:
                return self.task.thief("full", bundle, seed=seed, healing=self._healing(share))
            return self.task.client(bundle, seed=seed, full=None)

        return self._all_seeds([Arm(title="full fine-tuning", key=key, rate_share=share, begin=begin)])

    def bound(self) -> list[Json]:
        """Train the adapter blocks in the full model, once for each seed."""
        plan = Plan.keep_all(self.forge.source, adapter=self.forge.request.adapter)
        arm = Arm(
            title="bound",
            key={"plan": plan.digest.hex, "refinement": None, "attack": None, "in_full": False},
            rate_share=1.0,
            begin=lambda seed: self.task.client(self.forge.written(plan), seed=seed, full=None),
        )
        return self._all_seeds([arm])

    def fine_tuned(self, emulators: Sequence[Emulator]) -> list[Json]:
        """Train the adapter blocks of an emulator, once for each seed; one emulator for all seeds, or one for each."""
        return self._all_seeds([self._client(emulator) for emulator in emulators])

    def attacked(self, name: AttackName, emulators: Sequence[Emulator]) -> list[Json]:
        """Attack an emulator, once for each seed; one emulator for all seeds, or one for each."""
        return self._all_seeds([self._thief(name, emulator) for emulator in emulators])

    def _client(self, emulator: Emulator) -> Arm:
        return Arm(
            title=f"{emulator.entry.name}, adapter blocks",
            key={**emulator.key, "attack": None, "in_full": True},
            rate_share=1.0,
            begin=lambda seed: self.task.client(self.forge.bundle(emulator), seed=seed, full=lambda: self.forge.model),
        )

    def _thief(self, name: AttackName, emulator: Emulator) -> Arm:
        share = 1.0 if trains_adapter_only(name) else self.comparison.selection.full_rate_share
        return Arm(
            title=f"{emulator.entry.name}, attack {name}",
            key={**emulator.key, "attack": name, "in_full": False},
            rate_share=share,
            begin=lambda seed: self.task.thief(name, self.forge.bundle(emulator), seed=seed, healing=self._healing(share)),
        )

    def _healing(self, share: float) -> TrainingConfig:
        """Return how a thief trains on public text: with the first rate of the grid, for an epoch."""
        rate = self.comparison.selection.learning_rates[0] * share
        return msgspec.structs.replace(self.comparison.training, learning_rate=rate, epochs=1)

    def _all_seeds(self, arms: Sequence[Arm]) -> list[Json]:
        """Settle an arm for every seed, or each arm for its seed."""
        seeds = self.comparison.seeds
        each = arms if len(arms) == len(seeds) else [arms[0]] * len(seeds)
        results: list[Json] = []
        for seed, arm in zip(seeds, each, strict=True):
            results.append(self._settled(arm, seed=seed, chosen=_chosen(results)))
        return results

    def _settled(self, arm: Arm, *, seed: int, chosen: Rate | None) -> Json:
        rates = grid_of(self.comparison, rate_share=arm.rate_share) if chosen is None else [chosen]
        training = msgspec.structs.replace(self.comparison.training, learning_rate=1.0, epochs=1)  # both are among the rates
        key = {**arm.key, "rates": rates, "training": beyond_defaults(training), "seed": seed}
        if arm.key["attack"] not in (None, "adapter", "full"):
            key["healing"] = [
                self._healing(arm.rate_share).learning_rate,
                self.forge.text.corpus.hex,
                self.comparison.data.train_windows,
            ]
        cell = self._cell("train", f"{arm.title}, seed {seed}", key=key)
        return self._cells.settle(cell, lambda: self._tried(arm, rates, seed=seed))

    def _tried(self, arm: Arm, rates: Sequence[Rate], *, seed: int) -> Json:
        """Train with every rate and return the results of the one that was best on held-out text."""
        session = arm.begin(seed)
        grid: list[Json] = []
        best: tuple[float, Json] | None = None
        for rate, epochs in rates:
            row: Json = {"learning_rate": rate, "epochs": epochs}
            try:
                config = msgspec.structs.replace(self.comparison.training, learning_rate=rate, epochs=epochs)
                spent = session.train(config)
                row["held_out"] = fmean(session.held_out())
                if best is None or row["held_out"] < best[0]:
                    best = (row["held_out"], _result(session, spent, chosen=(rate, epochs)))
            except TrainerFailed as error:
                row["failed"] = str(error)
            grid.append(row)
        if best is None:
            raise TrainerFailed(f"no learning rate worked: {next(row['failed'] for row in grid if 'failed' in row)}")
        return {**best[1], "grid": grid}

    def _cell(self, kind: str, title: str, *, key: Json) -> Cell:
        base = {
            "base": self.forge.request.base.hex,
            "texts": self.task.digest.hex,
            "precision": self.comparison.compute.precision,
        }
        return Cell(kind=kind, title=title, key={**base, **key})


def task_of(comparison: Comparison, *, forge: Forge, clock: Clock, stepped: Stepped) -> Task:
    """Return what the comparison trains for."""
    if comparison.task == "classify":
        return ClassifyTask(comparison, source=forge.source, clock=clock, stepped=stepped)
    texts, data = texts_of(comparison, source=forge.source), comparison.data
    public = forge.text.spread(tokens=data.train_windows * data.window_tokens)
    return LanguageTask(Setting(texts=texts, public=public, compute=comparison.compute, clock=clock, stepped=stepped))


def _result(session: Session, spent: Spent, *, chosen: Rate) -> Json:
    costs = {"tokens": spent.tokens, "cpu_s": spent.cpu_s, "wall_s": spent.wall_s}
    return {"losses": dict(session.final()), "chosen": list(chosen), **costs}


def _chosen(results: Sequence[Json]) -> Rate | None:
    """Return what the first seed that got anywhere chose."""
    for result in results:
        if "chosen" in result:
            rate, epochs = result["chosen"]
            return float(rate), int(epochs)
    return None
