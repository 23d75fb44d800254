"""Are the streams, keys and parcels what they are said to be, and who can say what in whose name?"""

import hmac
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from hushtune_common.errors import ConfigError, InvalidEnvelope, MalformedUpdate
from hushtune_common.messages import ClientId, Digest, Role
from hushtune_common.secagg import keys, masks, record
from hushtune_common.secagg.identity import Identity, Verifier
from hushtune_common.secagg.masks import Mask
from hushtune_common.secagg.record import Secret
from hushtune_common.wire.kit import Kit
from hushtune_server import pki
from tests.fakes import FakeClock
from tests.secagg import terms_for

A, B = ClientId("a"), ClientId("b")
VIEW = Digest.of(b"view")
KEY = bytes(range(32))
STRETCH = 1 << 14


def counter_mode(key: bytes, *, words: int) -> list[int]:
    """The definition (NIST SP 800-38A): encrypt 0, 1, 2 ... block by block."""
    block = Cipher(AES(key), ECB()).encryptor()
    stream = b"".join(block.update(k.to_bytes(16, "big")) for k in range(-(-words // 2)))
    return [int.from_bytes(stream[8 * k : 8 * k + 8], "little") for k in range(words)]


@pytest.mark.parametrize("words", [1, 2, 5, STRETCH - 1, STRETCH, STRETCH + 3])
def test_a_mask_is_the_stream_of_its_key_added_modulo_two_to_the_64(words: int):
    payload = np.random.default_rng(words).integers(0, 2**64, words, dtype=np.uint64)
    masked = payload.copy()
    masks.apply(masked, [Mask(key=KEY, negative=False)])
    expected = [(int(p) + s) % 2**64 for p, s in zip(payload, counter_mode(KEY, words=words), strict=True)]
    assert masked.tolist() == expected
    masks.apply(masked, [Mask(key=KEY, negative=True)])
    assert (masked == payload).all()


def test_masks_add_up_whatever_their_order():
    own = [Mask(key=bytes([k]) * 32, negative=k % 2 == 1) for k in range(5)]
    forward, back = np.zeros(100, dtype=np.uint64), np.zeros(100, dtype=np.uint64)
    masks.apply(forward, own)
    masks.apply(back, own[::-1])
    assert (forward == back).all()


def test_words_in_another_order_of_bytes_are_refused():
    with pytest.raises(ValueError, match="little-endian"):
        masks.apply(np.zeros(4, dtype=">u8"), [])


def hkdf(material: bytes, *, info: bytes, salt: bytes = b"hushtune/secagg/1") -> bytes:
    """RFC 5869, for one block of output."""
    return hmac.digest(hmac.digest(salt, material, "sha256"), info + b"\x01", "sha256")


def listed(*parts: bytes) -> bytes:
    return b"".join(len(p).to_bytes(4, "little") + p for p in parts)


def secret() -> Secret:
    return keys.Secrets.generate().mask


def pair(own: Secret, other: Secret, *, names: tuple[ClientId, ClientId] = (A, B), view: Digest = VIEW) -> bytes:
    return keys.pair_key(own, own=names[0], other=names[1], public=keys.public_of(other.material), view=view)


def test_both_sides_of_a_pair_find_the_key_that_the_standards_give():
    own, other = secret(), secret()
    agreed = X25519PrivateKey.from_private_bytes(own.material).exchange(
        X25519PublicKey.from_public_bytes(keys.public_of(other.material))
    )
    expected = hkdf(agreed, info=listed(b"hushtune/secagg/1", b"pair", VIEW.value, b"a", b"b"))
    assert pair(own, other) == pair(other, own, names=(B, A)) == expected


def test_a_key_is_good_for_one_pair_and_one_view():
    own, other = secret(), secret()
    found = {
        pair(own, other),
        pair(own, other, names=(A, ClientId("c"))),
        pair(own, other, view=Digest.of(b"another round")),
        pair(own, secret()),
        keys.self_key(own.material, member=A, view=VIEW),
        keys.self_key(own.material, member=B, view=VIEW),
    }
    assert len(found) == 6


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little")])
def test_a_point_of_small_order_is_no_key(point: bytes):
    with pytest.raises(MalformedUpdate):
        keys.pair_key(secret(), own=A, other=B, public=point, view=VIEW)


def test_a_parcel_opens_for_its_holder_from_its_dealer_in_its_roster_only():
    dealer, holder, roster = secret(), secret(), Digest.of(b"roster")
    shares = keys.Shares(seed=bytes(33), key=b"\x01" * 33)
    parcel = keys.sealed_parcel(shares, private=dealer, dealer=A, holder=B, public=keys.public_of(holder.material), roster=roster)

    def opened(data: bytes = parcel, *, private: Secret = holder, by: ClientId = A, to: ClientId = B, of: Digest = roster):
        public = keys.public_of(dealer.material)
        return keys.opened_parcel(data, private=private, dealer=by, holder=to, public=public, roster=of)

    assert opened() == shares
    for wrong in (
        lambda: opened(parcel[:-1] + bytes([parcel[-1] ^ 1])),
        lambda: opened(private=secret()),
        lambda: opened(by=B, to=A),
        lambda: opened(of=Digest.of(b"another roster")),
    ):
        with pytest.raises(InvalidEnvelope):
            wrong()


def test_shares_are_the_same_whenever_they_are_asked_for_and_others_for_another_roster():
    own = keys.Secrets.generate()
    first, again = (keys.shares_of(own, roster=VIEW, threshold=3, at=range(1, 6)) for _ in range(2))
    other = keys.shares_of(own, roster=Digest.of(b"another"), threshold=3, at=range(1, 6))
    assert first == again
    assert all(first[k].seed != other[k].seed and first[k].seed != first[k].key for k in first)


def test_secrets_show_nowhere_and_survive_a_restart():
    own = keys.Secrets.generate()
    shown = f"{own!r} {own.mask} {Mask(key=own.mask.material, negative=False)!r}"
    assert own.mask.material.hex() not in shown
    assert str(own.mask.material) not in shown
    assert record.from_bytes(record.to_bytes(own), keys.Secrets) == own
    with pytest.raises(TypeError):
        hash(own.mask)


@pytest.mark.parametrize("data", [b"", b"HTSR\x01", b"HTSR\x01\x80", b"HTSR\x02" + bytes(9), b"\x80"])
def test_what_is_no_state_is_refused(data: bytes):
    with pytest.raises(MalformedUpdate):
        record.from_bytes(data, keys.Secrets)


# --- who says so ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, clock = tmp_path_factory.mktemp("kits"), FakeClock()
    for authority in ("ca", "stranger"):
        pki.init(folder / authority, clock=clock)
    for name in ("c1", "c2"):
        pki.issue(folder / "ca", role=Role.CLIENT, name=name, out=folder / name, clock=clock)
    pki.issue(folder / "ca", role=Role.AIR, name="c1", out=folder / "air", clock=clock)
    pki.issue(folder / "stranger", role=Role.CLIENT, name="c1", out=folder / "forged", clock=clock)
    return folder


def identity(kits: Path, name: str) -> Identity:
    kit = Kit.load(kits / name)
    return Identity(certificate=kit.certificate, key=kit.key)


def says(kits: Path, proof: bytes, *, client: str = "c1", message: bytes = b"word", days: float = 0.0) -> bool:
    """Whether ``client`` is believed, so many days after the kits were issued."""
    verifier = Verifier(authority=Kit.load(kits / "c1").ca, clock=FakeClock(start=86_400 * days))
    return verifier.verify(ClientId(client), message, proof)


def test_a_client_is_believed_in_its_own_name_for_its_own_words(kits: Path):
    proof = identity(kits, "c1").sign(b"word")
    assert says(kits, proof)
    assert not says(kits, proof, client="c2")
    assert not says(kits, proof, message=b"another word")


@pytest.mark.parametrize("signer", ["c2", "air", "forged"])
def test_nobody_else_is_believed_in_a_clients_name(kits: Path, signer: str):
    assert not says(kits, identity(kits, signer).sign(b"word"))


@pytest.mark.parametrize("days", [-1.0, 91.0])
def test_a_certificate_counts_while_it_is_valid(kits: Path, days: float):
    assert not says(kits, identity(kits, "c1").sign(b"word"), days=days)


def test_a_mangled_proof_is_no_proof_and_no_crash(kits: Path):
    proof = identity(kits, "c1").sign(b"word")
    rng = np.random.default_rng(3)
    assert not any(says(kits, proof[:cut]) for cut in range(0, len(proof), 37))
    for _ in range(40):
        at = int(rng.integers(len(proof)))
        assert not says(kits, proof[:at] + bytes([proof[at] ^ int(rng.integers(1, 256))]) + proof[at + 1 :])


def test_a_key_that_is_not_the_certificates_is_refused(kits: Path):
    with pytest.raises(ConfigError, match=r"tls\.key does not belong"):
        Identity(certificate=Kit.load(kits / "c1").certificate, key=Kit.load(kits / "c2").key)


def test_an_identity_does_not_show_its_key(kits: Path):
    assert repr(identity(kits, "c1")) == "<Identity, masked>"


def test_a_commitment_binds_the_seed_to_member_and_terms():
    found = {
        keys.commitment(seed, member=member, terms=terms_for(round_id=round_id))
        for seed in (bytes(32), bytes([1]) * 32)
        for member in (A, B)
        for round_id in (1, 2)
    }
    assert len(found) == 8
