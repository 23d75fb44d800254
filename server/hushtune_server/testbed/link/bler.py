"""How often does the decoder fail? Block error tables of every coding point, measured on the link's own code and modem.

Each codeword carries random information bits and a random dither; it fails when the decoder does not converge, as it does for the
owner, or converges to other information bits than those sent. Tables are for white noise; one number more per point says how far
the effective SNR mapping of `abstraction` is off under fading.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hushtune_common.link import ldpc, modem
from hushtune_common.link.abstraction import Fading, block_error_rate, effective_snr_db, fading_gains, required_snr_db
from hushtune_common.link.leakage import information_density
from hushtune_common.link.mcs import CodingPoint, PointTable, Row
from hushtune_common.link.noise import NoiseKey
from hushtune_common.seeding import SeedTree
from hushtune_common.units import from_db

Gains = NDArray[np.float32]
Progress = Callable[[str], None]

_BATCH: Final = 512
_PROBE: Final = 128
"""Codewords that look for the start of the waterfall."""
_PROBE_STEP_DB: Final = 0.4
_SEARCH_DB: Final = 12.0
"""A decoder that has not ended its waterfall so far above the constellation's limit is broken."""
_FADING: Final = Fading(subbands=16)
_FADED_BLOCKS_MAX: Final = 40_000
_FADED_RATE: Final = 0.3
"""Error rate at which the mapping is compared; the difference hardly depends on it."""
_LOSS_DB: Final = (-1.0, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlerOptions:
    """How much is measured: ``blocks`` codewords per SNR, or fewer once ``errors_enough`` failed, every ``step_db``.

    ``iterations`` replaces the coding points' own.
    """

    blocks: int = 10_000
    errors_enough: int = 1000
    step_db: float = 0.1
    iterations: int | None = None
    seed: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.blocks, self.errors_enough, self.threads, 1 if self.iterations is None else self.iterations) < 1:
            raise ValueError("blocks, errors, iterations and threads count from 1")
        if not 0.01 <= self.step_db <= 1.0:
            raise ValueError(f"a waterfall wants steps of 0.01 to 1 dB, got {self.step_db}")


def measure_all(points: Iterable[CodingPoint], *, options: BlerOptions, progress: Progress) -> dict[str, PointTable]:
    """Return the table of each point by name; ``progress`` is told about every row."""
    tables: dict[str, PointTable] = {}
    for point in points:
        rows = waterfall(point, options=options, progress=progress)
        known = replace(point, bler=rows, fading_loss_db=0.0)
        loss_db = fading_loss_db(known, options=options, progress=progress)
        iterations = options.iterations or point.iterations
        tables[point.name] = PointTable(iterations=iterations, fading_loss_db=round(loss_db, 2) + 0.0, rows=rows)
    return tables


def waterfall(point: CodingPoint, *, options: BlerOptions, progress: Progress) -> tuple[Row, ...]:
    """Return rows by rising SNR, from the last where every codeword fails to the first where none does."""
    step, start = options.step_db, _start_db(point, options)
    rows: list[Row] = []
    for k in range(ceil(_SEARCH_DB / step)):
        (row,) = measure(point, snr_db=[round(start + k * step, 4)], options=options, progress=progress)
        if row[1] == 1.0:
            rows.clear()
        rows.append(row)
        if row[1] == 0.0:
            return tuple(falling(rows))
    raise RuntimeError(f"{point.name}: errors go on up to {rows[-1][0]} dB")


def measure(point: CodingPoint, *, snr_db: Sequence[float], options: BlerOptions, progress: Progress) -> list[Row]:
    """Return one row per SNR in dB. A row depends on the point, the SNR and the options only, not on the other rows."""
    rows: list[Row] = []
    for level in snr_db:
        count, failed = _count(point, level, options=options, blocks=options.blocks)
        rows.append((level, failed / count, count))
        progress(f"{point.name} {level:.2f} dB: {failed} of {count} codewords failed")
    return rows


def fading_loss_db(point: CodingPoint, *, options: BlerOptions, progress: Progress) -> float:
    """Return by how many dB the effective SNR of faded codewords overstates what is decoded, given the point's table.

    Rayleigh fading over 16 coherence blocks, at a mean SNR where the mapping itself expects 30 % of errors.
    """
    level = required_snr_db(point, codewords=1, block_error_max=_FADED_RATE, fading=_FADING)
    seeds, blocks = SeedTree(options.seed).child("bler-fading", point.name), min(options.blocks, _FADED_BLOCKS_MAX)
    effective, failed = np.empty(blocks), 0
    for first in range(0, blocks, _BATCH):
        count = min(_BATCH, blocks - first)
        gains = fading_gains(count, codewords=1, fading=_FADING, seeds=seeds.child("gains", str(first)))
        failed += _failures(point, level, seeds=seeds, first=first, count=count, options=options, gains=gains)
        faded = level + 10.0 * np.log10(np.maximum(np.asarray(gains, dtype=np.float64), 1e-12))
        effective[first : first + count] = effective_snr_db(point.modulation, faded)
    low, high = _LOSS_DB
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if block_error_rate(point, effective - middle).sum() > failed else (middle, high)
    progress(f"{point.name} fading at {level:.2f} dB: {failed} of {blocks} codewords failed, mapping {high:+.2f} dB off")
    return high


def to_json(tables: dict[str, PointTable], *, options: BlerOptions) -> dict[str, Any]:
    """Return the document that the link reads: where the numbers come from, and the tables."""
    chosen = "" if options.iterations is None else f" --iterations {options.iterations}"
    provenance = {
        "command": f"hushtune link bler --seed {options.seed} --blocks {options.blocks}{chosen}",
        "seed": options.seed,
        "code": "5G NR LDPC, base graph 1, lifting 384, 8448 information bits, redundancy version 0",
        "decoder": "layered min-sum (3/4, at most 42) on signed bytes (received: at most 41), `iterations` per codeword",
        "modem": "Gray mapping with the NR bit interleaver, dither, max-log values in steps of 1/3, clipped at 127 steps",
        "noise": "white and Gaussian, of known variance",
        "codewords": f"{options.blocks} per row, or as many as {options.errors_enough} errors took",
        "fading loss": f"Rayleigh, {_FADING.subbands} coherence blocks, SNR where the mapping expects {_FADED_RATE:g} to fail",
    }
    points = {
        name: {
            "iterations": table.iterations,
            "fading_loss_db": table.fading_loss_db,
            "rows": [[snr_db, float(f"{rate:.6g}"), count] for snr_db, rate, count in table.rows],
        }
        for name, table in tables.items()
    }
    return {"provenance": provenance, "points": points}


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document of `to_json` with one table row per line; equal documents give equal files."""
    text = re.sub(
        r"\[[^\[\]]*\]",
        lambda row: " ".join(row[0].split()).replace("[ ", "[").replace(" ]", "]"),
        json.dumps(document, indent=1),
    )
    path.write_text(text + "\n", encoding="utf-8")


def _start_db(point: CodingPoint, options: BlerOptions) -> float:
    """Return an SNR on the grid of steps where all of some probes fail, the next higher probe being the first with a success."""
    step = options.step_db
    level = ceil(_limit_db(point) / step) * step
    for _ in range(ceil(_SEARCH_DB / _PROBE_STEP_DB)):
        above = level + max(1, round(_PROBE_STEP_DB / step)) * step
        count, failed = _count(point, above, options=options, blocks=_PROBE)
        if failed < count:
            return round(level, 4)
        level = above
    raise RuntimeError(f"{point.name}: nothing is decoded up to {level:.1f} dB")


def _limit_db(point: CodingPoint) -> float:
    """Return the SNR in dB where the constellation carries just the code's rate: below, every long codeword fails."""
    low, high = -20.0, 40.0
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        enough = information_density(point.modulation, middle).mean * point.dimensions >= point.info_bits
        low, high = (low, middle) if enough else (middle, high)
    return low


def _count(point: CodingPoint, snr_db: float, *, options: BlerOptions, blocks: int) -> tuple[int, int]:
    """Return how many codewords were sent and how many failed."""
    seeds = SeedTree(options.seed).child("bler", point.name, f"{snr_db:.4f}")
    sent = failed = 0
    while sent < blocks and failed < options.errors_enough:
        batch = min(_BATCH, blocks - sent)
        failed += _failures(point, snr_db, seeds=seeds, first=sent, count=batch, options=options)
        sent += batch
    return sent, failed


def _failures(
    point: CodingPoint,
    snr_db: float,
    *,
    seeds: SeedTree,
    first: int,
    count: int,
    options: BlerOptions,
    gains: Gains | None = None,
) -> int:
    rng = seeds.child("words", str(first)).generator()
    words = rng.integers(0, 256, size=(count, ldpc.INFO_BYTES), dtype=np.uint8)
    dither = rng.integers(0, 256, size=(count, point.code_bits // 8), dtype=np.uint8)
    coded = ldpc.encode(words, code_bits=point.code_bits, threads=options.threads)
    path = modem.Path(snr=from_db(snr_db), gains=gains, key=NoiseKey.of(seeds.child("noise")), first=first)
    soft = modem.soft_values(coded, dither=dither, modulation=point.modulation, path=path, threads=options.threads)
    iterations = options.iterations or point.iterations
    decoded, used = ldpc.decode(soft, code_bits=point.code_bits, iterations=iterations, threads=options.threads)
    return int(((decoded != words).any(axis=1) | (used < 0)).sum())


def falling(rows: Sequence[Row]) -> list[Row]:
    """Return rows whose rates fall: where chance made one rise, it and those before share their mean (adjacent violators)."""
    groups: list[list[Row]] = []
    for row in rows:
        groups.append([row])
        while len(groups) > 1 and _rate(groups[-1]) > _rate(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [(snr_db, _rate(group), count) for group in groups for snr_db, _, count in group]


def _rate(rows: Sequence[Row]) -> float:
    return sum(rate * count for _, rate, count in rows) / sum(count for *_, count in rows)
