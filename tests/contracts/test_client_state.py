"""Does a restarted client know exactly what it knew, and refuse a folder that is not its own?"""

import asyncio
import resource
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from hushtune_client.phases import (
    AssignmentReceived,
    Closed,
    Conclude,
    Event,
    FrameAnswered,
    Idle,
    Reported,
    RoundClosed,
    RoundOpened,
    Send,
    Train,
    TrainingStarted,
    UpdateSealed,
    Uploading,
    VerdictReached,
)
from hushtune_client.rounds import resume
from hushtune_client.state import ClientState, write_durably
from hushtune_common.adapter import AdapterState
from hushtune_common.errors import ConfigError, DigestMismatch, LimitExceeded, StorageFull
from hushtune_common.messages import ClientId, Part, RunId, TensorSpec, UpdateKey, Verdict
from hushtune_common.units import Joule, Second
from tests.loopback import CARRIER, CLIENT, DESIGN, REFUSED, RUN, assignment_of, link_seed

_T = TypeVar("_T")
LINKS = {Part.PAYLOAD: link_seed()}
SPEC = TensorSpec(name="model.layers.0.mlp.up_proj.weight", shape=(2, 3), dtype="F32", block=0)
SEALED = UpdateSealed(round_id=1, bytes_raw=10, train_seconds=Second(1.0), energy=Joule(2.0))
LOST_SOME = FrameAnswered(
    round_id=1, part=Part.PAYLOAD, attempt=1, frame_bytes=5, airtime=Second(1.0), energy=Joule(0.1), missing=(2, 5)
)
CLOSED = RoundClosed(round_id=1, accepted=True, failed="", last=True)
WHOLE_ROUND: Sequence[Event] = (
    RoundOpened(round_id=1),
    AssignmentReceived(assignment=assignment_of()),
    TrainingStarted(round_id=1),
    SEALED,
    LOST_SOME,
    replace(LOST_SOME, attempt=2, missing=()),
    CLOSED,
    VerdictReached(round_id=1),
)


def in_folder(folder: Path, work: Callable[[ClientState], Awaitable[_T]], *, client: ClientId = CLIENT) -> _T:
    """Open the state, do ``work`` and close: one life of the process."""

    async def live() -> _T:
        state = ClientState.open(folder, client=client, attempts_max=3)
        try:
            return await work(state)
        finally:
            await state.close()

    return asyncio.run(live())


async def joined(state: ClientState, *events: Event) -> None:
    await state.join(RUN)
    for seq, event in enumerate(events, start=1):
        await state.record(event, seq=seq)


@pytest.mark.parametrize("count", range(len(WHOLE_ROUND) + 1))
def test_a_restart_at_any_point_gives_the_same_state(tmp_path: Path, count: int) -> None:
    async def before(state: ClientState) -> object:
        await joined(state, *WHOLE_ROUND[:count])
        return state.current, state.last_seen_seq, state.terms

    async def after(state: ClientState) -> object:
        assert state.restarted
        return state.current, state.last_seen_seq, state.terms

    assert in_folder(tmp_path, before) == in_folder(tmp_path, after)


def test_a_directive_that_was_seen_before_the_restart_changes_nothing_after_it(tmp_path: Path) -> None:
    async def before(state: ClientState) -> None:
        await joined(state, RoundOpened(round_id=1))

    async def after(state: ClientState) -> None:
        assert await state.record(RoundOpened(round_id=1), seq=1) == ()
        commands = await state.record(AssignmentReceived(assignment=assignment_of()), seq=2)
        assert [type(c) for c in commands] == [Train]

    in_folder(tmp_path, before)
    in_folder(tmp_path, after)


def test_a_restart_while_uploading_sends_the_same_bytes_of_the_same_attempt(tmp_path: Path) -> None:
    async def before(state: ClientState) -> None:
        await joined(state, *WHOLE_ROUND[:3])
        await state.keep_sealed(1, b"sealed bytes", secret=b"", links=LINKS)
        await state.record(SEALED)
        await state.record(LOST_SOME)

    async def after(state: ClientState) -> None:
        assert isinstance(state.current, Uploading)
        assert resume(state.current) == (Send(assignment=assignment_of(), part=Part.PAYLOAD, attempt=2, only=(2, 5)),)
        assert state.message(1, Part.PAYLOAD) == b"sealed bytes"
        assert state.link_seed(1, Part.PAYLOAD, design=DESIGN) == LINKS[Part.PAYLOAD]

    in_folder(tmp_path, before)
    in_folder(tmp_path, after)


def test_a_gate_that_names_no_power_at_all_survives_a_restart(tmp_path: Path) -> None:
    refused = AssignmentReceived(assignment=assignment_of(gate=REFUSED))

    async def before(state: ClientState) -> None:
        await joined(state, RoundOpened(round_id=1), refused)

    async def after(state: ClientState) -> None:
        assert [type(c) for c in resume(state.current)] == [Conclude]

    in_folder(tmp_path, before)
    in_folder(tmp_path, after)


@pytest.mark.parametrize("count", range(len(WHOLE_ROUND) + 1))
def test_private_files_outlive_a_restart_only_while_their_round_goes_on(tmp_path: Path, count: int) -> None:
    async def before(state: ClientState) -> None:
        await joined(state, *WHOLE_ROUND[:count])
        for path in (files := state.files(1)).windows, files.adapter, files.secret, files.frame(2), files.sealed:
            path.write_bytes(b"x")

    async def after(state: ClientState) -> int:
        state.forget_ended()
        return len(list(state.files(1).directory.iterdir()))

    in_folder(tmp_path, before)
    assert in_folder(tmp_path, after) == (5 if 1 <= count <= 5 else 1)


def test_a_key_part_has_its_secret_and_every_part_its_own_seed_after_a_restart(tmp_path: Path) -> None:
    links = {Part.KEY: link_seed(fill=1), Part.PAYLOAD: link_seed(CARRIER, fill=2)}

    async def before(state: ClientState) -> None:
        await state.join(RUN)
        await state.keep_sealed(1, b"sealed bytes", secret=bytes(range(32)), links=links)
        assert state.files(1).secret.stat().st_mode & 0o777 == 0o600

    async def after(state: ClientState) -> None:
        assert (state.message(1, Part.KEY), state.message(1, Part.PAYLOAD)) == (bytes(range(32)), b"sealed bytes")
        assert state.link_seed(1, Part.KEY, design=DESIGN) == links[Part.KEY]
        assert state.link_seed(1, Part.PAYLOAD, design=CARRIER) == links[Part.PAYLOAD]

    in_folder(tmp_path, before)
    in_folder(tmp_path, after)


def test_what_was_kept_for_another_design_or_is_damaged_is_not_sent(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await state.join(RUN)
        await state.keep_sealed(1, b"sealed bytes", secret=b"", links=LINKS)
        path = state.files(1).link_seed(Part.PAYLOAD)
        for damage in (None, b"", b"{}", path.read_bytes()[:-9]):
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(DigestMismatch, match=r"link-payload\.json"):
                state.link_seed(1, Part.PAYLOAD, design=CARRIER)
        with pytest.raises(DigestMismatch, match=r"secret\.bin"):
            state.message(1, Part.KEY)

    in_folder(tmp_path, work)


def test_a_secret_is_not_sent_before_its_update_was_kept_as_a_whole(tmp_path: Path) -> None:
    async def before(state: ClientState) -> None:
        await state.join(RUN)
        state.files(1).secret.write_bytes(bytes(32))  # killed here: the sealed bytes were not kept

    async def after(state: ClientState) -> None:
        with pytest.raises(DigestMismatch):
            state.message(1, Part.KEY)

    in_folder(tmp_path, before)
    in_folder(tmp_path, after)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(100_000)
        assert not (tmp_path / "frame").exists()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_durably(tmp_path / "frame", pieces())
    assert not list(tmp_path.iterdir())
    write_durably(tmp_path / "frame", [b"one", b"two"])
    assert (tmp_path / "frame").read_bytes() == b"onetwo"


def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageFull):
            write_durably(tmp_path / "frame", [bytes(100_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_sealed_bytes_that_changed_on_disk_are_not_sent(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await state.join(RUN)
        await state.keep_sealed(1, b"sealed bytes", secret=b"", links=LINKS)
        state.files(1).sealed.write_bytes(b"other bytes!")
        with pytest.raises(DigestMismatch):
            state.sealed(1)
        state.files(1).sealed.unlink()
        with pytest.raises(DigestMismatch):
            state.sealed(1)

    in_folder(tmp_path, work)


def test_a_folder_belongs_to_one_run_and_one_client(tmp_path: Path) -> None:
    async def other_run(state: ClientState) -> None:
        with pytest.raises(ConfigError, match="belongs to run run-1"):
            await state.join(RunId("run-2"))

    async def nothing(_: ClientState) -> None:
        return None

    in_folder(tmp_path, joined)
    in_folder(tmp_path, other_run)
    with pytest.raises(ConfigError, match="belongs to client c1"):
        in_folder(tmp_path, nothing, client=ClientId("c2"))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(ConfigError, match="--state"):
        ClientState.open(tmp_path / "file", client=CLIENT, attempts_max=1)


def test_verdicts_are_remembered(tmp_path: Path) -> None:
    key = UpdateKey(run=RUN, round_id=1, client=CLIENT, attempt=2)
    verdict = Verdict(key=key, accepted=True, kept=False, reason="rolled back", score=12.5)

    async def before(state: ClientState) -> None:
        await joined(state)
        for _ in range(2):
            await state.keep_verdict(verdict)

    async def after(state: ClientState) -> None:
        assert state.verdicts() == (verdict,)

    in_folder(tmp_path, before)
    in_folder(tmp_path, after)


def residual(value: float) -> AdapterState:
    return AdapterState({SPEC.name: np.full(SPEC.shape, value, np.float32)})


def verdict_on(round_id: int, *, kept: bool) -> Verdict:
    key = UpdateKey(run=RUN, round_id=round_id, client=CLIENT, attempt=1)
    return Verdict(key=key, accepted=True, kept=kept, reason="", score=None)


async def sealed_with(state: ClientState, round_id: int, value: float) -> None:
    await state.keep_sealed(round_id, b"sealed", secret=b"", links=LINKS, residual=residual(value))


def owed(state: ClientState, round_id: int) -> float | None:
    found = state.residual(round_id, (SPEC,))
    return None if found is None else float(found.tensors[SPEC.name].flat[0])


def test_what_is_owed_survives_a_restart_and_waits_for_the_verdict(tmp_path: Path) -> None:
    async def before(state: ClientState) -> None:
        await state.join(RUN)
        assert owed(state, 1) is None
        await sealed_with(state, 1, 0.25)
        assert state.unanswered(before=2) == (1,)

    async def between(state: ClientState) -> None:
        assert state.unanswered(before=2) == (1,)
        await state.keep_verdict(verdict_on(1, kept=True))
        assert owed(state, 2) == 0.25
        await sealed_with(state, 2, 0.5)
        await state.keep_verdict(verdict_on(2, kept=False))

    async def after(state: ClientState) -> None:
        assert (state.unanswered(before=3), owed(state, 3)) == ((), 0.25)
        assert [path.name for path in (tmp_path / "residuals").iterdir()] == ["1.safetensors"]
        assert (tmp_path / "residuals").stat().st_mode & 0o077 == 0

    for life in (before, between, after):
        in_folder(tmp_path, life)


def test_an_update_that_is_sealed_again_leaves_the_residual_of_the_second_time(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await state.join(RUN)
        await sealed_with(state, 1, 0.25)
        await sealed_with(state, 1, 0.75)
        await state.keep_verdict(verdict_on(1, kept=True))
        assert owed(state, 2) == 0.75

    in_folder(tmp_path, work)


@pytest.mark.parametrize("damage", [b"", b"other bytes", None], ids=["empty", "other", "gone"])
def test_a_residual_that_is_not_as_it_was_kept_is_said_to_be_lost(tmp_path: Path, damage: bytes | None) -> None:
    async def work(state: ClientState) -> None:
        await state.join(RUN)
        await sealed_with(state, 1, 0.25)
        await state.keep_verdict(verdict_on(1, kept=True))
        (path,) = (tmp_path / "residuals").iterdir()
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(DigestMismatch, match="residual"):
            owed(state, 2)

    in_folder(tmp_path, work)


def test_after_the_last_round_no_residual_is_left(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await joined(state, *WHOLE_ROUND[:4])
        await sealed_with(state, 1, 0.25)
        for event in WHOLE_ROUND[4:]:
            state.forget_ended()
            assert list((tmp_path / "residuals").iterdir())
            await state.record(event)
        state.forget_ended()
        assert not (tmp_path / "residuals").exists()

    in_folder(tmp_path, work)


def test_a_residual_outlives_the_private_files_of_its_round(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await state.join(RUN)
        await sealed_with(state, 1, 0.25)
        state.forget_private(1)
        state.forget_ended()
        await state.keep_verdict(verdict_on(1, kept=True))
        assert owed(state, 2) == 0.25

    in_folder(tmp_path, work)


def test_what_is_private_is_readable_by_its_owner_only_and_goes_with_the_round(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await state.join(RUN)
        files = state.files(1)
        assert files.directory.stat().st_mode & 0o077 == 0
        private = (files.windows, files.adapter, files.secret, files.frame(1), files.frame(12))
        for path in (*private, files.sealed, files.frame(2).with_suffix(".bin.partial")):
            path.write_bytes(b"x")
        state.forget_private(1)
        assert [path.name for path in files.directory.iterdir()] == [files.sealed.name]

    in_folder(tmp_path, work)


def test_frames_that_were_answered_make_room(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        files = state.files(1)
        for attempt in (1, 2, 3, 10):
            files.frame(attempt).write_bytes(b"x")
        files.forget_frames(before=3)
        assert sorted(path.name for path in files.directory.iterdir()) == ["frame-10.bin", "frame-3.bin"]

    in_folder(tmp_path, work)


def test_events_that_change_nothing_are_not_written(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await joined(state, RoundOpened(round_id=1))
        assert state.current == Reported(round_id=1)
        for _ in range(50):
            assert await state.record(TrainingStarted(round_id=7)) == ()
        assert (state.current, state.last_seen_seq) == (Reported(round_id=1), 1)

    in_folder(tmp_path, work)
    journal_bytes = sum(file.stat().st_size for file in tmp_path.glob("journal*"))
    assert journal_bytes < 65_536


def test_directives_are_taken_so_often_and_not_more_whatever_they_say_and_after_a_restart(tmp_path: Path) -> None:
    async def life(count: int) -> None:
        state = ClientState.open(tmp_path, client=CLIENT, attempts_max=3, directives_max=10)
        try:
            await state.join(RUN)
            first = state.last_seen_seq + 1
            for seq in range(first, first + count):
                await state.record(RoundOpened(round_id=1 + seq % 2), seq=seq)
            with pytest.raises(LimitExceeded, match=r"more than 10 .* limits\.directives_max"):
                await state.record(RoundOpened(round_id=99), seq=first + count)
            assert await state.record(RoundOpened(round_id=1), seq=1) == ()
            assert state.last_seen_seq == 10
        finally:
            await state.close()

    for directives in (10, 0):
        asyncio.run(life(directives))
        with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as journal:
            assert journal.execute("SELECT count(*) FROM events").fetchone() == (11,)


def test_a_directive_of_an_earlier_round_still_counts_as_seen(tmp_path: Path) -> None:
    async def work(state: ClientState) -> None:
        await joined(state, *WHOLE_ROUND[:1])
        await state.record(RoundOpened(round_id=1), seq=9)
        assert state.last_seen_seq == 9
        assert not isinstance(state.current, Idle | Closed)

    in_folder(tmp_path, work)
