"""Does intake let genuine updates through, refuse everything else by its type, and stay unchanged when it refuses?"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from hushtune_common.adapter import AdapterState
from hushtune_common.codec import container
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.codec.shipped import state_digest
from hushtune_common.codec.stages import EntropyCoder, split_planes
from hushtune_common.config import CodecConfig
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey, LinkKey
from hushtune_common.errors import (
    ConfigError,
    DigestMismatch,
    HushtuneError,
    InvalidEnvelope,
    LimitExceeded,
    MalformedUpdate,
    NotYours,
    Replayed,
)
from hushtune_common.link.wiretap import open_design
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, LinkSeed, Part, RunId, TensorSpec, UpdateKey
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.intake import Intake, relative_change
from tests.radio import POINTS, link_seed, qpsk_design

CONFIG = CodecConfig(kind="blockwise", bits=8, block_size=64)
KEY = UpdateKey(run=RunId("run-1"), round_id=1, client=ClientId("c1"), attempt=1)
PRIVATE = HybridPrivateKey.generate()
SHIPPED = AdapterState({"layers.0.w": np.full((4, 25), 0.5, np.float32), "layers.7.w": np.zeros(3, np.float32)})
CODEC = make_codec(CONFIG, shipped=SHIPPED)
MANIFEST = EmulatorManifest(
    emulator=Digest.of(b"bundle"),
    size_bytes=6,
    base=Digest.of(b"base"),
    plan=Digest.of(b"plan"),
    tokenizer=Digest.of(b"tokenizer"),
    adapter=tuple(TensorSpec(name=n, shape=t.shape, dtype="F32", block=0) for n, t in SHIPPED.tensors.items()),
    sealing_key=PRIVATE.public.to_bytes(),
    codec=CODEC.id,
)


def intake(accepted: dict[UpdateKey, Digest] | None = None) -> Intake:
    return Intake(manifest=MANIFEST, private=PRIVATE, codec=CODEC, accepted=accepted)


def near(state: AdapterState) -> None:
    """Refuse an adapter that is far from what was shipped."""
    if relative_change(state, shipped=SHIPPED) > 1.0:
        raise LimitExceeded("too far")


@dataclass(frozen=True)
class Sent:
    """What arrives of one update: its bytes, how its parts travelled, and what its key part brought."""

    blob: bytes
    links: Mapping[Part, Link] = field(default_factory=dict[Part, Link])
    secret: bytes = b""

    def to(self, door: Intake, *, key: UpdateKey = KEY) -> AdapterState:
        return door.accept(self.blob, key=key, links=self.links, secret=self.secret, screen=near)


DESIGNS = {Part.PAYLOAD: open_design(POINTS["qpsk-0.825"], codewords=1), Part.KEY: qpsk_design()}


def announced(part: Part, link_key: LinkKey) -> Link:
    """Return a link with a genuine tag."""
    design, seed = DESIGNS[part], link_seed(DESIGNS[part])
    tag = envelope.link_tag(link_key, part=part, design=design, toeplitz=seed.toeplitz, dither=seed.dither)
    return Link(design=design, seed=replace(seed, tag=tag))


def moved(step: float) -> AdapterState:
    return AdapterState({n: t + np.float32(step) for n, t in SHIPPED.tensors.items()})


def update(
    payload: bytes | None = None,
    *,
    step: float = 0.01,
    key: UpdateKey = KEY,
    emulator: Digest = MANIFEST.emulator,
    codec: str = CODEC.id,
    secret: bytes = b"",
) -> Sent:
    """Return a sealed update, genuine unless told otherwise."""
    payload = CODEC.encode(moved(step), budget_bytes=CODEC.bytes_max) if payload is None else payload
    sealing = envelope.seal(payload, recipient=PRIVATE.public, key=key, emulator=emulator, codec=codec, secret=secret)
    links = {part: announced(part, sealing.link_key) for part in ((Part.KEY, Part.PAYLOAD) if secret else (Part.PAYLOAD,))}
    return Sent(blob=envelope.to_bytes(sealing.update), links=links, secret=secret)


def non_finite() -> bytes:
    """Return what only a hostile client can make: a container in good form whose values overflow float32."""
    label = container.Label(codec=CODEC.id, shipped=state_digest(SHIPPED), sections=4)
    coder = EntropyCoder(level=3)
    sections: list[bytes] = []
    for tensor in SHIPPED.tensors.values():
        scales = np.full(-(-tensor.size // 64), 0x7F00, np.uint16)
        sections += [coder.compress(split_planes(scales)), coder.compress(np.full(tensor.size, 127, np.uint8))]
    return container.write(label, container.Contents(form=8, sections=sections))


def bits_of(bits: int) -> bytes:
    """Return a container that claims to spend this many bits per weight."""
    label = container.Label(codec=CODEC.id, shipped=state_digest(SHIPPED), sections=4)
    return container.write(label, container.Contents(form=bits, sections=[b""] * 4))


def damaged(sent: Sent) -> Sent:
    return replace(sent, blob=sent.blob[:-1] + bytes([sent.blob[-1] ^ 1]))


@dataclass(frozen=True)
class Case:
    sent: Sent
    error: type[HushtuneError]
    match: str
    key: UpdateKey = KEY


OTHER_BASE = make_codec(CONFIG, shipped=moved(1e-3))
REFUSED = {
    "non_finite_adapter": Case(update(non_finite()), MalformedUpdate, "not finite"),
    "delta_against_another_base": Case(
        update(OTHER_BASE.encode(moved(0.01), budget_bytes=OTHER_BASE.bytes_max)), MalformedUpdate, "made against"
    ),
    "more_bits_than_the_scenario_allows": Case(update(bits_of(9)), MalformedUpdate, "9 bits per weight"),
    "payload_that_is_no_container": Case(update(b"junk"), MalformedUpdate, "4 bytes"),
    "another_emulator": Case(
        update(emulator=Digest.of(b"old")), DigestMismatch, f"{Digest.of(b'old').short}.*{MANIFEST.emulator.short}"
    ),
    "another_client": Case(update(key=replace(KEY, client=ClientId("c2"))), NotYours, "run-1/1/c2/1 arrived as run-1/1/c1/1"),
    "another_round": Case(update(key=replace(KEY, round_id=2)), NotYours, "run-1/2/c1"),
    "another_run": Case(update(), NotYours, "arrived as run-2", key=replace(KEY, run=RunId("run-2"))),
    "another_codec": Case(update(codec="delta-b16-zstd/2"), InvalidEnvelope, "does not open"),
    "damaged_seal": Case(damaged(update()), InvalidEnvelope, "does not open"),
    "no_envelope": Case(Sent(b"junk"), InvalidEnvelope, "does not open"),
    "too_long": Case(Sent(bytes(100_000)), LimitExceeded, "100000 bytes"),
    "too_far": Case(update(step=0.75), LimitExceeded, "^too far$"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_genuine_is_refused_and_changes_nothing(case: Case):
    door = intake()
    with pytest.raises(case.error, match=case.match):
        case.sent.to(door, key=case.key)
    assert not door.accepted
    assert update().to(door).tensors.keys() == SHIPPED.tensors.keys()


SECRET = bytes(range(32))
BY_KEY = update(secret=SECRET)
UNBOUND: dict[str, Sent] = {
    "wrong_secret": replace(BY_KEY, secret=bytes(32)),
    "no_secret": replace(BY_KEY, secret=b""),
    "short_secret": replace(BY_KEY, secret=SECRET[:-1]),
    "no_word_on_how_the_key_travelled": replace(BY_KEY, links={Part.PAYLOAD: BY_KEY.links[Part.PAYLOAD]}),
    "links_of_another_update": replace(BY_KEY, links=update(secret=SECRET).links),
    "links_swapped": replace(BY_KEY, links={part: BY_KEY.links[other] for part, other in zip(Part, reversed(Part), strict=True)}),
}


def changed(seed: LinkSeed, field_name: str) -> LinkSeed:
    """Return a seed of which one bit is another."""
    value: bytes = getattr(seed, field_name)
    return replace(seed, **{field_name: bytes([value[0] ^ 1]) + value[1:]})


@pytest.mark.parametrize("sent", UNBOUND.values(), ids=UNBOUND.keys())
def test_an_update_whose_key_is_not_the_senders_is_refused_without_a_reason(sent: Sent):
    door = intake()
    with pytest.raises(InvalidEnvelope, match=r"^the seal does not open$"):
        sent.to(door)
    assert not door.accepted


PUBLIC = [(part, what) for part in Part for what in ("tag", "dither", "toeplitz", "design")]


# An open block has no hash seed that could be another one.
@pytest.mark.parametrize(("part", "what"), [pair for pair in PUBLIC if pair != (Part.PAYLOAD, "toeplitz")])
def test_a_link_that_the_sender_did_not_announce_is_refused_without_a_reason(part: Part, what: str):
    link = BY_KEY.links[part]
    other = replace(link.design, log2_delta=-1.0, rho=0.1) if link.design.secret else replace(link.design, rate=0.1)
    forged = replace(link, design=other) if what == "design" else replace(link, seed=changed(link.seed, what))
    with pytest.raises(InvalidEnvelope, match=r"^the seal does not open$"):
        replace(BY_KEY, links={**BY_KEY.links, part: forged}).to(intake())


def test_an_update_sealed_with_a_secret_opens_with_it_and_its_announced_links():
    assert BY_KEY.to(intake()).tensors.keys() == SHIPPED.tensors.keys()


def test_a_key_that_nobody_needs_does_no_harm():
    plain = update()
    superfluous = replace(plain, secret=SECRET, links={**plain.links, Part.KEY: BY_KEY.links[Part.KEY]})
    assert superfluous.to(intake()).tensors.keys() == SHIPPED.tensors.keys()


@pytest.mark.parametrize("missing_bytes", [0, 20, 40])
def test_a_genuine_update_of_any_size_comes_back_within_the_bound_that_it_states(missing_bytes: int):
    payload = CODEC.encode(moved(0.01), budget_bytes=CODEC.bytes_max - missing_bytes)
    state = update(payload).to(intake())
    bound = CODEC.bound(payload)
    for name, tensor in moved(0.01).tensors.items():
        assert (np.abs(state.tensors[name] - tensor) <= bound[name]).all()


def test_a_replayed_update_is_refused():
    door, first = intake(), update(step=0.01)
    first.to(door)
    before = door.accepted
    with pytest.raises(Replayed, match="run-1/1/c1"):
        update(step=0.01).to(door)
    assert door.accepted == before == {KEY: Digest.of(first.blob)}


def test_the_same_bytes_give_the_same_adapter_again_whatever_the_attempt():
    door, sent = intake(), update()
    first = sent.to(door)
    again = sent.to(door, key=replace(KEY, attempt=4))
    assert all((first.tensors[n] == t).all() for n, t in again.tensors.items())
    assert list(door.accepted) == [KEY]


def test_another_client_and_another_round_have_their_own_place():
    door = intake()
    for key in (KEY, replace(KEY, client=ClientId("c2")), replace(KEY, round_id=2)):
        update(key=key).to(door, key=key)
    assert len(door.accepted) == 3


def test_a_restored_intake_still_refuses_replays():
    door, sent = intake(), update()
    sent.to(door)
    restored = intake(accepted=dict(door.accepted))
    sent.to(restored)
    with pytest.raises(Replayed):
        update().to(restored)


def test_a_refused_update_leaves_room_for_a_genuine_one():
    door = intake()
    with pytest.raises(LimitExceeded):
        update(step=0.75).to(door)
    update(step=0.02).to(door)


def test_a_client_with_an_emulator_of_its_own_is_held_to_that_one():
    own, other = Digest.of(b"marked for c1"), Digest.of(b"marked for c2")
    door = Intake(manifest=MANIFEST, private=PRIVATE, codec=CODEC, emulators={KEY.client: own})
    for emulator in (other, MANIFEST.emulator):
        with pytest.raises(DigestMismatch, match=own.short):
            update(emulator=emulator).to(door)
    update(emulator=own).to(door)


def test_parts_that_do_not_belong_together_are_a_wrong_setting():
    with pytest.raises(ConfigError, match="sealing_key"):
        Intake(manifest=MANIFEST, private=HybridPrivateKey.generate(), codec=CODEC)
    other = make_codec(CodecConfig(kind="blockwise", block_size=16), shipped=SHIPPED)
    with pytest.raises(ConfigError, match=r"b64.*b16"):
        Intake(manifest=MANIFEST, private=PRIVATE, codec=other)


def test_the_relative_change_is_that_of_all_tensors_together():
    assert relative_change(moved(0.0), shipped=SHIPPED) == 0.0
    # 103 elements move by 0.5; the start has 100 elements of 0.5 and 3 of zero.
    assert relative_change(moved(0.5), shipped=SHIPPED) == pytest.approx((103 / 100) ** 0.5)
    zero = AdapterState({"w": np.zeros(2, np.float32)})
    assert relative_change(AdapterState({"w": np.ones(2, np.float32)}), shipped=zero) == float("inf")
    assert relative_change(zero, shipped=zero) == 0.0
    huge = AdapterState({"w": np.full(2, 3e38, np.float32)})
    assert relative_change(zero, shipped=huge) == 1.0
