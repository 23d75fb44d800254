"""What do several rounds cost on the way down, and what does error feedback save on the way up?

``python benchmarks/rounds.py EMULATOR ADAPTER...``: an emulator bundle, and adapters that were trained on it. They are averaged
for the emulator of a next round; one after the other, again and again, their changes are the rounds of one client.
"""

import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hushtune_client.feedback import corrected, left_over
from hushtune_common.adapter import AdapterState, Float32, load_adapter
from hushtune_common.clock import SystemClock
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import CodecConfig
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.revision import apply_revision, revise, write_revision

ROUNDS = 6
TENSORS = 18
"""Error feedback is measured on so many tensors: rates and errors are relative, and all of them would take minutes."""
CLOCK = SystemClock()


def main() -> None:
    """Print both tables."""
    emulator, *adapters = (Path(argument) for argument in sys.argv[1:])
    bundle = read_bundle(emulator)
    returned = [load_adapter(path, bundle.schema).tensors for path in adapters]
    downlink(emulator, bundle, returned)
    feedback(bundle, returned)


def downlink(emulator: Path, bundle: Bundle, returned: Sequence[Mapping[str, Float32]]) -> None:
    """Print the bytes and the seconds of an emulator whose adapter blocks are the mean of those returned."""
    mean = {
        name: np.asarray(np.mean([r[name] for r in returned], axis=0, dtype=np.float64), dtype=np.float32) for name in returned[0]
    }
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), CLOCK.monotonic()
        revise(folder / "next", base=bundle.file, changed=mean, notes={})
        written = write_revision(folder / "way", base=emulator, result=folder / "next")
        between = CLOCK.monotonic()
        apply_revision(folder / "way", base=emulator, to=folder / "made")
        ended = CLOCK.monotonic()
        same = digest(folder / "next") == digest(folder / "made")
    share = written.size_bytes / written.whole_bytes
    print(
        f"next emulator: {written.size_bytes:,} of {written.whole_bytes:,} bytes ({100 * share:.1f} %), {written.tensors} tensors"
    )
    print(f"made by the owner in {between - began:.1f} s, by a client in {ended - between:.1f} s; bit for bit the same: {same}")


def feedback(bundle: Bundle, returned: Sequence[Mapping[str, Float32]]) -> None:
    """Print by how much the sum of decoded changes misses the sum of true ones, as a share of its norm, round by round."""
    full = bundle.adapter_numpy()
    names = list(full)[:TENSORS]
    changes = [{name: r[name] - full[name] for name in names} for r in returned]
    for bits in (2, 3, 4):
        for fed in (True, False):
            missed = misses(AdapterState({n: full[n] for n in names}), changes, bundle=bundle, bits=bits, fed=fed)
            print(f"{bits} bits, feedback {'on ' if fed else 'off'}: " + "  ".join(f"{m:.4f}" for m in missed))


def misses(
    shipped: AdapterState, changes: Sequence[Mapping[str, Float32]], *, bundle: Bundle, bits: int, fed: bool
) -> list[float]:
    """Return the share that is missed after each of the rounds."""
    schema = tuple(spec for spec in bundle.schema if spec.name in shipped.tensors)
    true = {name: np.zeros(tensor.shape) for name, tensor in shipped.tensors.items()}
    short, residual, found = {n: t.copy() for n, t in true.items()}, None, list[float]()
    for number in range(ROUNDS):
        change, codec = changes[number % len(changes)], make_codec(CodecConfig(bits=bits), shipped=shipped)
        trained = AdapterState({name: tensor + change[name] for name, tensor in shipped.tensors.items()})
        wanted = corrected(trained, residual if fed else None)
        arrived = codec.decode(codec.encode(wanted, budget_bytes=codec.bytes_max), schema)
        residual = left_over(wanted, arrived)
        for name in true:
            true[name] += change[name]
            short[name] += trained.tensors[name].astype(np.float64) - arrived.tensors[name]
        found.append(norm(short) / norm(true))
        shipped = arrived
    return found


def norm(tensors: Mapping[str, NDArray[np.float64]]) -> float:
    """Return the Euclidean norm over all tensors."""
    return float(np.sqrt(sum(np.square(t).sum() for t in tensors.values())))


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    main()
