"""How do updates become one: one by one in the owner's sight, or as a sum that is all the owner sees? And which sums can be had?

Settings, and the arithmetic of thresholds and bits by which they are judged before anything runs.
"""

from collections.abc import Mapping
from math import floor
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from hushtune_common.errors import ConfigError
from hushtune_common.schema import Section, Whole

DIGITS: Final = range(2, 17)
"""Digits per word of 64 bits: 64 / 16 = 4 to 64 / 2 = 32 bits per number."""
REACH_MAX: Final = 2**22
"""Beyond this a code is no longer exact in the float32 arithmetic that finds it."""


class MeanConfig(Section, frozen=True, tag_field="kind", tag="mean"):
    """The owner opens each update, judges it, and averages those that passed."""


class SecureConfig(Section, frozen=True, tag_field="kind", tag="secure"):
    """The owner gets the sum of the updates and sees none of them; it cannot judge one either."""

    bits: Annotated[int, Meta(ge=2, le=23)] = 5
    """Bits of each sender's numbers, at least; what the sum needs on top follows from the weights."""
    share: Annotated[float, Meta(ge=0.5, lt=1.0)] = 0.6
    """More than this share of those that hold parts of a secret open it, and more than this share of a round has to survive."""
    members_min: Annotated[int, Meta(ge=2, le=1024)] = 3
    """A round with fewer is refused: the fewer are added, the more the sum says of each."""
    colluders: Whole = 0
    """Clients in league with coordinator and owner that a round has to withstand."""
    neighbours: Annotated[int, Meta(ge=0, le=1022)] = 0
    """With how many others each client masks: 0 for all, or an even number from 4; worth it from about 45 clients on."""
    weights: Literal["equal", "windows"] = "equal"
    """``windows``: each update counts as often as its client has windows of text. The owner learns the sum of the weights."""
    clip_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    """A weight changes by at most this share of what the scenario's training can move it; what is beyond is cut off and counted,
    and with several rounds made up for."""


AggregationOptions = MeanConfig | SecureConfig
KINDS: Final[Mapping[str, type[AggregationOptions]]] = {"mean": MeanConfig, "secure": SecureConfig}
"""Options by their kind."""


def threshold(count: int, *, share: float) -> int:
    """Return the least number that is more than ``share`` of ``count``."""
    return floor(share * count) + 1


def withstood(members: int, *, share: float, degree: int) -> int:
    """Return how many of so many members may collude with coordinator and owner, whoever they are; 0 for ``degree``: all.

    The lesser of two: nobody's two secrets open (2 t > holders + colluders, as Bonawitz et al. 2017 ask for), and two of a quorum
    of survivors are honest. On a ring the survivors have to hold together as well, which is looked at when they are known.
    """
    holders = members if degree == 0 else min(degree + 1, members)
    return min(2 * threshold(holders, share=share) - holders - 1, threshold(members, share=share) - 2)


def radix(digits: int) -> int:
    """Return the largest base in which every number of so many digits is below 2^64."""
    base = round(2.0 ** (64 / digits)) + 1
    while base**digits > 2**64:
        base -= 1
    return base


def reach(digits: int, *, weight_max: int) -> int:
    """Return the largest code z with which so many digits in a word never overflow; 0 when there is none."""
    return min(REACH_MAX, (radix(digits) - 1) // weight_max // 2)


def digits_for(bits: int, *, weight_max: int) -> int:
    """Return the most digits per word that leave each sender ``bits`` bits: codes from -(2^(bits-1) - 1) to 2^(bits-1) - 1.

    ``ValueError`` when there are none.
    """
    wanted = 2 ** (bits - 1) - 1
    found = [digits for digits in DIGITS if reach(digits, weight_max=weight_max) >= wanted >= 1]
    if not found:
        raise ValueError(f"no word holds two numbers of {bits} bits under weights up to {weight_max}")
    return max(found)


def bits_max(*, weight_max: int) -> int:
    """Return the most bits that `digits_for` finds room for; 1 when there is room for none."""
    return (reach(DIGITS[0], weight_max=weight_max) + 1).bit_length()


def require_possible(options: SecureConfig, *, clients: int, needed: int, weight_max: int) -> None:
    """Raise ``ConfigError``, naming setting and fix, unless rounds of so many ``clients`` can be added up and opened.

    A round closes with no fewer than ``needed``; weights add up to at most ``weight_max``.
    """
    if options.neighbours % 2 or 0 < options.neighbours < 4:
        raise ConfigError("owner.aggregation.neighbours", f"0 for all, or an even number from 4, got {options.neighbours}")
    if options.members_min > clients:
        raise ConfigError(
            "owner.aggregation.members_min", f"{options.members_min} are wanted, the scenario has {clients} clients; add clients"
        )
    most = withstood(options.members_min, share=options.share, degree=options.neighbours)
    if options.colluders > most:
        raise ConfigError(
            "owner.aggregation.colluders",
            f"{options.members_min} members withstand {most}, not {options.colluders}; raise members_min or share",
        )
    least = threshold(clients, share=options.share)
    if needed < least:
        raise ConfigError(
            "coordinator.stragglers",
            f"a round may close with {needed} of {clients} clients, but {least} are needed to open their sum "
            f"(owner.aggregation.share = {options.share:g}); take kind everyone, or a quorum with a share of at least "
            f"{least / clients:.3g}",
        )
    room = bits_max(weight_max=weight_max)
    if options.bits > room:
        raise ConfigError(
            "owner.aggregation.bits", f"a sum of weights up to {weight_max} leaves {room} bits per number, not {options.bits}"
        )


def resolved(options: AggregationOptions, *, clients: int) -> dict[str, Any]:
    """Return what people are told at the start: which way updates become one, and what the owner cannot check that way."""
    if not isinstance(options, SecureConfig):
        return {"kind": "mean"}
    return {
        "kind": "secure",
        "share": options.share,
        "colluders": options.colluders,
        "needed": threshold(clients, share=options.share),
        "clients": clients,
        "checks_lost": "every check of one client's update",
    }
