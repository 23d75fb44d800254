"""How far does what a decoder makes of an honest update move one weight, round by round, with next to no bytes?

    python benchmarks/reach.py --rounds 8

The owner refuses an update of which a weight moved by more than `owner.gate.reach_max` times what training can reach, times the
round's number. Here AdamW takes the steps of a scenario on drawn gradients, which agree in part from round to round, and what it
makes of them is coded as in a run. The table has, per number of bits and round, the largest change of a weight over that
reach: as the codec by itself makes it, and as a client sends it, which keeps it within what the gate takes. The last columns have
what is left over then, as a share of one round's change, and how many weights were to move further than the gate takes.
"""

import argparse
from collections.abc import Iterator
from math import inf

import numpy as np
import torch

from hushtune_client.feedback import corrected, left_over
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.sensitivity import Sensitivity, TensorSensitivity
from hushtune_common.config import CodecConfig, GateConfig, TrainingConfig
from hushtune_common.messages import TensorSpec
from hushtune_common.model.rates import BETAS, allowed, furthest, rate_share

SHAPES = {"a": (576, 576), "b": (192, 576), "c": (768, 576), "d": (576, 768), "e": (576,)}
SPECS = tuple(TensorSpec(name=n, shape=s, dtype="F32", block=0) for n, s in SHAPES.items())
COUNT = sum(spec.count for spec in SPECS)
TRAINING = TrainingConfig(learning_rate=4e-4, batch_windows=4)
WINDOWS = 24
STEPS = WINDOWS // 4


def main() -> None:
    """Print a table for each number of bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0, 2.0, 4.0], help="bits per number")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agree", type=float, default=0.5, help="size of what gradients have in common, beside noise of size 1")
    parser.add_argument("--no-feedback", action="store_true", help="let every update stand for itself")
    asked = parser.parse_args()
    print(f"{'bits':>5} {'round':>5} {'trained':>8} {'codec alone':>12} {'as sent':>8} {'left over':>10} {'beyond':>7}")
    for bits in asked.bits:
        free = played(bits, asked, kept=False)
        held = played(bits, asked, kept=True)
        for number, (before, after) in enumerate(zip(free, held, strict=True), start=1):
            trained, sent, left, beyond = after
            print(f"{bits:5g} {number:5d} {trained:8.2f} {before[1]:12.2f} {sent:8.2f} {left:10.2f} {beyond:7d}")


def played(bits: float, asked: argparse.Namespace, *, kept: bool) -> Iterator[tuple[float, float, float, int]]:
    """Yield per round the largest trained and sent change over the reach, what is left over, and weights beyond the gate."""
    shipped = AdapterState({n: 0.05 * np.ones(s, np.float32) for n, s in SHAPES.items()})
    residual = None
    for number, trained in enumerate(trainings(shipped, rounds=asked.rounds, seed=asked.seed, agree=asked.agree), start=1):
        reach = furthest(TRAINING, windows=WINDOWS, round_id=number)
        most = allowed(reach, reach_max=GateConfig().reach_max)
        wanted = corrected(trained, residual)
        config = CodecConfig(bits=bits)
        codec = make_codec(
            config, shipped=shipped, sensitivity=uneven(), feedback=not asked.no_feedback, change_max=most if kept else inf
        )
        decoded = codec.decode(codec.encode(wanted, budget_bytes=codec.bytes_max), SPECS)
        left = left_over(wanted, decoded)
        residual = None if asked.no_feedback else left
        change = norm(left_over(trained, shipped))
        beyond = sum(int(np.count_nonzero(np.abs(t - shipped.tensors[n]) > most)) for n, t in wanted.tensors.items())
        yield peak(trained, shipped) / reach, peak(decoded, shipped) / reach, norm(left) / change, beyond


def trainings(shipped: AdapterState, *, rounds: int, seed: int, agree: float) -> Iterator[AdapterState]:
    """Yield what AdamW makes of the shipped adapter in each round; a part of the gradients is the same in all of them."""
    torch.manual_seed(seed)
    common = {n: agree * torch.randn(s) for n, s in SHAPES.items()}
    for _ in range(rounds):
        weights = {n: torch.from_numpy(t.copy()) for n, t in shipped.tensors.items()}
        optimizer = torch.optim.AdamW(weights.values(), lr=TRAINING.learning_rate, betas=BETAS, weight_decay=0.0)
        for step in range(1, STEPS + 1):
            optimizer.param_groups[0]["lr"] = TRAINING.learning_rate * rate_share(step, steps=STEPS, config=TRAINING)
            for name, weight in weights.items():
                weight.grad = common[name] + torch.randn(weight.shape)
            optimizer.step()
        yield AdapterState({n: w.numpy() for n, w in weights.items()})


def uneven() -> Sensitivity:
    """Return one over several octaves of rows and columns, as models have."""
    rng = np.random.default_rng(3)
    found = {
        spec.name: TensorSensitivity(
            rows=np.exp2(rng.uniform(-2, 2, spec.shape[0])).astype(np.float32),
            columns=np.exp2(rng.uniform(-3, 3, spec.count // spec.shape[0])).astype(np.float32),
        )
        for spec in SPECS
    }
    return Sensitivity(found)


def peak(state: AdapterState, start: AdapterState) -> float:
    """Return the largest change of a weight."""
    return max(float(np.abs(t.astype(np.float64) - start.tensors[n]).max()) for n, t in state.tensors.items())


def norm(state: AdapterState) -> float:
    """Return the length of all numbers together."""
    return float(np.sqrt(sum(np.square(t, dtype=np.float64).sum() for t in state.tensors.values())))


if __name__ == "__main__":
    main()
