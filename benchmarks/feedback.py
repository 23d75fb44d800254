"""Does what a client sends over many rounds add up to what it learned, when each update has next to no bytes?

    python benchmarks/feedback.py --bits 0.1 --rounds 24

With error feedback every round codes the true change plus what earlier rounds left over. Our codec zeroes what is small, so at a
small budget it is a sparsifier; beside it are ours with its values scaled up, as it writes an update that has no successor, and
the k largest numbers (Stich, Cordonnier and Jaggi 2018), as many as the same bytes hold. A good one keeps what is left over
bounded, then the mean of what was decoded comes ever closer to the mean of the true changes, as 1 over the number of rounds. The
table has, per round, what is left over as a share of one round's change, and the distance of the two means as a share of the
true one. The adapter is drawn: a fixed direction and noise that differs from round to round, seen through a sensitivity of
several octaves or through none.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_client.feedback import corrected, left_over
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.sensitivity import Sensitivity, TensorSensitivity
from hushtune_common.config import CodecConfig
from hushtune_common.errors import BudgetTooSmall
from hushtune_common.messages import TensorSpec
from hushtune_server.testbed.codec.sparse import TopK

SHAPES = {"a": (576, 192), "b": (192, 576), "c": (384, 192), "d": (192,)}
COUNT = sum(int(np.prod(shape)) for shape in SHAPES.values())
Channel = Callable[[AdapterState], AdapterState]


@dataclass(frozen=True)
class Round:
    """What is left over after a round, and how far the mean of what was decoded is from the true mean."""

    left: float
    mean: float


def main() -> None:
    """Print a table for every sensitivity: one row per round, a pair of columns per channel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=0.1, help="bits per number of an update")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for what in ("flat", "uneven"):
        channels = channels_of(asked.bits, known=sensitivity(asked.seed) if what == "uneven" else None)
        tables = [played(channel, rounds=asked.rounds, seed=asked.seed) for channel in channels.values()]
        print(f"\n{what} sensitivity, {asked.bits:g} bits per number: left over / distance of means")
        print("round " + "".join(f"{name:>28}" for name in channels))
        for number in range(asked.rounds):
            if number + 1 in (1, 2, 4, 8, 16, 24, 32, 48, 64) or number + 1 == asked.rounds:
                print(f"{number + 1:5d} " + "".join(f"{t[number].left:>17.3f} / {t[number].mean:8.3f}" for t in tables))


def channels_of(bits: float, *, known: Sensitivity | None) -> dict[str, Channel]:
    """Return ours and the peer, each with at most so many bits per number."""
    zero = AdapterState({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    specs = tuple(TensorSpec(name=n, shape=s, dtype="F32", block=0) for n, s in SHAPES.items())
    budget = int(bits * COUNT / 8)

    def ours(*, feedback: bool) -> Channel:
        codec = make_codec(CodecConfig(bits=32.0), shipped=zero, sensitivity=known, feedback=feedback)
        return lambda state: codec.decode(codec.encode(state, budget_bytes=budget), specs)

    def largest(state: AdapterState) -> AdapterState:
        share = bits / 24.0
        while share > 1e-5:
            peer = TopK(share=share)
            blob = peer.encode(state.tensors, shipped=zero.tensors)
            if len(blob) <= budget:
                return AdapterState(peer.decode(blob, shipped=zero.tensors))
            share *= 0.95
        raise BudgetTooSmall(least_bytes=0, budget_bytes=budget)

    return {"ours": ours(feedback=True), "as if alone": ours(feedback=False), "top k": largest}


def played(channel: Channel, *, rounds: int, seed: int) -> list[Round]:
    """Return what happens in so many rounds with feedback."""
    rng = np.random.default_rng(seed)
    direction = {n: rng.standard_t(5, s) for n, s in SHAPES.items()}
    true, decoded, residual, found = flat(direction) * 0.0, flat(direction) * 0.0, None, list[Round]()
    size = float(np.linalg.norm(flat(direction)))
    for number in range(1, rounds + 1):
        change = AdapterState({n: (d + rng.standard_normal(d.shape)).astype(np.float32) for n, d in direction.items()})
        wanted = corrected(change, residual)
        heard = channel(wanted)
        residual = left_over(wanted, heard)
        true, decoded = true + flat(change.tensors), decoded + flat(heard.tensors)
        apart = float(np.linalg.norm(decoded - true)) / number
        found.append(
            Round(left=float(np.linalg.norm(flat(residual.tensors))) / size, mean=apart / float(np.linalg.norm(true / number)))
        )
    return found


def flat(tensors: Mapping[str, NDArray[np.floating]]) -> NDArray[np.float64]:
    """Return all numbers, in the order of `SHAPES`."""
    return np.concatenate([np.asarray(tensors[name], dtype=np.float64).ravel() for name in SHAPES])


def sensitivity(seed: int) -> Sensitivity:
    """Return one over several octaves of rows and columns."""
    rng = np.random.default_rng(seed)
    return Sensitivity(
        {
            n: TensorSensitivity(
                rows=np.exp2(rng.uniform(-3, 3, s[0])).astype(np.float32),
                columns=np.exp2(rng.uniform(-3, 3, int(np.prod(s)) // s[0])).astype(np.float32),
            )
            for n, s in SHAPES.items()
        }
    )


if __name__ == "__main__":
    main()
