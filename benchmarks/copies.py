"""How long does an owner take to give every client of a run an emulator of its own, and how much disk?

    python benchmarks/copies.py emulator.safetensors --clients 3

Publishes the emulator of a first round, and that of a second one whose adapter blocks moved, in a folder that goes afterwards.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

import numpy as np

from hushtune_common.config import FingerprintConfig
from hushtune_common.messages import ClientId
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.revision import revise, write_revision
from hushtune_common.store.blobs import BlobStore
from hushtune_server.owner.catalog import Catalog, RoundPress
from hushtune_server.owner.copies import Copies
from hushtune_server.owner.ports import Renewal


def main() -> None:
    """Print seconds and bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for several times the emulator's size; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hushtune-copies-", dir=options.work) as folder:
        publish(Path(folder), options.bundle, clients=[ClientId(f"c{k + 1}") for k in range(options.clients)])


def publish(state: Path, bundle: Path, *, clients: list[ClientId]) -> None:
    """Go through both rounds."""
    size = bundle.stat().st_size
    store = BlobStore(state / "blobs", quota_bytes=(4 + 2 * len(clients)) * size)
    catalog = Catalog(store, size_max=size, copies=Copies(state, clients=clients, config=FingerprintConfig()))
    shutil.copy(bundle, state / "first")
    print(f"{len(clients)} clients, an emulator of {size / 1e6:.1f} MB")
    timed("first round", catalog.publish(state / "first", sealing_key=b"public", codec="any/1"))
    base, rng = read_bundle(catalog.newest.path), np.random.default_rng(1)
    moved = {n: (t + 1e-3 * rng.standard_normal(t.shape)).astype(np.float32) for n, t in base.adapter_numpy().items()}
    revise(state / "next", base=base.stored, changed=moved, notes={})
    write_revision(state / "way", base=catalog.newest.path, result=state / "next")
    timed("second round", RoundPress(catalog).publish(2, Renewal(bundle=state / "next", revision=state / "way")))
    print(f"on disk: {sum(file.stat().st_size for file in state.rglob('*') if file.is_file()) / 1e6:.1f} MB")


def timed(title: str, work: Awaitable[object]) -> None:
    """Print how long something took, and how much of a processor."""

    async def wait() -> None:
        await work

    started, used = time.perf_counter(), time.process_time()
    asyncio.run(wait())
    print(f"{title}: {time.perf_counter() - started:.1f} s, {time.process_time() - used:.1f} s of processor")


if __name__ == "__main__":
    main()
