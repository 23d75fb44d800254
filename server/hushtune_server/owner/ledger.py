"""How much of the model has anybody ever seen, over all releases?

Each release is one line of a file, which only grows: a check, a space, and JSON. The check covers the line and the one before it,
so that damage is found; what a crash left of a last line was never released and is cut away.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from hushtune_common.config import ExposureConfig
from hushtune_common.errors import ConfigError, ExposureExceeded
from hushtune_common.messages import Digest, require_name
from hushtune_common.model.bundle import Bundle
from hushtune_common.model.slots import ranges_of
from hushtune_common.model.weights import Weights
from hushtune_server.owner.emulators.exposure import Coverage, Kind, Shown, coverage, shown_numbers

LEDGER = "exposure.lines"
"""Name of the file in the owner's state folder."""

_CHECK_CHARS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One emulator that was given to some recipients, and what it shows of every tensor of the model."""

    base: Digest
    plan: Digest
    refinement: Digest | None
    recipients: tuple[str, ...]
    date: str
    coverage: Coverage

    def __post_init__(self) -> None:
        """There is somebody who gets it; ``ValueError`` names a recipient that is no name."""
        if not self.recipients or list(self.recipients) != sorted(set(self.recipients)):
            raise ValueError(f"recipients are named once, in order, and there is at least one: {self.recipients}")
        for recipient in self.recipients:
            require_name(recipient, of="recipient")

    def repeats(self, other: "Release") -> bool:
        """Whether this is the same emulator for the same recipients; the date does not matter."""
        return replace(self, date=other.date) == other


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What ``who`` can have seen of the model ``base`` by putting together everything that any of them was ever given."""

    who: tuple[str, ...]
    base: Digest
    shown: int
    total: int
    releases: int

    @property
    def share(self) -> float:
        """Share of the model."""
        return self.shown / self.total


def release_of(bundle: Bundle, *, base: Weights, recipients: Iterable[str], date: str) -> Release:
    """Return what giving ``bundle`` to ``recipients`` shows of the model whose weights are ``base``; reads both once."""
    return Release(
        base=bundle.base_digest,
        plan=bundle.plan.digest,
        refinement=bundle.refinement_digest,
        recipients=tuple(sorted(set(recipients))),
        date=date,
        coverage=coverage(bundle.plan, base=base, shipped=bundle.file),
    )


def admit(path: Path, release: Release, *, config: ExposureConfig) -> tuple[Standing, ...]:
    """Write a release down durably and return where its recipients, and the sets they may collude in, stand then.

    Called before anything is distributed. `ExposureExceeded` when it lifts one of them over the cap; then nothing is written. A
    release that was admitted before is not written again. `ConfigError` when the file is damaged.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        past = _parsed(path)
        known = any(release.repeats(other) for other in past.releases)
        standings = _require_within(past.releases, release, config=config, known=known)
        if not known:
            _append(descriptor, _line(release, after=past.check), offset=past.size)
            _sync_folder(path.parent)
    finally:
        os.close(descriptor)
    return standings


def read_ledger(path: Path) -> tuple[Release, ...]:
    """Return all releases in order, none when there is no file; `ConfigError` when it is damaged."""
    return _parsed(path).releases if path.exists() else ()


def standing(releases: Iterable[Release], who: Iterable[str], *, base: Digest, model: Coverage) -> Standing:
    """Return what ``who`` can have seen together of the model whose tensors ``model`` names, whatever it says they show.

    An upper bound: neurons of a matrix are united; of two sets of components one counts if it holds the other, else their
    energies add up; other values add up unless they are equal; a tensor never counts for more than itself. Tensors that another
    version of the model has as well count for both.
    """
    names = {*who}
    mine = [r for r in releases if names & {*r.recipients}]
    parts: dict[Digest, list[Shown]] = {s.tensor: [] for s in model.tensors.values()}
    for shown in (s for r in mine for s in r.coverage.tensors.values()):
        if shown.tensor in parts:
            parts[shown.tensor].append(shown)
    return Standing(
        who=tuple(sorted(names)),
        base=base,
        shown=sum(shown_numbers(s.numbers, united(parts[s.tensor])) for s in model.tensors.values()),
        total=sum(s.numbers for s in model.tensors.values()),
        releases=len(mine),
    )


def united(parts: Iterable[Shown]) -> float:
    """Return the share of one tensor that several showings of it can amount to; an upper bound, see `standing`.

    Laws: not below any single share, not above 1; order and repetition of the parts do not matter.
    """
    known = [*parts]
    if any(p.kind in ("verbatim", "near") for p in known):
        return 1.0
    blurred = {p.values: p.share for p in known if p.kind == "blurred"}
    return min(1.0, _channels(known) + _components(known) + sum(sorted(blurred.values())))


def _channels(parts: Iterable[Shown]) -> float:
    cut = [p for p in parts if p.kind == "channels"]
    neurons = {n for p in cut for n in ranges_of(p.chosen)}
    return len(neurons) / cut[0].of if cut else 0.0


def _components(parts: Iterable[Shown]) -> float:
    sets: dict[frozenset[int], float] = {}
    for part in (p for p in parts if p.kind == "components"):
        chosen = frozenset(ranges_of(part.chosen))
        sets[chosen] = max(part.share, sets.get(chosen, 0.0))
    return sum(sorted(share for chosen, share in sets.items() if not any(chosen < other for other in sets)))


def _require_within(past: Sequence[Release], release: Release, *, config: ExposureConfig, known: bool) -> tuple[Standing, ...]:
    groups = [frozenset({r}) for r in release.recipients]
    groups += [g for names in config.colluding if (g := frozenset(names)) & {*release.recipients} and g not in groups]
    measure = partial(standing, base=release.base, model=release.coverage)
    after = tuple(measure(past if known else [*past, release], group) for group in groups)
    for then in after:
        before = measure(past, then.who)
        # What lies above the cap since it was lowered may go on, as long as nobody sees more.
        if then.share > config.share_max and then.shown > before.shown:
            raise ExposureExceeded(
                f"with this release {' and '.join(then.who)} would have seen {then.share:.2%} of the model, so far it is "
                f"{before.share:.2%}, but owner.exposure.share_max is {config.share_max:.2%}; ship a smaller emulator, or one of "
                "blocks that they have already, or raise the cap"
            )
    return after


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    tensor: str
    numbers: int
    kind: Kind
    share: float
    chosen: str = ""
    of: int = 0
    values: str | None = None


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["hushtune-release/1"]
    base: str
    plan: str
    refinement: str | None
    recipients: tuple[str, ...]
    date: str
    tensors: dict[str, _Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    """Whole lines of a ledger: their releases, the check of the last one, and how many bytes they take."""

    releases: tuple[Release, ...]
    check: bytes
    size: int


def _parsed(path: Path) -> _Parsed:
    content = path.read_bytes()
    lines = content.split(b"\n")
    lines.pop()  # empty, or what a crash left of a line that was never acknowledged
    releases: list[Release] = []
    check, size = b"", 0
    for number, line in enumerate(lines, start=1):
        found, _, text = line.partition(b" ")
        if found != _check(text, after=check):
            raise ConfigError(str(path), f"line {number} of the exposure ledger is damaged; restore the file from a backup")
        try:
            releases.append(_release(msgspec.json.decode(text, type=_Body)))
        except ValueError as error:
            raise ConfigError(str(path), f"line {number} of the exposure ledger is none of ours ({error})") from error
        check, size = found, size + len(line) + 1
    return _Parsed(releases=tuple(releases), check=check, size=size)


def _check(text: bytes, *, after: bytes) -> bytes:
    return hashlib.sha256(after + b" " + text).hexdigest()[:_CHECK_CHARS].encode()


def _line(release: Release, *, after: bytes) -> bytes:
    body = _Body(
        format="hushtune-release/1",
        base=release.base.hex,
        plan=release.plan.hex,
        refinement=None if release.refinement is None else release.refinement.hex,
        recipients=release.recipients,
        date=release.date,
        tensors={name: _tensor_of(shown) for name, shown in sorted(release.coverage.tensors.items())},
    )
    text = msgspec.json.encode(body)
    return _check(text, after=after) + b" " + text + b"\n"


def _tensor_of(shown: Shown) -> _Tensor:
    values = None if shown.values is None else shown.values.hex
    return _Tensor(shown.tensor.hex, shown.numbers, shown.kind, shown.share, shown.chosen, shown.of, values)


def _release(body: _Body) -> Release:
    return Release(
        base=Digest.from_hex(body.base),
        plan=Digest.from_hex(body.plan),
        refinement=None if body.refinement is None else Digest.from_hex(body.refinement),
        recipients=body.recipients,
        date=body.date,
        coverage=Coverage(tensors={name: _shown(tensor) for name, tensor in body.tensors.items()}),
    )


def _shown(tensor: _Tensor) -> Shown:
    return Shown(
        tensor=Digest.from_hex(tensor.tensor),
        numbers=tensor.numbers,
        kind=tensor.kind,
        share=tensor.share,
        chosen=tensor.chosen,
        of=tensor.of,
        values=None if tensor.values is None else Digest.from_hex(tensor.values),
    )


def _append(descriptor: int, line: bytes, *, offset: int) -> None:
    os.ftruncate(descriptor, offset)
    done = 0
    while done < len(line):
        done += os.pwrite(descriptor, line[done:], offset + done)
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
