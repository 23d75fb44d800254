"""What the dashboard takes from a run's files: who stands where, the same bytes side by side, and an equal share."""

import json
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune_common import config
from hushtune_server.testbed.dashboard.files import SAMPLE_BYTES, Files
from hushtune_server.testbed.dashboard.fold import fold
from hushtune_server.testbed.logbook.lines import read
from hushtune_server.testbed.rundir import RunDirectory
from tests.recorded import append, tale

ROOT = Path(__file__).resolve().parents[2]
BLOCK_BYTES = 20


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "told-1")
    (run.path / "logs").mkdir(parents=True)
    run.scenario.write_text((ROOT / "scenarios" / "small.toml").read_text(encoding="utf-8"), encoding="utf-8")
    (run.path / "run.json").write_text('{"id": "told-1", "status": "finished"}', encoding="utf-8")
    return run


def state_of(run: RunDirectory) -> Any:
    append(run.path / "logs", tale())
    return reduce(fold, read(run.path / "logs"), {})


def guessed(run: RunDirectory, *, flags: list[bool]) -> tuple[bytes, bytes]:
    """Leave an update, and a guess of the blocks in ``flags``; return both."""
    drawn = np.random.default_rng(3)
    truth, guess = (drawn.bytes(BLOCK_BYTES * len(flags)) for _ in range(2))
    sealed = run.state("c1") / "rounds" / "1" / "sealed.bin"
    stem = run.state("eavesdropper") / "guesses" / "c1-1-payload"
    for folder in (sealed.parent, stem.parent):
        folder.mkdir(parents=True)
    sealed.write_bytes(truth)
    stem.with_suffix(".bin").write_bytes(guess)
    stem.with_suffix(".decoded").write_bytes(np.packbits(flags, bitorder="little").tobytes())
    stem.with_suffix(".json").write_text(
        json.dumps({"public": {"design": {"message_bits": 8 * (BLOCK_BYTES + 4)}}}), encoding="utf-8"
    )
    return truth, guess


def test_the_bytes_of_both_lie_side_by_side_and_bit_errors_are_those_of_guessed_blocks(run: RunDirectory) -> None:
    truth, guess = guessed(run, flags=[True, False, True, True])
    found = Files(folder=run.path / "logs", run=run).bytes({"rounds": {"1": {"clients": {"c1": {}}}}})["1"]["c1"]
    tried = [k for k in range(len(truth)) if k // BLOCK_BYTES != 1]
    assert found["sent"] == truth[:SAMPLE_BYTES].hex()
    assert found["guessed"] == guess[:SAMPLE_BYTES].hex()
    assert found["bits_wrong"] == sum((truth[k] ^ guess[k]).bit_count() for k in tried)
    assert found["bits_compared"] == 8 * len(tried)


def test_what_was_seen_of_the_bytes_stays_when_a_finished_run_is_pruned(run: RunDirectory) -> None:
    guessed(run, flags=[True, True])
    files, state = Files(folder=run.path / "logs", run=run), {"rounds": {"1": {"clients": {"c1": {}}}}}
    before = files.bytes(state)
    (run.state("c1") / "rounds" / "1" / "sealed.bin").unlink()
    assert files.bytes(state) == before


@pytest.mark.parametrize("name", ["../c1", "/etc", ".", "c1/../../c1"])
def test_a_client_whose_name_is_a_path_leads_nowhere(run: RunDirectory, name: str) -> None:
    guessed(run, flags=[True])
    assert Files(folder=run.path / "logs", run=run).bytes({"rounds": {"1": {"clients": {name: {}}}}}) == {}


def test_equal_parts_of_the_band_are_equal_and_use_no_more_than_there_is(run: RunDirectory) -> None:
    files, state = Files(folder=run.path / "logs", run=run), state_of(run)
    assert set(files.places()["clients"]) == {"c1", "c2", "c3"}
    shared = files.baseline(state)["1"]["clients"]
    bands = [client["bandwidth_hz"] for client in shared.values() if client["decision"] == "granted"]
    scenario = config.load(ROOT / "scenarios" / "small.toml")
    assert len(bands) >= 2
    assert bands == pytest.approx([bands[0]] * len(bands))
    assert sum(bands) == pytest.approx(scenario.air.bandwidth_hz, rel=1e-6)
