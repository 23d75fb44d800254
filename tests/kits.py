"""Certificates for tests: an authority and kits below a test's own folder."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from hushtune_common.clock import SystemClock
from hushtune_common.messages import Role
from hushtune_common.wire.endpoint import Kit
from hushtune_server import pki


@dataclass(slots=True)
class Kits:
    """Makes kits of one authority; each name is issued once."""

    directory: Path
    clock: SystemClock = field(default_factory=SystemClock)

    def __post_init__(self) -> None:
        pki.init(self.directory / "ca", clock=self.clock)

    def folder(self, role: Role, name: str | None = None, *, not_before: datetime | None = None, days: int = 90) -> Path:
        """Return the folder of a kit; ``name`` is the role's when not given."""
        who = name or str(role)
        out = self.directory / f"{role}-{who}"
        if not out.exists():
            pki.issue(self.directory / "ca", role=role, name=who, out=out, clock=self.clock, not_before=not_before, days=days)
        return out

    def kit(self, role: Role, name: str | None = None, *, not_before: datetime | None = None, days: int = 90) -> Kit:
        """Return a loaded kit."""
        return Kit.load(self.folder(role, name, not_before=not_before, days=days))
