"""Joining a run as messages: which run, which protocol, which timeouts."""

from math import isfinite

from hushtune_common import messages as ours
from hushtune_common.config import TimingConfig
from hushtune_common.errors import MalformedUpdate, VersionMismatch
from hushtune_common.wire.v1 import coordinator_pb2

PROTOCOL_MAJOR = 2
"""Both sides must speak the same."""
PROTOCOL_MINOR = 4
"""The smaller of the two is spoken. 1: a client tells of another channel before it transmits, assignments name theirs. 2: an
assignment grants bytes in place of bits per weight, the owner may bring a measured utility; every round has an emulator, and the
owner says whether another round follows. 3: secure aggregation. 4: a client asks before it transmits."""
PROTOCOL_MINOR_MIN = 4
"""Who speaks less would transmit unasked, on a band that others may have by then."""


def run_from_wire(text: str) -> ours.RunId:
    """Read a run's name, which becomes the name of folders; `MalformedUpdate` for anything else."""
    try:
        ours.require_name(text, of="run")
    except ValueError as error:
        raise MalformedUpdate(str(error)) from error
    return ours.RunId(text)


def welcome_from_wire(pb: coordinator_pb2.JoinResponse) -> tuple[ours.RunId, TimingConfig]:
    """Read the coordinator's answer to ``Join``: which run this is, and its timeouts; `VersionMismatch` when it is too old."""
    if pb.protocol_minor < PROTOCOL_MINOR_MIN:
        spoken = f"{PROTOCOL_MAJOR}.{pb.protocol_minor}"
        raise VersionMismatch(f"the coordinator speaks protocol {spoken}, at least minor {PROTOCOL_MINOR_MIN} is needed")
    timing = {"connect_s": pb.connect_s, "idle_s": pb.idle_s, "round_s": pb.round_s}
    for name, value in timing.items():
        if not (isfinite(value) and value > 0.0):
            raise MalformedUpdate(f"{name}: must be finite and positive, got {value}")
    return run_from_wire(pb.run), TimingConfig(**timing)
