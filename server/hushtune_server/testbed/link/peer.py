"""How fast is the named peer, Sionna's 5G LDPC code, on the same core? It is optional: ``pip install sionna-no-rt``."""

import importlib.util
from collections.abc import Collection
from typing import Any, Final

import numpy as np

from hushtune_common.clock import Clock
from hushtune_common.link.mcs import CodingPoint
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel, from_db

POINT: Final = "qpsk-0.825"
"""The coding point of the comparison, the first that the benchmark measures."""
SNR_DB: Final = Decibel(6.0)
_BATCH: Final = 32


def available() -> bool:
    """Whether Sionna is installed."""
    return importlib.util.find_spec("sionna") is not None


def left_out(points: Collection[str], *, threads: int) -> str:
    """Return why a benchmark of these coding points on so many threads has no peer, or nothing: only like is compared."""
    if POINT not in points:
        return f"it is measured at {POINT} only"
    if threads != 1:
        return "it is measured on one thread only"
    return "" if available() else "Sionna is not installed (pip install sionna-no-rt)"


def measure(point: CodingPoint, *, snr_db: Decibel, clock: Clock, seeds: SeedTree) -> dict[str, float]:
    """Return Sionna's rates in Mbit/s of information bits on one thread, at a QPSK point: encoder and two decoders.

    The decoders are what its users choose between: offset min-sum with 8 iterations and sum-product with 20.
    """
    import torch

    torch.set_num_threads(1)
    encoding: Any = importlib.import_module("sionna.phy.fec.ldpc.encoding")
    decoding: Any = importlib.import_module("sionna.phy.fec.ldpc.decoding")
    k, n = point.info_bits, point.code_bits
    encoder = encoding.LDPC5GEncoder(k, n)
    decoders = {
        "offset-minsum, 8 iterations": decoding.LDPC5GDecoder(encoder, num_iter=8, cn_update="offset-minsum"),
        "boxplus, 20 iterations": decoding.LDPC5GDecoder(encoder, num_iter=20, cn_update="boxplus"),
    }
    rng = seeds.generator()
    bits = torch.from_numpy(rng.integers(0, 2, size=(_BATCH, k)).astype(np.float32))
    sigma2 = 1.0 / from_db(snr_db)
    coded = encoder(bits)
    noise = torch.from_numpy(rng.standard_normal((_BATCH, n)).astype(np.float32)) * sigma2**0.5
    llr = -2.0 * (1.0 - 2.0 * coded + noise) / sigma2  # Sionna's sign: positive speaks for one
    work = {"encoder": lambda: encoder(bits), **{name: (lambda d=d: d(llr)) for name, d in decoders.items()}}
    return {name: _BATCH * k / 1e6 / _best(call, clock) for name, call in work.items()}


def _best(call: Any, clock: Clock) -> float:
    call()
    spent: list[float] = []
    for _ in range(2):
        started = clock.monotonic()
        call()
        spent.append(clock.monotonic() - started)
    return min(spent)
