"""Does a trained adapter reach the air unchanged, sealed, hidden by fresh bits, and in exactly the blocks that were asked for?"""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hushtune_client.uplink import Frame, Framer, LinkRandomness, Sealed, Uplink, block_count, require_sendable
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import CodecConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import BudgetTooSmall, LimitExceeded, MalformedUpdate, StaleRound
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.messages import (
    BLOCKS_MAX,
    Digest,
    EmulatorManifest,
    Part,
    Protection,
    SecrecyDesign,
    TensorSpec,
    UpdateKey,
)
from hushtune_common.seeding import SeedTree
from tests.loopback import CARRIER, CLIENT, DESIGN, RUN, assignment_of, message_of, payloads_of, reader_of

KEY = UpdateKey(run=RUN, round_id=1, client=CLIENT, attempt=1)
PRIVATE = HybridPrivateKey.generate()
SHAPES = {"model.layers.0.a": (40, 50), "model.layers.5.b": (300,)}
SEEDS = SeedTree(11)
TOEPLITZ = SEEDS.child("toeplitz").generator().bytes(DESIGN.toeplitz_bytes)
MESSAGE = SEEDS.child("message").generator().bytes(20 * DESIGN.payload_bytes - 7)
BLOCKS = 20


def drawn(name: str, spread: float) -> AdapterState:
    rng = SeedTree(7).child(name).generator()
    return AdapterState({n: (spread * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()})


SHIPPED = drawn("shipped", 1.0)
CODEC = make_codec(CodecConfig(bits=8), shipped=SHIPPED)
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
OS = LinkRandomness(kind="os", seeds=SEEDS)
SEEDED = LinkRandomness(kind="seeded", seeds=SEEDS)
UPLINK = Uplink(manifest=MANIFEST, update_bytes_max=1 << 20, randomness=OS)
FRAMER = Framer(fidelity=Fidelity.BIT_EXACT, share=0.25, threads=1, frame_bytes_max=1 << 30, randomness=OS, seeds=SEEDS)


def sealed(
    protection: Protection = Protection.PAYLOAD, randomness: LinkRandomness = OS, *, budget_bytes: int = 1_000_000
) -> Sealed:
    assignment = assignment_of(protection=protection, budget_bytes=budget_bytes)
    encoded = CODEC.encode(TRAINED, budget_bytes=assignment.budget_bytes)
    return replace(UPLINK, randomness=randomness).seal(encoded, bytes_raw=TRAINED.bytes_raw, key=KEY, assignment=assignment)


def framed(
    path: Path,
    *,
    framer: Framer = FRAMER,
    message: bytes = MESSAGE,
    part: Part = Part.PAYLOAD,
    design: SecrecyDesign = DESIGN,
    toeplitz: bytes = TOEPLITZ,
    key: UpdateKey = KEY,
    only: tuple[int, ...] | None = None,
) -> Frame:
    return framer.frame(message, path=path, key=key, part=part, design=design, toeplitz=toeplitz, only=only, stopped=Flag())


def carried(frame: Frame, *, design: SecrecyDesign = DESIGN, toeplitz: bytes = TOEPLITZ) -> dict[int, bytes]:
    return payloads_of(frame.path.read_bytes(), design=design, toeplitz=toeplitz)


# --- sealing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protection", Protection)
def test_the_owner_opens_exactly_what_was_trained_within_the_codecs_bound(protection: Protection) -> None:
    update = sealed(protection)
    opened = envelope.open_sealed(envelope.from_bytes(update.data), private=PRIVATE, codec=CODEC.id, secret=update.secret)
    decoded = CODEC.decode(opened.payload, SPECS)
    bound = CODEC.bound(opened.payload)
    for name, tensor in TRAINED.tensors.items():
        assert (np.abs(decoded.tensors[name] - tensor) <= bound[name]).all()


def test_the_sizes_on_the_way_are_those_of_the_bytes() -> None:
    update = sealed()
    assert update.bytes_raw == 4 * (40 * 50 + 300)
    assert update.bytes_encoded == len(CODEC.encode(TRAINED, budget_bytes=CODEC.bytes_max)) < update.bytes_raw
    assert update.bytes_encoded < len(update.data)
    assert update.digest == Digest.of(update.data)


def test_only_a_key_part_brings_a_secret_and_its_update_does_not_open_without() -> None:
    assert [len(sealed(p).secret) for p in (Protection.PAYLOAD, Protection.KEY, Protection.CRYPTO_ONLY)] == [0, 32, 0]
    for protection in Protection:
        needs = envelope.needs_secret(envelope.from_bytes(sealed(protection).data))
        assert needs == (protection is Protection.KEY)


@pytest.mark.parametrize("protection", Protection)
def test_every_part_has_public_randomness_that_only_the_sealer_can_have_announced(protection: Protection) -> None:
    update, assignment = sealed(protection), assignment_of(protection=protection)
    opened = envelope.open_sealed(envelope.from_bytes(update.data), private=PRIVATE, codec=CODEC.id, secret=update.secret)
    assert tuple(update.links) == assignment.parts
    for part, seed in update.links.items():
        design = assignment.design_of(part)
        seed.require_fits(design)
        assert envelope.link_holds(opened.link_key, part=part, design=design, seed=seed)
        assert not envelope.link_holds(opened.link_key, part=part, design=replace(design, rate=9.0), seed=seed)
        assert not envelope.link_holds(opened.link_key, part=part, design=design, seed=replace(seed, tag=bytes(32)))


def test_public_randomness_is_fresh_for_every_update_and_repeats_only_when_the_scenario_says_so() -> None:
    one, two = sealed().links[Part.PAYLOAD], sealed().links[Part.PAYLOAD]
    assert one.toeplitz != two.toeplitz
    assert one.dither != two.dither
    first, again = sealed(randomness=SEEDED).links[Part.PAYLOAD], sealed(randomness=SEEDED).links[Part.PAYLOAD]
    assert (first.toeplitz, first.dither) == (again.toeplitz, again.dither)


def test_no_seed_makes_a_key_repeat() -> None:
    assert sealed(Protection.KEY, SEEDED).secret != sealed(Protection.KEY, SEEDED).secret


def test_neither_secret_nor_sealed_bytes_show_in_text() -> None:
    update = sealed(Protection.KEY)
    assert repr(update.secret)[2:-1] not in repr(update)
    assert len(repr(replace(update, links={}))) < 200


def test_an_update_above_the_scenarios_limit_is_not_sent() -> None:
    with pytest.raises(LimitExceeded, match="update_bytes_max"):
        replace(UPLINK, update_bytes_max=1000).seal(bytes(2000), bytes_raw=1, key=KEY, assignment=assignment_of())


def test_an_update_is_sealed_once_and_not_per_attempt() -> None:
    with pytest.raises(ValueError, match="sealed once"):
        UPLINK.seal(b"encoded", bytes_raw=1, key=replace(KEY, attempt=2), assignment=assignment_of())


def test_a_design_that_no_coding_point_carries_is_refused_before_the_work() -> None:
    odd = replace(assignment_of(), design=replace(DESIGN, code_bits=10_248))
    with pytest.raises(MalformedUpdate, match="10248"):
        require_sendable(odd)
    for protection in Protection:
        require_sendable(assignment_of(protection=protection))


@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
def test_the_update_has_no_more_bytes_than_it_was_granted(share: float) -> None:
    budget = int(share * CODEC.bytes_max)
    update = sealed(budget_bytes=budget)
    assert 0.5 * budget < update.bytes_encoded <= budget
    assert len(update.data) <= budget + envelope.OVERHEAD_MAX


def test_an_update_that_no_encoding_makes_so_short_is_not_sent() -> None:
    with pytest.raises(BudgetTooSmall, match="10 are granted"):
        sealed(budget_bytes=10)


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", Fidelity)
def test_the_frame_of_all_blocks_carries_the_message(tmp_path: Path, fidelity: Fidelity) -> None:
    frame = framed(tmp_path / "frame", framer=replace(FRAMER, fidelity=fidelity))
    assert frame.layout.fidelity is fidelity
    assert message_of(carried(frame), size=frame.layout.update_bytes) == MESSAGE
    assert frame.path.stat().st_size == frame.layout.size
    assert frame.path.stat().st_mode & 0o777 == 0o600


def test_a_key_and_what_an_open_carrier_brings_arrive_too(tmp_path: Path) -> None:
    secret = bytes(range(32))
    key = framed(tmp_path / "key", message=secret, part=Part.KEY)
    assert (key.layout.part, key.layout.count) == (Part.KEY, 1)
    assert message_of(carried(key), size=32) == secret
    payload = framed(tmp_path / "payload", design=CARRIER, toeplitz=b"")
    assert message_of(carried(payload, design=CARRIER, toeplitz=b""), size=len(MESSAGE)) == MESSAGE


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS - 1), st.sampled_from(Fidelity))
def test_refused_blocks_come_again_unchanged_and_complete_the_message(
    tmp_path_factory: pytest.TempPathFactory, lost: set[int], fidelity: Fidelity
) -> None:
    folder, framer = tmp_path_factory.mktemp("frames"), replace(FRAMER, fidelity=fidelity)
    arrived = {i: p for i, p in carried(framed(folder / "1", framer=framer)).items() if i not in lost}
    again = framed(folder / "2", framer=framer, key=replace(KEY, attempt=2), only=tuple(sorted(lost)))
    assert again.layout.count == len(lost)
    assert message_of(arrived | carried(again), size=len(MESSAGE)) == MESSAGE


@pytest.mark.parametrize("only", [(), (BLOCKS,), (-1, 0)], ids=["none", "beyond", "negative"])
def test_a_receipt_that_names_impossible_blocks_is_refused(tmp_path: Path, only: tuple[int, ...]) -> None:
    with pytest.raises(MalformedUpdate, match="does not have"):
        framed(tmp_path / "frame", only=only)
    assert not list(tmp_path.iterdir())


def test_an_attempt_is_coded_once_and_the_file_is_sent_again_after_a_restart(tmp_path: Path) -> None:
    first = framed(tmp_path / "frame")
    data, inode = first.path.read_bytes(), first.path.stat().st_ino
    second = framed(tmp_path / "frame", framer=replace(FRAMER))
    assert (first.reused, second.reused) == (False, True)
    assert second.layout.head() == first.layout.head()
    assert (second.path.read_bytes(), second.path.stat().st_ino) == (data, inode)


def test_coding_that_is_interrupted_leaves_nothing_that_could_be_sent(tmp_path: Path) -> None:
    stopped = Flag()
    stopped.set()
    with pytest.raises(StaleRound):
        FRAMER.frame(
            MESSAGE,
            path=tmp_path / "frame",
            key=KEY,
            part=Part.PAYLOAD,
            design=DESIGN,
            toeplitz=TOEPLITZ,
            only=None,
            stopped=stopped,
        )
    assert not list(tmp_path.iterdir())
    (tmp_path / "frame.partial").write_bytes(b"what a killed process left")
    assert message_of(carried(framed(tmp_path / "frame")), size=len(MESSAGE)) == MESSAGE
    assert [path.name for path in tmp_path.iterdir()] == ["frame"]


def test_a_file_that_is_not_the_frame_of_the_attempt_is_not_sent(tmp_path: Path) -> None:
    path = framed(tmp_path / "frame").path
    with pytest.raises(MalformedUpdate, match="not the frame of this attempt"):
        framed(path, only=(1, 2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MalformedUpdate):
        framed(path)


def rows(frame: Frame) -> NDArray[np.uint8]:
    return reader_of(frame.path.read_bytes()).chunk(0, design=DESIGN).rows


def test_every_attempt_hides_the_same_blocks_with_other_bits(tmp_path: Path) -> None:
    one, two = (rows(framed(tmp_path / str(n), key=replace(KEY, attempt=n))) for n in (1, 2))
    changed = np.unpackbits(np.bitwise_xor(one, two), axis=1).mean(axis=1)
    # The difference is linear in uniform bits, so its bits are uniform and independent in pairs: mean and variance are known.
    assert np.abs(changed - 0.5).max() < 6 * 0.5 / np.sqrt(8 * DESIGN.coded_bytes)


def test_bits_of_the_operating_system_never_repeat_and_seeded_ones_do(tmp_path: Path) -> None:
    seeded = replace(FRAMER, randomness=SEEDED)
    assert (rows(framed(tmp_path / "a")) != rows(framed(tmp_path / "b"))).any(axis=1).all()
    first = framed(tmp_path / "c", framer=seeded)
    assert framed(tmp_path / "d", framer=seeded).path.read_bytes() == first.path.read_bytes()


@pytest.mark.parametrize("change", [{"attempt": 2}, {"client": "c2"}, {"round_id": 2}], ids=lambda c: next(iter(c)))
def test_seeded_bits_differ_for_every_attempt_client_and_round(tmp_path: Path, change: dict[str, int | str]) -> None:
    seeded = replace(FRAMER, randomness=SEEDED)
    one, two = framed(tmp_path / "1", framer=seeded), framed(tmp_path / "2", framer=seeded, key=replace(KEY, **change))
    assert (rows(one) != rows(two)).any(axis=1).all()


def test_hybrid_sends_a_random_share_as_coded_bits_and_draws_it_anew_per_attempt(tmp_path: Path) -> None:
    hybrid = replace(FRAMER, fidelity=Fidelity.HYBRID, share=0.25)
    message = bytes(400 * DESIGN.payload_bytes)
    layouts = [framed(tmp_path / str(n), framer=hybrid, message=message, key=replace(KEY, attempt=n)).layout for n in (1, 2)]
    # Binomial with 400 trials at 1/4: 100 with a standard deviation of 8.7; five of them, and one block that is always taken.
    assert all(abs(layout.coded_count - 100) <= 45 for layout in layouts)
    assert (layouts[0].coded != layouts[1].coded).any()
    again = framed(tmp_path / "again", framer=hybrid, message=message).layout
    assert (again.coded == layouts[0].coded).all()


def test_hybrid_always_codes_something(tmp_path: Path) -> None:
    hybrid = replace(FRAMER, fidelity=Fidelity.HYBRID, share=1e-9)
    assert framed(tmp_path / "frame", framer=hybrid, only=(3,)).layout.coded_count == 1


def test_a_frame_above_the_scenarios_limit_is_not_coded(tmp_path: Path) -> None:
    size = framed(tmp_path / "fits").layout.size
    assert framed(tmp_path / "just", framer=replace(FRAMER, frame_bytes_max=size)).layout.size == size
    with pytest.raises(LimitExceeded, match=r"limits\.frame_bytes_max"):
        framed(tmp_path / "beyond", framer=replace(FRAMER, frame_bytes_max=size - 1))
    assert not (tmp_path / "beyond").exists()


def test_a_message_of_too_many_blocks_is_not_coded(tmp_path: Path) -> None:
    tiny = replace(DESIGN, message_bits=64, random_bits=4 * 8448 - 64)
    assert block_count(4 * BLOCKS_MAX + 1, design=tiny) == BLOCKS_MAX + 1
    with pytest.raises(LimitExceeded, match=str(BLOCKS_MAX)):
        framed(tmp_path / "frame", message=bytes(4 * BLOCKS_MAX + 1), design=tiny)


def peak_bytes(path: Path, *, blocks: int) -> int:
    message = bytes(blocks * DESIGN.payload_bytes)
    tracemalloc.start()
    try:
        assert framed(path, message=message).layout.size > blocks * DESIGN.coded_bytes
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_coding_holds_a_chunk_and_not_the_frame(tmp_path: Path) -> None:
    framed(tmp_path / "warm")
    short, long = peak_bytes(tmp_path / "short", blocks=300), peak_bytes(tmp_path / "long", blocks=1500)
    assert long - short < 1200 * DESIGN.coded_bytes / 20
