"""Which secrecy does each coding point offer at given SNRs? Designs side by side, with the baselines that overstate it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from hushtune_common.errors import SecrecyUnavailable
from hushtune_common.link import wiretap
from hushtune_common.link.abstraction import Fading, hash_block_error_rate
from hushtune_common.link.leakage import total_log2_delta
from hushtune_common.link.mcs import CodingPoint
from hushtune_common.link.secrecy import gaussian_secrecy_rate
from hushtune_common.messages import SecrecyDesign, TapModel
from hushtune_common.units import Decibel, Hertz, from_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a design; ``subbands`` is 0 without fading."""

    snr_main_db: Decibel
    snr_tap_db: Decibel
    codewords: int
    log2_delta: float
    tap_model: TapModel
    subbands: int
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
            "upload_bytes": self.upload_bytes,
            "bandwidth_hz": self.bandwidth_hz,
        }


def compare(points: Sequence[CodingPoint], asked: Request) -> list[dict[str, object]]:
    """Return one line per coding point; ``problem`` is empty where the owner decodes and the tap stays in the dark."""
    return [_line(point, asked) for point in points]


def _line(point: CodingPoint, asked: Request) -> dict[str, object]:
    error = hash_block_error_rate(
        point, snr_db=asked.snr_main_db, codewords=asked.codewords, fading=Fading(subbands=asked.subbands)
    )
    line: dict[str, object] = {
        "point": point.name,
        "block_error_rate": error,
        "rate_gaussian": gaussian_secrecy_rate(from_db(asked.snr_main_db), from_db(asked.snr_tap_db)),
        "problem": "",
    }
    try:
        design = wiretap.design(
            point,
            codewords=asked.codewords,
            snr_tap_db=asked.snr_tap_db,
            log2_delta=asked.log2_delta,
            tap_model=asked.tap_model,
            subbands=asked.subbands,
        )
    except SecrecyUnavailable as refusal:
        return {**line, "problem": str(refusal).removeprefix(f"{point.name}: ")}
    line |= _numbers(design, error, asked)
    if error > 0.5:
        line["problem"] = f"the owner loses {error:.0%} of the hash blocks at {asked.snr_main_db:g} dB"
    return line


def _numbers(design: SecrecyDesign, error: float, asked: Request) -> dict[str, object]:
    blocks = wiretap.block_count(design, asked.upload_bytes)
    sent = blocks / max(1.0 - error, 1e-9)  # every lost block is sent again
    return {
        "message_bits": design.message_bits,
        "random_bits": design.random_bits,
        "secret_bits_per_symbol": design.rate,
        "log2_delta": design.log2_delta,
        "upload_blocks": blocks,
        "upload_blocks_sent": sent,
        "upload_airtime_s": sent * wiretap.airtime(design, blocks=1, bandwidth=Hertz(asked.bandwidth_hz)),
        "upload_log2_delta": min(0.0, total_log2_delta(design, blocks) + log2(sent / blocks)),
    }
