"""Synthetic requests and profiles for emulator methods: everything that any of them may look at, drawn from a seed."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from hushtune_common.adapter import Float32
from hushtune_common.messages import Digest
from hushtune_common.methods import OPTIONS, EmulatorOptions, method_of
from hushtune_common.model.layout import BlockLayout, Matrix
from hushtune_common.seeding import SeedTree
from hushtune_common.tables import parse_method
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Scores
from hushtune_server.owner.emulators.planning import METHODS

BASE = Digest.of(b"model")


def matrix(path: str, rows: int, columns: int) -> Matrix:
    return Matrix(path=path, rows=rows, columns=columns, biased=False, transposed=False)


LAYOUT = BlockLayout(
    attention=(matrix("attn.k", 2, 4), matrix("attn.q", 4, 4)),
    up=(matrix("mlp.gate", 6, 4), matrix("mlp.up", 6, 4)),
    down=matrix("mlp.down", 4, 6),
    hidden=4,
    inner=6,
)


def request_for(blocks: int, adapter: Sequence[int]) -> EmulatorRequest:
    return EmulatorRequest(base=BASE, block_count=blocks, adapter=tuple(adapter), layout=LAYOUT)


@st.composite
def requests(draw: st.DrawFn, *, blocks_max: int = 20) -> EmulatorRequest:
    """Any set of adapter blocks, not only those at the ends."""
    blocks = draw(st.integers(1, blocks_max))
    return request_for(blocks, sorted(draw(st.sets(st.integers(0, blocks - 1), min_size=1, max_size=6))))


def profile_for(request: EmulatorRequest, *, seed: int) -> Profile:
    """Return a profile with every statistic; scalars have four digits, so that last digits can be changed on purpose."""
    rng = SeedTree(seed).child("profile").generator()
    middle = request.middle

    def by_block() -> dict[int, float]:
        return {b: round(float(v), 4) for b, v in zip(middle, rng.random(len(middle)), strict=True)}

    def scores(count: int) -> Scores:
        return Scores(preserve=rng.random(count, dtype=np.float32), private=rng.normal(size=count).astype(np.float32))

    return Profile(
        base=request.base,
        corpus=Digest.of(b"text"),
        tokens=780,
        loss=5.0,
        ablation_losses={b: 5.0 + rise for b, rise in by_block().items()},
        influences=by_block(),
        greedy_order=tuple(int(b) for b in rng.permutation(middle)),
        greedy_losses=tuple(5.0 + v for v in by_block().values()),
        similarity=similarity_of(rng.random((request.block_count, request.block_count), dtype=np.float32)),
        neuron_norms={b: rng.random(LAYOUT.inner, dtype=np.float32) for b in middle},
        channel_scores={b: scores(LAYOUT.inner) for b in middle},
        component_scores={(b, m.path): scores(min(m.rows, m.columns)) for b in middle for m in LAYOUT.attention},
        replacement_scores=by_block(),
        trained={f"model.layers.{b}.down.weight": rng.random((2, 4), dtype=np.float32) for b in middle},
    )


def similarity_of(values: Float32) -> Float32:
    """Return a symmetric matrix with ones on its diagonal and values of three digits."""
    even = np.round((values + values.T) / 2, 3)
    np.fill_diagonal(even, 1.0)
    return even.astype(np.float32)


def options_of(name: str, **settings: object) -> EmulatorOptions:
    """Return the options of a method as a scenario gives them."""
    return parse_method({"method": name, **settings})


def sizes_of(options: EmulatorOptions, request: EmulatorRequest) -> list[EmulatorMethod]:
    return list(METHODS[method_of(options)](options).sizes(request))


def every_name() -> list[str]:
    """The methods of the registry; one that has options but is not there would be an option that does nothing."""
    assert set(METHODS) == set(OPTIONS)
    return sorted(METHODS)
