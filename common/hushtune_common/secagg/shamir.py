"""How is a secret divided so that any t shares give it back, and fewer say nothing?

Shamir (1979): the shares are points of a polynomial of degree t - 1 whose value at 0 is the secret, over the integers modulo the
least prime above 2^256, so that every string of 32 bytes is an element.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from hushtune_common.errors import MalformedUpdate

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33


def split(secret: bytes, *, coefficients: Sequence[int], at: Iterable[int]) -> dict[int, bytes]:
    """Return the shares of ``secret`` at the places ``at`` (from 1), 33 bytes each.

    One more than there are ``coefficients`` give it back; those are to be uniform below `PRIME` and known to nobody.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    polynomial = [int.from_bytes(secret, "little"), *coefficients]
    return {place: _value(polynomial, _require_place(place)).to_bytes(SHARE_BYTES, "little") for place in at}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret whose ``shares`` these are, by place; as many as the threshold are wanted.

    ``MalformedUpdate`` for what is no share or gives no secret. Too few or forged shares give another secret, which only a
    commitment to the right one can tell.
    """
    points = {_require_place(place): _element(share) for place, share in shares.items()}
    total = 0
    for place, value in points.items():
        above, below = 1, 1
        for other in points.keys() - {place}:
            above = above * other % PRIME
            below = below * (other - place) % PRIME
        total = (total + value * above * pow(below, -1, PRIME)) % PRIME
    if total >= 2**256:
        raise MalformedUpdate("the shares give no secret")
    return total.to_bytes(SECRET_BYTES, "little")


def _value(polynomial: Sequence[int], place: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * place + coefficient) % PRIME
    return value


def _element(share: bytes) -> int:
    value = int.from_bytes(share, "little")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise MalformedUpdate("not a share")
    return value


def _require_place(place: int) -> int:
    if not 0 < place < 2**32:
        raise ValueError(f"shares lie at places from 1 on, got {place}")
    return place
