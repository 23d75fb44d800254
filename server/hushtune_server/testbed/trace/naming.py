"""Which adapter does a digest mean? Every digest in the logs, with what it names and whose it is."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from hushtune_common.errors import ConfigError
from hushtune_server.testbed.logbook.lines import Line

TRAINED: Final = "trained adapter"
SEALED: Final = "sealed update"
FRAME: Final = "frame"
STORED: Final = "stored adapter"
MEAN: Final = "mean of a round's adapters"
EMULATOR: Final = "emulator"
SCENARIO: Final = "scenario"
WAY: Final = (TRAINED, SEALED, FRAME, STORED)
"""What an adapter is on its way, in this order."""

_LEAST: Final = 4
_SHOWN: Final = 12
_NAMES: Final[Mapping[tuple[str, str], str]] = {
    ("update_encoded", "digest_trained"): TRAINED,
    ("update_sealed", "digest"): SEALED,
    ("update_received", "digest"): SEALED,
    ("update_accepted", "digest"): SEALED,
    ("update_refused", "digest"): SEALED,
    ("adapter_stored", "digest_sealed"): SEALED,
    ("adapter_stored", "digest_adapter"): STORED,
    ("adapters_averaged", "digest_adapter"): MEAN,
    ("emulator_published", "digest"): EMULATOR,
    ("emulator_renewed", "digest"): EMULATOR,
    ("emulator_revised", "digest"): EMULATOR,
    ("emulator_marked", "digest"): EMULATOR,
    ("emulator_verified", "digest"): EMULATOR,
    ("scenario_resolved", "digest"): SCENARIO,
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Slot:
    """Whose adapter, of which round."""

    round_id: int
    client: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A digest as one line of a log has it; ``slot`` is whose it is, `None` where it is nobody's alone."""

    what: str
    digest: str
    slot: Slot | None
    attempt: int | None
    line: Line


def names(lines: Sequence[Line]) -> Iterator[Name]:
    """Yield every digest that a line gives to anything."""
    for line in lines:
        for field, digest in line.record.items():
            what = FRAME if field == "digest_frame" else _NAMES.get((line.event, field))
            if what is not None and isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest):
                attempt = cast(Any, line.record.get("attempt"))
                yield Name(
                    what=what,
                    digest=digest,
                    slot=_slot(line) if what in WAY else None,
                    attempt=attempt if what == FRAME and isinstance(attempt, int) else None,
                    line=line,
                )


def _slot(line: Line) -> Slot | None:
    client, round_id = line.client, line.round_id
    return None if client is None or round_id is None else Slot(round_id=round_id, client=client)


def find(lines: Sequence[Line], text: str) -> Name:
    """Return what ``text`` names: the beginning of any digest, or a version's name, which ends in one.

    `ConfigError` when it is too short, names nothing, several things, or what is no client's adapter; it says what there is.
    """
    prefix = text.strip().lower().rpartition(".")[2]
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST},64}}", prefix):
        raise ConfigError("DIGEST", f"{text!r} is no beginning of a digest: at least {_LEAST} of the characters 0-9 and a-f")
    found = [name for name in names(lines) if name.digest.startswith(prefix)]
    digests = sorted({name.digest for name in found})
    if not found:
        raise ConfigError("DIGEST", f"{prefix} names nothing in these logs; {known(lines)}")
    if len(digests) > 1:
        several = ", ".join(f"{d[:_SHOWN]} ({next(n.what for n in found if n.digest == d)})" for d in digests[:5])
        raise ConfigError("DIGEST", f"{prefix} begins {len(digests)} digests: {several}; give more of it")
    mine = next((name for name in found if name.slot is not None), None)
    if mine is None:
        raise ConfigError("DIGEST", f"{prefix} is the {found[0].what}, no client's adapter; {known(lines)}")
    return mine


def known(lines: Sequence[Line]) -> str:
    """Return the adapters that there are to follow, for an error message."""
    sealed: dict[Slot, str] = {}
    for name in names(lines):
        if name.slot is not None and name.what == SEALED:
            sealed.setdefault(name.slot, name.digest)
    told = [f"{digest[:_SHOWN]} ({slot.client}, round {slot.round_id})" for slot, digest in sorted(sealed.items())]
    return f"adapters: {', '.join(told[:12])}" if told else "no client has sealed an update yet"
