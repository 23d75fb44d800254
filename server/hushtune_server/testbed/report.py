"""``report.json``: what a run showed, gathered from what every process left behind."""

from collections.abc import Mapping
from typing import Any, cast

from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import Scenario
from hushtune_common.link.fidelity import Fidelity
from hushtune_server.testbed import equal_share, plan, sums
from hushtune_server.testbed import rounds as rounds_of
from hushtune_server.testbed.rundir import RunDirectory, read_json, read_log, write_json
from hushtune_server.testbed.shared_out import shared_out

Json = dict[str, Any]

ASSUMPTIONS = (
    "Secrecy is claimed against a passive eavesdropper whose SNR stays at or below the stated bound; the bound is an assumption "
    "of the scenario, not a measurement.",
    "The leakage bound is derived along published lines, not peer reviewed, and checked by exact enumeration of a short code.",
    "The update is sealed (X25519 and ML-KEM-768, AES-256-GCM) independently of the air.",
    "Power, clock and energy are modelled from the scenario, not measured on a device.",
    "Test perplexities come from a referee that sees both sides; in a deployment nobody does.",
)


def write(run: RunDirectory, scenario: Scenario) -> Json:
    """Gather and write the report of a run, finished or not."""
    report = gather(run, scenario)
    write_json(run.report, report)
    return report


def gather(run: RunDirectory, scenario: Scenario) -> Json:
    """Return the report of a run as far as it has come; whatever a process did not leave is ``null`` or empty."""
    facts = run.facts()
    rounds = _rounds(run)
    last = rounds[-1] if rounds else {}
    referee = read_json(run.path / "referee.json")
    return {
        "version": 1,
        "run": run.id,
        "status": facts.get("status"),
        "problem": facts.get("problem") or None,
        "scenario": scenario.name,
        "scenario_digest": scenario.digest.hex,
        "seed": scenario.seed,
        "fidelity": scenario.air.fidelity,
        "settings": referee.get("settings", {}),
        "clients": [_client(run, c.id, last, referee) for c in scenario.clients],
        "owner": _owner(run),
        "eavesdropper": _eavesdropper(run),
        "plan": {c.id: _plan(run, c.id, last) for c in scenario.clients},
        "allocation": last.get("allocation", {"method": scenario.coordinator.allocator.kind}),
        "equal_share": equal_share.of(scenario, last),
        "utility": {"kind": scenario.coordinator.allocator.utility.kind, "measured": last.get("utility")},
        "rounds": rounds_of.gather(
            run,
            rounds,
            owner=read_json(run.state("owner") / "owner.json"),
            referee=referee,
            clients=[c.id for c in scenario.clients],
        ),
        "shared_out": shared_out(scenario, rounds),
        "aggregation": sums.gather(run, rounds, scenario),
        "test_windows": referee.get("test_windows"),
        "link": referee.get("link"),
        "figures": referee.get("figures") or {},
        "assumptions": _assumptions(scenario),
        "wall_s": facts.get("wall_s"),
        "peak_rss_bytes": facts.get("peak_rss_bytes", {}),
        "versions": facts.get("versions", {}),
    }


def _assumptions(scenario: Scenario) -> list[str]:
    said = [f"The fidelity is {Fidelity(scenario.air.fidelity).claim}.", *ASSUMPTIONS, _privacy(scenario), *_noise(scenario)]
    if scenario.secrecy.randomness == "seeded":
        said.insert(0, "REPRODUCIBLE, NOT SECRET: random bits, hash seeds and dither come from the scenario's seed.")
    return said


def _privacy(scenario: Scenario) -> str:
    """Say what bounds what an owner learns about a client's text from the adapter that it opens."""
    dp, rounds = scenario.training.dp, scenario.coordinator.rounds
    over = "" if rounds == 1 else f", over {rounds} rounds together"
    seen = _seen(scenario)
    if dp is None:
        return seen + ("; nothing here bounds that." if scenario.codec.noise is None else ", as far as its noise allows.")
    return (
        f"{seen}, bounded by differential privacy: epsilon at most {dp.epsilon:g} at delta {dp.delta:g} for adding or removing "
        f"one window of {scenario.data.window_tokens} tokens{over} (DP-SGD: the gradient of each window clipped at norm "
        f"{dp.clip_norm:g}, windows drawn independently for each step, noise and draws from the operating system, spending found "
        "by a PRV accountant). Not covered: a person with several windows, the number of windows, how long training took, and "
        "losses, which stay at the client."
    )


def _seen(scenario: Scenario) -> str:
    if not isinstance(scenario.owner.aggregation, SecureConfig):
        return "The owner sees each client's adapter in the clear and may learn about its data from it"
    return (
        "The owner sees the sum of the updates and none of them (masks that cancel, with secrets shared among the clients); the "
        "sum may say much about each where they are few, and sums of several rounds can be subtracted; it may learn from them"
    )


def _noise(scenario: Scenario) -> list[str]:
    """Say what the noise promises that clients hide the numbers of their updates in."""
    noise = scenario.codec.noise
    if noise is None:
        return []
    unit = "number" if noise.block == 1 else f"block of {noise.block} numbers"
    return [
        f"Each {unit} of an update is hidden from the owner too: local differential privacy with epsilon {noise.epsilon:g}, the "
        f"change of a block clipped at {noise.clip:g} (sum of magnitudes).",
        "Epsilons of all blocks and rounds add up; the sum, which every client logs, is large for a whole update, and then says "
        "nothing about it as a whole. Assumed: noise of the operating system that nobody knows, a clip set without looking at "
        "data, one encoding per update. Not covered: what a client tells beside its update, and how long that took.",
    ]


def failure_of(run: RunDirectory) -> str:
    """Return why the run's last round failed, with each missing client's reason; empty when it did not."""
    rounds = _rounds(run)
    if not rounds or not rounds[-1].get("failed_reason"):
        return ""
    why: Mapping[str, str] = rounds[-1].get("reasons") or {}
    return "; ".join([str(rounds[-1]["failed_reason"]), *(f"{client}: {reason}" for client, reason in why.items())])


def _rounds(run: RunDirectory) -> list[Json]:
    files = run.state("coordinator").glob("round-*.json")
    return [read_json(f) for f in sorted(files, key=lambda f: int(f.stem.partition("-")[2]))]


def _client(run: RunDirectory, client: str, last: Mapping[str, Any], referee: Mapping[str, Any]) -> Json:
    assignment = _entry(last.get("assignments"), client)
    gate = cast(Json, assignment.get("gate") or {})
    number = last.get("round_id")
    this_round = {} if number is None else {"round_id": number}
    # A round closes with its last verdict, and the word of the client that it was about may come a moment later.
    completion = _entry(last.get("completions"), client) or _latest(run, client, "round_completed", **this_round)
    verdict = _latest(run, client, "verdict_received", **this_round)
    training = _latest(run, client, "training_finished", **this_round)
    refused = _latest(run, "owner", "update_refused", client=client, **this_round)
    return {
        "id": client,
        "gate": gate.get("decision"),
        "gate_reason": gate.get("reason"),
        "gate_numbers": {k: v for k, v in gate.items() if k not in {"decision", "reason"}},
        "assignment": {k: v for k, v in assignment.items() if k not in {"gate", "client", "round_id"}},
        "update": _update(run, client, assignment, completion, this_round),
        "bytes_raw": completion.get("bytes_raw"),
        "bytes_uploaded": completion.get("bytes_uploaded"),
        "airtime_s": completion.get("airtime_s"),
        "train_s": completion.get("train_s"),
        "energy_j": completion.get("energy_j"),
        "training": {k: training.get(k) for k in ("steps", "loss_first", "loss_last", "cpu_s", "clock_share", "governor")},
        "privacy": _latest(run, client, "privacy_spent", **this_round).get("terms"),
        "noise": _latest(run, client, "update_noised", **this_round).get("terms"),
        "accepted": client in (last.get("accepted") or ()),
        "outcome": _outcome(client, last, completion, refused),
        "verdict": {k: verdict.get(k) for k in ("accepted", "kept", "reason", "score")} if verdict else None,
        "plug_in": referee.get("clients", {}).get(client, {}).get("plug_in"),
    }


def _update(
    run: RunDirectory, client: str, assignment: Mapping[str, Any], completion: Mapping[str, Any], this_round: Mapping[str, Any]
) -> Json:
    """Return how large an update was allowed to be, and how large it was; ``null`` for what did not come about."""
    encoded = _latest(run, client, "update_encoded", **this_round)
    sealed = _latest(run, client, "update_sealed", **this_round)
    granted = bool(assignment.get("protection"))
    bytes_raw = encoded.get("bytes_raw", completion.get("bytes_raw"))
    budget = assignment.get("budget_bytes") if granted else None
    return {
        "share": assignment.get("adapter_share") if granted else None,
        "budget_bytes": budget,
        "bytes_encoded": encoded.get("bytes_encoded"),
        "bytes_sealed": sealed.get("bytes_sealed"),
        "bits_per_weight_granted": _per_weight(budget, bytes_raw),
        "bits_per_weight": _per_weight(encoded.get("bytes_encoded"), bytes_raw),
    }


def _per_weight(size: object, bytes_raw: object) -> float | None:
    """Return bits per weight of a size in bytes, where the weights are ``bytes_raw`` as float32."""
    if not isinstance(size, int) or not isinstance(bytes_raw, int) or bytes_raw <= 0:
        return None
    return 32.0 * size / bytes_raw


def _plan(run: RunDirectory, client: str, last: Mapping[str, Any]) -> Json | None:
    assignment = _entry(last.get("assignments"), client)
    return plan.compare(assignment, round_id=last.get("round_id"), events=read_log(run.log(client)))


def _outcome(client: str, last: Mapping[str, Any], completion: Mapping[str, Any], refused: Mapping[str, Any]) -> str:
    if client in (last.get("accepted") or ()):
        return "accepted"
    if client in (last.get("died") or ()):
        return "died during the round"
    if refused:
        return f"refused by the owner: {refused.get('reason')}"
    if completion:
        delivered = completion.get("uploaded", True)
        return "delivered, and not judged before the round closed" if delivered else f"did not upload: {completion.get('reason')}"
    return "no update arrived"


def tap_is_done(run: RunDirectory) -> bool:
    """Whether the eavesdropper has attacked every transmission that the air has carried."""
    carried = sum(e.get("event") == "frame_carried" for e in read_log(run.log("air")))
    attacked = sum(e.get("event") == "reception_attacked" for e in read_log(run.log("eavesdropper")))
    return attacked >= carried


def _eavesdropper(run: RunDirectory) -> Json | None:
    evidence = read_json(run.state("eavesdropper") / "evidence.json")
    return {**evidence, "complete": tap_is_done(run)} if evidence else None


def _owner(run: RunDirectory) -> Json | None:
    owner = read_json(run.state("owner") / "owner.json")
    return {k: v for k, v in owner.items() if k not in {"bundle", "bundle_newest"}} or None


def _entry(entries: object, client: str) -> Json:
    found = [e for e in cast(list[Json], entries or []) if e.get("client") == client]
    return found[-1] if found else {}


def _latest(run: RunDirectory, process: str, event: str, **fields: object) -> Json:
    wanted = {"event": event, **fields}
    found = [e for e in read_log(run.log(process)) if all(e.get(k) == v for k, v in wanted.items())]
    return found[-1] if found else {}
