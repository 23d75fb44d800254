"""What do several processes log alike? Start, phases, calls, transfers, rounds, and how a process ends."""

from typing import Final

from hushtune_common.events.event import AIR, CLIENT, COORDINATOR, EAVESDROPPER, OWNER, REFEREE, ROLES, event

_SERVERS: Final = (OWNER, COORDINATOR, AIR)

SHARED_EVENTS: Final = (
    event(
        "scenario_resolved",
        (CLIENT, OWNER, COORDINATOR, AIR, EAVESDROPPER),
        "The scenario was read, defaults and overrides included; all processes of a run name the same digest.",
        scenario="its name",
        digest="of the resolved scenario, without the seed where the process may not know it",
        seed="its seed; the eavesdropper has none",
        run="the run's name, which the coordinator gives",
    ),
    event(
        "serving_started",
        _SERVERS,
        "The server takes calls.",
        address="host and port",
        caller="who its certificate says it is",
        services="what it serves",
    ),
    event(
        "run_joined",
        (CLIENT, OWNER),
        "The coordinator knows of this process.",
        run="the run's name",
        restarted="whether an earlier life of this process took part",
        last_seen_seq="last word of the coordinator that the earlier life has seen",
    ),
    event(
        "run_resumed",
        (OWNER, COORDINATOR),
        "An earlier life of this process left a journal; it goes on from there.",
        "round_id",
        run="the run's name",
        epoch="how many lives this process has had",
        events="entries of the journal that were read",
        state="where the round stood",
    ),
    event("phase_changed", ROLES, "The process does something else now.", "round_id", phase="what it does, in words"),
    event("round_opened", (CLIENT, COORDINATOR), "A round has begun.", "round_id", "rounds"),
    event(
        "round_closed",
        (CLIENT, COORDINATOR),
        "A round is over, with a result. The coordinator names who is missing and why; a client only what it was told.",
        "round_id",
        accepted="clients whose adapter the owner accepted",
        missing="clients of which none was",
        reasons="by client, why",
        failed="why the round failed; empty when it did not (clients)",
        failed_reason="empty here (coordinator)",
        last="whether this was the last round (clients)",
    ),
    event(
        "round_failed",
        (CLIENT, COORDINATOR),
        "A round came to nothing: for everybody (coordinator), or for this client, which names what it was doing.",
        "round_id",
        "duty",
        "reason",
        "problem",
        accepted="empty here",
        missing="clients of which no adapter was accepted",
        reasons="by client, why",
        failed_reason="why the whole round failed",
    ),
    event(
        "run_stopped",
        (OWNER, COORDINATOR),
        "No further round is wanted.",
        "round_id",
        "rounds",
        "reason",
    ),
    event(
        "transfer_progressed",
        (CLIENT, OWNER, EAVESDROPPER),
        "More bytes have arrived or left.",
        "client",
        kind="emulator, frame or reception",
        bytes_done="so far",
        bytes_total="in all; an estimate for a reception",
    ),
    event(
        "transfer_finished",
        (CLIENT, OWNER, EAVESDROPPER),
        "All bytes are there.",
        "client",
        "bytes_total",
        "seconds",
        kind="emulator, frame or reception",
    ),
    event(
        "call_refused",
        _SERVERS,
        "A call was answered with a typed fault.",
        "reason",
        "problem",
        method="which call",
        caller="who called, by certificate",
    ),
    event(
        "call_failed",
        _SERVERS,
        "A call met a defect of ours; its trace is in the line, and the caller was told the incident's number only.",
        method="which call",
        incident="number that the caller was told",
    ),
    event(
        "stop_abandoned",
        _SERVERS,
        "The server library did not stop in time; the process ends anyway.",
        address="host and port",
        grace_s="time it had",
    ),
    event("process_failed", (*ROLES,), "The process ends with a known fault.", "reason", "exit_code", "problem"),
    event("process_crashed", (*ROLES,), "The process ends with a defect of ours; its trace is in the line."),
)

CERTIFICATE_EVENTS: Final = (
    event(
        "certificate_renewed",
        _SERVERS,
        "The kit has a new certificate; new connections are shown that one.",
        valid_until="its end",
    ),
    event("renewal_refused", _SERVERS, "The new certificate in the kit is not good; the old one stays in force.", "problem"),
    event(
        "revocation_list_read",
        _SERVERS,
        "The server goes by this list of withdrawn certificates.",
        number="the list's number; it only rises",
        revoked="certificates on it",
        valid_until="when it must have been replaced",
        remedy="what to do when it has expired",
    ),
    event(
        "revocation_list_changed",
        _SERVERS,
        "Another list of withdrawn certificates is in force, without a restart.",
        number="the list's number; it only rises",
        revoked="certificates on it",
        valid_until="when it must have been replaced",
        remedy="what to do when it has expired",
    ),
    event(
        "revocation_list_refused",
        _SERVERS,
        "The list in the kit is damaged, foreign, expired or older; the one before stays in force.",
        "problem",
        in_force="number of the list that stays",
    ),
    event(
        "hangup_passed_over",
        (CLIENT, OWNER, COORDINATOR, AIR, EAVESDROPPER),
        "SIGHUP came and changes nothing.",
        remedy="what to do",
    ),
)

REFEREE_EVENTS: Final = (
    event(
        "setting_evaluated",
        (REFEREE,),
        "A setting was scored on the held-out private text.",
        setting="which one, and of whom",
        perplexity="on the test windows",
    ),
)
