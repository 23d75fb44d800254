"""Does a pair of signatures hold for exactly its message, purpose and signer, and fall with either half?"""

import stat
from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.crypto import signing
from hushtune_common.crypto.signing import Signature, SigningKey, VerifyingKey, checkable
from hushtune_common.errors import ConfigError, MalformedUpdate, UntrustedSigner

PAIR = SigningKey.generate(post_quantum=True)
OTHER = SigningKey.generate(post_quantum=True)
CLASSICAL = SigningKey.generate(post_quantum=False)
MESSAGE = b"eight blocks of an emulator"
SIGNED = PAIR.sign(MESSAGE, purpose="release")


def test_what_is_signed_is_label_purpose_all_keys_and_message_each_with_its_length() -> None:
    parts = [b"release", PAIR.public.to_bytes(), MESSAGE]
    framed = b"hushtune/signature/1" + b"".join(len(p).to_bytes(8, "little") + p for p in parts)
    Ed25519PublicKey.from_public_bytes(PAIR.public.ed25519).verify(SIGNED.ed25519, framed)
    assert PAIR.public.ml_dsa_65 is not None
    assert SIGNED.ml_dsa_65 is not None
    MLDSA65PublicKey.from_public_bytes(PAIR.public.ml_dsa_65).verify(SIGNED.ml_dsa_65, framed, b"hushtune/signature/1")


def test_a_signature_holds_for_its_message_purpose_and_signer_only() -> None:
    PAIR.public.verify(SIGNED, MESSAGE, purpose="release")
    for key, message, purpose in (
        (PAIR, MESSAGE + b"s", "release"),
        (PAIR, MESSAGE, "return"),
        (PAIR, b"e" + MESSAGE, "releas"),
        (OTHER, MESSAGE, "release"),
    ):
        with pytest.raises(UntrustedSigner, match=r"^signatures\.ed25519: does not hold"):
            key.public.verify(SIGNED, message, purpose=purpose)


def test_both_halves_have_to_hold() -> None:
    other = OTHER.sign(MESSAGE, purpose="release")
    with pytest.raises(UntrustedSigner, match=r"^signatures\.ml-dsa-65: does not hold"):
        PAIR.public.verify(Signature(ed25519=SIGNED.ed25519, ml_dsa_65=other.ml_dsa_65), MESSAGE, purpose="release")
    with pytest.raises(UntrustedSigner, match=r"^signatures\.ed25519: does not hold"):
        PAIR.public.verify(Signature(ed25519=other.ed25519, ml_dsa_65=SIGNED.ml_dsa_65), MESSAGE, purpose="release")


def test_a_half_cannot_be_taken_away_or_added() -> None:
    with pytest.raises(UntrustedSigner, match=r"^signatures\.ml-dsa-65: missing"):
        PAIR.public.verify(Signature(ed25519=SIGNED.ed25519, ml_dsa_65=None), MESSAGE, purpose="release")
    single = CLASSICAL.sign(MESSAGE, purpose="release")
    CLASSICAL.public.verify(single, MESSAGE, purpose="release")
    with pytest.raises(UntrustedSigner, match=r"^signatures\.ml-dsa-65: there"):
        CLASSICAL.public.verify(Signature(ed25519=single.ed25519, ml_dsa_65=SIGNED.ml_dsa_65), MESSAGE, purpose="release")


def test_a_cut_off_half_is_no_signature_of_somebody_with_that_key_alone() -> None:
    alone = VerifyingKey(ed25519=PAIR.public.ed25519, ml_dsa_65=None)
    with pytest.raises(UntrustedSigner, match=r"^signatures\.ed25519: does not hold"):
        alone.verify(Signature(ed25519=SIGNED.ed25519, ml_dsa_65=None), MESSAGE, purpose="release")


@given(st.integers(0, 8 * (64 + 3309) - 1))
def test_no_bit_of_a_signature_can_change(bit: int) -> None:
    assert SIGNED.ml_dsa_65 is not None
    both = bytearray(SIGNED.ed25519 + SIGNED.ml_dsa_65)
    both[bit // 8] ^= 1 << bit % 8
    with pytest.raises(UntrustedSigner):
        PAIR.public.verify(Signature(ed25519=bytes(both[:64]), ml_dsa_65=bytes(both[64:])), MESSAGE, purpose="release")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_signatures_of_another_length_do_not_hold(length: int) -> None:
    with pytest.raises(UntrustedSigner):
        CLASSICAL.public.verify(Signature(ed25519=bytes(length), ml_dsa_65=None), MESSAGE, purpose="release")


def test_keys_of_another_length_are_named() -> None:
    with pytest.raises(MalformedUpdate, match=r"^ed25519: a key has 32 bytes, got 31"):
        VerifyingKey(ed25519=bytes(31), ml_dsa_65=None)
    with pytest.raises(MalformedUpdate, match=r"^ml-dsa-65: a key has 1952 bytes"):
        VerifyingKey(ed25519=bytes(32), ml_dsa_65=bytes(10))


@pytest.mark.parametrize("key", [PAIR, CLASSICAL], ids=["pair", "classical"])
def test_a_saved_key_comes_back_and_is_its_users_only(key: SigningKey, tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = SigningKey.load(path)
    assert (again.public, again.public.algorithms) == (key.public, key.public.algorithms)
    key.public.verify(again.sign(MESSAGE, purpose="return"), MESSAGE, purpose="return")


@pytest.mark.parametrize("content", [b"", b"\x01" + bytes(31), b"\x02" + bytes(32), b"\x01" + bytes(65), b"\x01" + bytes(33)])
def test_a_file_that_is_no_key_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a signing key") as caught:
        SigningKey.load(path)
    assert caught.value.field == str(path)


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the signing key"):
        SigningKey.load(tmp_path / "nowhere")


def test_private_keys_are_masked_and_fresh() -> None:
    assert repr(PAIR) == "<SigningKey, masked>"
    assert PAIR.public != OTHER.public
    assert len({PAIR.public, OTHER.public, CLASSICAL.public, VerifyingKey(ed25519=PAIR.public.ed25519, ml_dsa_65=None)}) == 4


@pytest.mark.parametrize("purpose", ["", "x" * 65, "é"])
def test_a_purpose_is_short_ascii(purpose: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 ASCII"):
        PAIR.sign(MESSAGE, purpose=purpose)


class Unable:
    """What the library's classes do where the cryptography underneath has no ML-DSA."""

    @staticmethod
    def from_public_bytes(data: bytes) -> "Unable":
        raise UnsupportedAlgorithm("ML-DSA is not supported")

    from_seed_bytes = from_public_bytes

    @staticmethod
    def generate() -> "Unable":
        raise UnsupportedAlgorithm("ML-DSA is not supported")


@pytest.fixture
def without_ml_dsa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "MLDSA65PublicKey", Unable)
    monkeypatch.setattr(signing, "MLDSA65PrivateKey", Unable)


@pytest.mark.usefixtures("without_ml_dsa")
def test_a_machine_without_ml_dsa_signs_with_the_other_and_never_skips_what_it_cannot_check(tmp_path: Path) -> None:
    assert checkable() == ("ed25519",)
    assert SigningKey.generate().public.algorithms == ("ed25519",)
    with pytest.raises(ConfigError, match="no ML-DSA-65"):
        PAIR.public.verify(SIGNED, MESSAGE, purpose="release")
    with pytest.raises(ConfigError, match="no ML-DSA-65"):
        SigningKey.generate(post_quantum=True)
    PAIR.save(tmp_path / "signing.key")
    with pytest.raises(ConfigError, match="no ML-DSA-65"):
        SigningKey.load(tmp_path / "signing.key")


def test_this_machine_says_what_it_can_check() -> None:
    assert checkable() == ("ed25519", "ml-dsa-65")
