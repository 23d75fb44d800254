"""What does the owner know of a round whose updates are only added, and how does it come to the mean without seeing one of them?

What was decided is in a file before anybody is told: the roster, digests of the payloads, the survivors, the shares. The payloads
are files under their masks. Both are deleted when the round is over, whatever came of it.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from threading import RLock
from typing import Final

from hushtune_common.adapter import AdapterState
from hushtune_common.aggregation import SecureConfig
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError, DigestMismatch, MalformedUpdate, PeerLost, ProtocolFault, StaleRound
from hushtune_common.logs import log_event
from hushtune_common.messages import ClientId, Digest, Part, RunId, SumWord, TensorSpec, UpdateKey
from hushtune_common.secagg import record
from hushtune_common.secagg.aggregator import Aggregator, AggregatorState
from hushtune_common.secagg.grid import Grid, Mean
from hushtune_common.secagg.layout import grid_for, layout_of
from hushtune_common.secagg.messages import Delivery, Opening, Roster, Survivors, Terms, Upload, Verify, upload_bytes
from hushtune_common.secagg.terms import Layout, terms_of
from hushtune_common.store.disk import full_disk_is_typed
from hushtune_common.store.partial import install
from hushtune_server.owner.book import Judgement, refusal
from hushtune_server.owner.incoming import Link
from hushtune_server.owner.intake import Seals

_log = logging.getLogger(__name__)
FOLDER: Final = "sums"
"""Name of the folder in the owner's state where sums are made."""
COUNTED: Final = "counted in the sum; nobody has looked at it by itself"


class SumTable:
    """The sums of one run, round by round. Used from several threads.

    Laws: a fault leaves everything as it was; what comes twice changes nothing; what `take`, `close` and `open` returned for
    survives a killed process.
    """

    def __init__(self, folder: Path, *, options: SecureConfig, clients: int, grid: Grid, verify: Verify, clock: Clock) -> None:
        """Keep everything below ``folder``; of which run it is, `enter` says."""
        self.grid = grid
        self._folder = folder
        self._options = options
        self._clients = clients
        self._verify = verify
        self._clock = clock
        self._run: RunId | None = None
        self._states: dict[int, AggregatorState] = {}
        self._lock = RLock()

    @staticmethod
    def of(scenario: Scenario, schema: Iterable[TensorSpec], *, folder: Path, verify: Verify, clock: Clock) -> "SumTable | None":
        """Return the table of a scenario; none where updates are judged one by one."""
        options = scenario.owner.aggregation
        if not isinstance(options, SecureConfig):
            return None
        grid = grid_for(scenario, tuple(schema))
        return SumTable(folder, options=options, clients=len(scenario.clients), grid=grid, verify=verify, clock=clock)

    @property
    def layout(self) -> Layout:
        """What the coordinator is told of the numbers' layout."""
        return layout_of(self.grid)

    @property
    def payload_bytes(self) -> int:
        """Size of every masked payload."""
        return upload_bytes(self._terms(RunId("any"), 1))

    @property
    def run(self) -> RunId:
        """The run that was entered; ``PeerLost`` before."""
        if self._run is None:
            raise PeerLost("the owner has not joined the run yet; ask again")
        return self._run

    def enter(self, run: RunId) -> None:
        """Say which run this is; what other runs left is deleted."""
        self._run = run
        for path in self._folder.glob("*"):
            if path.name != run:
                rmtree(path, ignore_errors=True)

    # --- what is heard ------------------------------------------------------------------------------------------------

    def hear(self, round_id: int, word: SumWord) -> None:
        """Take a word that the coordinator carried; raises what the aggregator does of one it will not work with."""
        with self._lock:
            aggregator, state = self._at(round_id)
            match word:
                case Roster():
                    after = aggregator.meet(state, word)
                case Delivery():
                    after = aggregator.receive(state, word)
                case _:
                    raise MalformedUpdate(f"sum: {type(word).__name__} says nothing to the owner")
            self._keep(round_id, before=state, after=after)

    def ready(self, round_id: int) -> bool:
        """Whether payloads of a round can be taken: it is known who has dealt."""
        with self._lock:
            return self._at(round_id)[1].dealers is not None

    def take(self, round_id: int, payload: bytes, *, member: ClientId) -> None:
        """Take a masked payload; `MalformedUpdate`, ``Replayed``, `StaleRound` and `DigestMismatch` as the aggregator says."""
        with self._lock:
            aggregator, state = self._at(round_id)
            upload = Upload.from_bytes(payload, member=member, terms=aggregator.terms)
            after = aggregator.take(state, upload)
            _write(self._words(round_id, member), payload)
            self._keep(round_id, before=state, after=after)
        log_event(_log, "update_masked_received", round_id=round_id, client=member, bytes=len(payload))

    def close(self, round_id: int, *, among: Iterable[ClientId]) -> Survivors:
        """Name the survivors among those that the round counts; ``QuorumMissed`` when they are too few to open anything."""
        with self._lock:
            aggregator, state = self._at(round_id)
            after = aggregator.close(state, among=among)
            self._keep(round_id, before=state, after=after)
            if after.survivors is None:
                raise StaleRound("no survivors were named")
            return after.survivors

    def open(self, round_id: int, opening: Opening) -> None:
        """Take a survivor's shares; `StaleRound` for a round that is over or has no survivors yet."""
        with self._lock:
            if not self._file(round_id).exists():
                raise StaleRound(f"nothing is opened in round {round_id}")
            aggregator, state = self._at(round_id)
            self._keep(round_id, before=state, after=aggregator.open(state, opening))

    def lacking(self, round_id: int) -> frozenset[ClientId]:
        """Return the members of whose secrets too few shares have come."""
        with self._lock:
            aggregator, state = self._at(round_id)
            return aggregator.lacking(state)

    # --- what comes of it ---------------------------------------------------------------------------------------------

    def mean(self, round_id: int, *, shipped: AdapterState) -> Mean:
        """Return the mean of the survivors' updates, by their weights.

        Raises ``QuorumMissed`` when too few shares have come, `MalformedUpdate` when they or the sum are not what they should
        be, `DigestMismatch` when a payload is not the one that was taken.
        """
        started = self._clock.monotonic()
        with self._lock:
            aggregator, state = self._at(round_id)
        total = aggregator.total(state, self._uploads(round_id, state, terms=aggregator.terms))
        found = self.grid.decode(total, shipped=shipped)
        survivors = () if state.survivors is None else state.survivors.members
        dealers = () if state.dealers is None else state.dealers.dealers
        log_event(
            _log,
            "sum_unmasked",
            round_id=round_id,
            survivors=list(survivors),
            dropped=sorted({*dealers} - {*survivors}),
            weight=found.weight,
            seeds_opened=sum(len(opening.seeds) for opening in state.openings),
            keys_opened=sum(len(opening.keys) for opening in state.openings),
            bits_per_number=round(64 / self.grid.tensors[0].digits, 3),
            seconds=round(self._clock.monotonic() - started, 4),
        )
        return found

    def forget(self, round_id: int) -> None:
        """Delete what is left of a round: nobody needs shares and payloads any longer than the sum does."""
        with self._lock:
            self._states.pop(round_id, None)
            rmtree(self._round(round_id), ignore_errors=True)

    def dropped(self, round_id: int) -> tuple[ClientId, ...]:
        """Return who has dealt and is no survivor."""
        with self._lock:
            state = self._at(round_id)[1]
        survivors = frozenset(() if state.survivors is None else state.survivors.members)
        return tuple(c for c in (() if state.dealers is None else state.dealers.dealers) if c not in survivors)

    # --- memory -------------------------------------------------------------------------------------------------------

    def _terms(self, run: RunId, round_id: int) -> Terms:
        return terms_of(self._options, members_max=self._clients, run=run, round_id=round_id, layout=self.layout)

    def _at(self, round_id: int) -> tuple[Aggregator, AggregatorState]:
        aggregator = Aggregator(self._terms(self.run, round_id), verify=self._verify)
        if round_id not in self._states:
            self._states[round_id] = self._read(round_id)
        return aggregator, self._states[round_id]

    def _read(self, round_id: int) -> AggregatorState:
        file = self._file(round_id)
        if not file.exists():
            return AggregatorState()
        try:
            return record.from_bytes(file.read_bytes(), AggregatorState)
        except MalformedUpdate as error:
            raise ConfigError(
                str(file), f"is damaged ({error}); restore it, or begin another run with an empty folder"
            ) from error

    def _keep(self, round_id: int, *, before: AggregatorState, after: AggregatorState) -> None:
        if after is before:
            return
        _write(self._file(round_id), record.to_bytes(after))
        self._states[round_id] = after

    def _uploads(self, round_id: int, state: AggregatorState, *, terms: Terms) -> Iterator[Upload]:
        for name in () if state.survivors is None else state.survivors.members:
            try:
                payload = self._words(round_id, name).read_bytes()
            except OSError as error:
                raise DigestMismatch(f"the payload of {name} is gone ({error.strerror})") from error
            yield Upload.from_bytes(payload, member=name, terms=terms)

    def _round(self, round_id: int) -> Path:
        return self._folder / self.run / str(round_id)

    def _file(self, round_id: int) -> Path:
        return self._round(round_id) / "state.bin"

    def _words(self, round_id: int, member: ClientId) -> Path:
        return self._round(round_id) / f"{member}.words"


class SumIntake:
    """Checks sealed payloads against one published emulator and puts them on the table, unseen."""

    def __init__(self, seals: Seals, table: SumTable) -> None:
        """Take what opens seals, and the table."""
        self._seals = seals
        self._table = table

    @property
    def bytes_max(self) -> int:
        """Largest sealed update that can be genuine."""
        return self._seals.bytes_max

    @property
    def accepted(self) -> Mapping[UpdateKey, Digest]:
        """Digests of the accepted blobs, by key with attempt 1."""
        return self._seals.accepted

    def judge(self, blob: bytes, *, key: UpdateKey, links: Mapping[Part, Link], secret: bytes) -> Judgement:
        """Take a whole sealed payload, or refuse it for its form; what is in it, nobody knows."""
        digest = Digest.of(blob)

        def put(payload: bytes) -> None:
            self._table.take(key.round_id, payload, member=key.client)

        try:
            self._seals.take(blob, key=key, links=links, secret=secret, use=put)
        except ProtocolFault as fault:
            return refusal(key, fault, digest=digest)
        return Judgement(key=key, accepted=True, kept=True, reason=COUNTED, digest=digest)


def _write(file: Path, data: bytes) -> None:
    """Write a file for its user's eyes only, so that it is there as a whole after a loss of power."""
    partial = file.with_name(f"{file.name}.partial")
    with full_disk_is_typed():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    install(partial, file)
