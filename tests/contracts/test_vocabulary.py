"""Do the words that all processes share keep their promises: names, digests, seeds, units, logs?"""

import io
import json
import logging
from datetime import UTC, datetime
from math import isinf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common import errors, logs
from hushtune_common.messages import Caller, Digest, Role, SecrecyDesign, TensorSpec, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel, Second, from_db, to_db

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


@given(st.sampled_from(Role), NAMES)
def test_an_identity_survives_its_uri(role: Role, name: str) -> None:
    caller = Caller(role=role, name=name)
    assert Caller.from_uri(caller.uri) == caller


@pytest.mark.parametrize(
    "uri",
    ["", "hushtune://client", "hushtune://boss/c1", "spiffe://client/c1", "hushtune://client/../owner", "hushtune://client/"],
)
def test_a_uri_that_is_no_identity_of_ours_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"identity|caller name"):
        Caller.from_uri(uri)


@pytest.mark.parametrize("name", ["..", "a/b", "A", "", "x" * 64, "-a", "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use 1 to 63"):
        Caller(role=Role.CLIENT, name=name)


def test_a_digest_is_32_bytes_and_survives_hexadecimal() -> None:
    digest = Digest.of(b"abc")
    assert digest.hex == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert Digest.from_hex(digest.hex) == digest
    with pytest.raises(ValueError, match="32 bytes"):
        Digest(b"short")


@pytest.mark.parametrize(("round_id", "attempt"), [(0, 1), (1, 0), (-1, 1)])
def test_rounds_and_attempts_count_from_one(round_id: int, attempt: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        UpdateKey(run="r", round_id=round_id, client="c", attempt=attempt)  # pyright: ignore[reportArgumentType] - plain strings


@pytest.mark.parametrize(("shape", "dtype"), [((), "F32"), ((0, 3), "F32"), ((3,), "I64")])
def test_an_impossible_tensor_cannot_be_described(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match=r"w: "):
        TensorSpec(name="w", shape=shape, dtype=dtype, block=0)


def test_a_design_whose_bits_do_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="fill the information words"):
        SecrecyDesign(
            modulation="qpsk",
            code_bits=10240,
            info_bits=8448,
            codewords=1,
            message_bits=5744,
            random_bits=2703,
            snr_tap_design_db=Decibel(-5.0),
            log2_delta=-64.0,
            rho=0.2,
            rate=1.1,
        )


@given(st.floats(min_value=-200.0, max_value=200.0))
def test_decibels_and_ratios_are_inverse(level: float) -> None:
    assert to_db(from_db(level)) == pytest.approx(level, abs=1e-9)


def test_no_power_is_minus_infinity_and_negative_power_does_not_exist() -> None:
    assert isinf(to_db(0.0))
    with pytest.raises(ValueError, match="not negative"):
        to_db(-1.0)


def test_a_stream_depends_on_its_path_and_not_on_who_was_asked_before() -> None:
    alone = SeedTree(7).child("round-1", "c1").generator().standard_normal(8)
    tree = SeedTree(7)
    tree.child("round-1", "c2").generator().standard_normal(1000)
    assert np.array_equal(alone, tree.child("round-1").child("c1").generator().standard_normal(8))


@given(st.lists(st.text(max_size=4), max_size=3), st.lists(st.text(max_size=4), max_size=3))
def test_different_paths_give_different_streams(one: list[str], other: list[str]) -> None:
    same = SeedTree(1).child(*one).integer() == SeedTree(1).child(*other).integer()
    assert same == (one == other)


def test_every_error_has_a_reason_of_its_own_kind_and_an_exit_code() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.HushtuneError)]
    assert len({e.reason for e in found}) == len(found)
    assert all(0 < e.exit_code < 126 for e in found)


class _Noon:
    def monotonic(self) -> Second:
        return Second(0.0)

    def wall(self) -> datetime:
        return datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)

    async def sleep(self, seconds: float) -> None:
        """Pass no time."""

    def pause(self, seconds: float) -> None:
        """Pass no time."""


def test_a_log_line_is_one_json_object_with_its_context_and_without_the_bytes() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter(clock=_Noon(), bound={"role": "client", "name": "c1"}))
    logger = logging.getLogger("hushtune.test_vocabulary")
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    logs.log_event(logger, "update_sealed", digest=Digest.of(b""), protection=b"never shown", bytes_sealed=3)
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["event"], record["name"], record["bytes_sealed"]) == ("update_sealed", "c1", 3)
    assert record["digest"] == Digest.of(b"").hex
    assert record["protection"] == "<11 bytes>"
    assert record["time"].startswith("2026-01-02T12:00:00")
