"""Which secrecy does each coding point offer at given SNRs? Designs side by side, with the baselines that overstate it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, log2
from typing import Any

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link import wiretap
from hushtune_common.link.abstraction import Fading, hash_block_error_rate, required_snr_db
from hushtune_common.link.leakage import total_log2_delta
from hushtune_common.link.mcs import CodingPoint
from hushtune_common.link.secrecy import gaussian_secrecy_rate
from hushtune_common.messages import SecrecyDesign, TapModel
from hushtune_common.units import Decibel, Hertz, from_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a design; ``subbands`` is 0 without fading, at most ``block_error_max`` of the hash blocks may be lost."""

    snr_main_db: Decibel
    snr_tap_db: Decibel
    codewords: int
    log2_delta: float
    tap_model: TapModel
    subbands: int
    block_error_max: float
    upload_bytes: int
    bandwidth_hz: float

    @property
    def title(self) -> str:
        """For a table."""
        tap = f"{self.snr_tap_db:g} dB ({self.tap_model})"
        return f"owner {self.snr_main_db:g} dB, tap {tap}, 2^{self.log2_delta:g} per hash block of {self.codewords} codewords"

    def to_json(self) -> dict[str, object]:
        """Return plain values with units in their names."""
        return {
            "snr_main_db": self.snr_main_db,
            "snr_tap_db": self.snr_tap_db,
            "codewords": self.codewords,
            "log2_delta": self.log2_delta,
            "tap_model": self.tap_model.value,
            "subbands": self.subbands,
            "block_error_max": self.block_error_max,
            "upload_bytes": self.upload_bytes,
            "bandwidth_hz": self.bandwidth_hz,
        }


def compare(points: Sequence[CodingPoint], asked: Request) -> list[dict[str, Any]]:
    """Return one line per coding point; ``problem`` is empty where the owner decodes and the tap stays in the dark.

    A line with a problem has no rate; ``snr_main_least_db`` and ``snr_tap_most_db`` say what the point would need, and
    ``shortfall_db`` what is lacking in all; None where no SNR would do.
    """
    return [_line(point, asked) for point in points]


def nearest(lines: Sequence[dict[str, Any]]) -> str:
    """Return what the coding point that lacks the fewest decibels would need; for lines that all have a problem."""
    if len(lines) == 1:
        return f"{lines[0]['point']}: {lines[0]['problem']}"
    possible = [line for line in lines if line["shortfall_db"] is not None]
    if not possible:
        return "no coding point serves at any SNR; allow a higher leakage or more lost blocks, or take more codewords"
    line = min(possible, key=lambda line: line["shortfall_db"])
    return (
        f"no coding point serves; the nearest is {line['point']}, which needs the owner at {line['snr_main_least_db']:.2f} dB or "
        f"above and the tap at {line['snr_tap_most_db']:.1f} dB or below"
    )


def _line(point: CodingPoint, asked: Request) -> dict[str, Any]:
    fading = Fading(subbands=asked.subbands)
    error = hash_block_error_rate(point, snr_db=asked.snr_main_db, codewords=asked.codewords, fading=fading)
    line: dict[str, Any] = {
        "point": point.name,
        "block_error_rate": error,
        "rate_gaussian": gaussian_secrecy_rate(from_db(asked.snr_main_db), from_db(asked.snr_tap_db)),
        "problem": "",
    }
    design = _design(point, asked)
    if design is not None and error <= asked.block_error_max:
        return line | _numbers(design, error, asked)
    least = required_snr_db(point, codewords=asked.codewords, block_error_max=asked.block_error_max, fading=fading)
    most = wiretap.snr_tap_limit_db(
        point,
        codewords=asked.codewords,
        log2_delta=asked.log2_delta,
        tap_model=asked.tap_model,
        subbands=asked.subbands,
    )
    shortfall = max(0.0, least - asked.snr_main_db) + (max(0.0, asked.snr_tap_db - most) if design is None else 0.0)
    return line | {
        "problem": _problem(least if error > asked.block_error_max else None, most if design is None else None),
        "snr_main_least_db": _finite(least),
        "snr_tap_most_db": _finite(most),
        "shortfall_db": _finite(shortfall),
    }


def _problem(least_db: float | None, most_db: float | None) -> str:
    """Return in words what the owner and the tap lack; None for who lacks nothing."""
    found: list[str] = []
    if least_db is not None:
        found.append("the owner loses too many blocks at any SNR" if least_db == inf else f"the owner needs {least_db:.2f} dB")
    if most_db is not None:
        found.append("nothing is hidden at any SNR" if most_db == -inf else f"the tap may have at most {most_db:.1f} dB")
    return " and ".join(found)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None  # JSON knows no infinity


def _design(point: CodingPoint, asked: Request) -> SecrecyDesign | None:
    try:
        return wiretap.design(
            point,
            codewords=asked.codewords,
            snr_tap_db=asked.snr_tap_db,
            log2_delta=asked.log2_delta,
            tap_model=asked.tap_model,
            subbands=asked.subbands,
        )
    except SecrecyUnavailable:
        return None


def _numbers(design: SecrecyDesign, error: float, asked: Request) -> dict[str, Any]:
    blocks = wiretap.block_count(design, asked.upload_bytes)
    sent = blocks / (1.0 - error)  # every lost block is sent again
    return {
        "message_bits": design.message_bits,
        "random_bits": design.random_bits,
        "secret_bits_per_symbol": design.rate,
        "log2_delta": design.log2_delta,
        "upload_blocks": blocks,
        "upload_blocks_sent": sent,
        "upload_airtime_s": sent * wiretap.airtime(design, blocks=1, bandwidth=Hertz(asked.bandwidth_hz)),
        "upload_log2_delta": min(0.0, total_log2_delta(design, blocks) - log2(1.0 - error)),
    }
