"""What was computed already? Results in a folder, each under the digest of everything that it depends on.

A cell is a small JSON file, written in one go; a comparison that was killed finds every finished cell again and goes on with the
rest.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError, TrainerFailed
from hushtune_common.messages import Digest
from hushtune_server.testbed.rundir import read_json, write_json

FORMAT = "hushtune-cell/2"
"""Part of every digest; raised when what is computed changes, so that old cells are not taken for new ones."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a cell is about, in words and as everything that its result depends on; equal keys have equal results."""

    kind: str
    title: str
    key: Mapping[str, Any]

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical JSON of the format, the kind and the key."""
        body = msgspec.json.encode({"format": FORMAT, "kind": self.kind, "key": dict(self.key)}, order="deterministic")
        return Digest.of(body)


def beyond_defaults(settings: msgspec.Struct) -> Json:
    """Return the settings that are not at their default, for a key: a setting that comes new leaves finished cells as they are.

    Whoever changes what a default means, or its value, raises `FORMAT`.
    """
    plain = msgspec.to_builtins(settings)
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(settings)}
    return {name: plain[name] for name, value in msgspec.structs.asdict(settings).items() if value != defaults[name]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A cell that is settled: its result, whether it was there already, and how long it took now."""

    cell: Cell
    result: Json
    reused: bool
    wall_s: float


class Cells:
    """The folder of cells.

    Laws: a settled cell is never computed again; a cell is in the folder whole or not at all; a cell whose training diverged is
    settled, with the reason under ``failed``, and does not keep others from being computed.
    """

    def __init__(self, folder: Path, *, clock: Clock, tell: Callable[[Done], None]) -> None:
        """Use a folder, made if missing; ``tell`` hears of every settled cell."""
        self._folder, self._clock, self._tell = folder, clock, tell
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("--out", f"cannot use the folder {folder} ({error.strerror})") from error

    def known(self, cell: Cell) -> Json | None:
        """Return the result of a cell, none when it is not settled."""
        stored = read_json(self._path(cell))
        return stored.get("result") if stored.get("format") == FORMAT else None

    def settle(self, cell: Cell, compute: Callable[[], Json], *, again: bool = False) -> Json:
        """Return the result of a cell, computed when it is not there yet, or ``again``."""
        known = None if again else self.known(cell)
        began = self._clock.monotonic()
        result = self._computed(cell, compute) if known is None else known
        wall_s = self._clock.monotonic() - began
        self._tell(Done(cell=cell, result=result, reused=known is not None, wall_s=wall_s))
        return result

    def _computed(self, cell: Cell, compute: Callable[[], Json]) -> Json:
        try:
            result = compute()
        except TrainerFailed as error:
            result = {"failed": str(error)}
        stored = {"format": FORMAT, "kind": cell.kind, "title": cell.title, "key": dict(cell.key), "result": result}
        # Through text and back, so that a fresh result is what a later run will read.
        stored = json.loads(json.dumps(stored, allow_nan=False))
        write_json(self._path(cell), stored)
        return stored["result"]

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.kind}-{cell.digest.hex[:32]}.json"
