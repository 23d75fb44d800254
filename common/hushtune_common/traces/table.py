"""Which spans are there? From the assignment to the verdict, in the order in which they happen."""

from typing import Final

from hushtune_common.events.event import AIR, CLIENT, COORDINATOR, EAVESDROPPER, OWNER
from hushtune_common.traces.span import ADAPTER, Rule

_SENT: Final = ("attempt", "part")

RULES: Final = (
    Rule(name="assign", by=COORDINATOR, ends="gate_decided", tell=("decision",)),
    Rule(name="train", by=CLIENT, ends="training_finished", seconds="train_s", tell=("steps", "tokens")),
    Rule(
        name="encode", by=CLIENT, ends="update_encoded", since="training_finished", tell=("bytes_raw", "bytes_encoded", "codec")
    ),
    Rule(name="seal", by=CLIENT, ends="update_sealed", since="update_encoded", tell=("bytes_sealed", "protection")),
    Rule(name="frame", by=CLIENT, ends="frame_encoded", seconds="seconds", per=_SENT, tell=("blocks", "bytes_frame", "fidelity")),
    Rule(
        name="upload",
        by=CLIENT,
        ends="transfer_finished",
        only={"kind": "frame"},
        seconds="seconds",
        per=_SENT,
        like="frame_encoded",
        tell=("bytes_total",),
    ),
    Rule(
        name="transmit",
        by=CLIENT,
        ends="frame_transmitted",
        since="transfer_finished",
        per=_SENT,
        tell=("blocks", "airtime_s", "missing"),
    ),
    Rule(name="carry", by=AIR, ends="frame_carried", parent="transmit", per=_SENT, tell=("blocks", "airtime_s", "fidelity")),
    Rule(
        name="deliver",
        by=AIR,
        ends="reception_streamed",
        parent="carry",
        seconds="seconds",
        per=(*_SENT, "listener"),
        tell=("blocks", "bytes_total"),
    ),
    Rule(
        name="receive",
        by=OWNER,
        ends="transfer_finished",
        only={"kind": "reception"},
        parent="carry",
        seconds="seconds",
        per=_SENT,
        tell=("bytes_total",),
    ),
    Rule(
        name="decode",
        by=OWNER,
        ends="reception_decoded",
        parent="receive",
        seconds="seconds",
        per=_SENT,
        tell=("blocks", "blocks_sound"),
    ),
    Rule(
        name="overhear",
        by=EAVESDROPPER,
        ends="transfer_finished",
        only={"kind": "reception"},
        parent="carry",
        seconds="seconds",
        per=_SENT,
        tell=("bytes_total",),
    ),
    Rule(
        name="attack",
        by=EAVESDROPPER,
        ends="reception_attacked",
        parent="overhear",
        since="transfer_finished",
        per=_SENT,
        tell=("blocks_heard", "crc_passes"),
    ),
    Rule(name="verify", by=OWNER, ends="update_accepted", since="update_received"),
    Rule(name="verify", by=OWNER, ends="update_refused", since="update_received", tell=("reason",), failed=True),
    Rule(
        name="plug_in",
        by=OWNER,
        ends="plugin_evaluated",
        parent="verify",
        since="update_received",
        tell=("kept", "perplexity_public", "perplexity_public_before"),
    ),
    Rule(name="verdict", by=CLIENT, ends="verdict_received", since="round_completed", tell=("accepted", "kept")),
    Rule(name=ADAPTER, by=CLIENT, ends="verdict_received", parent="", since="assignment_received", tell=("accepted", "kept")),
    Rule(name=ADAPTER, by=CLIENT, ends="round_failed", parent="", since="assignment_received", tell=("duty",), failed=True),
)
