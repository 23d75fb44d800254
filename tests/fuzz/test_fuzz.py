"""Do the decoders of a peer's bytes refuse hostile ones by their type, and would the harness notice if they did not?"""

import struct
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.errors import MalformedUpdate
from hushtune_common.wire.v1 import coordinator_pb2
from tests.fuzz.harness import Finding, Target, fuzz, memory
from tests.fuzz.mutate import damaged, extreme
from tests.fuzz.targets import targets

SECONDS_EACH = 0.3
COUNT_EACH = 1500


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return targets(tmp_path_factory.mktemp("decoders"))


def test_every_valid_input_is_taken_so_that_damage_reaches_what_lies_behind(decoders: list[Target]) -> None:
    for target in (t for t in decoders if t.name != "envelope"):
        for seed in target.seeds:
            target.decode(seed)
            target.decode(target.mend(seed))
    assert len({t.name for t in decoders}) == len(decoders) >= 39


@pytest.mark.slow
def test_no_decoder_answers_damage_with_anything_but_its_own_errors(decoders: list[Target]) -> None:
    tallies = {t.name: fuzz(t, first=0, count=COUNT_EACH, seconds=SECONDS_EACH) for t in decoders}

    # Inputs must be neither all valid nor all hopeless; only what is encrypted is refused whatever the damage.
    assert sum(t.refused for t in tallies.values()) > 5 * len(decoders)
    assert sum(t.taken > 0 for t in tallies.values()) >= len(decoders) - 10


def target_of(decode: object, **changed: object) -> Target:
    return Target(name="planted", decode=decode, refuses=(MalformedUpdate,), seeds=[b"seed" * 8], **changed)  # type: ignore[arg-type]


def forgets_the_length(data: bytes) -> object:
    return struct.unpack("<Q", data[:8])


def believes_the_length(data: bytes) -> object:
    return np.zeros(min(1 << 28, int.from_bytes(data[:4].ljust(4, b"\xff"), "little")), dtype=np.uint8)


@pytest.mark.parametrize(
    ("decode", "symptom"), [(forgets_the_length, "planted, seed .*: error"), (believes_the_length, "bytes of memory")]
)
def test_a_planted_bug_is_found_with_the_command_that_shows_it(decode: object, symptom: str) -> None:
    with pytest.raises(Finding, match=symptom) as found:
        fuzz(target_of(decode), first=0, count=2000, seconds=20.0)

    assert "python benchmarks/fuzz.py --target planted --seed" in str(found.value)


def test_a_seed_is_an_input(decoders: list[Target]) -> None:
    for target in decoders[:20]:
        assert target.input_of(7) == target.input_of(7)
    assert len({decoders[0].input_of(seed) for seed in range(50)}) > 25


def test_damage_changes_something_and_extremes_are_messages() -> None:
    rng = np.random.default_rng(1)

    changed = [damaged(b"valid bytes", [b"others"], rng) for _ in range(200)]
    made = [extreme(coordinator_pb2.ReportRequest, rng) for _ in range(50)]

    assert sum(c != b"valid bytes" for c in changed) > 180
    assert any(not np.isfinite(m.gain_main) for m in made)
    assert memory() is None or Path(str(memory())).is_dir()
