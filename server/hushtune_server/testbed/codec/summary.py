"""What do the cells of a curve say in numbers, how sure are they, and does any peer lie below ours?

Losses are in nats per token on held-out private windows. An *increase* is by how much an adapter that was written and read again
loses more in the full model than the same adapter as it came out of training: paired over windows and seeds.
"""

from collections.abc import Mapping, Sequence
from math import exp, expm1, log10
from typing import Any, Literal

import msgspec
import numpy as np

from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.codec.bench import CurveBench, Measured, Results
from hushtune_server.testbed.emulators.cells import Json
from hushtune_server.testbed.emulators.statistics import Bootstrap, Floats, Interval, difference, mean_of, recovery

FORMAT = "hushtune-codec-curve/1"

SAME_NATS = 1e-4
"""Losses that differ by less are the same: a hundredth of a per cent of perplexity (chosen)."""

Verdict = Literal["ours lower", "even", "peer lower", "no answer"]
"""At the bytes of a peer: the whole interval of the difference is on one side, or it holds zero or the difference is next to
none; or ours has no such short file."""


class Summary:
    """Turns cells into numbers with intervals, the same resamples for all of them."""

    def __init__(self, results: Results, *, windows: int, seeds: int, resamples: int, tree: SeedTree) -> None:
        """Take all cells; ``windows`` score each, ``seeds`` trained each."""
        self._results = results
        self._bootstrap = Bootstrap(windows=windows, seeds=seeds, resamples=resamples, tree=tree)
        self._start = np.array([results.full["losses"]["full"]])
        self._trained = _losses(results.uncompressed)

    def settings(self) -> Json:
        """Return the scores of the model as it is and with adapters as they were trained."""
        return {"full_zero_shot": self._perplexity(self._start), "uncompressed": self._perplexity(self._trained)}

    def row(self, way: Measured, *, kind: Literal["ours", "peer"]) -> Json:
        """Return everything about one way of writing."""
        row: Json = {"name": way.name, "kind": kind, "says": way.says}
        if failed := _failed(way):
            return row | {"failed": failed}
        losses, size, numbers = _losses(way.cells), _mean(way, "bytes"), self._results.numbers
        arms = {"start": self._start, "trained": self._trained, "here": losses}
        increase = self._bootstrap.interval(arms, difference("here", "trained"))
        kept = self._bootstrap.interval(arms, recovery(start="start", reached="here", best="trained"))
        return row | {
            "bytes": size,
            "times_smaller_than_fp16": 2.0 * numbers / size,
            "bits_per_weight": 8.0 * size / numbers,
            "encode_mb_per_s": 4e-6 * numbers / max(_mean(way, "encode_s"), 1e-9),
            "decode_mb_per_s": 4e-6 * numbers / max(_mean(way, "decode_s"), 1e-9),
            "snr_db": _decibel(_mean(way, "error_share")),
            **self._perplexity(losses),
            "increase_nats": _ends(increase),
            "increase_percent": {end: 100.0 * expm1(value) for end, value in _ends(increase).items()},
            "gain_kept": _ends(kept) if np.isfinite(kept.value) else None,
        }

    def duel(self, peer: Measured, ours: Measured) -> Json:
        """Return who loses less at the bytes that the peer took; ``nats`` is ours minus the peer's."""
        if failed := _failed(ours):
            return {"peer": peer.name, "verdict": "no answer", "failed": failed}
        arms = {"ours": _losses(ours.cells), "peer": _losses(peer.cells)}
        found = self._bootstrap.interval(arms, difference("ours", "peer"))
        return {
            "peer": peer.name,
            "bytes_ours": _mean(ours, "bytes"),
            "bytes_peer": _mean(peer, "bytes"),
            "nats": _ends(found),
            "verdict": verdict(found),
        }

    def _perplexity(self, losses: Floats) -> Json:
        found = self._bootstrap.interval({"here": losses}, mean_of("here"))
        return {
            "nats": found.value,
            "perplexity": exp(found.value),
            "perplexity_low": exp(found.low),
            "perplexity_high": exp(found.high),
        }


def verdict(found: Interval) -> Verdict:
    """Return what the difference of two losses, ours minus the peer's, says."""
    if abs(found.value) < SAME_NATS or found.low <= 0.0 <= found.high:
        return "even"
    return "ours lower" if found.value < 0.0 else "peer lower"


def statement(duels: Sequence[Json]) -> str:
    """Return in words whether ours lies on or below every peer at that peer's bytes."""
    if not duels:
        return "Ours was not measured at the bytes of the peers, so nothing is said about who lies below whom."
    named = {v: [d["peer"] for d in duels if d["verdict"] == v] for v in ("ours lower", "even", "peer lower", "no answer")}
    said = [f"At each peer's own bytes ours has the lower loss against {len(named['ours lower'])} of {len(duels)} peers"]
    if named["even"]:
        said.append(
            f"cannot be told apart from {_few(named['even'])} (the interval of the difference holds zero, or it is below "
            f"{SAME_NATS:g} nats)"
        )
    if named["no answer"]:
        said.append(f"cannot write so short a file as {_few(named['no answer'])}")
    end = f"; BELOW OURS: {_few(named['peer lower'])}." if named["peer lower"] else "; no peer lies below ours."
    return ", ".join(said) + end


def document(bench: CurveBench, results: Results, *, facts: Mapping[str, Any]) -> Json:
    """Return the curve as one JSON document; ``facts`` are its date, versions and command."""
    scenario, c = bench.scenario, bench.scenario.comparison
    windows = len(results.full["losses"]["full"])
    summary = Summary(results, windows=windows, seeds=len(c.seeds), resamples=c.resamples, tree=SeedTree(c.seed))
    duels = [summary.duel(peer, results.duels[peer.name]) for peer in results.peers if peer.name in results.duels]
    sizes = {"train": len(bench.texts.train), "left_out": len(bench.texts.select), "test": len(bench.texts.test)}
    return {
        "format": FORMAT,
        "name": scenario.name,
        **facts,
        "intervals": "95 % percentile bootstrap over test windows and seeds, paired",
        "resamples": c.resamples,
        "seed": c.seed,
        "seeds": list(c.seeds),
        "model": {
            "source": c.model.source,
            "digest": bench.forge.request.base.hex,
            "adapter": list(bench.forge.request.adapter),
        },
        "emulator": {
            "options": msgspec.to_builtins(scenario.emulator.options),
            "plans": sorted({bench.adapters.emulator(seed).plan.digest.hex for seed in c.seeds}),
        },
        "adapters": list(results.journeys),
        "data": {
            **msgspec.to_builtins(c.data),
            "windows": sizes,
            "digest": bench.texts.digest.hex,
            "public_digest": bench.forge.text.corpus.hex,
        },
        "training": msgspec.to_builtins(c.training),
        "compute": msgspec.to_builtins(c.compute),
        "codec": {"id": results.codec, **msgspec.to_builtins(scenario.codec)},
        "curve": msgspec.to_builtins(scenario.curve),
        "numbers": results.numbers,
        "settings": summary.settings(),
        "ours": [summary.row(way, kind="ours") for way in results.ours],
        "peers": [summary.row(way, kind="peer") for way in results.peers],
        "duels": duels,
        "statement": statement(duels),
    }


def _failed(way: Measured) -> str | None:
    return next((cell["failed"] for cell in way.cells if "failed" in cell), None)


def _losses(cells: Sequence[Json]) -> Floats:
    """Return the losses of cells, (S, N)."""
    return np.array([cell["losses"]["full"] for cell in cells], dtype=np.float64)


def _mean(way: Measured, what: str) -> float:
    return float(np.mean([cell[what] for cell in way.cells]))


def _ends(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _decibel(error_share: float) -> float | None:
    """Return the signal-to-noise ratio of what was read, none where it is exact."""
    return -10.0 * log10(error_share) if error_share > 0.0 else None


def _few(names: Sequence[str]) -> str:
    return ", ".join(names)
