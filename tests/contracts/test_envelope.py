"""Does an envelope open for its owner in its context, and for nobody else, whatever is done to it?"""

import hashlib
import hmac
import io
import logging
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common import logs
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import PUBLIC_BYTES, HybridPrivateKey, HybridPublicKey, LinkKey, SharedSecret
from hushtune_common.errors import ConfigError, InvalidEnvelope, MalformedUpdate
from hushtune_common.messages import (
    ClientId,
    Digest,
    LinkSeed,
    Part,
    RunId,
    SealedUpdate,
    SecrecyDesign,
    TapModel,
    UpdateKey,
)
from hushtune_common.units import Decibel
from tests.fakes import DESIGN, FakeClock

PRIVATE = HybridPrivateKey.generate()
KEY = UpdateKey(run=RunId("run-1"), round_id=2, client=ClientId("c1"), attempt=1)
EMULATOR = Digest.of(b"emulator")
CODEC = "delta-int8-b64-zstd/1"
PAYLOAD = b"adapter"
SECRET = bytes(range(32))


def sealed(payload: bytes = PAYLOAD, *, key: UpdateKey = KEY, secret: bytes = b"") -> SealedUpdate:
    return envelope.seal(payload, recipient=PRIVATE.public, key=key, emulator=EMULATOR, codec=CODEC, secret=secret).update


def opened(update: SealedUpdate, *, private: HybridPrivateKey = PRIVATE, codec: str = CODEC, secret: bytes = b"") -> bytes:
    return envelope.open_sealed(update, private=private, codec=codec, secret=secret).payload


@given(st.binary(max_size=5000), st.sampled_from([b"", SECRET, bytes(32)]))
def test_what_was_sealed_opens(payload: bytes, secret: bytes):
    blob = envelope.to_bytes(sealed(payload, secret=secret))
    assert opened(envelope.from_bytes(blob), secret=secret) == payload
    assert len(blob) <= len(payload) + envelope.OVERHEAD_MAX


def test_the_update_says_whether_it_needs_a_secret():
    assert envelope.needs_secret(sealed(secret=SECRET))
    assert not envelope.needs_secret(sealed())


@pytest.mark.parametrize(
    "given_secret",
    [b"", bytes(32), SECRET[:31], SECRET + b"\0", bytes([SECRET[0] ^ 1]) + SECRET[1:]],
    ids=["none", "zeros", "short", "long", "changed"],
)
def test_an_update_that_needs_a_secret_opens_with_that_one_only(given_secret: bytes):
    with pytest.raises(InvalidEnvelope):
        opened(sealed(secret=SECRET), secret=given_secret)


@pytest.mark.parametrize("secret", [SECRET, bytes(32), b"x"], ids=["random", "zeros", "short"])
def test_an_update_that_needs_no_secret_refuses_one(secret: bytes):
    with pytest.raises(InvalidEnvelope):
        opened(sealed(), secret=secret)


@pytest.mark.parametrize("made_with", [b"", SECRET], ids=["without", "with"])
@pytest.mark.parametrize("offered", [b"", SECRET], ids=["without", "with"])
def test_the_byte_that_asks_for_a_secret_is_authenticated(made_with: bytes, offered: bytes):
    update = sealed(secret=made_with)
    for flag in {0, 1, 2, 255} - {update.public[1]}:
        with pytest.raises(InvalidEnvelope):
            opened(replace(update, public=update.public[:1] + bytes([flag]) + update.public[2:]), secret=offered)


@pytest.mark.parametrize("length", [1, 31, 33])
def test_a_secret_of_another_length_is_not_sealed_with(length: int):
    with pytest.raises(ValueError, match="32 bytes"):
        sealed(secret=bytes(length))


@given(st.integers(1, 2**64 - 1), st.text("az09", min_size=1, max_size=63))
def test_a_sealed_update_survives_its_bytes(round_id: int, name: str):
    update = sealed(key=UpdateKey(run=RunId(name), round_id=round_id, client=ClientId(name[::-1]), attempt=1))
    assert envelope.from_bytes(envelope.to_bytes(update)) == update


def test_every_flipped_byte_is_refused():
    blob = envelope.to_bytes(sealed())
    for at in range(len(blob)):
        damaged = blob[:at] + bytes([blob[at] ^ 0x01]) + blob[at + 1 :]
        with pytest.raises(InvalidEnvelope):
            opened(envelope.from_bytes(damaged))


def test_every_shortened_or_lengthened_blob_is_refused():
    blob = envelope.to_bytes(sealed())
    for damaged in [*(blob[:length] for length in range(len(blob))), blob + b"\0", b"\0" + blob]:
        with pytest.raises(InvalidEnvelope):
            envelope.from_bytes(damaged)


@given(st.binary(max_size=2000), st.booleans())
def test_arbitrary_bytes_are_refused(blob: bytes, marked: bool):
    with pytest.raises(InvalidEnvelope):
        envelope.from_bytes(envelope.MAGIC + envelope.VERSION + blob if marked else blob)


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, run=RunId("run-2")),
        replace(KEY, round_id=3),
        replace(KEY, client=ClientId("c2")),
        replace(KEY, run=RunId("run-1c"), client=ClientId("1")),
    ],
    ids=lambda key: key.text,
)
def test_an_envelope_does_not_open_in_another_context(other: UpdateKey):
    with pytest.raises(InvalidEnvelope):
        opened(replace(sealed(), key=other))


def test_an_envelope_does_not_open_for_another_emulator_codec_or_key():
    update = sealed()
    with pytest.raises(InvalidEnvelope):
        opened(replace(update, emulator=Digest.of(b"another")))
    with pytest.raises(InvalidEnvelope):
        opened(update, codec="delta-int4-b64-zstd/1")
    with pytest.raises(InvalidEnvelope):
        opened(update, private=HybridPrivateKey.generate())


def test_parts_of_two_envelopes_do_not_mix():
    one, two = sealed(), sealed()
    half = 2 + 32
    for public in (two.public, one.public[:half] + two.public[half:], two.public[:half] + one.public[half:]):
        with pytest.raises(InvalidEnvelope):
            opened(replace(one, public=public))


def test_the_attempt_counts_transmissions_and_is_not_bound():
    assert sealed(key=replace(KEY, attempt=5)).key == KEY


def test_sealing_twice_gives_unrelated_bytes():
    one, two = sealed(bytes(64)), sealed(bytes(64))
    assert one.public != two.public
    assert one.body != two.body


def test_every_refusal_looks_the_same():
    update = sealed()
    refusals: list[InvalidEnvelope] = []
    for bad in (
        replace(update, public=update.public[:-1]),
        replace(update, public=update.public[:2] + bytes(32) + update.public[34:]),
        replace(update, public=update.public[:1] + b"\x02" + update.public[2:]),
        replace(update, public=update.public[:-1] + bytes([update.public[-1] ^ 1])),
        replace(update, body=b""),
        replace(update, body=update.body[:-1] + bytes([update.body[-1] ^ 1])),
    ):
        with pytest.raises(InvalidEnvelope) as caught:
            opened(bad)
        refusals.append(caught.value)
    assert len({str(refusal) for refusal in refusals}) == 1
    assert all(refusal.__cause__ is None for refusal in refusals)


def expanded(material: bytes, *, salt: bytes, info: bytes) -> bytes:
    """64 bytes of RFC 5869, from ``hmac`` alone."""
    extracted = hmac.digest(salt, material, hashlib.sha256)
    first = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    return first + hmac.digest(extracted, first + info + b"\x02", hashlib.sha256)


def joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


CONTEXT = b"hushtune/envelope/2" + joined(b"run-1", (2).to_bytes(8, "little"), b"c1", EMULATOR.value, CODEC.encode())


@pytest.mark.parametrize("secret", [b"", SECRET], ids=["two secrets", "three secrets"])
def test_the_key_schedule_is_hkdf_over_all_secrets_and_the_transcript(secret: bytes):
    """Open by the published construction alone: RFC 5869 from ``hmac``, and the AEAD."""
    update = sealed(secret=secret)
    info = b"hushtune/envelope/2" + PRIVATE.public.to_bytes() + update.public + CONTEXT
    material = PRIVATE.decapsulate(update.public[2:]).material + secret
    okm = expanded(material, salt=b"hushtune/envelope/2", info=info)
    assert AESGCM(okm[:32]).decrypt(okm[32:44], update.body, CONTEXT + update.public) == PAYLOAD


def test_the_link_key_is_hkdf_over_the_agreement_under_a_label_of_its_own():
    sealing = envelope.seal(PAYLOAD, recipient=PRIVATE.public, key=KEY, emulator=EMULATOR, codec=CODEC, secret=SECRET)
    info = b"hushtune/link-key/2" + PRIVATE.public.to_bytes() + sealing.update.public + CONTEXT
    agreed = PRIVATE.decapsulate(sealing.update.public[2:]).material
    assert sealing.link_key.material == expanded(agreed, salt=b"hushtune/link-key/2", info=info)[:32]


@pytest.mark.parametrize("secret", [b"", SECRET], ids=["two secrets", "three secrets"])
def test_both_sides_have_one_link_key_per_update(secret: bytes):
    first, second = (
        envelope.seal(PAYLOAD, recipient=PRIVATE.public, key=KEY, emulator=EMULATOR, codec=CODEC, secret=secret) for _ in range(2)
    )
    opening = envelope.open_sealed(first.update, private=PRIVATE, codec=CODEC, secret=secret)
    assert opening.link_key.material == first.link_key.material != second.link_key.material


LINK = LinkKey(bytes(range(32)))
TOEPLITZ, DITHER = bytes(DESIGN.toeplitz_bytes), b"\x5a" * DESIGN.coded_bytes


def announced(*, part: Part = Part.PAYLOAD, design: SecrecyDesign = DESIGN) -> LinkSeed:
    tag = envelope.link_tag(LINK, part=part, design=design, toeplitz=TOEPLITZ, dither=DITHER)
    return LinkSeed(toeplitz=TOEPLITZ, dither=DITHER, tag=tag)


def test_a_tag_is_hmac_over_everything_that_is_public_about_a_transmission():
    """Rebuilt by hand, RFC 2104 from ``hashlib`` alone; the levels are little-endian doubles."""
    counts = (10_240, 8_448, 4, 8_448, 25_344, 0)
    levels = b"".join(struct.pack("<d", level) for level in (-5.0, -64.0, 0.5, 8_448 / 20_480))
    text = b"hushtune/link-tag/2" + joined(b"payload", b"qpsk", b"fixed", *(b"%d" % n for n in counts), levels, TOEPLITZ, DITHER)
    padded = LINK.material + bytes(32)
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in padded) + text).digest()
    assert announced().tag == hashlib.sha256(bytes(b ^ 0x5C for b in padded) + inner).digest()


def test_a_tag_holds_for_what_it_was_made_for():
    assert envelope.link_holds(LINK, part=Part.PAYLOAD, design=DESIGN, seed=announced())
    assert envelope.link_holds(LINK, part=Part.KEY, design=DESIGN, seed=announced(part=Part.KEY))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@given(st.sampled_from(["toeplitz", "dither", "tag"]), st.integers(0, 10_000))
def test_a_tag_fails_on_any_changed_byte(name: str, at: int):
    seed = announced()
    value: bytes = getattr(seed, name)
    changed = replace(seed, **{name: flipped(value, at % len(value))})
    assert not envelope.link_holds(LINK, part=Part.PAYLOAD, design=DESIGN, seed=changed)


OTHER_DESIGNS: dict[str, Callable[[SecrecyDesign], SecrecyDesign]] = {
    "modulation": lambda d: replace(d, modulation="qam16"),
    "code_bits": lambda d: replace(d, code_bits=d.code_bits + 8),
    "info_bits": lambda d: replace(d, info_bits=d.info_bits * 2, codewords=d.codewords // 2),
    "message_bits": lambda d: replace(d, message_bits=d.message_bits + 8, random_bits=d.random_bits - 8),
    "snr_tap_design_db": lambda d: replace(d, snr_tap_design_db=Decibel(-6.0)),
    "log2_delta": lambda d: replace(d, log2_delta=-65.0),
    "rho": lambda d: replace(d, rho=0.25),
    "rate": lambda d: replace(d, rate=0.5),
    "tap_model": lambda d: replace(d, tap_model=TapModel.OUTAGE, subbands=1),
    "subbands": lambda d: replace(d, subbands=16),
}


@pytest.mark.parametrize("change", OTHER_DESIGNS.values(), ids=OTHER_DESIGNS.keys())
def test_a_tag_fails_for_another_design(change: Callable[[SecrecyDesign], SecrecyDesign]):
    assert not envelope.link_holds(LINK, part=Part.PAYLOAD, design=change(DESIGN), seed=announced())


def test_a_tag_fails_for_another_part_or_update():
    assert not envelope.link_holds(LINK, part=Part.KEY, design=DESIGN, seed=announced())
    assert not envelope.link_holds(LinkKey(bytes(32)), part=Part.PAYLOAD, design=DESIGN, seed=announced())


def test_bytes_cannot_move_from_the_hash_seed_to_the_dither():
    moved = LinkSeed(toeplitz=TOEPLITZ + DITHER[:1], dither=DITHER[1:], tag=announced().tag)
    assert not envelope.link_holds(LINK, part=Part.PAYLOAD, design=DESIGN, seed=moved)


def test_a_level_counts_by_its_value_whatever_its_type():
    assert announced(design=replace(DESIGN, snr_tap_design_db=Decibel(-5))) == announced()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_link_key_has_32_bytes(length: int):
    with pytest.raises(ValueError, match="32 bytes"):
        LinkKey(bytes(length))


def test_both_sides_agree_on_a_secret_with_two_halves():
    public, secret = PRIVATE.public.encapsulate()
    other_public, other = PRIVATE.public.encapsulate()
    assert PRIVATE.decapsulate(public).material == secret.material
    mixed = PRIVATE.decapsulate(public[:32] + other_public[32:]).material
    assert mixed == other.material[:32] + secret.material[32:]


def test_a_public_key_survives_its_bytes():
    data = PRIVATE.public.to_bytes()
    assert len(data) == PUBLIC_BYTES == 1217
    assert HybridPublicKey.from_bytes(data) == PRIVATE.public


@pytest.mark.parametrize(
    "damage", [b"", bytes(PUBLIC_BYTES), b"\x01" + b"\xff" * (PUBLIC_BYTES - 1), b"\x01" * (PUBLIC_BYTES + 1)]
)
def test_bytes_that_are_no_public_key_are_malformed(damage: bytes):
    with pytest.raises(MalformedUpdate):
        HybridPublicKey.from_bytes(damage)


def test_a_key_that_would_make_the_secret_public_is_refused_by_the_sealer():
    degenerate = HybridPublicKey.from_bytes(b"\x01" + bytes(32) + PRIVATE.public.to_bytes()[33:])
    with pytest.raises(MalformedUpdate):
        envelope.seal(PAYLOAD, recipient=degenerate, key=KEY, emulator=EMULATOR, codec=CODEC)


def test_a_private_key_survives_its_file_which_only_its_user_may_read(tmp_path: Path):
    path = tmp_path / "sealing.key"
    for private in (HybridPrivateKey.generate(), PRIVATE):
        private.save(path)
        assert HybridPrivateKey.load(path).public == private.public
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["sealing.key"]
    assert opened(sealed(), private=HybridPrivateKey.load(path)) == PAYLOAD


@pytest.mark.parametrize("content", [None, b"", b"\x01" + bytes(95), b"\x02" + bytes(96), bytes(10_000)])
def test_a_file_that_is_no_private_key_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "sealing.key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"sealing\.key"):
        HybridPrivateKey.load(path)


def test_secrets_do_not_show_in_text_or_logs(tmp_path: Path):
    secret = SharedSecret(x25519=b"x" * 32, mlkem=b"m" * 32)
    PRIVATE.save(tmp_path / "k")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter(clock=FakeClock(), bound={}))
    logger = logging.Logger("hushtune.test")  # not registered, so nothing outlives the test
    logger.addHandler(handler)
    link = LinkKey(b"l" * 32)
    logs.log_event(logger, "process_failed", reason=PRIVATE, problem=secret, exit_code=link)
    opening = envelope.Opening(payload=b"private", link_key=link)
    shown = stream.getvalue() + repr(PRIVATE) + str(PRIVATE) + repr(secret) + f"{secret}" + repr(link) + f"{link}{opening}"
    assert shown.count("masked") == 10
    assert (tmp_path / "k").read_bytes()[1:].hex() not in shown
    assert not any(word in shown for word in ("xxxx", "llll", "private'"))
