"""What do the roles of secure aggregation say to each other, and what exactly is signed?

::

    member --Advertisement--> relay --Roster--> members, aggregator
    member --Deal--> relay --Delivery--> members, aggregator (which gets the names only)
    member --Upload, sealed--> aggregator --Survivors--> relay --> members
    member --Vow--> relay --Vows--> members
    member --Opening--> aggregator

Whatever is signed or derived names the terms, hence run and round, so nothing of one round has a meaning in another.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hushtune_common.aggregation import threshold
from hushtune_common.errors import MalformedUpdate
from hushtune_common.messages import ClientId, Digest, RunId, SumWord, require_name
from hushtune_common.secagg.shamir import SHARE_BYTES

KEY_BYTES: Final = 32
PARCEL_BYTES: Final = 2 * SHARE_BYTES + 16
"""Two shares under AES-GCM."""
PROOF_BYTES_MAX: Final = 8192
MEMBERS_MAX: Final = 1024
WORDS_MAX: Final = 2**31
"""16 GiB of payload."""
_UPLOAD_MAGIC: Final = b"HTSA\x01"

Sign = Callable[[bytes], bytes]
"""Returns a proof that the caller's own identity said these bytes."""
Verify = Callable[[ClientId, bytes, bytes], bool]
"""Whether a client said these bytes (second), by its proof (third)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What everybody agrees on before a round: what is added, and how many have to stand together.

    ``grid`` is the digest of the numbers' layout and ``words`` the length of a payload in words of 64 bits. A roster has from
    ``members_min`` to ``members_max`` members. More than ``share`` of the holders of a secret open it, and more than ``share`` of
    the roster have to survive. Each masks with ``degree`` others; 0 stands for all. ``colluders`` are so many members that may
    be in league with coordinator and owner: everybody refuses a roster, and survivors, that do not withstand as many.
    """

    run: RunId
    round_id: int
    grid: Digest
    words: int
    members_min: int
    members_max: int
    share: float = 0.5
    degree: int = 0
    colluders: int = 0

    def __post_init__(self) -> None:
        """Refuse terms under which a sum could be of one, or a minority could open secrets."""
        require_name(self.run, of="run")
        if self.round_id < 1 or not 1 <= self.words <= WORDS_MAX:
            raise ValueError(f"rounds count from 1 and payloads have up to {WORDS_MAX} words, got {self.round_id}, {self.words}")
        if not 2 <= self.members_min <= self.members_max <= MEMBERS_MAX:
            raise ValueError(f"need 2 <= members_min <= members_max <= {MEMBERS_MAX}")
        if not 0.5 <= self.share < 1.0:
            raise ValueError(f"share: secrets open to a majority at least, so from 0.5 to below 1, got {self.share}")
        if self.degree % 2 or not (self.degree == 0 or self.degree >= 4):
            raise ValueError(f"degree: 0 for everybody, or an even number from 4, got {self.degree}")
        if not 0 <= self.colluders <= self.members_max:
            raise ValueError(f"colluders: from 0 to members_max, got {self.colluders}")

    def threshold(self, count: int) -> int:
        """Return the least number that is more than ``share`` of ``count``."""
        return threshold(count, share=self.share)

    @property
    def digest(self) -> Digest:
        """What everything that is signed or derived names."""
        counts = (self.round_id, self.words, self.members_min, self.members_max, self.degree, self.colluders)
        return _digest("terms", self.run.encode(), self.grid.value, struct.pack("<6Qd", *counts, self.share))


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """A member's fresh public keys of one round, said by its identity.

    ``channel_key`` is for shares on their way, ``mask_key`` for masks (X25519 both); ``commitment`` is to the seed of the mask of
    its own.
    """

    member: ClientId
    channel_key: bytes
    mask_key: bytes
    commitment: Digest
    proof: bytes

    def __post_init__(self) -> None:
        """Check the form."""
        require_name(self.member, of="member")
        if {len(self.channel_key), len(self.mask_key)} != {KEY_BYTES}:
            raise ValueError(f"{self.member}: keys have {KEY_BYTES} bytes")
        _require_proof(self.member, self.proof)

    @property
    def claim(self) -> bytes:
        """Everything but the proof."""
        return joined(self.member.encode(), self.channel_key, self.mask_key, self.commitment.value)

    def statement(self, terms: Terms) -> bytes:
        """Return what the proof is of."""
        return joined(b"hushtune/secagg/1/advertisement", terms.digest.value, self.claim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster(SumWord):
    """Who takes part, by rising name."""

    advertisements: tuple[Advertisement, ...]

    def __post_init__(self) -> None:
        """Refuse an order of another kind: equal rosters have equal digests."""
        _require_rising(self.members, of="roster")

    @property
    def members(self) -> tuple[ClientId, ...]:
        """The names."""
        return tuple(ad.member for ad in self.advertisements)

    def place(self, member: ClientId) -> int:
        """Return at which place the shares of ``member`` lie, from 1."""
        return self.members.index(member) + 1

    def of(self, member: ClientId) -> Advertisement:
        """Return what ``member`` advertised."""
        return self.advertisements[self.place(member) - 1]

    def digest(self, terms: Terms) -> Digest:
        """Return what identifies this roster under these terms, whatever the form of the proofs."""
        return _digest("roster", terms.digest.value, *(ad.claim for ad in self.advertisements))


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """One member's parcels, by holder: a share of each of its two secrets, readable for the holder only."""

    dealer: ClientId
    roster: Digest
    parcels: tuple[tuple[ClientId, bytes], ...]

    def __post_init__(self) -> None:
        """Check the form."""
        require_name(self.dealer, of="dealer")
        _require_parcels(self.parcels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(SumWord):
    """Who has dealt, and the parcels that are the receiver's."""

    roster: Digest
    dealers: tuple[ClientId, ...]
    parcels: tuple[tuple[ClientId, bytes], ...] = ()

    def __post_init__(self) -> None:
        """Check the form."""
        _require_rising(self.dealers, of="dealers")
        _require_parcels(self.parcels)

    @property
    def view(self) -> Digest:
        """What masks are bound to: this roster, and these dealers among its members."""
        return _digest("view", self.roster.value, *(name.encode() for name in self.dealers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A payload under its masks: little-endian words of 64 bits, by ``member``, for one ``view``."""

    member: ClientId
    view: Digest
    words: bytes

    def to_bytes(self) -> bytes:
        """Return what is sealed: marker, view, words. Whose it is says the seal."""
        return _UPLOAD_MAGIC + self.view.value + self.words

    @staticmethod
    def from_bytes(data: bytes, *, member: ClientId, terms: Terms) -> "Upload":
        """Parse `to_bytes`; ``MalformedUpdate`` for anything else, or another length than the terms'."""
        start = len(_UPLOAD_MAGIC)
        if data[:start] != _UPLOAD_MAGIC or len(data) != upload_bytes(terms):
            raise MalformedUpdate(f"not a masked payload of {terms.words} words")
        return Upload(member=member, view=Digest(data[start : start + 32]), words=data[start + 32 :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors(SumWord):
    """Whose uploads the aggregator is going to add, and no others."""

    view: Digest
    members: tuple[ClientId, ...]

    def __post_init__(self) -> None:
        """Check the form."""
        _require_rising(self.members, of="survivors")

    @property
    def statement(self) -> bytes:
        """What a vow is: that its author opens secrets for these survivors only."""
        return joined(b"hushtune/secagg/1/vow", self.view.value, *(name.encode() for name in self.members))

    @property
    def digest(self) -> Digest:
        """What an opening names."""
        return Digest.of(self.statement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vow:
    """One survivor's proof of the survivors' statement."""

    member: ClientId
    proof: bytes

    def __post_init__(self) -> None:
        """Check the form."""
        require_name(self.member, of="member")
        _require_proof(self.member, self.proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vows(SumWord):
    """The survivors once more, and who stands to them."""

    survivors: Survivors
    vows: tuple[Vow, ...]

    def __post_init__(self) -> None:
        """Check the form."""
        _require_rising(tuple(vow.member for vow in self.vows), of="vows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The shares that one survivor gives out: of survivors' seeds, and of the mask keys of those that dropped out."""

    member: ClientId
    survivors: Digest
    seeds: tuple[tuple[ClientId, bytes], ...]
    keys: tuple[tuple[ClientId, bytes], ...]

    def __post_init__(self) -> None:
        """Check the form; nobody's two secrets are ever opened."""
        require_name(self.member, of="member")
        subjects = [name for name, _ in (*self.seeds, *self.keys)]
        if len(set(subjects)) != len(subjects):
            raise ValueError(f"{self.member} opens a secret twice, or two secrets of one member")
        if any(len(share) != SHARE_BYTES for _, share in (*self.seeds, *self.keys)):
            raise ValueError(f"{self.member}: shares have {SHARE_BYTES} bytes")


def joined(*parts: bytes) -> bytes:
    """Return the parts, each with its length, so that no two lists of parts share their bytes."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def upload_bytes(terms: Terms) -> int:
    """Return how long a masked payload is, to the byte."""
    return len(_UPLOAD_MAGIC) + 32 + 8 * terms.words


def by_name(values: Mapping[ClientId, bytes]) -> tuple[tuple[ClientId, bytes], ...]:
    """Return the entries by rising name."""
    return tuple(sorted(values.items()))


def _digest(label: str, *parts: bytes) -> Digest:
    return Digest.of(joined(f"hushtune/secagg/1/{label}".encode(), *parts))


def _require_rising(names: Iterable[ClientId], *, of: str) -> None:
    listed = list(names)
    for name in listed:
        require_name(name, of=of)
    if len(listed) > MEMBERS_MAX or listed != sorted(set(listed)):
        raise ValueError(f"{of}: at most {MEMBERS_MAX} names, each once and in order")


def _require_parcels(parcels: tuple[tuple[ClientId, bytes], ...]) -> None:
    _require_rising((name for name, _ in parcels), of="parcels")
    if any(len(parcel) != PARCEL_BYTES for _, parcel in parcels):
        raise ValueError(f"parcels have {PARCEL_BYTES} bytes")


def _require_proof(member: ClientId, proof: bytes) -> None:
    if not 0 < len(proof) <= PROOF_BYTES_MAX:
        raise ValueError(f"{member}: a proof has 1 to {PROOF_BYTES_MAX} bytes, got {len(proof)}")
