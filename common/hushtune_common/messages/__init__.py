"""What the processes say to each other: ids, digests, manifests, reports, assignments, updates, verdicts.

Values are frozen and validated where they are made; whoever holds one may trust its form. Each module has the words of one plane.
"""

from hushtune_common.messages.air import BLOCKS_MAX, Listener, Receipt, ReceptionNotice, SealedUpdate, Transmission
from hushtune_common.messages.assignments import Assignment, Gate, GateDecision, Planned
from hushtune_common.messages.identity import Caller, ClientId, Digest, Role, RunId, UpdateKey, require_name
from hushtune_common.messages.owner import EmulatorManifest, Revision, TensorSpec, Verdict
from hushtune_common.messages.reports import SEALING_BYTES, Channel, ClientReport
from hushtune_common.messages.rounds import (
    SENDING_PHASES,
    Beat,
    Completion,
    Conclusion,
    Directive,
    DirectiveKind,
    Settlement,
    SumWord,
)
from hushtune_common.messages.secrecy import BITS_PER_SYMBOL, LinkSeed, Part, Protection, SecrecyDesign, TapModel
from hushtune_common.messages.utility import CURVE_POINTS_MAX, CurvePoint, UtilityCurve

__all__ = [
    "BITS_PER_SYMBOL",
    "BLOCKS_MAX",
    "CURVE_POINTS_MAX",
    "SEALING_BYTES",
    "SENDING_PHASES",
    "Assignment",
    "Beat",
    "Caller",
    "Channel",
    "ClientId",
    "ClientReport",
    "Completion",
    "Conclusion",
    "CurvePoint",
    "Digest",
    "Directive",
    "DirectiveKind",
    "EmulatorManifest",
    "Gate",
    "GateDecision",
    "LinkSeed",
    "Listener",
    "Part",
    "Planned",
    "Protection",
    "Receipt",
    "ReceptionNotice",
    "Revision",
    "Role",
    "RunId",
    "SealedUpdate",
    "SecrecyDesign",
    "Settlement",
    "SumWord",
    "TapModel",
    "TensorSpec",
    "Transmission",
    "UpdateKey",
    "UtilityCurve",
    "Verdict",
    "require_name",
]
