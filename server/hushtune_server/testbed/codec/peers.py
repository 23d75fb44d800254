"""Which peers does a curve have? The one place that names them."""

from collections.abc import Iterator

from hushtune_server.testbed.codec.low_rank import LowRank
from hushtune_server.testbed.codec.normal_float import NormalFloat
from hushtune_server.testbed.codec.peer import ByTensor, Peer, TensorCoder
from hushtune_server.testbed.codec.plain_numbers import Half, Integers, Lossless, Signs
from hushtune_server.testbed.codec.schema import PeersConfig
from hushtune_server.testbed.codec.sparse import TopK


def peers_of(config: PeersConfig) -> list[Peer]:
    """Return the peers that a scenario asks for, the exact one first."""
    return [*_peers(config)]


def _peers(config: PeersConfig) -> Iterator[Peer]:
    if config.lossless:
        yield Lossless()
    if config.half:
        yield ByTensor(
            name="fp16+zstd", says="float16 after a factor per tensor, byte planes, zstandard", coder=Half(), packed=True
        )
    for bits in config.integers:
        says = f"integers of {bits} bits, the largest magnitude of 64 as scale (float16)"
        yield from _both(f"int{bits}", says, coder=Integers(bits=bits))
    if config.normal_float:
        says = "normal floats of 4 bits, scales of 64 doubly quantised, the layout of bitsandbytes (Dettmers et al. 2023, QLoRA)"
        yield from _both("nf4", says, coder=NormalFloat())
    if config.signs:
        says = "signs times the tensor's mean magnitude (Liu et al. 2024, BitDelta, without training of the factors)"
        yield ByTensor(name="sign", says=says, coder=Signs(), packed=False)
    yield from (TopK(share=share) for share in config.top_k)
    for rank in config.ranks:
        says = f"matrices as factors of rank {rank} from the truncated singular value decomposition, float16 with zstandard"
        yield ByTensor(name=f"svd rank {rank}", says=says, coder=LowRank(rank=rank), packed=True)


def _both(name: str, says: str, *, coder: TensorCoder) -> Iterator[Peer]:
    """Return a peer as published, and with zstandard on top."""
    yield ByTensor(name=name, says=says, coder=coder, packed=False)
    yield ByTensor(name=f"{name}+zstd", says=f"the same, zstandard (level 3) on top: {name}", coder=coder, packed=True)
