"""How does a trained adapter become the sealed bytes that a client sends? Encoded, or masked for a sum, then sealed."""

import logging
from collections.abc import Callable

from hushtune_client import feedback, uplink
from hushtune_client.allowance import allowance, beyond, change_max
from hushtune_client.material import Aside, Material
from hushtune_client.progress import Status
from hushtune_client.state import ClientState, RoundFiles, digest_of
from hushtune_client.sums import Sums
from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.clock import Clock
from hushtune_common.codec.pipeline import make_codec
from hushtune_common.config import Scenario
from hushtune_common.errors import DigestMismatch, MalformedUpdate, TrainerFailed
from hushtune_common.logs import log_event
from hushtune_common.messages import Assignment, TensorSpec
from hushtune_common.noise import Statement
from hushtune_common.secagg.layout import grid_for

_logger = logging.getLogger(__name__)


class Sealer:
    """Makes sealed updates of what was trained, and knows what earlier updates owe to the next."""

    def __init__(
        self,
        *,
        scenario: Scenario,
        state: ClientState,
        status: Status,
        clock: Clock,
        aside: Aside,
        randomness: uplink.LinkRandomness,
        sums: Sums | None,
    ) -> None:
        """Take everything; with ``sums`` a payload is masked, to be added to those of others unseen."""
        self._scenario = scenario
        self._state = state
        self._status = status
        self._clock = clock
        self._aside = aside
        self._randomness = randomness
        self._sums = sums

    async def seal(
        self, material: Material, files: RoundFiles, *, assignment: Assignment
    ) -> tuple[uplink.Sealed, AdapterState | None]:
        """Return the sealed update, and what its decoder does not get back where a later round can make up for it."""
        self._status.enter("encoding and sealing")
        round_id, emulator = assignment.round_id, material.emulator
        sealed, residual = await self._aside(lambda: self._sealed(material, files, assignment))
        trained = await self._aside(lambda: digest_of(files.adapter))
        log_event(
            _logger,
            "update_encoded",
            round_id=round_id,
            bytes_raw=sealed.bytes_raw,
            bytes_encoded=sealed.bytes_encoded,
            codec=emulator.manifest.codec,
            adapter_share=assignment.adapter_share,
            budget_bytes=assignment.budget_bytes,
            bits_per_weight=round(8 * sealed.bytes_encoded / (sealed.bytes_raw / 4), 4),
            digest_trained=trained,
        )
        if (noise := self._scenario.codec.noise) is not None:
            counts = [spec.count for spec in emulator.manifest.adapter]
            said = Statement.of(noise.promise, counts=counts, rounds=self._scenario.coordinator.rounds)
            log_event(_logger, "update_noised", round_id=round_id, terms=said.terms)
        log_event(
            _logger,
            "update_sealed",
            round_id=round_id,
            bytes_sealed=len(sealed.data),
            digest=sealed.digest,
            protection=assignment.protection,
        )
        return sealed, residual

    def _sealed(self, material: Material, files: RoundFiles, assignment: Assignment) -> tuple[uplink.Sealed, AdapterState | None]:
        manifest, round_id = material.emulator.manifest, assignment.round_id
        try:
            trained = load_adapter(files.adapter, manifest.adapter)
        except MalformedUpdate as error:
            raise TrainerFailed(f"the trained adapter cannot be used: {error}") from error
        wanted = feedback.corrected(trained, self._owed(round_id, manifest.adapter))
        payload, read = self._payload(wanted, material, assignment, trained=trained)
        up = uplink.Uplink(
            manifest=manifest,
            update_bytes_max=self._scenario.limits.update_bytes_max,
            randomness=self._randomness,
        )
        sealed = up.seal(payload, bytes_raw=wanted.bytes_raw, key=self._state.key(round_id, attempt=1), assignment=assignment)
        if not self._feeds_back or round_id == self._scenario.coordinator.rounds:
            return sealed, None
        return sealed, feedback.left_over(wanted, read())

    def _payload(
        self, wanted: AdapterState, material: Material, assignment: Assignment, *, trained: AdapterState
    ) -> tuple[bytes, Callable[[], AdapterState]]:
        """Return what is sealed, and what of ``wanted`` its receiver can make of it, alone or in a sum."""
        bundle, schema = material.emulator.bundle, material.emulator.manifest.adapter
        shipped = AdapterState(bundle.adapter_numpy())
        if self._sums is None:
            codec = make_codec(
                self._scenario.codec,
                shipped=shipped,
                sensitivity=bundle.sensitivity,
                feedback=self._feeds_back,
                change_max=self._change_max(wanted, trained=trained, shipped=shipped, round_id=assignment.round_id),
            )
            encoded = codec.encode(wanted, budget_bytes=assignment.budget_bytes)
            return encoded, lambda: codec.decode(encoded, schema)
        started, grid = self._clock.monotonic(), grid_for(self._scenario, schema)
        added = grid.encode(wanted, shipped=shipped, weight=self._sums.weight(material.window_count))
        upload = self._sums.masked(assignment.round_id, added.words).to_bytes()
        log_event(
            _logger,
            "payload_masked",
            round_id=assignment.round_id,
            bytes_payload=len(upload),
            clipped=added.clipped,
            step_max=max(grid.step(tensor) for tensor in grid.tensors),
            seconds=round(self._clock.monotonic() - started, 4),
        )
        return upload, lambda: grid.decode(added.words, shipped=shipped).state

    def _change_max(self, wanted: AdapterState, *, trained: AdapterState, shipped: AdapterState, round_id: int) -> float:
        """Return how far the update may move a weight, and say so if it was to move any further."""
        limit = change_max(trained, shipped=shipped, gate=allowance(self._scenario, round_id=round_id))
        if weights := beyond(wanted, shipped=shipped, limit=limit):
            owed = self._feeds_back and round_id < self._scenario.coordinator.rounds
            log_event(_logger, "change_cut_off", round_id=round_id, weights=weights, change_max=limit, owed=owed)
        return limit

    @property
    def _feeds_back(self) -> bool:
        return self._scenario.coordinator.rounds > 1 and self._scenario.training.error_feedback

    def _owed(self, round_id: int, schema: tuple[TensorSpec, ...]) -> AdapterState | None:
        """Return what earlier updates owe to this one."""
        if not self._feeds_back:
            return None
        try:
            return self._state.residual(round_id, schema)
        except DigestMismatch as error:
            # A disk that lost it has lost a correction, and no training: the update is still worth sending.
            log_event(_logger, "residual_lost", level=logging.WARNING, round_id=round_id, problem=str(error))
            return None
