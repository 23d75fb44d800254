"""What is each emulator worth, to whom, and how sure is that? All arms of a comparison, and the numbers that follow from them.

Losses are in nats per token on held-out private windows; lower is better. ``delta`` is emulator FT minus plug-in: what the owner
keeps from whoever trains the adapter blocks only. A ``gap`` is the same against an attack.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp, isfinite
from typing import Any

import msgspec
import numpy as np

from hushtune_common.errors import ConfigError, HushtuneError
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.attacks.attack import AttackName
from hushtune_server.testbed.emulators.bench import Bench
from hushtune_server.testbed.emulators.cells import Json
from hushtune_server.testbed.emulators.forge import Emulator
from hushtune_server.testbed.emulators.schema import ClaimConfig, Comparison, Entry
from hushtune_server.testbed.emulators.statistics import Bootstrap, Floats, Interval, Statistic, difference, mean_of, recovery

FORMAT = "hushtune-comparison/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One emulator's results: how it came about, its cells, and why it has none where it failed."""

    entry: Entry
    emulators: Sequence[Emulator] = ()
    zero_shot: Sequence[Json] = ()
    fine_tuned: Sequence[Json] = ()
    attacked: Mapping[AttackName, Sequence[Json]] = field(default_factory=dict[AttackName, Sequence[Json]])
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All cells of a comparison."""

    full_zero_shot: Json
    full_fine_tuned: Sequence[Json]
    bound: Sequence[Json]
    rows: Sequence[Row]


def cell_counts(comparison: Comparison, *, makes: Callable[[Entry], int]) -> dict[str, int]:
    """Return how many cells a comparison has of each kind; ``makes`` says how many emulators an entry stands for."""
    seeds, emulators = len(comparison.seeds), sum(makes(e) for e in comparison.emulators)
    arms = 2 + len(comparison.emulators) * (1 + len(comparison.attacks))
    return {"emulator": emulators, "score": 1 + emulators, "train": seeds * arms}


def run(bench: Bench) -> Results:
    """Compute every cell that is not there yet; an emulator that cannot be made, or trained, keeps no other from it."""
    zero_shot = bench.full_zero_shot()
    rows = [_row(bench, entry) for entry in bench.comparison.emulators]
    return Results(full_zero_shot=zero_shot, rows=rows, bound=bench.bound(), full_fine_tuned=bench.full_fine_tuned())


def _row(bench: Bench, entry: Entry) -> Row:
    try:
        made = [bench.forge.emulator(entry, seed=seed) for seed in bench.forge.seeds_of(entry)]
    except ConfigError:
        raise
    except HushtuneError as error:
        return Row(entry=entry, failed=str(error))
    zero_shot = [bench.emulator_zero_shot(e) for e in made]
    fine_tuned = bench.fine_tuned(made)
    attacked: dict[AttackName, Sequence[Json]] = {name: bench.attacked(name, made) for name in bench.comparison.attacks}
    return Row(entry=entry, emulators=made, zero_shot=zero_shot, fine_tuned=fine_tuned, attacked=attacked)


class Summary:
    """Turns cells into numbers with intervals, the same resamples for all of them."""

    def __init__(self, comparison: Comparison, results: Results) -> None:
        """Take all cells."""
        self._comparison, self._results = comparison, results
        self._windows = len(results.full_zero_shot["losses"]["full"])
        self._bootstrap = cache(self._new_bootstrap)

    def _new_bootstrap(self, seeds: int) -> Bootstrap:
        tree = SeedTree(self._comparison.seed)
        return Bootstrap(windows=self._windows, seeds=seeds, resamples=self._comparison.resamples, tree=tree)

    def settings(self) -> Json:
        """Return the arms that no emulator has a part in."""
        r = self._results
        arms = {"full_zero_shot": _losses([r.full_zero_shot], "full")}
        if (full := _losses(r.full_fine_tuned, "emulator")) is not None:
            arms["full_fine_tuned"] = full
        if (bound := _losses(r.bound, "emulator")) is not None:
            arms["bound"] = bound
        return {name: self._score({name: found}, mean_of(name)) for name, found in arms.items() if found is not None}

    def row(self, row: Row) -> Json:
        """Return everything about one emulator."""
        failed = [row.failed] if row.failed else [c["failed"] for c in _cells(row) if "failed" in c]
        found: Json = {
            "name": row.entry.name,
            "method": method_of_entry(row.entry),
            "options": msgspec.to_builtins(row.emulators[0].options if row.emulators else row.entry.options),
            "fit": row.entry.fit,
            "failed": failed,
        }
        if not row.emulators:
            return found
        first = row.emulators[0]
        found |= {
            "plan_digest": first.plan.digest.hex,
            "refinement_digests": [e.refinement for e in row.emulators],
            "bytes": max(e.bytes for e in row.emulators),
            "parameters_per_token": first.parameters_per_token,
            "shown_share": first.exposure.share,
            "verbatim_share": first.exposure.verbatim / first.exposure.total,
            "owner_cpu_s": float(np.mean([e.owner_cpu_s for e in row.emulators])),
        }
        return found | self._measured(row)

    def _measured(self, row: Row) -> Json:
        r = self._results
        kept = [k for k, cell in enumerate(row.fine_tuned) if "losses" in cell]
        both = [k for k in kept if "losses" in r.full_fine_tuned[k]]
        arms = {
            "full_zero_shot": _losses([r.full_zero_shot], "full"),
            "emulator_zero_shot": _losses(_kept(row.zero_shot, kept), "emulator"),
            "emulator_fine_tuned": _losses(_kept(row.fine_tuned, kept), "emulator"),
            "plug_in": _losses(_kept(row.fine_tuned, kept), "full"),
        }
        there = {name: found for name, found in arms.items() if found is not None}
        settings = {name: self._score({name: there[name]}, mean_of(name)) for name in there if name != "full_zero_shot"}
        if "plug_in" not in there:
            return {"settings": settings}
        measured: Json = {
            "settings": settings,
            "seeds": [self._comparison.seeds[k] for k in kept],
            "delta": self._number(there, difference("emulator_fine_tuned", "plug_in")),
            "gain": self._number(there, difference("full_zero_shot", "plug_in")),
            "chosen": row.fine_tuned[kept[0]]["chosen"],
        }
        measured["attacks"] = {name: self._attack(row, cells, kept) for name, cells in row.attacked.items()}
        full = _losses([r.full_fine_tuned[k] for k in both], "emulator")
        plug = _losses([row.fine_tuned[k] for k in both], "full")
        if full is not None and plug is not None:
            paired = {"start": there["full_zero_shot"], "reached": plug, "best": full}
            measured["recovery"] = self._number(paired, recovery(start="start", reached="reached", best="best"))
        return measured

    def _attack(self, row: Row, cells: Sequence[Json], kept: Sequence[int]) -> Json:
        """Return what a thief reached, and what the plug-in is ahead of it, over the seeds for which both are there."""
        both = [k for k in kept if "losses" in cells[k]]
        stolen, plug_in = _losses([cells[k] for k in both], "emulator"), _losses([row.fine_tuned[k] for k in both], "full")
        if stolen is None or plug_in is None:
            return {}
        arms = {"stolen": stolen, "plug_in": plug_in, "start": np.array([self._results.full_zero_shot["losses"]["full"]])}
        return {
            "reached": self._score({"stolen": stolen}, mean_of("stolen")),
            "gap": self._number(arms, difference("stolen", "plug_in")),
            "ahead_of_zero_shot": self._number(arms, difference("stolen", "start")),
            "chosen": cells[both[0]]["chosen"],
        }

    def claim(self, claim: ClaimConfig) -> Json:
        """Return what is claimed, the difference in nats or shares of texts, and whether its whole interval is above zero."""
        first, second = (
            next(row for row in self._results.rows if row.entry.name == name) for name in (claim.first, claim.second)
        )
        found: Json = {**msgspec.to_builtins(claim), "difference": None, "holds": None}
        cells = zip(first.fine_tuned, second.fine_tuned, strict=False)
        both = [k for k, pair in enumerate(cells) if all("losses" in cell for cell in pair)]
        arms = {
            f"{setting} {side}": _losses(_kept(found_in, both), where)
            for side, row in (("first", first), ("second", second))
            for setting, found_in, where in (("plug_in", row.fine_tuned, "full"), ("shipped", row.zero_shot, "emulator"))
        }
        there = {name: losses for name, losses in arms.items() if losses is not None}
        if not both or len(there) < len(arms):
            return found
        number = self._number(there, better if claim.measure == "plug_in" else hides)
        low = number["low"]
        return found | {"difference": number, "holds": None if low is None else low > 0.0}

    def _number(self, arms: Mapping[str, Floats], statistic: Statistic) -> Json:
        found = self._interval(arms, statistic)
        return {"value": _finite(found.value), "low": _finite(found.low), "high": _finite(found.high)}

    def _score(self, arms: Mapping[str, Floats], statistic: Statistic) -> Json:
        found = self._interval(arms, statistic)
        if self._comparison.task == "classify":
            right = {"accuracy": 1.0 - found.value, "accuracy_low": 1.0 - found.high, "accuracy_high": 1.0 - found.low}
            return {"error": found.value, "error_low": found.low, "error_high": found.high, **right}
        nats = {"nats": found.value, "nats_low": found.low, "nats_high": found.high}
        return {**nats, "perplexity": exp(found.value), "perplexity_low": exp(found.low), "perplexity_high": exp(found.high)}

    def _interval(self, arms: Mapping[str, Floats], statistic: Statistic) -> Interval:
        seeds = max(len(scores) for scores in arms.values())
        return self._bootstrap(seeds).interval(arms, statistic)


def better(means: Mapping[str, Floats]) -> Floats:
    """Return how much lower the first plug-in's loss is."""
    return means["plug_in second"] - means["plug_in first"]


def hides(means: Mapping[str, Floats]) -> Floats:
    """Return by how much more the first emulator's loss as it is shipped exceeds the second's than its plug-in's does."""
    return (means["shipped first"] - means["shipped second"]) - (means["plug_in first"] - means["plug_in second"])


def method_of_entry(entry: Entry) -> str:
    """Return the name of an emulator's method."""
    return str(entry.options.__struct_config__.tag)


def _cells(row: Row) -> list[Json]:
    return [*row.zero_shot, *row.fine_tuned, *(cell for cells in row.attacked.values() for cell in cells)]


def _kept(cells: Sequence[Json], kept: Sequence[int]) -> list[Json]:
    """Return the cells of the seeds that count; a single cell counts for all seeds."""
    return [cells[k] for k in kept] if len(cells) > 1 else list(cells)


def _losses(cells: Sequence[Json], where: str) -> Floats | None:
    """Return the losses of cells, (S, N); none when one of them has none."""
    if not cells or any("losses" not in c for c in cells):
        return None
    return np.array([c["losses"][where] for c in cells], dtype=np.float64)


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def document(bench: Bench, results: Results, *, facts: Mapping[str, Any]) -> Json:
    """Return the comparison as one JSON document; ``facts`` are its date, versions and command."""
    comparison, request = bench.comparison, bench.forge.request
    summary = Summary(comparison, results)
    return {
        "format": FORMAT,
        "name": comparison.name,
        **facts,
        "task": comparison.task,
        "unit": bench.task.unit,
        "intervals": "95 % percentile bootstrap over test items and seeds, paired",
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "seeds": list(comparison.seeds),
        "model": {"source": comparison.model.source, "digest": request.base.hex, "adapter": list(request.adapter)},
        "data": {
            **msgspec.to_builtins(comparison.data),
            "digest": bench.task.digest.hex,
            "public_digest": bench.forge.text.corpus.hex,
            "windows": dict(bench.task.sizes),
        },
        "training": msgspec.to_builtins(comparison.training),
        "selection": msgspec.to_builtins(comparison.selection),
        "compute": msgspec.to_builtins(comparison.compute),
        "settings": summary.settings(),
        "emulators": [summary.row(row) for row in results.rows],
        "claims": [summary.claim(claim) for claim in comparison.claims],
    }
