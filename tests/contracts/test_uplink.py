"""Does a trained adapter reach the air unchanged, sealed, and in exactly the blocks that were asked for?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_client.uplink import Uplink, block_count, frame_of
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import DeltaCodec
from hushtune_common.config import CodecConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import LimitExceeded, MalformedUpdate
from hushtune_common.link.channel import Assembly, Frame, Reception
from hushtune_common.messages import Digest, EmulatorManifest, Listener, TensorSpec, UpdateKey
from hushtune_common.seeding import SeedTree
from tests.loopback import CLIENT, DESIGN, RUN

KEY = UpdateKey(run=RUN, round_id=1, client=CLIENT, attempt=1)
PRIVATE = HybridPrivateKey.generate()
SHAPES = {"model.layers.0.a": (40, 50), "model.layers.5.b": (300,)}


def drawn(name: str, spread: float) -> AdapterState:
    rng = SeedTree(7).child(name).generator()
    return AdapterState({n: (spread * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()})


SHIPPED = drawn("shipped", 1.0)
CODEC = DeltaCodec(shipped=SHIPPED, config=CodecConfig())
TRAINED = AdapterState({n: t + drawn("step", 1e-3).tensors[n] for n, t in SHIPPED.tensors.items()})
SPECS = tuple(TensorSpec(name=n, shape=s, dtype="F32", block=0) for n, s in SHAPES.items())
MANIFEST = EmulatorManifest(
    emulator=Digest.of(b"bundle"),
    size_bytes=6,
    base=Digest.of(b"base"),
    plan=Digest.of(b"plan"),
    tokenizer=Digest.of(b"tokenizer"),
    adapter=SPECS,
    sealing_key=PRIVATE.public.to_bytes(),
    codec=CODEC.id,
)
SEALED = Uplink(manifest=MANIFEST, codec=CODEC, update_bytes_max=1 << 20).seal(TRAINED, key=KEY)
BLOCKS = block_count(len(SEALED.data), design=DESIGN, only=None)


def heard(frame: bytes) -> Reception:
    """Return what a listener holds that hears everything."""
    sent = Frame.from_bytes(frame)
    clear = np.full(sent.count, 30.0, np.float32)
    return Reception.of(sent, listener=Listener.MAIN, heard=np.ones(sent.count, np.bool_), snr_db=clear)


def test_the_owner_opens_exactly_what_was_trained_within_the_codecs_bound() -> None:
    opened = envelope.open_sealed(envelope.from_bytes(SEALED.data), private=PRIVATE, codec=CODEC.id)
    decoded = CODEC.decode(opened, SPECS)
    bound = CODEC.bound(TRAINED)
    for name, tensor in TRAINED.tensors.items():
        assert (np.abs(decoded.tensors[name] - tensor) <= bound.tensors[name]).all()


def test_the_sizes_on_the_way_are_those_of_the_bytes() -> None:
    assert SEALED.bytes_raw == 4 * (40 * 50 + 300)
    assert SEALED.bytes_encoded == len(CODEC.encode(TRAINED)) < SEALED.bytes_raw
    assert SEALED.bytes_encoded < len(SEALED.data)
    assert SEALED.digest == Digest.of(SEALED.data)


def test_the_frame_of_all_blocks_carries_the_sealed_bytes() -> None:
    assembly = Assembly(len(SEALED.data), DESIGN.payload_bytes)
    assembly.add(heard(frame_of(SEALED.data, design=DESIGN, only=None)))
    assert assembly.data() == SEALED.data


@given(st.sets(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS - 1))
def test_refused_blocks_come_again_unchanged_and_complete_the_update(lost: set[int]) -> None:
    arrived = tuple(sorted(set(range(BLOCKS)) - lost))
    assembly = Assembly(len(SEALED.data), DESIGN.payload_bytes)
    assembly.add(heard(frame_of(SEALED.data, design=DESIGN, only=arrived)))
    assert assembly.missing == tuple(sorted(lost))
    again = frame_of(SEALED.data, design=DESIGN, only=assembly.missing)
    assert Frame.from_bytes(again).count == block_count(len(SEALED.data), design=DESIGN, only=assembly.missing) == len(lost)
    assembly.add(heard(again))
    assert assembly.data() == SEALED.data


@pytest.mark.parametrize("only", [(), (BLOCKS,), (-1, 0)])
def test_a_receipt_that_names_impossible_blocks_is_refused(only: tuple[int, ...]) -> None:
    with pytest.raises(MalformedUpdate):
        frame_of(SEALED.data, design=DESIGN, only=only)


def test_an_update_above_the_scenarios_limit_is_not_sent() -> None:
    tight = Uplink(manifest=MANIFEST, codec=CODEC, update_bytes_max=len(SEALED.data) - 1)
    with pytest.raises(LimitExceeded, match="update_bytes_max"):
        tight.seal(TRAINED, key=KEY)


def test_an_update_is_sealed_once_and_not_per_attempt() -> None:
    second = UpdateKey(run=RUN, round_id=1, client=CLIENT, attempt=2)
    with pytest.raises(ValueError, match="sealed once"):
        Uplink(manifest=MANIFEST, codec=CODEC, update_bytes_max=1 << 20).seal(TRAINED, key=second)
