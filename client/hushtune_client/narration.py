"""How is what the coordinator says told in the log?"""

import logging

from hushtune_common.logs import log_event
from hushtune_common.messages import Assignment, Directive, DirectiveKind, GateDecision

_logger = logging.getLogger(__name__)


def narrate(directive: Directive) -> None:
    """Log one directive, and an assignment with what it grants or why it grants nothing."""
    match directive.kind:
        case DirectiveKind.ROUND_OPENED:
            log_event(_logger, "round_opened", round_id=directive.round_id)
        case DirectiveKind.ASSIGNED if directive.assignment is not None:
            _narrate_assignment(directive.assignment)
        case DirectiveKind.ROUND_CLOSED:
            accepted, failed = list(directive.accepted), directive.failed_reason
            log_event(_logger, "round_closed", round_id=directive.round_id, accepted=accepted, failed=failed, last=directive.last)
        case _:
            log_event(_logger, "directive_received", kind=directive.kind, round_id=directive.round_id)


def _narrate_assignment(assignment: Assignment) -> None:
    gate = assignment.gate
    log_event(
        _logger,
        "assignment_received",
        round_id=assignment.round_id,
        decision=gate.decision,
        protection=assignment.protection,
        adapter_share=assignment.adapter_share,
        bandwidth_hz=assignment.bandwidth,
        power_w=assignment.power,
        clock_flops=assignment.clock,
        secrecy_rate_bps=assignment.secrecy_rate_bps,
        deadline_s=assignment.deadline,
    )
    if gate.decision is not GateDecision.GRANTED:
        log_event(
            _logger,
            "gate_refused",
            level=logging.WARNING,
            round_id=assignment.round_id,
            decision=gate.decision,
            reason=gate.reason,
            snr_main_db=gate.snr_main_db,
            snr_tap_bound_db=gate.snr_tap_bound_db,
        )
