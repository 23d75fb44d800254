"""Which copy of an emulator does each client get? One of its own, marked, where the scenario says so."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hushtune_common.config import FingerprintConfig, Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.messages import ClientId, EmulatorManifest
from hushtune_server.owner.book import Copy

if TYPE_CHECKING:
    from hushtune_server.owner.fingerprint.register import Register

NO_COPIES: Mapping[ClientId, Copy] = {}


class Copies:
    """Marked copies for ``clients``, made with the secret and remembered in the register of the owner's ``state_dir``.

    Laws: a client's copies of equal emulators are equal, byte by byte, in every life of the process; a copy differs from its
    emulator in frozen weights only.
    """

    def __init__(self, state_dir: Path, *, clients: Sequence[ClientId], config: FingerprintConfig) -> None:
        """Write nothing yet. `ConfigError` for a mark of no strength."""
        if config.strength == 0.0:
            problem = "is 0, which marks nothing; give each client a mark, or leave owner.fingerprint out"
            raise ConfigError("owner.fingerprint.strength", problem)
        self.clients = tuple(clients)
        self._state_dir = state_dir
        self._config = config

    @staticmethod
    def of(scenario: Scenario, *, state_dir: Path) -> "Copies | None":
        """Return what the scenario asks for; none where all clients get the same emulator."""
        if (config := scenario.owner.fingerprint) is None:
            return None
        return Copies(state_dir, clients=[ClientId(c.id) for c in scenario.clients], config=config)

    def write(self, target: Path, *, bundle: Path, client: ClientId) -> None:
        """Write a client's copy of the emulator in the file ``bundle``."""
        self._register.write_copy(target, bundle=bundle, recipient=client, strength=self._config.strength)

    def require_traceable(self, copy: Path, *, client: ClientId) -> None:
        """Raise `ConfigError` unless ``copy`` as it is names its client, whatever else was ever marked here.

        A chance of ``false_alarm_max`` is shared among all clients.
        """
        from hushtune_server.owner.fingerprint.detect import detect

        register = self._register
        own = [replace(r, copies=tuple(c for c in r.copies if c.recipient == client)) for r in register.references]
        report = detect(copy, references=[reference for reference in own if reference.copies], key=register.key)
        if not report.carried(false_alarm_max=self._config.false_alarm_max / len(self.clients)):
            problem = f"a mark of {self._config.strength:g} on {report.weights} weights would not name {client}"
            advice = "make it stronger, or allow more in owner.fingerprint.false_alarm_max"
            raise ConfigError("owner.fingerprint.strength", f"{problem}; {advice}")

    @property
    def _register(self) -> "Register":
        from hushtune_server.owner.fingerprint.register import FOLDER, Register

        return Register(self._state_dir / FOLDER)


def manifest_for(manifest: EmulatorManifest, copy: Copy | None) -> EmulatorManifest:
    """Return the manifest of a client's own copy, or the one for everybody."""
    if copy is None:
        return manifest
    return replace(manifest, emulator=copy.emulator, size_bytes=copy.size_bytes, revision=copy.revision)
