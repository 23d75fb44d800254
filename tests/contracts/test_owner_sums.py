"""Does the owner's table give the mean of the survivors and nothing before it may, also after a kill, and keep nothing of it?"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.adapter import AdapterState
from hushtune_common.aggregation import SecureConfig
from hushtune_common.errors import ConfigError, DigestMismatch, MalformedUpdate, PeerLost, QuorumMissed, Replayed, StaleRound
from hushtune_common.messages import ClientId, RunId
from hushtune_common.secagg.grid import Grid, TensorGrid
from hushtune_common.secagg.terms import terms_of
from hushtune_server.owner.sums import SumTable
from tests.fakes import FakeClock
from tests.secagg import Rehearsal, verify

RUN = RunId("run-1")
GRID = Grid(tensors=(TensorGrid(name="w", shape=(4, 5), clip=1.0, digits=4),), weight_max=4)
SHIPPED = AdapterState({"w": np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(4, 5)})
OPTIONS = SecureConfig(share=0.6)


@dataclass
class Stage:
    """The owner's table on disk, and a round whose other roles are played by the book."""

    folder: Path
    rehearsal: Rehearsal = field(init=False)
    changes: dict[ClientId, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        table = self.life()
        terms = terms_of(OPTIONS, members_max=4, run=RUN, round_id=1, layout=table.layout)
        self.rehearsal = Rehearsal(4, terms=terms)
        rng = np.random.default_rng(5)
        self.changes = {n: rng.uniform(-0.9, 0.9, (4, 5)).astype(np.float32) for n in self.rehearsal.names}
        self.rehearsal.plain = {n: GRID.encode(self.trained(n), shipped=SHIPPED).words for n in self.rehearsal.names}

    def life(self) -> SumTable:
        """Return the table as a process finds it that begins now."""
        table = SumTable(self.folder, options=OPTIONS, clients=4, grid=GRID, verify=verify, clock=FakeClock())
        table.enter(RUN)
        return table

    def trained(self, name: ClientId) -> AdapterState:
        return AdapterState({"w": SHIPPED.tensors["w"] + self.changes[name]})

    def to_uploads(self, *, without: tuple[ClientId, ...] = ()) -> None:
        rehearsal = self.rehearsal
        rehearsal.advertise()
        self.life().hear(1, rehearsal.roster)
        rehearsal.deal()
        self.life().hear(1, rehearsal.delivery(ClientId("owner")))
        rehearsal.upload(without=without)
        for name, upload in rehearsal.uploads.items():
            self.life().take(1, upload.to_bytes(), member=name)

    def to_openings(self) -> None:
        self.rehearsal.vow()
        for name in self.rehearsal.here(()):
            self.life().open(1, self.rehearsal.opening(name))


def test_the_mean_is_that_of_the_survivors_within_half_a_step_although_every_stage_is_another_life(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    gone = stage.rehearsal.names[1]
    stage.to_uploads(without=(gone,))
    survivors = stage.life().close(1, among=stage.rehearsal.names)
    assert survivors == stage.rehearsal.survivors
    assert stage.life().lacking(1) == {*stage.rehearsal.names}
    stage.to_openings()
    assert stage.life().lacking(1) == frozenset()
    found = stage.life().mean(1, shipped=SHIPPED)
    wanted = np.mean([stage.changes[n] for n in survivors.members], axis=0) + SHIPPED.tensors["w"]
    assert found.weight == len(survivors.members) == 3
    assert np.abs(found.state.tensors["w"] - wanted).max() <= GRID.step(GRID.tensors[0]) / 2 + 1e-6
    assert stage.life().dropped(1) == (gone,)


def test_without_enough_shares_there_is_no_mean(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.to_uploads()
    stage.life().close(1, among=stage.rehearsal.names)
    stage.rehearsal.vow()
    stage.life().open(1, stage.rehearsal.opening(stage.rehearsal.names[0]))
    with pytest.raises(QuorumMissed, match="too few shares"):
        stage.life().mean(1, shipped=SHIPPED)


def test_a_payload_counts_once_it_is_known_who_has_dealt_and_another_one_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.rehearsal.advertise()
    assert not stage.life().ready(1)
    stage.life().hear(1, stage.rehearsal.roster)
    stage.rehearsal.deal()
    stage.life().hear(1, stage.rehearsal.delivery(ClientId("owner")))
    assert stage.life().ready(1)
    first = stage.rehearsal.names[0]
    upload = stage.rehearsal.mask(first).to_bytes()
    stage.life().take(1, upload, member=first)
    stage.life().take(1, upload, member=first)
    with pytest.raises(Replayed, match="other words"):
        stage.life().take(1, upload[:-1] + bytes([upload[-1] ^ 1]), member=first)
    with pytest.raises(MalformedUpdate, match="not a masked payload"):
        stage.life().take(1, upload[:-8], member=first)


def test_survivors_too_few_are_not_named_and_nobody_may_open_anything(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.to_uploads()
    with pytest.raises(QuorumMissed, match="2 of 4 members survived, 3 are needed"):
        stage.life().close(1, among=stage.rehearsal.names[:2])
    stage.rehearsal.vow()
    with pytest.raises(StaleRound, match="ahead of the survivors"):
        stage.life().open(1, stage.rehearsal.opening(stage.rehearsal.names[0]))


def test_a_payload_that_was_changed_on_disk_is_noticed(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.to_uploads()
    stage.life().close(1, among=stage.rehearsal.names)
    stage.to_openings()
    path = tmp_path / RUN / "1" / f"{stage.rehearsal.names[2]}.words"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatch, match="not the payload that was taken"):
        stage.life().mean(1, shipped=SHIPPED)
    path.unlink()
    with pytest.raises(DigestMismatch, match="is gone"):
        stage.life().mean(1, shipped=SHIPPED)


def test_nothing_is_left_of_a_round_that_is_over_nor_of_another_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.to_uploads()
    table = stage.life()
    table.close(1, among=stage.rehearsal.names)
    stage.rehearsal.vow()
    late = stage.rehearsal.opening(stage.rehearsal.names[0])
    table.forget(1)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with pytest.raises(StaleRound, match="nothing is opened in round 1"):
        table.open(1, late)
    (tmp_path / "run-0" / "1").mkdir(parents=True)
    stage.life()
    assert not (tmp_path / "run-0").exists()


def test_files_of_a_round_are_for_the_owners_eyes_only(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.to_uploads()
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".bin", ".words"}
    assert all(p.stat().st_mode & 0o077 == 0 for p in files)


def test_a_damaged_state_is_named_and_not_guessed_at(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.to_uploads()
    (tmp_path / RUN / "1" / "state.bin").write_bytes(b"HTSR\x01damaged")
    with pytest.raises(ConfigError, match="is damaged"):
        stage.life().lacking(1)


def test_before_the_run_is_known_nothing_is_taken(tmp_path: Path) -> None:
    table = SumTable(tmp_path, options=OPTIONS, clients=4, grid=GRID, verify=verify, clock=FakeClock())
    with pytest.raises(PeerLost, match="has not joined"):
        table.ready(1)
