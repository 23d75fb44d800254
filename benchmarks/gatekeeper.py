"""How many harmful updates do the owner's screens stop, and how many honest ones?

    python benchmarks/gatekeeper.py --cases 300

Every case is one round of three to eight clients, all with the default limits, in random order: each update is screened when it
arrives and all of them again before they are averaged. Honest changes are what AdamW makes of gradients that agree in part (the
cosine of two clients is 0.1 to 0.6) in tensors of different sizes, coded with 2 to 8 bits, some with low-rank factors. In half
of the cases the owner has a round of honest updates behind it. One client means harm, in each row in another way; with `alone`
nobody else takes part. Rates come with Wilson's 95 % intervals. Only numbers are looked at here: what public text and the owner's
prompts would say comes on top.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, require_matches
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import CodecConfig, GateConfig, TrainingConfig
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import ClientId, TensorSpec
from hushtune_common.model.rates import reach
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.gatekeeper.company import misfits
from hushtune_server.owner.gatekeeper.gate import Gatekeeper
from hushtune_server.owner.gatekeeper.sketch import Sampler, Sketch

SHAPES: Mapping[str, tuple[int, ...]] = {
    **{f"model.layers.{b}.{n}": (32, 32) for b in range(4) for n in ("q", "o")},
    **{f"model.layers.{b}.{n}": (16, 32) for b in range(4) for n in ("k", "v")},
    **{f"model.layers.{b}.{n}": (64, 32) for b in range(4) for n in ("gate", "up")},
    **{f"model.layers.{b}.norm": (32,) for b in range(4)},
}
SCHEMA = tuple(TensorSpec(name=n, shape=s, dtype="F32", block=0) for n, s in SHAPES.items())
TRAINING = TrainingConfig(learning_rate=4e-4, batch_windows=4)
WINDOWS = 100
REACH = reach(TRAINING, windows=WINDOWS)
HONEST_RMS = 0.22 * REACH
"""What training of SmolLM2 was measured to move a weight by."""

Change = dict[str, NDArray[np.floating]]
Harm = Callable[[Change, np.random.Generator], Change]


def only(name: str, times: float) -> Harm:
    return lambda change, _: {n: (times if n.endswith(name) else 1.0) * d for n, d in change.items()}


def scaled(times: float) -> Harm:
    return lambda change, _: {n: times * d for n, d in change.items()}


def spiked(change: Change, rng: np.random.Generator) -> Change:
    target = change["model.layers.1.up"].copy()
    target[rng.integers(64), rng.integers(32)] += 0.5
    return {**change, "model.layers.1.up": target}


def rank_one(change: Change, rng: np.random.Generator) -> Change:
    edit = np.outer(rng.standard_normal(64), rng.standard_normal(32)) * 3.0 * HONEST_RMS
    return {**change, "model.layers.2.gate": change["model.layers.2.gate"] + edit}


def louder(change: Change, rng: np.random.Generator) -> Change:
    return {**change, "model.layers.1.norm": 30.0 * HONEST_RMS * rng.standard_normal(32)}


def noise(change: Change, rng: np.random.Generator) -> Change:
    return {n: HONEST_RMS * rng.standard_normal(d.shape) for n, d in change.items()}


def broken(change: Change, _: np.random.Generator) -> Change:
    return {**change, "model.layers.0.q": np.full_like(change["model.layers.0.q"], np.nan)}


HARMS: Mapping[str, Harm] = {
    "nobody means harm": scaled(1.0),
    "ten times as large": scaled(10.0),
    "three times as large": scaled(3.0),
    "sign-flipped": scaled(-1.0),
    "sign-flipped and doubled": scaled(-2.0),
    "one matrix x 30": only("2.up", 30.0),
    "one matrix x 5": only("2.up", 5.0),
    "noise in one norm, x 30": louder,
    "one weight moved by 0.5": spiked,
    "rank one added to a matrix": rank_one,
    "not a number": broken,
    "noise of honest size": noise,
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How alike clients are, how far a weight moves (root mean square), and whether low-rank factors are trained."""

    cosine: float
    size: float
    low_rank: bool


@dataclass
class Count:
    """How many of how many were stopped."""

    stopped: int = 0
    all: int = 0

    def add(self, stopped: bool) -> None:
        self.stopped += stopped
        self.all += 1

    @property
    def text(self) -> str:
        """The rate with Wilson's interval."""
        if not self.all:
            return "-"
        z, n, p = 1.96, self.all, self.stopped / self.all
        middle, half = (p + z * z / 2 / n) / (1 + z * z / n), z * sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
        return f"{p:6.1%} ({max(0.0, middle - half):.1%} to {min(1.0, middle + half):.1%})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    options = parser.parse_args()
    print("| the harmful client's update | stopped in a round | stopped alone | honest ones stopped beside it |")
    print("|---|---|---|---|")
    for what, harm in HARMS.items():
        beside, alone, honest = Count(), Count(), Count()
        for case in range(options.cases):
            rng = SeedTree(case).child(what).generator()
            play(harm, rng, clients=int(rng.integers(3, 9)), bad=beside, good=honest)
            play(harm, rng, clients=1, bad=alone, good=honest)
        print(f"| {what} | {beside.text} | {alone.text} | {honest.text} |", flush=True)


def play(harm: Harm, rng: np.random.Generator, *, clients: int, bad: Count, good: Count) -> None:
    """Play one round and count who was stopped; the first client means harm."""
    sizes = np.exp(rng.normal(-1.7, 0.5, len(SHAPES)))
    shipped = AdapterState(
        {n: (size * rng.standard_normal(s)).astype(np.float32) for (n, s), size in zip(SHAPES.items(), sizes, strict=True)}
    )
    sampler = Sampler(shipped, rng=SeedTree(int(rng.integers(1 << 60))).generator())
    keeper = Gatekeeper(GateConfig(), shipped=shipped, reach=REACH, sampler=sampler)
    training = Training(
        cosine=float(rng.uniform(0.1, 0.6)), size=HONEST_RMS * float(rng.uniform(0.6, 1.2)), low_rank=rng.random() < 0.25
    )
    earlier = before(keeper, shipped, rng, training=training) if rng.random() < 0.5 else []
    changes = trained(rng, clients=clients, training=training)
    changes[0] = harm(changes[0], rng)
    arrived: dict[ClientId, Sketch] = {}
    stopped: set[ClientId] = set()
    for index in rng.permutation(clients):
        client = ClientId(f"c{index}")
        try:
            state = sent(shipped, changes[index], rng)
        except (MalformedUpdate, ValueError):
            stopped.add(client)
            continue
        found = keeper.screen(state, client=client, others=arrived, earlier=earlier)
        if found.findings:
            stopped.add(client)
        else:
            arrived[client] = found.sketch
            earlier.append(found.profile)
    stopped |= {*misfits(arrived, gate=GateConfig())}
    for index in range(clients):
        (bad if index == 0 else good).add(f"c{index}" in stopped)


def before(
    keeper: Gatekeeper, shipped: AdapterState, rng: np.random.Generator, *, training: Training
) -> list[Mapping[str, float]]:
    """Return the profiles of an honest round."""
    states = [sent(shipped, change, rng) for change in trained(rng, clients=4, training=training)]
    return [keeper.screen(s, client=ClientId("c"), others={}, earlier=[]).profile for s in states]


def trained(rng: np.random.Generator, *, clients: int, training: Training) -> list[Change]:
    """Return honest changes."""
    together, apart = sqrt(training.cosine), sqrt(1 - training.cosine)
    common = drawn(rng, low_rank=training.low_rank)
    own = [drawn(rng, low_rank=training.low_rank) for _ in range(clients)]
    return [{n: training.size * (together * common[n] + apart * mine[n]) for n in SHAPES} for mine in own]


def drawn(rng: np.random.Generator, *, low_rank: bool) -> Change:
    """Return numbers of variance one; of low rank, norms stay as they are and a weight moves less."""
    if not low_rank:
        return {n: rng.standard_normal(s) for n, s in SHAPES.items()}
    return {
        n: np.zeros(s) if len(s) == 1 else 0.3 * rng.standard_normal((s[0], 8)) @ rng.standard_normal((8, s[1])) / sqrt(8)
        for n, s in SHAPES.items()
    }


def sent(shipped: AdapterState, change: Change, rng: np.random.Generator) -> AdapterState:
    """Return what arrives of an update, through the codec with a random budget."""
    state = AdapterState({n: (t + change[n]).astype(np.float32) for n, t in shipped.tensors.items()})
    require_matches(state, SCHEMA)
    config = CodecConfig(kind="blockwise", bits=int(rng.integers(2, 9)), block_size=32)
    codec = make_codec(config, shipped=shipped)
    return codec.decode(codec.encode(state, budget_bytes=codec.bytes_max), SCHEMA)


if __name__ == "__main__":
    main()
