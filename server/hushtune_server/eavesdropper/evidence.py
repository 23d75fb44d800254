"""What may the eavesdropper honestly say about one part of one client's update?"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.leakage import log2_mutual_information, total_log2_delta
from hushtune_common.messages import SecrecyDesign, TapModel
from hushtune_common.units import to_db
from hushtune_server.eavesdropper import distinguish
from hushtune_server.eavesdropper.control import Control
from hushtune_server.eavesdropper.distinguish import DistinguishResult
from hushtune_server.eavesdropper.knowledge import PublicKnowledge
from hushtune_server.eavesdropper.looks import Looks
from hushtune_server.eavesdropper.tally import Tally

HIDES_NOTHING: Final = (
    "this part travels open: plain error correction without random bits; the physical layer hides NOTHING of it, whoever decodes "
    "it has the bytes, and only their encryption protects what is in them"
)
HIDES: Final = "this part travels over the wiretap code, below its encryption"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The outcome of all attacks on one part of one client's update, over all its transmissions.

    ``log2_delta_total`` is the design's leakage bound over every block sent, retransmissions included; the advantage in telling
    two messages apart is at most twice that. It holds unless ``bound_void``; ``outage`` is never folded into it. Without
    ``control.passed`` nothing here counts.
    """

    public: PublicKnowledge
    fidelity: Fidelity
    transmissions: int
    blocks_sent: int
    bytes_total: int
    bytes_known: int
    tally: Tally
    control: Control
    trials: tuple[DistinguishResult, ...]
    looks: Looks

    @property
    def design(self) -> SecrecyDesign:
        """How the part is coded."""
        return self.public.design

    @property
    def protection(self) -> str:
        """What the physical layer does for this part."""
        return HIDES if self.design.secret else HIDES_NOTHING

    @property
    def valid(self) -> bool:
        """Whether the attack would have found a leak, had there been one."""
        return self.control.passed

    @property
    def snr_mean_db(self) -> float | None:
        """The tap's mean SNR over all blocks that reached it, None before the first."""
        return float(to_db(self.tally.snr_sum / self.tally.blocks)) if self.tally.blocks else None

    @property
    def snr_max_db(self) -> float | None:
        """The SNR of its best block."""
        return float(to_db(self.tally.snr_max)) if self.tally.blocks else None

    @property
    def assumption_held(self) -> bool | None:
        """Whether the tap was no better than the design assumed; None for an open part, or when nothing reached it."""
        mean, most = self.snr_mean_db, self.snr_max_db
        return None if mean is None or most is None else self.public.held(snr_mean_db=mean, snr_max_db=most)

    @property
    def log2_delta_total(self) -> float:
        """log2 of the leakage bound over all blocks sent; 0 for an open part: no bound at all."""
        return total_log2_delta(self.design, self.blocks_sent)

    @property
    def bound_void(self) -> str | None:
        """Why the bound says nothing about what was sent; None where it does, or where there is none (open part)."""
        if not self.design.secret:
            return None
        if self.public.randomness == "seeded":
            return "the random bits are reproducible, not secret"
        if self.assumption_held is False:
            return "the assumption on the tap's SNR FAILED"
        if self.fidelity is Fidelity.ABSTRACT:
            return "abstract: it is the design's, no bit of it was on air"
        return None

    @property
    def log2_information_total(self) -> float | None:
        """log2 of a bound in bit on the tap's information about uniform messages, which follows from the other; None if open."""
        return log2_mutual_information(self.design, self.blocks_sent) if self.design.secret else None

    @property
    def outage(self) -> float:
        """Probability that at least one coherence block was above the design SNR."""
        return self.public.outage(self.blocks_sent)

    @property
    def statement(self) -> tuple[str, ...]:
        """What may be said, sentence by sentence, assumptions included."""
        return (
            self.fidelity.claim,
            self.protection,
            *_decoding(self),
            *(_bound(self) if self.design.secret else ()),
            *_distinguishing(self.trials, random_bits=self.design.random_bits),
            *([] if self.valid else ["INVALID: the positive control was not recovered, so this attack says nothing"]),
        )

    def to_json(self) -> dict[str, object]:
        """Return plain values for a JSON file."""
        tally, design, heard = self.tally, self.design, self.tally.heard
        bound = self.public.snr_bound_db
        return {
            "client": self.public.client,
            "part": self.public.part.value,
            "fidelity": self.fidelity.value,
            "valid": self.valid,
            "secret": design.secret,
            "protection": self.protection,
            "transmissions": self.transmissions,
            "blocks_sent": self.blocks_sent,
            "blocks_heard": heard.count if heard else 0,
            "share_heard": heard.share if heard else None,
            "share_heard_interval_95": list(heard.interval) if heard else None,
            "blocks_coded": tally.coded,
            "blocks_decoded": tally.decoded,
            "decode_share": self.public.decode_share,
            "crc_passes": tally.crc_passes,
            "codewords_decoded": tally.words,
            "codewords_converged": tally.words_converged,
            "iterations_max": self.public.iterations,
            "iterations_mean": round(tally.iterations / tally.words, 3) if tally.words else None,
            "raw_bit_error_estimate": round(tally.sign_errors / tally.signs, 6) if tally.signs else None,
            "bytes_known": self.bytes_known,
            "bytes_total": self.bytes_total,
            "snr_mean_db": _rounded(self.snr_mean_db),
            "snr_max_db": _rounded(self.snr_max_db),
            "snr_bound_db": _rounded(bound),
            "tap_model": design.tap_model.value,
            "assumption_held": self.assumption_held,
            "bound_void": self.bound_void,
            "log2_delta_block": design.log2_delta,
            "log2_delta_total": self.log2_delta_total,
            "log2_information_bits_total": self.log2_information_total,
            "outage": self.outage,
            "randomness": self.public.randomness,
            "markers": list(self.looks.markers),
            "uniformity_p": self.looks.uniformity_p,
            "positive_control": {
                "passed": self.control.passed,
                "snr_db": self.control.snr_db,
                "blocks_sent": self.control.blocks.of,
                "blocks_heard": self.control.blocks.count,
                "bytes_equal": self.control.bytes_equal,
            },
            "distinguish": {
                "valid": distinguish.valid(self.trials),
                "results": [result.to_json() for result in self.trials],
            }
            if self.trials
            else None,
            "statement": list(self.statement),
        }


def summary(found: Sequence[Evidence], *, fidelity: str) -> str:
    """Return all evidence in a line."""
    if not found:
        return "heard nothing"
    heard = sum(e.tally.crc_passes + e.tally.bare_heard for e in found)
    tried = sum(e.tally.decoded + e.tally.bare for e in found)
    known, total = sum(e.bytes_known for e in found), sum(e.bytes_total for e in found)
    secret = [e for e in found if e.design.secret]
    said = [f"decoded {heard} of {tried} hash blocks, knows {known} of {total} bytes sent"]
    if secret:
        said.append(_bound_in_short(secret))
    if len(secret) < len(found):
        known = sum(e.bytes_known for e in found if not e.design.secret)
        said.append(f"{known} of the known bytes travelled open, protected by encryption alone")
    said.append(f"positive control {'passed' if all(e.valid for e in found) else 'FAILED, so this says nothing'}")
    return f"{'; '.join(said)}; fidelity {fidelity}"


def _bound_in_short(secret: Sequence[Evidence]) -> str:
    void = next((e.bound_void for e in secret if e.bound_void is not None), None)
    if void is not None:
        return f"no leakage bound: {void}"
    unseen = any(e.assumption_held is None or e.tally.blocks < e.blocks_sent for e in secret)
    checked = "its SNR assumption could not be checked on all of it" if unseen else "its SNR assumption held"
    return f"leakage bound at most 2^{max(e.log2_delta_total for e in secret):.1f} per update ({checked})"


def _decoding(e: Evidence) -> list[str]:
    heard = e.tally.heard
    if heard is None:
        return [f"{e.blocks_sent} hash blocks were sent, none reached the decoder"]
    low, high = heard.interval
    sample = "" if e.public.decode_share >= 1.0 else f" (of the coded ones it tries a random share of {e.public.decode_share:g})"
    return [
        f"the tap decoded {heard.count} of {heard.of} hash blocks{sample} (95 % interval {low:.2e} to {high:.2e}) and knows "
        f"{e.bytes_known} of {e.bytes_total} bytes; that it failed to decode is a sanity check, not evidence of secrecy",
        "a block that is sent again has fresh random bits, so the tap cannot combine receptions; it keeps the better guess",
    ]


def _bound(e: Evidence) -> list[str]:
    d = e.design
    dither = "" if d.modulation == "qpsk" else " and dither"
    said = [
        f"bound of the design: distinguishing advantage at most 2 x 2^{e.log2_delta_total:.1f} over all {e.blocks_sent} blocks "
        f"sent, retransmissions included (2^{d.log2_delta:g} per block, mean over the public seed{dither}); "
        f"{d.modulation}, {d.codewords} codewords of {d.info_bits} in {d.code_bits} bits, "
        f"{d.message_bits} message and {d.random_bits} random bits per block",
        f"assumed: {_tap(e)} (path loss plus {e.public.tap_margin_db:g} dB), one antenna, no accomplices, a passive "
        "eavesdropper, an authenticated control channel",
        "the bound is derived along published lines, not peer reviewed; it was checked by exact enumeration of small codes",
        "not covered: an active eavesdropper, traffic length and timing, the processes that simulate the air",
    ]
    if e.fidelity is Fidelity.ABSTRACT:
        said.append("no block was coded and no random bit drawn: this is what the design would give, not what was on air")
    if e.public.randomness == "seeded":
        said.append("REPRODUCIBLE, NOT SECRET: random bits, seed and dither come from the scenario's seed, so the bound is void")
    elif e.fidelity is not Fidelity.ABSTRACT:
        said.append("random bits, seed and dither come from the operating system's generator: uniform in a computational sense")
    if e.outage > 0.0:
        said.append(
            f"fading: at least one coherence block above the design SNR with probability {e.outage:.3g}, not part of the bound"
        )
    if e.assumption_held is False:
        said.append(f"the assumption failed: {_seen(e)}, so the bound does not apply here")
    return said


def _tap(e: Evidence) -> str:
    bound = e.public.snr_bound_db
    match e.design.tap_model:
        case TapModel.FIXED:
            return f"white noise, tap SNR at most {bound:.2f} dB in every block"
        case TapModel.OUTAGE:
            return f"Rayleigh fading, tap SNR at most {bound:.2f} dB on average, outage counted apart"
        case TapModel.INTERLEAVED:
            return (
                f"Rayleigh fading, tap SNR at most {bound:.2f} dB on average, independent in each of the "
                f"{e.design.codewords * e.design.subbands} coherence blocks of a hash block"
            )


def _seen(e: Evidence) -> str:
    if e.design.tap_model is TapModel.FIXED:
        return f"the tap's SNR reached {e.snr_max_db:.2f} dB"
    return f"the tap's mean SNR was {e.snr_mean_db:.2f} dB"


def _distinguishing(trials: Sequence[DistinguishResult], *, random_bits: int) -> list[str]:
    if not trials:
        return []
    told = "; ".join(f"{r.name}{' (control)' if r.control else ''}: {r.accuracy:.3f} of {r.trials}, {r.verdict}" for r in trials)
    void = "" if distinguish.valid(trials) else "; INVALID: a control was not told apart"
    few = random_bits <= distinguish.LIKELIHOOD_BITS_MOST
    reach = (
        ""
        if few
        else f"; the exact likelihood ratio of the design, over all values of {random_bits} random bits, is out of reach"
    )
    return [
        f"telling two messages apart, on blocks of its own making at {trials[0].snr_db:.2f} dB: {told}{void}; where nothing is "
        f"told apart, that is a sanity check of these attacks, not evidence of secrecy{reach}"
    ]


def _rounded(level: float | None) -> float | None:
    return round(level, 4) if level is not None and isfinite(level) else None
