"""What do clients, coordinator and owner log of sums that the owner gets without seeing an update? Never a share or a mask."""

from typing import Final

from hushtune_common.events.event import CLIENT, COORDINATOR, OWNER, event

_C: Final = (CLIENT,)
_K: Final = (COORDINATOR,)
_O: Final = (OWNER,)

SUM_EVENTS: Final = (
    event(
        "aggregation_resolved",
        (CLIENT, OWNER),
        "How updates become one: each judged and then averaged, or only added.",
        kind="mean or secure",
        clients="clients of the scenario",
        needed="how many of them have to survive a round, and to open a secret; none with mean",
        share="the share of them behind that",
        colluders="so many may be in league with coordinator and owner",
        checks_lost="what the owner cannot check that way",
    ),
    event(
        "sum_joined",
        _C,
        "The roster of the round was taken: all its keys are signed.",
        "round_id",
        members="who is in it",
        needed="how many of them have to survive, and to open a secret",
        colluders="so many may be in league with coordinator and owner",
    ),
    event(
        "sum_dealt", _C, "Shares of this client's secrets are with the coordinator, sealed.", "round_id", parcels="for so many"
    ),
    event(
        "sum_delivered",
        _C,
        "It is known who masks with whom.",
        "round_id",
        dealers="who has dealt shares",
        parcels="shares that this client holds of others",
    ),
    event(
        "payload_masked",
        _C,
        "The change of the adapter blocks was rounded, and hidden under masks.",
        "round_id",
        "seconds",
        bytes_payload="size of what is sealed",
        clipped="weights whose change was cut off at the bound",
        step_max="distance of neighbouring values",
    ),
    event(
        "sum_vowed",
        _C,
        "This client will open shares for these survivors and no others.",
        "round_id",
        survivors="whose updates are added",
    ),
    event(
        "sum_opened",
        _C,
        "Shares were given to the owner; of nobody both kinds.",
        "round_id",
        seeds="of survivors' own masks",
        keys="of masks shared with members that dropped out",
    ),
    event(
        "sum_word_undelivered",
        _C,
        "A word on the sum could not be told; while the sum waits for it, it is said again.",
        "round_id",
        "reason",
        "problem",
    ),
    event("sum_refused", (CLIENT, OWNER), "A word on the sum is not worked with.", "round_id", "reason", "problem"),
    event(
        "sum_roster_closed",
        _K,
        "The members of the round's sum are fixed.",
        "round_id",
        members="who was granted an upload and told keys",
        left_out="who told keys and was not granted one",
    ),
    event("sum_deals_closed", _K, "The shares were passed on.", "round_id", dealers="who has dealt in time"),
    event("sum_survivors_announced", _K, "The owner named whose updates it adds.", "round_id", survivors="their names"),
    event(
        "sum_vows_closed",
        _K,
        "The vows were passed on.",
        "round_id",
        vows="who stands to the survivors",
        needed="how many it takes",
    ),
    event(
        "update_masked_received",
        _O,
        "A payload opened and lies under its masks; what is in it, nobody knows.",
        "round_id",
        "client",
        bytes="its size",
    ),
    event(
        "sum_survivors_named",
        _O,
        "The owner has decided whose updates it adds.",
        "round_id",
        survivors="their names",
        dropped="who has dealt shares and is not among them",
    ),
    event(
        "sum_unmasked",
        _O,
        "The sum is there, and was no more than a sum at any time.",
        "round_id",
        "seconds",
        survivors="whose updates are in it",
        dropped="whose masks were taken off it",
        weight="sum of their weights",
        seeds_opened="shares of survivors' own masks that came",
        keys_opened="shares of masks with those that dropped out that came",
        bits_per_number="size of a number in a payload",
    ),
    event("survivors_refused", _O, "The coordinator would not take the survivors' names.", "round_id", "reason", "problem"),
    event("sum_failed", _O, "There is no sum, so the round changes nothing.", "round_id", "reason", "problem"),
)
