"""May this update touch the model? All screens that need nothing but numbers, in order of their cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hushtune_common.adapter import AdapterState
from hushtune_common.config import GateConfig
from hushtune_common.messages import ClientId
from hushtune_server.owner.gatekeeper.company import misfits
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.history import profile, unprecedented
from hushtune_server.owner.gatekeeper.measure import Changes, changes, whole
from hushtune_server.owner.gatekeeper.peaks import spike
from hushtune_server.owner.gatekeeper.reach import overreach
from hushtune_server.owner.gatekeeper.size import size
from hushtune_server.owner.gatekeeper.sketch import Sampler, Sketch
from hushtune_server.owner.gatekeeper.tensors import outstanding


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """What the screens found, nothing when the update passed; ``profile`` and ``sketch`` are kept of one that did."""

    findings: tuple[Finding, ...]
    profile: Mapping[str, float]
    sketch: Sketch


class Gatekeeper:
    """Screens updates made from one shipped adapter; pure arithmetic, and it remembers nothing.

    Laws: an update that does not change anything passes; the order of tensors and of the other updates does not matter.
    """

    def __init__(self, gate: GateConfig, *, shipped: AdapterState, reach: float, sampler: Sampler) -> None:
        """Take the limits, the adapter that went out, how far training can move a weight, and what takes sketches."""
        self._gate = gate
        self._shipped = shipped
        self._reach = reach
        self._sampler = sampler

    def screen(
        self,
        state: AdapterState,
        *,
        client: ClientId,
        others: Mapping[ClientId, Sketch],
        earlier: Sequence[Mapping[str, float]],
    ) -> Screening:
        """Judge the adapter of ``client`` by itself, beside ``others`` of its round and against ``earlier`` accepted ones.

        ``state`` has the shipped tensors and finite values.
        """
        found = changes(state, shipped=self._shipped)
        sketch = self._sketch(state, found)
        alone = self._alone(found, earlier=earlier)
        # What stands out by itself is not compared: it would only take the place of its reason.
        beside = {} if alone else misfits({**others, client: sketch}, gate=self._gate)
        findings = (*alone, *((beside[client],) if client in beside else ()))
        return Screening(findings=findings, profile=profile(found), sketch=sketch)

    def sketch(self, state: AdapterState) -> Sketch:
        """Return what is kept of an update that was accepted in an earlier life of the process."""
        return self._sketch(state, changes(state, shipped=self._shipped))

    def misfits(self, round_of: Mapping[ClientId, Sketch]) -> Mapping[ClientId, Finding]:
        """Return which of a round's updates do not go with the others, now that all are there."""
        return misfits(round_of, gate=self._gate)

    def _alone(self, found: Changes, *, earlier: Sequence[Mapping[str, float]]) -> tuple[Finding, ...]:
        gate = self._gate
        screens = (
            size(found, norm_max=gate.norm_max),
            overreach(found, reach=self._reach, reach_max=gate.reach_max),
            outstanding(found, norm_max=gate.tensor_norm_max, spread_max=gate.tensor_spread_max),
            unprecedented(found, earlier=earlier, history_max=gate.history_norm_max),
            spike(found, peak_max=gate.peak_max),
        )
        return tuple(finding for finding in screens if finding is not None)

    def _sketch(self, state: AdapterState, found: Changes) -> Sketch:
        return self._sampler.sketch(state, norm=whole(found).energy ** 0.5)
