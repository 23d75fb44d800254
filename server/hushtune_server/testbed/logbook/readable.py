"""How does a person want to read a value? With its unit, rounded to what matters, and unable to harm a terminal."""

import re
from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10
from typing import Any, Final, cast

import msgspec

from hushtune_common.events.event import unit_of

_TEXT_MAX: Final = 160
_DIGEST_SHOWN: Final = 12
_SUFFIX: Final = re.compile(r"_(s|j|db|hz|w|bps|flops|per_s)$")
_SCALED: Final = {"J": "J", "Hz": "Hz", "W": "W", "bit/s": "bit/s", "FLOP/s": "FLOP/s", "FLOP": "FLOP", "bits": "bit"}
_PREFIXES: Final = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}


def label(name: str) -> str:
    """Return a field's name without the unit that its value is going to show."""
    return _SUFFIX.sub("", name)


def value(name: str, given: object) -> str:
    """Return the value of the field ``name`` with its unit."""
    unit = unit_of(name)
    if isinstance(given, bool) or given is None:
        return {True: "yes", False: "no", None: "-"}[given]
    if isinstance(given, int | float):
        return number(given, unit)
    if isinstance(given, str):
        return plain(given[:_DIGEST_SHOWN] if unit == "SHA-256" and re.fullmatch(r"[0-9a-f]{64}", given) else given)
    if isinstance(given, Mapping):
        return plain(", ".join(f"{k}: {v}" for k, v in cast(Mapping[str, Any], given).items()) or "none")
    if isinstance(given, Sequence) and all(isinstance(item, str | int) for item in cast(Sequence[Any], given)):
        return plain(", ".join(str(item) for item in cast(Sequence[Any], given)) or "none")
    return plain(msgspec.json.encode(given).decode())


def number(given: float, unit: str) -> str:
    """Return a number in a unit of `hushtune_common.events`, scaled to what a person reads at a glance."""
    if not isfinite(given):
        return f"{given} {unit}".strip()
    if unit == "bytes":
        return size(given)
    if unit == "s":
        return duration(given)
    if unit == "dB":
        return f"{given:.1f} dB"
    if unit == "bits" and 0.0 < abs(given) < 1.0:
        return f"{given:.3g} bit"
    if unit in _SCALED:
        return scaled(given, _SCALED[unit])
    if unit == "share of 1":
        return f"{100 * given:.3g} %"
    if unit == "perplexity":
        return f"{given:.1f}"
    short = f"{given:,}".replace(",", "\u202f") if isinstance(given, int) and abs(given) >= 10_000 else f"{given:.4g}"
    return str(given) if isinstance(given, int) and abs(given) < 10_000 else short


def size(count: float) -> str:
    """Return bytes as B, kB, MB or GB (powers of 1000)."""
    return f"{count:.0f} B" if abs(count) < 1000 else scaled(count, "B")


def duration(seconds: float) -> str:
    """Return a duration: 12 ms, 3.41 s, 2 min 5 s, 1 h 3 min."""
    if abs(seconds) < 1e-9:
        return "0 s"
    if abs(seconds) < 100:
        return scaled(seconds, "s")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def scaled(given: float, unit: str) -> str:
    """Return a number with three digits and a metric prefix."""
    if given == 0:
        return f"0 {unit}"
    power = min(15, max(-12, 3 * floor(log10(abs(given)) / 3)))
    if float(f"{abs(given) / 10.0**power:.3g}") >= 1000 and power < 15:
        power += 3
    return f"{given / 10.0**power:.3g} {_PREFIXES[power]}{unit}"


def plain(text: str) -> str:
    """Return ``text`` in one line with what could steer a terminal or turn a line around written out, cut where it is long.

    Log lines carry words of other parties: names, reasons, methods.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= _TEXT_MAX else shown[: _TEXT_MAX - 1] + "…"
