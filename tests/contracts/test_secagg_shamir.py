"""Do t shares give the secret back, and do fewer say nothing of it?"""

from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import MalformedUpdate
from hushtune_common.secagg.shamir import PRIME, SHARE_BYTES, combine, split

secrets = st.binary(min_size=32, max_size=32)
elements = st.integers(0, PRIME - 1)


def is_prime(number: int) -> bool:
    """Miller and Rabin, with more bases than anything that happens by chance needs."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1

    def passes(base: int) -> bool:
        power = pow(base, odd, number)
        return power in {1, number - 1} or any((power := power * power % number) == number - 1 for _ in range(twos - 1))

    return all(passes(base) for base in range(2, 60))


def at_zero(points: Mapping[int, int]) -> int:
    """The textbook's interpolation, with the quotients left for the end."""
    total = 0
    for x, y in points.items():
        above = below = 1
        for other in points:
            if other != x:
                above, below = above * -other, below * (x - other)
        total += y * above * pow(below, PRIME - 2, PRIME)
    return total % PRIME


def test_the_field_is_the_least_that_holds_every_secret():
    assert is_prime(PRIME)
    assert not any(is_prime(2**256 + k) for k in range(297))


def test_shares_are_the_values_of_the_polynomial():
    shares = split((5).to_bytes(32, "little"), coefficients=[3, 2], at=[1, 2, 10])
    assert {x: int.from_bytes(s, "little") for x, s in shares.items()} == {1: 10, 2: 19, 10: 235}


@given(secrets, st.lists(elements, max_size=6), st.data())
def test_as_many_shares_as_the_threshold_give_the_secret_back(secret: bytes, coefficients: list[int], data: st.DataObject):
    threshold = len(coefficients) + 1
    shares = split(secret, coefficients=coefficients, at=range(1, 12))
    chosen = data.draw(st.lists(st.sampled_from(sorted(shares)), min_size=threshold, max_size=11, unique=True))
    assert combine({x: shares[x] for x in chosen}) == secret
    assert at_zero({x: int.from_bytes(shares[x], "little") for x in chosen}).to_bytes(32, "little") == secret


@given(secrets, secrets, st.lists(elements, min_size=1, max_size=5))
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes, coefficients: list[int]):
    # Whatever t - 1 shares are known, any other secret has a polynomial through them: here is its next share.
    places = range(1, len(coefficients) + 1)
    known = split(secret, coefficients=coefficients, at=places)
    shifted = {0: int.from_bytes(other, "little"), **{x: int.from_bytes(s, "little") for x, s in known.items()}}
    beyond = len(coefficients) + 1
    next_share = at_zero({x - beyond: y for x, y in shifted.items()})
    assert combine({**known, beyond: next_share.to_bytes(SHARE_BYTES, "little")}) == other


@given(secrets, st.lists(elements, min_size=1, max_size=4))
def test_a_forged_share_gives_another_secret_or_none(secret: bytes, coefficients: list[int]):
    shares = split(secret, coefficients=coefficients, at=range(1, len(coefficients) + 2))
    forged = {**shares, 1: ((int.from_bytes(shares[1], "little") + 1) % PRIME).to_bytes(SHARE_BYTES, "little")}
    with suppress(MalformedUpdate):
        assert combine(forged) != secret


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "little"), b"\xff" * 33])
def test_what_is_no_share_is_refused(share: bytes):
    with pytest.raises(MalformedUpdate):
        combine({1: share, 2: bytes(33)})


def test_a_value_beyond_32_bytes_is_no_secret():
    with pytest.raises(MalformedUpdate):
        combine({1: (2**256).to_bytes(33, "little")})


@pytest.mark.parametrize("place", [0, -1, 2**32])
def test_the_place_of_the_secret_is_nobodys(place: int):
    with pytest.raises(ValueError, match="places"):
        split(bytes(32), coefficients=[1], at=[place])
