"""What does a line say about one client in one round? By role and event, each role in places of its own.

::

    report, assigned, curve, step, trained, sealed, sends, cost, verdict, refused   the client itself
    gate, died                                                                       the coordinator
    carried                                                                          the air
    heard, received, judged                                                          the owner (Bob)
    tapped, attacked                                                                 the eavesdropper (Eve)
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from hushtune_server.testbed.dashboard.values import Json, chosen, count, number

Record = Mapping[str, Any]
Change = Callable[[Record, float], Json]

CURVE_POINTS_MAX: Final = 240
ATTEMPTS_MAX: Final = 16
"""Transmissions of an update of which each is shown; later ones share the last place."""


def _copy(place: str, *names: str) -> Change:
    return lambda record, _moment: {place: chosen(record, names)}


def _transmission(record: Record) -> str:
    attempt = min(ATTEMPTS_MAX, max(1, count(record.get("attempt"))))
    return f"{'key' if record.get('part') == 'key' else 'payload'}.{attempt}"


def _each(place: str, *names: str, **fixed: object) -> Change:
    """Return a change of the entry of one transmission."""
    return lambda record, _moment: {place: {_transmission(record): {**chosen(record, names), **fixed}}}


def _step(record: Record, _moment: float) -> Json:
    """A step of training; the curve keeps at most so many points, spread evenly, and the last."""
    step, steps, loss = count(record.get("step")), count(record.get("steps")), number(record.get("loss"))
    stride = max(1, -(-steps // CURVE_POINTS_MAX))
    wanted = loss is not None and (step % stride == 0 or step in (1, steps)) and step <= max(steps, CURVE_POINTS_MAX)
    made: Json = {"step": chosen(record, ("step", "steps", "loss", "tokens_per_s"))}
    return made | ({"curve": {str(step): loss}} if wanted else {})


def _heard(place: str) -> Change:
    def change(record: Record, _moment: float) -> Json:
        if record.get("kind") != "reception":
            return {}
        done = record.get("event") == "transfer_finished"
        made = chosen(record, ("blocks", "blocks_done", "bytes_done", "bytes_total"))
        if done:
            made |= {"bytes_done": count(record.get("bytes_total")), "whole": True}
            made |= {"blocks_done": count(record["blocks"])} if "blocks" in record else {}
        return {place: {_transmission(record): made}}

    return change


def _plugin(record: Record, _moment: float) -> Json:
    return {"judged": chosen(record, ("perplexity_public", "perplexity_public_before", "kept", "reason"))}


def _judged(accepted: bool) -> Change:
    return lambda record, _moment: {"judged": {"accepted": accepted, **chosen(record, ("reason",))}}


_ASSIGNED = (
    "decision",
    "protection",
    "adapter_share",
    "bandwidth_hz",
    "power_w",
    "clock_flops",
    "secrecy_rate_bps",
)
_GATE = ("decision", "reason", "snr_main_db", "snr_tap_bound_db", "block_error_rate", "rate_coded", "rate_gaussian")
_TRAINED = ("steps", "tokens", "loss_first", "loss_last", "train_s", "train_modelled_s", "cpu_s", "energy_j", "clock_share")
_COST = ("uploaded", "reason", "airtime_s", "bytes_raw", "bytes_uploaded", "train_s", "energy_j")
_SENT = ("blocks", "airtime_s", "bytes_frame", "energy_j", "missing", "fidelity")
_ATTACK = ("blocks", "blocks_heard", "blocks_decoded", "crc_passes", "snr_mean_db", "snr_bound_db", "valid", "fidelity")
_TROUBLE = ("duty", "reason", "problem")

CHANGES: Final[Mapping[str, Mapping[str, Change]]] = {
    "client": {
        "device_reported": _copy("report", "gain_main", "gain_tap_bound", "sample_count", "update_bits", "flops"),
        "channel_told": _copy("report", "gain_main", "gain_tap_bound"),
        "assignment_received": _copy("assigned", *_ASSIGNED),
        "gate_refused": _copy("refused", "decision", "reason"),
        "training_progressed": _step,
        "training_finished": _copy("trained", *_TRAINED),
        "update_encoded": _copy("sealed", "bytes_raw", "bytes_encoded", "budget_bytes", "bits_per_weight", "codec"),
        "update_noised": lambda _record, _moment: {"sealed": {"noised": True}},
        "payload_masked": _copy("sealed", "bytes_payload"),
        "update_sealed": _copy("sealed", "bytes_sealed", "digest", "protection"),
        "frame_encoded": _each("sends", "blocks", "bytes_frame", stage="coded"),
        "frame_reused": _each("sends", "blocks", "bytes_frame", stage="coded"),
        "frame_transmitted": _each("sends", *_SENT, stage="sent"),
        "round_completed": _copy("cost", *_COST),
        "round_failed": _copy("trouble", *_TROUBLE),
        "round_missed": _copy("trouble", *_TROUBLE),
        "verdict_received": _copy("verdict", "accepted", "kept", "reason", "score"),
    },
    "coordinator": {
        "gate_decided": _copy("gate", *_GATE),
        "channel_changed": lambda _record, moment: {"channel": {"changed": moment}},
        "client_died": lambda record, _moment: {"died": chosen(record, ("silent_s",))},
    },
    "air": {"frame_carried": _each("carried", "blocks", "blocks_coded", "airtime_s", "fidelity")},
    "owner": {
        "transfer_progressed": _heard("heard"),
        "transfer_finished": _heard("heard"),
        "reception_decoded": _each("heard", "blocks", "blocks_sound", "iterations_mean", "seconds"),
        "reception_failed": _each("heard", "reason", "problem"),
        "update_received": _copy("received", "digest", "attempts", "bytes_sealed", "fidelity"),
        "update_accepted": _judged(True),
        "update_refused": _judged(False),
        "update_left_out": _copy("judged", "reason"),
        "plugin_evaluated": _plugin,
    },
    "eavesdropper": {
        "transfer_progressed": _heard("tapped"),
        "transfer_finished": _heard("tapped"),
        "reception_attacked": _copy("attacked", *_ATTACK, "part", "attempt"),
    },
}
"""By role and event: what changes in the entry of a client in a round."""
