"""May this client send this, this way? What is checked before a frame is looked at."""

from hushtune_common.config import ClientConfig, Scenario
from hushtune_common.errors import LimitExceeded, MalformedUpdate, NotYours
from hushtune_common.link.frame import FrameLayout
from hushtune_common.messages import Part, Transmission

_ROUNDING = 1.0 + 1e-9
_BANDWIDTH_LEAST_HZ = 1.0
_KEY_BYTES = 32
"""A key part carries exactly the secret that the seal of the update depends on."""


def require_allowed(transmission: Transmission, client: ClientConfig, scenario: Scenario) -> None:
    """Raise ``NotYours``, ``LimitExceeded`` or ``MalformedUpdate`` unless ``client`` may send this in ``scenario``."""
    key = transmission.key
    if key.client != client.id:
        raise NotYours(f"{client.id} cannot transmit as {key.client}")
    if key.round_id > scenario.coordinator.rounds:
        raise LimitExceeded(f"round {key.round_id} is above coordinator.rounds = {scenario.coordinator.rounds}")
    if key.attempt > scenario.limits.attempts_max:
        raise LimitExceeded(f"attempt {key.attempt} is above limits.attempts_max = {scenario.limits.attempts_max}")
    if transmission.frame_bytes > scenario.limits.frame_bytes_max:
        raise LimitExceeded(
            f"a frame of {transmission.frame_bytes} bytes is above limits.frame_bytes_max = {scenario.limits.frame_bytes_max}"
        )
    # Work grows with the codewords of a block, for both listeners: their number is the scenario's to choose, not a client's.
    if transmission.design.codewords != scenario.secrecy.codewords:
        raise MalformedUpdate(f"design.codewords: secrecy.codewords is {scenario.secrecy.codewords}")
    if transmission.power > client.power_max_w * _ROUNDING:
        raise LimitExceeded(f"power {transmission.power:g} W is above this device's {client.power_max_w:g} W")
    if transmission.bandwidth < _BANDWIDTH_LEAST_HZ:
        raise LimitExceeded(f"bandwidth {transmission.bandwidth:g} Hz is below {_BANDWIDTH_LEAST_HZ:g} Hz")
    if transmission.bandwidth > scenario.air.bandwidth_hz * _ROUNDING:
        raise LimitExceeded(f"bandwidth {transmission.bandwidth:g} Hz is above the air's {scenario.air.bandwidth_hz:g} Hz")
    _require_protection(transmission, scenario)


def require_part_size(layout: FrameLayout, scenario: Scenario) -> None:
    """Raise unless the part that a frame belongs to is as large as a key is, or no larger than an update may be."""
    if layout.part is Part.KEY and layout.update_bytes != _KEY_BYTES:
        raise MalformedUpdate(f"a key part has {_KEY_BYTES} bytes, the frame announces {layout.update_bytes}")
    if layout.update_bytes > scenario.limits.update_bytes_max:
        most = scenario.limits.update_bytes_max
        raise LimitExceeded(f"an update of {layout.update_bytes} bytes is above limits.update_bytes_max = {most}")


def _require_protection(transmission: Transmission, scenario: Scenario) -> None:
    """An update may go over a hash or in the open, and a key over a hash, where the scenario names such a protection."""
    protections, secret = scenario.secrecy.protections, transmission.design.secret
    if transmission.part is Part.KEY:
        allowed = secret and "key" in protections
    else:
        allowed = "payload" in protections if secret else {"key", "crypto_only"} & {*protections}
    if not allowed:
        form = "over the wiretap code" if secret else "in the open"
        names = ", ".join(protections)
        raise MalformedUpdate(f"part: no {transmission.part} goes {form}; secrecy.protections names {names}")
