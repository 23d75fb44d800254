"""Where do refused updates go that could be read? Aside, with the reason, for a person to look at; never into the model."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Literal

import msgspec

from hushtune_common.adapter import AdapterState, save_adapter
from hushtune_common.messages import Digest, UpdateKey
from hushtune_server.owner.gatekeeper.finding import Finding

FOLDER = "quarantine"
"""Name of the folder in the owner's state."""

_ADAPTER = "adapter.safetensors"
_REASON = "reason.json"
_NAME = re.compile(r"[a-z0-9-]+-[0-9]+-[0-9a-f]{12}")


class Screened(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One reason, as it stands in the file; ``value`` is none when it is not finite."""

    setting: str
    value: float | None
    limit: float | None
    problem: str


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why an update lies in quarantine; ``digest`` is that of its sealed bytes, ``date`` the day it came."""

    format: Literal["hushtune-quarantine/1"] = "hushtune-quarantine/1"
    run: str
    round_id: int
    client: str
    digest: str
    date: str
    screens: tuple[Screened, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """One update in quarantine: the folder's name, why, and how many bytes it takes."""

    id: str
    reason: Reason
    size: int


class Quarantine:
    """A folder of refused updates, ``CLIENT-ROUND-DIGEST/`` each with ``reason.json`` and the adapter.

    Laws: neither number nor bytes exceed the limits, the oldest go first, and what does not fit alone is not kept; what stands
    under its name is complete. Nothing in here is ever read by whatever plugs adapters in.
    """

    def __init__(self, folder: Path, *, count_max: int, bytes_max: int) -> None:
        """Take the ``folder``, made when something is first put there."""
        self._folder = folder
        self._count_max = count_max
        self._bytes_max = bytes_max

    def keep(self, state: AdapterState, *, key: UpdateKey, digest: Digest, findings: Sequence[Finding], date: str) -> None:
        """Put a refused adapter aside; the same one again changes nothing."""
        name = f"{key.client}-{key.round_id}-{digest.short}"
        if self._count_max == 0 or (self._folder / name).exists():
            return
        reason = Reason(
            run=key.run,
            round_id=key.round_id,
            client=key.client,
            digest=digest.hex,
            date=date,
            screens=tuple(_screened(finding) for finding in findings),
        )
        partial = self._folder / f"{name}.partial"
        rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700, parents=True)
        save_adapter(partial / _ADAPTER, state)
        (partial / _REASON).write_text(json.dumps(msgspec.to_builtins(reason), indent=1) + "\n", encoding="utf-8")
        if self._room_for(_size(partial)):
            partial.rename(self._folder / name)
        for leftover in self._folder.glob("*.partial"):
            rmtree(leftover, ignore_errors=True)

    def _room_for(self, needed: int) -> bool:
        """Drop the oldest until ``needed`` bytes fit; false, and nothing dropped, when they never would."""
        if needed > self._bytes_max:
            return False
        held = list(quarantined(self._folder))
        while held and (len(held) >= self._count_max or needed + sum(q.size for q in held) > self._bytes_max):
            oldest = self._folder / held.pop(0).id
            oldest.rename(oldest.with_name(f"{oldest.name}.partial"))  # never half of one under its name
        return True


def quarantined(folder: Path) -> Sequence[Quarantined]:
    """Return what lies in a quarantine, the oldest first; what is not ours is passed over."""
    entries = sorted((e for e in folder.glob("*-*-*") if _NAME.fullmatch(e.name)), key=lambda e: (e.stat().st_mtime_ns, e.name))
    return [
        Quarantined(id=entry.name, reason=reason, size=_size(entry))
        for entry in entries
        if (reason := _reason(entry / _REASON)) is not None
    ]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _reason(file: Path) -> Reason | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Reason)
    except (OSError, ValueError):
        return None


def _screened(finding: Finding) -> Screened:
    return Screened(setting=finding.setting, value=_plain(finding.value), limit=_plain(finding.limit), problem=finding.problem)


def _plain(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
