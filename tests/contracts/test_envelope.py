"""Does an envelope open for its owner in its context, and for nobody else, whatever is done to it?"""

import hashlib
import hmac
import io
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common import logs
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import PUBLIC_BYTES, HybridPrivateKey, HybridPublicKey, SharedSecret
from hushtune_common.errors import ConfigError, InvalidEnvelope, MalformedUpdate
from hushtune_common.messages import ClientId, Digest, RunId, SealedUpdate, UpdateKey
from tests.fakes import FakeClock

PRIVATE = HybridPrivateKey.generate()
KEY = UpdateKey(run=RunId("run-1"), round_id=2, client=ClientId("c1"), attempt=1)
EMULATOR = Digest.of(b"emulator")
CODEC = "delta-int8-b64-zstd/1"
PAYLOAD = b"adapter"


def sealed(payload: bytes = PAYLOAD, key: UpdateKey = KEY) -> SealedUpdate:
    return envelope.seal(payload, recipient=PRIVATE.public, key=key, emulator=EMULATOR, codec=CODEC)


def opened(update: SealedUpdate, *, private: HybridPrivateKey = PRIVATE, codec: str = CODEC) -> bytes:
    return envelope.open_sealed(update, private=private, codec=codec)


@given(st.binary(max_size=5000))
def test_what_was_sealed_opens(payload: bytes):
    blob = envelope.to_bytes(sealed(payload))
    assert opened(envelope.from_bytes(blob)) == payload
    assert len(blob) <= len(payload) + envelope.OVERHEAD_MAX


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
    half = 1 + 32
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
        replace(update, public=update.public[:1] + bytes(32) + update.public[33:]),
        replace(update, public=update.public[:-1] + bytes([update.public[-1] ^ 1])),
        replace(update, body=b""),
        replace(update, body=update.body[:-1] + bytes([update.body[-1] ^ 1])),
    ):
        with pytest.raises(InvalidEnvelope) as caught:
            opened(bad)
        refusals.append(caught.value)
    assert len({str(refusal) for refusal in refusals}) == 1
    assert all(refusal.__cause__ is None for refusal in refusals)


def test_the_key_schedule_is_hkdf_over_both_secrets_and_the_transcript():
    """Open by the published construction alone: RFC 5869 from ``hmac``, and the AEAD."""
    update = sealed()
    parts = [b"run-1", (2).to_bytes(8, "little"), b"c1", EMULATOR.value, CODEC.encode()]
    context = b"hushtune/envelope/1" + b"".join(len(p).to_bytes(4, "little") + p for p in parts)
    info = b"hushtune/envelope/1" + PRIVATE.public.to_bytes() + update.public + context
    extracted = hmac.digest(b"hushtune/envelope/1", PRIVATE.decapsulate(update.public[1:]).material, hashlib.sha256)
    first = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    second = hmac.digest(extracted, first + info + b"\x02", hashlib.sha256)
    assert AESGCM(first).decrypt(second[:12], update.body, context + update.public) == PAYLOAD


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
    logs.log_event(logger, "key_made", private=PRIVATE, secret=secret)
    shown = stream.getvalue() + repr(PRIVATE) + str(PRIVATE) + repr(secret) + f"{secret}"
    assert shown.count("masked") == 6
    assert (tmp_path / "k").read_bytes()[1:].hex() not in shown
    assert "xxxx" not in shown
