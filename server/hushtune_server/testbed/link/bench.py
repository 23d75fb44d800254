"""How fast is the link on this machine, stage by stage, beside a named peer?

Stages work on the same hash blocks, one after the other, in chunks as the processes use them: ``hash`` and ``ldpc encode``
are inside ``encode``, ``ldpc decode`` inside ``decode``. Rates are in megabits of secret payload per second, of the LDPC stages
in information bits. Each figure is the best of several repetitions, since other work on the machine only ever slows one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hushtune_common.clock import Clock
from hushtune_common.errors import HushtuneError
from hushtune_common.link import ldpc, modem
from hushtune_common.link.frame import chunk_blocks
from hushtune_common.link.mcs import CodingPoint, point_named
from hushtune_common.link.modular import BlockCode, dither_rows, draw_public
from hushtune_common.link.noise import NoiseKey
from hushtune_common.link.randomness import OsRandomness
from hushtune_common.link.toeplitz import Toeplitz
from hushtune_common.link.wiretap import design as make_design
from hushtune_common.messages import SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel, from_db

T = TypeVar("T")

LOG2_DELTA: Final = -64.0
_MEGA: Final = 1e6


class BenchFailed(HushtuneError):
    """The link did not give back what was put in, so its speed means nothing."""

    reason = "BENCH_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One operating point: the coding point, the owner's SNR, and the tap's SNR that the design assumes."""

    point: CodingPoint
    snr_main_db: Decibel
    snr_tap_db: Decibel
    codewords: int = 4

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.point.name} {self.snr_main_db:g}/{self.snr_tap_db:g} dB L_c={self.codewords}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one setting gave: Mbit/s by stage, errors seen, mean decoder iterations."""

    setting: Setting
    design: SecrecyDesign
    blocks: int
    threads: int
    mbps: Mapping[str, float]
    block_errors: int
    iterations_mean: float

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {
            "setting": self.setting.name,
            "message_bits": self.design.message_bits,
            "random_bits": self.design.random_bits,
            "secret_bits_per_symbol": self.design.rate,
            "log2_delta": self.design.log2_delta,
            "blocks": self.blocks,
            "threads": self.threads,
            "block_errors": self.block_errors,
            "iterations_mean": round(self.iterations_mean, 2),
            "mbit_per_s": {stage: round(rate, 1) for stage, rate in self.mbps.items()},
        }


def default_settings() -> tuple[Setting, ...]:
    """Return the operating points that benchmarks quote."""
    return (
        Setting(point=point_named("qpsk-0.825"), snr_main_db=Decibel(6.0), snr_tap_db=Decibel(-5.0)),
        Setting(point=point_named("qpsk-0.825"), snr_main_db=Decibel(6.0), snr_tap_db=Decibel(-5.0), codewords=1),
        Setting(point=point_named("qam16-0.825"), snr_main_db=Decibel(12.5), snr_tap_db=Decibel(0.0)),
        Setting(point=point_named("qpsk-0.5"), snr_main_db=Decibel(2.5), snr_tap_db=Decibel(-8.0)),
    )


def measure(setting: Setting, *, blocks: int, repetitions: int, threads: int, clock: Clock, seeds: SeedTree) -> Result:
    """Run ``blocks`` hash blocks through every stage; `BenchFailed` when a block passes its checksum with wrong bytes."""
    design = make_design(setting.point, codewords=setting.codewords, snr_tap_db=setting.snr_tap_db, log2_delta=LOG2_DELTA)
    bench = _Chain(design, setting, threads=threads, clock=clock, seeds=seeds)
    size = min(blocks, chunk_blocks(design))
    payloads = np.frombuffer(seeds.child("payload").generator().bytes(size * design.payload_bytes), dtype=np.uint8).reshape(
        size, design.payload_bytes
    )
    bench.once(payloads)  # compiles, fills caches
    bench.forget()
    rounds = max(1, blocks // size)
    seconds: dict[str, float] = {}
    for _ in range(repetitions):
        for stage, spent in _mean(bench.once(payloads) for _ in range(rounds)).items():
            seconds[stage] = min(spent, seconds.get(stage, spent))
    secret = size * design.payload_bytes * 8 / _MEGA
    info = size * design.codewords * design.info_bits / _MEGA
    mbps = {stage: (info if stage.startswith("ldpc") else secret) / spent for stage, spent in seconds.items()}
    return Result(
        setting=setting,
        design=design,
        blocks=size * rounds * repetitions,
        threads=threads,
        mbps=mbps,
        block_errors=bench.block_errors,
        iterations_mean=bench.iterations_mean,
    )


class _Chain:
    """All stages for one design, timed."""

    def __init__(self, design: SecrecyDesign, setting: Setting, *, threads: int, clock: Clock, seeds: SeedTree) -> None:
        self._randomness = OsRandomness()
        toeplitz, dither = draw_public(design, randomness=self._randomness)
        self._design, self._setting, self._threads, self._clock = design, setting, threads, clock
        self._code = BlockCode(design, toeplitz=toeplitz)
        self._hash = Toeplitz(toeplitz, message_bits=design.message_bits, random_bits=design.random_bits)
        self._dither = dither_rows(design, dither)
        self._key = NoiseKey.of(seeds.child("noise"))
        self._sent = 0
        self.forget()

    def forget(self) -> None:
        """Count errors and iterations anew."""
        self.block_errors = self._words = self._iterations = 0

    @property
    def iterations_mean(self) -> float:
        """Mean decoder iterations of a codeword."""
        return self._iterations / self._words

    def once(self, payloads: NDArray[np.uint8]) -> dict[str, float]:
        """Return the seconds of each stage for these payloads."""
        design, point, threads = self._design, self._setting.point, self._threads
        count, n = len(payloads), design.code_bits
        spent: dict[str, float] = {}
        x2 = np.frombuffer(self._randomness.draw(count * design.random_bits // 8), dtype=np.uint8).reshape(count, -1)
        self._timed("hash", spent, lambda: self._hash.multiply(x2, threads=threads))
        coded = self._timed(
            "encode", spent, lambda: self._code.encode(payloads, randomness=self._randomness, threads=threads)
        ).reshape(-1, n // 8)
        words = np.frombuffer(self._randomness.draw(len(coded) * ldpc.INFO_BYTES), dtype=np.uint8).reshape(len(coded), -1)
        self._timed("ldpc encode", spent, lambda: ldpc.encode(words, code_bits=n, threads=threads))
        path = modem.Path(snr=from_db(self._setting.snr_main_db), gains=None, key=self._key, first=self._sent)
        self._sent += len(coded)
        soft = self._timed(
            "channel",
            spent,
            lambda: modem.soft_values(coded, dither=self._dither, modulation=design.modulation, path=path, threads=threads),
        )
        self._timed("ldpc decode", spent, lambda: ldpc.decode(soft, code_bits=n, iterations=point.iterations, threads=threads))
        shaped = soft.reshape(count, design.codewords, n)
        decoded = self._timed("decode", spent, lambda: self._code.decode(shaped, iterations=point.iterations, threads=threads))
        spent["bob total"] = spent["encode"] + spent["channel"] + spent["decode"]
        if not np.array_equal(decoded.payloads[decoded.sound], payloads[decoded.sound]):
            raise BenchFailed(f"{self._setting.name}: a block passed its checksum with wrong bytes")
        self.block_errors += int((~(decoded.sound & decoded.converged)).sum())  # as the owner counts
        self._words += decoded.iterations.size
        self._iterations += int(np.abs(decoded.iterations).sum(dtype=np.int64))
        return spent

    def _timed(self, stage: str, spent: dict[str, float], work: Callable[[], T]) -> T:
        started = self._clock.monotonic()
        result = work()
        spent[stage] = self._clock.monotonic() - started
        return result


def _mean(samples: Iterable[Mapping[str, float]]) -> dict[str, float]:
    gathered: dict[str, list[float]] = {}
    for sample in samples:
        for stage, spent in sample.items():
            gathered.setdefault(stage, []).append(spent)
    return {stage: sum(values) / len(values) for stage, values in gathered.items()}
