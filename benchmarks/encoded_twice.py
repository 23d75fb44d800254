"""What does an update lose that is written again at a smaller share, beside one that is written so at once?

An owner that wants to know what another share of an accepted update would have been worth has only what it decoded. Changes are
drawn (Laplace, rows of different sizes); errors are shares of the energy of the change. Takes seconds:

    python benchmarks/encoded_twice.py
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.config import CodecConfig
from hushtune_common.messages import TensorSpec

NAMES = [f"model.layers.0.mlp.w{k}.weight" for k in range(4)]
SHAPE = (256, 1024)
CONFIG = CodecConfig(kind="rate_distortion")
SCHEMA = tuple(TensorSpec(name=name, shape=SHAPE, dtype="F32", block=0) for name in NAMES)
Changes = Mapping[str, NDArray[np.float32]]


def sent(state: AdapterState, codec: AdapterCodec, *, share: float) -> AdapterState:
    """Return what arrives of an adapter at a share of a full update's bytes."""
    return codec.decode(codec.encode(state, budget_bytes=budget_bytes(SCHEMA, config=CONFIG, share=share)), SCHEMA)


def error(found: AdapterState, wanted: AdapterState, *, changes: Changes) -> float:
    """Return the energy of the error over that of the change."""
    lost = sum(float(np.square(found.tensors[n].astype(np.float64) - wanted.tensors[n]).sum()) for n in NAMES)
    return lost / sum(float(np.square(c.astype(np.float64)).sum()) for c in changes.values())


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(1)
    shipped = AdapterState({n: (0.02 * rng.standard_normal(SHAPE)).astype(np.float32) for n in NAMES})
    rows = {n: np.exp(0.5 * rng.normal(size=(SHAPE[0], 1))) for n in NAMES}
    changes: Changes = {n: (1e-3 * rows[n] * rng.laplace(size=SHAPE)).astype(np.float32) for n in NAMES}
    trained = AdapterState({n: shipped.tensors[n] + changes[n] for n in NAMES})
    codec = make_codec(CONFIG, shipped=shipped)
    print("| received at | written again at | error | of one written so at once | ratio |")
    print("|---|---|---|---|---|")
    for share in (1.0, 0.5):
        received = sent(trained, codec, share=share)
        for part in (0.9, 0.75, 0.5):
            once = error(sent(trained, codec, share=part * share), trained, changes=changes)
            twice = error(sent(received, codec, share=part * share), trained, changes=changes)
            print(f"| {share:g} | {part * share:g} | {twice:.2f} | {once:.2f} | {twice / once:.1f} |")


if __name__ == "__main__":
    main()
