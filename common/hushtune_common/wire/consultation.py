"""Whom does a doctor see? A kit file, a kit's folder, or the folder that a client joined with; and what is known of its run."""

import asyncio
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushtune_common import config
from hushtune_common.clock import Clock
from hushtune_common.config import TimingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest, Role
from hushtune_common.wire import archive, doctor
from hushtune_common.wire.doctor import Finding, Verdict

JOINED = "kit"
"""Where the kit lies in the folder that a client joined with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patient:
    folder: Path
    addresses: Mapping[Role, str]
    scenario: Digest | None
    timing: TimingConfig


def parse_addresses(told: Sequence[str]) -> dict[Role, str]:
    """Return the addresses in ``ROLE=HOST:PORT`` words, which may be joined by commas; ``ConfigError`` for anything else."""
    found: dict[Role, str] = {}
    for word in (word for text in told for word in text.split(",") if word):
        role, _, address = word.partition("=")
        if role not in {Role.OWNER, Role.COORDINATOR, Role.AIR}:
            raise ConfigError("--addresses", f"is owner=HOST:PORT, coordinator=… or air=…, with commas; got {word!r}")
        found[Role(role)] = archive.require_address(address, of=f"--addresses {role}")
    return found


def consult(
    path: Path, *, addresses: Mapping[Role, str], scenario: Path | None, state: Path | None, clock: Clock
) -> list[Finding]:
    """Examine what lies at ``path``; ``addresses`` and the ``scenario`` file come before what the kit says.

    What is wrong with the kit is a finding, not an error.
    """
    with tempfile.TemporaryDirectory(prefix="hushtune-") as scratch:
        try:
            patient = _patient(path, Path(scratch), scenario)
        except ConfigError as error:
            problem, _, remedy = str(error).rpartition("; ")
            return [Finding(check="kit", verdict=Verdict.FAIL, text=problem or remedy, remedy=remedy if problem else "")]
        return asyncio.run(
            doctor.examine(
                patient.folder,
                addresses={**patient.addresses, **addresses},
                scenario=patient.scenario,
                timing=patient.timing,
                state=(path.parent if path.is_file() else path) if state is None else state,
                clock=clock,
            )
        )


def _patient(path: Path, scratch: Path, scenario: Path | None) -> _Patient:
    if path.is_file():
        found = archive.read(path)
        folder = scratch / "kit"
        archive.unpack(found, folder)
        addresses, digest = found.addresses, found.scenario
    else:
        folder = path / JOINED if (path / JOINED / archive.CERTIFICATE).exists() else path
        addresses, digest = _told_in(folder)
    file = folder / archive.SCENARIO if scenario is None else scenario
    if scenario is None and not file.exists():
        return _Patient(folder=folder, addresses=addresses, scenario=digest, timing=TimingConfig())
    resolved = config.load(file)
    return _Patient(folder=folder, addresses=addresses, scenario=resolved.digest, timing=resolved.timing)


def _told_in(folder: Path) -> tuple[Mapping[Role, str], Digest | None]:
    """Return the addresses and the scenario of a kit that came as one file; of others, that there are none."""
    try:
        told = tomllib.loads((folder / archive.ABOUT).read_text(encoding="utf-8"))
        addresses = {Role(role): str(address) for role, address in told.get("addresses", {}).items()}
        digest = Digest(bytes.fromhex(told["scenario"])) if told.get("scenario") else None
    except (OSError, ValueError, TypeError, AttributeError):
        return {}, None  # what is wrong with the kit, the examination says
    return addresses, digest
