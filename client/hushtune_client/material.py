"""What does this client train on in a round? The emulator of that round, and its own windows in the emulator's tokens."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hushtune_client.emulator import Emulator, open_emulator, require_acceptable
from hushtune_client.own_training import OwnTraining, import_adapter, require_addable
from hushtune_client.ports import Fetched, Ports
from hushtune_client.private import own_windows
from hushtune_client.progress import Status, TransferLog
from hushtune_client.state import ClientState, RoundFiles
from hushtune_client.windows import save_windows
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.logs import log_event
from hushtune_common.messages import EmulatorManifest

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Aside(Protocol):
    """Runs blocking work where it does not hold up the beats."""

    def __call__(self, work: Callable[[], _T], /) -> Awaitable[_T]:
        """Return what ``work`` returns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The emulator of one round, and how many windows this client has for it."""

    emulator: Emulator
    window_count: int


class Supply:
    """Has the material of the round in progress at hand.

    Law: what is returned for a round is of that round, never of an earlier one.
    """

    def __init__(
        self,
        *,
        scenario: Scenario,
        records: Sequence[str],
        ports: Ports,
        state: ClientState,
        status: Status,
        clock: Clock,
        aside: Aside,
        own: OwnTraining | None = None,
    ) -> None:
        """Take this client's own ``records``, whose windows are written where ``state`` says.

        An emulator that a training of its ``own`` is not of is refused, with the `ConfigError` of `import_adapter`.
        """
        self._scenario = scenario
        self._records = records
        self._ports = ports
        self._state = state
        self._status = status
        self._clock = clock
        self._aside = aside
        self._own = own
        self._material: Material | None = None

    async def at_hand(self, round_id: int) -> Material:
        """Return the material of a round, made now unless that was done in this life of the process."""
        known = self._material
        if known is not None and known.emulator.manifest.round_id == round_id:
            return known
        return await self.fresh(round_id)

    async def fresh(self, round_id: int) -> Material:
        """Have the emulator that the owner publishes for a round, and this client's windows for it."""
        self._status.enter("fetching the emulator")
        manifest = await self._ports.owner.manifest(self._state.terms.run, round_id)
        require_acceptable(manifest, scenario=self._scenario, round_id=round_id)
        emulator = await self._emulator(manifest)
        files = self._state.files(round_id)
        count = await self._aside(lambda: self._write_windows(emulator, files))
        self._material = Material(emulator=emulator, window_count=count)
        return self._material

    async def _emulator(self, manifest: EmulatorManifest) -> Emulator:
        transfer = TransferLog("emulator", clock=self._clock, status=self._status)
        fetched = await self._ports.owner.fetch(manifest, progress=transfer)
        transfer.finish(fetched.bytes_fetched)
        _tell(fetched, manifest)
        emulator = await self._aside(lambda: open_emulator(fetched.path, manifest=manifest))
        if (own := self._own) is not None:  # what cannot be imported takes nobody's band first
            await self._aside(lambda: self._require_usable(own, emulator))
        return emulator

    def _require_usable(self, own: OwnTraining, emulator: Emulator) -> None:
        imported = import_adapter(own, bundle=emulator.bundle, round_id=emulator.manifest.round_id)
        require_addable(imported, bundle=emulator.bundle, scenario=self._scenario)

    def _write_windows(self, emulator: Emulator, files: RoundFiles) -> int:
        windows = own_windows(self._records, tokens=emulator.bundle.tokens, scenario=self._scenario)
        save_windows(files.windows, windows)
        return len(windows)


def _tell(fetched: Fetched, manifest: EmulatorManifest) -> None:
    if fetched.problem:
        log_event(_logger, "revision_refused", level=logging.WARNING, round_id=manifest.round_id, problem=fetched.problem)
    log_event(
        _logger,
        "emulator_verified",
        round_id=manifest.round_id,
        digest=manifest.emulator,
        bytes=manifest.size_bytes,
        bytes_fetched=fetched.bytes_fetched,
        revised=fetched.revised,
        plan=manifest.plan,
    )
