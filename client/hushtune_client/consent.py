"""Is an assignment one that this client's own scenario allows: protected as it says, of a size that it has?

Whoever owns the data checks before sending it. The coordinator chooses protection, power, design and size; a design says of
itself what it leaks, and to whom. Nothing of that is taken on trust: the client knows the scenario and its own place, and works
leakage bound and size out anew.
"""

from collections.abc import Sequence

from hushtune_common.codec.pipeline import budget_bytes
from hushtune_common.config import ClientConfig, CodecConfig, Scenario
from hushtune_common.errors import MalformedUpdate
from hushtune_common.link import secrecy, wiretap
from hushtune_common.link.abstraction import Fading
from hushtune_common.messages import Assignment, SecrecyDesign, TapModel, TensorSpec
from hushtune_common.units import to_db

_ROUNDING_DB = 1e-4
_ROUNDING_BITS = 1e-3
"""Another machine's libraries may round otherwise; a thousandth of a bit of leakage is none."""


def require_protected(assignment: Assignment, *, scenario: Scenario, device: ClientConfig) -> None:
    """Raise `MalformedUpdate` unless a granted assignment gives what the scenario promises.

    The protection is one that the scenario names, and a wiretap design is made for the tap that the scenario assumes, at least as
    good as this device's place and the assigned power give it, and leaks no more than ``secrecy.log2_delta`` to it.
    """
    if assignment.protection is None:
        return
    if assignment.protection.value not in scenario.secrecy.protections:
        named = ", ".join(scenario.secrecy.protections)
        raise MalformedUpdate(f"protection: {assignment.protection} was assigned, secrecy.protections names {named}")
    if assignment.design is not None:
        _require_model(assignment.design, scenario)
        _require_tap(assignment, assignment.design, scenario=scenario, device=device)
        _require_bound(assignment.design, scenario)


def require_granted(assignment: Assignment, *, schema: Sequence[TensorSpec], codec: CodecConfig) -> None:
    """Raise `MalformedUpdate` unless the bytes granted are those of the share assigned, of an update of these tensors.

    Less would lose more of the update than the share says, more would take time on air that nobody planned.
    """
    if assignment.protection is None:
        return
    wanted = budget_bytes(schema, config=codec, share=assignment.adapter_share)
    if assignment.budget_bytes != wanted:
        raise MalformedUpdate(
            f"budget_bytes: {assignment.budget_bytes} were granted, a share of {assignment.adapter_share:.6g} of this adapter's "
            f"update has {wanted}"
        )


def require_sum_granted(assignment: Assignment, *, size: int) -> None:
    """Raise `MalformedUpdate` unless the bytes granted are those of a masked payload: there is no smaller one."""
    if assignment.protection is not None and assignment.budget_bytes != size:
        raise MalformedUpdate(f"budget_bytes: {assignment.budget_bytes} were granted, a masked payload has {size}")


def tap_model(scenario: Scenario) -> TapModel:
    """Return what a design has to assume of the tap's channel."""
    return TapModel.FIXED if scenario.air.fading == "none" else TapModel(scenario.secrecy.fading_design)


def _require_model(design: SecrecyDesign, scenario: Scenario) -> None:
    found = design.tap_model, design.subbands, design.codewords
    wanted = tap_model(scenario), Fading.of(scenario.air).subbands, scenario.secrecy.codewords
    if found != wanted:
        raise MalformedUpdate(f"design: tap model, coherence blocks and codewords are {found}, the scenario says {wanted}")


def _require_tap(assignment: Assignment, design: SecrecyDesign, *, scenario: Scenario, device: ClientConfig) -> None:
    gain = secrecy.tap_gain_bound(scenario, device)
    bound = secrecy.snr(power=assignment.power, gain=gain, bandwidth=assignment.bandwidth)
    if design.tap_model is TapModel.OUTAGE:
        bound *= secrecy.outage_factor(scenario.secrecy.tap_outage)
    if to_db(bound) > design.snr_tap_design_db + _ROUNDING_DB:
        raise MalformedUpdate(
            f"design.snr_tap_design_db: made for a tap at {design.snr_tap_design_db:.2f} dB, but {assignment.power:.3g} W over "
            f"{assignment.bandwidth:.3g} Hz may reach it at {to_db(bound):.2f} dB"
        )


def _require_bound(design: SecrecyDesign, scenario: Scenario) -> None:
    allowed = scenario.secrecy.log2_delta
    try:
        leaked = wiretap.log2_leakage(design)
    except ValueError as error:
        raise MalformedUpdate(f"design: {error}") from error
    if max(leaked, design.log2_delta) > allowed + _ROUNDING_BITS or leaked > design.log2_delta + _ROUNDING_BITS:
        raise MalformedUpdate(
            f"design.random_bits: {design.random_bits} leak up to 2^{leaked:.2f} per hash block (2^{design.log2_delta:g} is "
            f"claimed), secrecy.log2_delta allows 2^{allowed:g}"
        )
