"""What has to hold in a campaign of several rounds: who is owed what, in exact fractions, and what an update counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from hushtune_client.feedback import Residuals
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, UpdateKey
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.book import Book, Closing
from tests.loopback import manifest_of
from tests.simulation.actors import RUN
from tests.simulation.simulator import Violation

STEP = 8
Vector = tuple[Fraction, ...]
START: Vector = (Fraction(0), Fraction(100), Fraction(-7))


def plus(a: Vector, b: Vector, *, times: int = 1) -> Vector:
    return tuple(x + times * y for x, y in zip(a, b, strict=True))


def average(vectors: Sequence[Vector]) -> Vector:
    return tuple(sum(parts, Fraction(0)) / len(vectors) for parts in zip(*vectors, strict=True))


def decoded(wanted: Vector, shipped: Vector) -> Vector:
    """Return what the codec makes of an adapter: the change in multiples of the step."""
    return tuple(s + STEP * round((w - s) / STEP) for w, s in zip(wanted, shipped, strict=True))


def learnt(client: ClientId, round_id: int) -> Vector:
    """Return by how much training changes the adapter; the same whenever it is done again."""
    draws = SeedTree(9).child(client, str(round_id)).generator().integers(-30, 31, len(START))
    return tuple(Fraction(int(d)) for d in draws)


def emulator_of(seat: Vector, round_id: int) -> EmulatorManifest:
    return replace(manifest_of(repr(seat).encode()), round_id=round_id)


@dataclass(frozen=True)
class Update:
    """What travels: sealed for a round's emulator."""

    key: UpdateKey
    emulator: Digest
    adapter: Vector


@dataclass
class Laws:
    """What the world knows and no process does: who trained on what, and what was truly learnt."""

    learnt: dict[tuple[ClientId, int], Vector] = field(default_factory=dict[tuple[ClientId, int], Vector])
    arrived: dict[tuple[ClientId, int], Vector] = field(default_factory=dict[tuple[ClientId, int], Vector])
    seats: dict[int, Vector] = field(default_factory=lambda: {1: START})
    asked_again: int = 0
    lives: int = 0

    def trained(self, client: ClientId, round_id: int, *, manifest: EmulatorManifest) -> None:
        if manifest.round_id != round_id or manifest.emulator != emulator_of(self.seats[round_id], round_id).emulator:
            raise Violation(f"{client} trains in round {round_id} on the emulator of round {manifest.round_id}")

    def averaged(self, closing: Closing, *, before: Vector, after: Vector) -> None:
        """Require that the model is where its own round's updates lead, each counted once."""
        parts = [self.arrived[client, closing.round_id] for client in closing.merged]
        wanted = average(parts) if closing.kept else before
        if after != wanted or len(set(closing.merged)) != len(closing.merged) or before != self.seats[closing.round_id]:
            raise Violation(f"after round {closing.round_id} the model is at {after}, its updates lead to {wanted}")
        if self.seats.setdefault(closing.round_id + 1, after) != after:
            raise Violation(f"round {closing.round_id + 1} has two starts")

    def owed(self, client: ClientId, residuals: Residuals, files: dict[int, Vector], *, book: Book) -> None:
        """Require that decoded changes that were kept, and what is owed, add up to what was learnt in those rounds."""
        if residuals.unanswered(before=1 << 30):
            return
        kept = [r for r in residuals.files if residuals.kept[r]]
        for round_id in residuals.files:
            verdict = book.verdict(RUN, round_id, client)
            if verdict is not None and verdict.kept != residuals.kept[round_id]:
                raise Violation(f"{client} takes its update of round {round_id} for kept: {residuals.kept[round_id]}")
        newest = residuals.current(before=1 << 30)
        total = (Fraction(0),) * len(START) if newest is None else files[newest]
        for round_id in kept:
            total = plus(total, plus(self.arrived[client, round_id], self.seats[round_id], times=-1))
            total = plus(total, self.learnt[client, round_id], times=-1)
        if any(total):
            raise Violation(f"{client} has lost {total} of what it learnt in rounds {kept}")
