"""What does a small run leave in its logs? A tale of three clients, one refused, in the words of the catalogue."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Entry = tuple[float, str, dict[str, Any]]
"""Seconds from the start, the process that writes the line, and its fields."""

ROLES = {"owner": "owner", "coordinator": "coordinator", "air": "air", "eavesdropper": "eavesdropper", "referee": "referee"}
SCENARIO = """
name = "told"
[[clients]]
id = "c1"
position = { x_m = -60.0, y_m = 40.0 }
[[clients]]
id = "c2"
position = { x_m = 90.0, y_m = -70.0 }
[[clients]]
id = "c3"
position = { x_m = 700.0, y_m = 20.0 }
[air]
eavesdropper = { x_m = 900.0, y_m = 0.0 }
"""


def tale(names: Sequence[str] = ("c1", "c2", "c3"), *, steps: int = 6) -> list[Entry]:
    """Return what happens, in order of time; the last client is excluded by the gate."""
    return sorted(
        [*_opening(names), *_sharing(names), *_sending(names[:-1], steps), *_closing(names)], key=lambda entry: entry[0]
    )


def _opening(names: Sequence[str]) -> Iterator[Entry]:
    for process in ("coordinator", "air", "owner", "eavesdropper", *names):
        yield 0.0, process, {"event": "scenario_resolved", "scenario": "told"}
    yield 0.5, "owner", {"event": "exposure_measured", "share": 0.79, "verbatim_share": 0.79}
    yield (
        0.6,
        "owner",
        {"event": "emulator_published", "round_id": 1, "digest": "fc" * 32, "bytes_total": 427_027_200, "method": "ablation"},
    )
    yield 1.0, "coordinator", {"event": "round_opened", "round_id": 1, "rounds": 1}
    for name in names:
        yield 1.1, name, {"event": "round_opened", "round_id": 1}
        yield 1.2, name, {"event": "phase_changed", "phase": "fetching the emulator"}
        yield (
            1.3,
            name,
            {"event": "transfer_progressed", "kind": "emulator", "bytes_done": 213_513_600, "bytes_total": 427_027_200},
        )
        yield 1.4, name, {"event": "transfer_finished", "kind": "emulator", "bytes_total": 427_027_200, "seconds": 0.3}


def _sharing(names: Sequence[str]) -> Iterator[Entry]:
    for i, name in enumerate(names):
        granted = i < len(names) - 1
        gains = {
            "gain_main": 6.8e-10 / (1 + i),
            "gain_tap_bound": 2.8e-12,
            "sample_count": 24,
            "update_bits": 226_596_712,
            "flops": 7.5e11,
        }
        yield 1.6, name, {"event": "device_reported", "round_id": 1, **gains}
        snr = {"snr_main_db": 17.64 - i, "snr_tap_bound_db": -6.13 + 12 * (not granted), "block_error_rate": 2.9e-4}
        gate = {
            "decision": "granted" if granted else "excluded",
            "reason": f"the gate's words on {name}",
            **snr,
            "rate_coded": 4.5,
            "rate_gaussian": 5.6,
        }
        yield 2.0, "coordinator", {"event": "gate_decided", "round_id": 1, "client": name, **gate}
        assigned = {
            "decision": gate["decision"],
            "bandwidth_hz": 8e6 + 1e6 * i,
            "power_w": 2e-3,
            "clock_flops": 2e12,
            "adapter_share": 0.36,
        }
        if granted:
            yield 2.2, name, {"event": "assignment_received", "round_id": 1, "protection": "payload", **assigned}
        else:
            yield 2.2, name, {"event": "gate_refused", "round_id": 1, "decision": "excluded", "reason": gate["reason"], **snr}
    yield (
        2.1,
        "coordinator",
        {
            "event": "assignments_solved",
            "round_id": 1,
            "method": "global",
            "seconds": 1.1,
            "objective": 1.24,
            "gap": 3e-4,
            "order": 0,
        },
    )


def _sending(names: Sequence[str], steps: int) -> Iterator[Entry]:
    for i, name in enumerate(names):
        digest = f"{i + 1:02x}" * 32
        yield 2.3, name, {"event": "phase_changed", "phase": "training"}
        for step in range(1, steps + 1):
            told = {"round_id": 1, "step": step, "steps": steps, "loss": 5.8 - step / steps, "tokens_per_s": 44.0}
            yield 2.3 + 2.0 * step / steps, name, {"event": "training_progressed", **told}
        yield (
            4.4,
            name,
            {
                "event": "training_finished",
                "round_id": 1,
                "steps": steps,
                "loss_first": 5.6,
                "loss_last": 4.8,
                "train_s": 39.5,
                "train_modelled_s": 0.4,
                "energy_j": 3.0,
            },
        )
        yield 4.5, name, {"event": "update_encoded", "round_id": 1, "bytes_raw": 113_283_072, "bytes_encoded": 10_218_626}
        yield (
            4.6,
            name,
            {"event": "update_sealed", "round_id": 1, "bytes_sealed": 10_219_845, "digest": digest, "protection": "payload"},
        )
        for attempt, blocks, missing, begun in ((1, 2649, 4, 4.7 + i / 10), (2, 4, 0, 5.6 + i / 10)):
            key = {"client": name, "round_id": 1, "attempt": attempt, "part": "payload", "blocks": blocks}
            yield begun, name, {"event": "frame_encoded", **key, "bytes_frame": 5116 * blocks}
            yield begun + 0.1, "air", {"event": "frame_carried", **key, "airtime_s": 0.0013 * blocks, "fidelity": "bit_exact"}
            yield (
                begun + 0.2,
                "owner",
                {
                    "event": "transfer_progressed",
                    "kind": "reception",
                    **key,
                    "blocks_done": blocks // 2,
                    "bytes_done": 50,
                    "bytes_total": 100,
                },
            )
            yield (
                begun + 0.3,
                "owner",
                {"event": "transfer_finished", "kind": "reception", **key, "bytes_total": 100, "seconds": 0.2},
            )
            yield (
                begun + 0.4,
                "owner",
                {"event": "reception_decoded", **key, "blocks_sound": blocks - missing, "iterations_mean": 6.1, "seconds": 1.1},
            )
            sent = {
                "airtime_s": 0.0013 * blocks,
                "bytes_frame": 5116 * blocks,
                "energy_j": 0.006,
                "missing": missing,
                "fidelity": "bit_exact",
            }
            yield begun + 0.5, name, {"event": "frame_transmitted", **key, **sent}
            heard = {
                "blocks_heard": 0,
                "blocks_decoded": blocks,
                "crc_passes": 0,
                "snr_mean_db": -15.4,
                "snr_bound_db": -6.13,
                "valid": True,
            }
            yield begun + 0.6, "eavesdropper", {"event": "reception_attacked", **key, **heard}
        yield (
            6.3,
            "owner",
            {
                "event": "update_received",
                "client": name,
                "round_id": 1,
                "attempts": 2,
                "bytes_sealed": 10_219_845,
                "digest": digest,
            },
        )
        yield 6.6, "owner", {"event": "update_accepted", "client": name, "round_id": 1, "attempt": 2, "digest": digest}
        yield (
            6.7,
            "owner",
            {
                "event": "plugin_evaluated",
                "client": name,
                "perplexity_public": 91.0 + i,
                "perplexity_public_before": 93.5,
                "kept": True,
                "reason": "",
            },
        )


def _closing(names: Sequence[str]) -> Iterator[Entry]:
    yield (
        7.0,
        "coordinator",
        {"event": "round_closed", "round_id": 1, "accepted": [*names[:-1]], "missing": [names[-1]], "failed_reason": ""},
    )
    yield (
        7.1,
        "owner",
        {
            "event": "plugin_evaluated",
            "client": "aggregate",
            "perplexity_public": 90.5,
            "perplexity_public_before": 93.5,
            "kept": True,
            "reason": "",
        },
    )
    yield 7.2, "owner", {"event": "plugin_kept", "round_id": 1, "clients": [*names[:-1]], "reason": ""}
    yield (
        7.3,
        names[-1],
        {
            "level": "warning",
            "event": "round_missed",
            "round_id": 1,
            "duty": "send",
            "reason": "excluded",
            "problem": "the gate says no",
        },
    )
    for i, (setting, perplexity) in enumerate(
        (("full_zero_shot", 265.8), ("emulator_zero_shot", 436.6), ("emulator_fine_tuned", 324.1), ("plug_in", 216.2))
    ):
        yield 8.0 + i / 4, "referee", {"event": "setting_evaluated", "setting": setting, "perplexity": perplexity}
    yield 9.0, "referee", {"event": "setting_evaluated", "setting": f"plug_in of {names[0]}", "perplexity": 218.5}


def line_of(entry: Entry) -> str:
    """Return one entry as it stands in its process's log."""
    moment, process, fields = entry
    role = ROLES.get(process, "client")
    stamp = f"2026-11-22T09:48:{moment + 10:06.3f}+00:00"
    own = {"client": process} if role == "client" else {}
    return json.dumps({"time": stamp, "level": "info", "role": role, "name": process, **own, **fields}) + "\n"


def append(folder: Path, entries: Sequence[Entry], *, files: dict[str, str] | None = None) -> None:
    """Add entries to the logs in ``folder``; ``files`` names a process's file where it cannot be its name."""
    for entry in entries:
        with (folder / f"{(files or {}).get(entry[1], entry[1])}.jsonl").open("a", encoding="utf-8") as log:
            log.write(line_of(entry))
