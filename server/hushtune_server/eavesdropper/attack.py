"""What the eavesdropper tries on one client's update, and what it may honestly say afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from hushtune_common.config import Scenario
from hushtune_common.errors import MalformedUpdate
from hushtune_common.link.abstraction import NO_FADING, hear, required_snr_db
from hushtune_common.link.channel import Reception, cut
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.leakage import total_log2_delta
from hushtune_common.link.mcs import point_of
from hushtune_common.link.secrecy import any_outage, outage_factor
from hushtune_common.messages import Listener, SecrecyDesign
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Decibel, from_db, to_db
from hushtune_server.eavesdropper.decode import Guess, Proportion, best_guess, markers_in, uniformity

_CONTROL_BLOCKS: Final = 64
_CONTROL_SHARE_LEAST: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKnowledge:
    """What everybody may know about one client's transmissions: who, the design, and the assumptions behind it."""

    client: str
    design: SecrecyDesign
    tap_margin_db: float
    tap_outage: float | None
    """Outage probability of the design per coherence block; None without fading."""
    subbands: int

    @staticmethod
    def of(scenario: Scenario, *, client: str, design: SecrecyDesign) -> "PublicKnowledge":
        """Return what the scenario says."""
        fades = scenario.air.fading == "rayleigh_block"
        return PublicKnowledge(
            client=client,
            design=design,
            tap_margin_db=scenario.secrecy.tap_margin_db,
            tap_outage=scenario.secrecy.tap_outage if fades else None,
            subbands=scenario.air.subbands if fades else 1,
        )

    @property
    def snr_mean_bound_db(self) -> Decibel:
        """The mean tap SNR that the design allows: its design SNR, less the factor kept for Rayleigh peaks."""
        kept = 0.0 if self.tap_outage is None else to_db(outage_factor(self.tap_outage))
        return Decibel(self.design.snr_tap_design_db - kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The positive control: a planted update at an SNR where the tap must read it."""

    snr_db: float
    blocks: Proportion
    bytes_equal: bool

    @property
    def passed(self) -> bool:
        """Whether the attack found the planted leak."""
        return self.bytes_equal and self.blocks.share >= _CONTROL_SHARE_LEAST


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The outcome of one attack on one client's update, over all its transmissions.

    ``log2_delta_total`` is the design's leakage bound over every block sent, retransmissions included; the advantage in telling
    two messages apart is at most twice that. It holds only if ``assumption_held``; ``outage`` is never folded into it. Without
    ``control.passed`` nothing here counts.
    """

    client: str
    fidelity: Fidelity
    transmissions: int
    blocks: Proportion
    bytes_known: int
    bytes_total: int
    snr_mean_db: float
    snr_max_db: float
    snr_bound_db: float
    control: Control
    log2_delta_block: float
    log2_delta_total: float
    outage: float
    markers: tuple[str, ...]
    uniformity_p: float | None
    design: SecrecyDesign
    tap_margin_db: float

    @property
    def valid(self) -> bool:
        """Whether the attack would have found a leak, had there been one."""
        return self.control.passed

    @property
    def assumption_held(self) -> bool:
        """Whether the tap's mean SNR stayed at or below what the design assumed (to the precision of a 32-bit float)."""
        return self.snr_mean_db <= self.snr_bound_db + 1e-4

    @property
    def statement(self) -> tuple[str, ...]:
        """What may be said, sentence by sentence, assumptions included."""
        return _statement(self)

    def to_json(self) -> dict[str, object]:
        """Return plain values for a JSON file."""
        low, high = self.blocks.interval
        return {
            "client": self.client,
            "fidelity": self.fidelity.value,
            "valid": self.valid,
            "transmissions": self.transmissions,
            "blocks_sent": self.blocks.of,
            "blocks_heard": self.blocks.count,
            "share_heard": self.blocks.share,
            "share_heard_interval_95": [low, high],
            "bytes_known": self.bytes_known,
            "bytes_total": self.bytes_total,
            "snr_mean_db": round(self.snr_mean_db, 4),
            "snr_max_db": round(self.snr_max_db, 4),
            "snr_bound_db": round(self.snr_bound_db, 4),
            "assumption_held": self.assumption_held,
            "log2_delta_block": self.log2_delta_block,
            "log2_delta_total": self.log2_delta_total,
            "outage": self.outage,
            "markers": list(self.markers),
            "uniformity_p": self.uniformity_p,
            "positive_control": {
                "passed": self.control.passed,
                "snr_db": self.control.snr_db,
                "blocks_sent": self.control.blocks.of,
                "blocks_heard": self.control.blocks.count,
                "bytes_equal": self.control.bytes_equal,
            },
            "statement": list(self.statement),
        }


class Attack(Protocol):
    """Tries to read one client's update from all that the tap received of it.

    Laws: finds the planted leak of its positive control, or says that it did not; carries a confidence interval; the same
    receptions give the same evidence.
    """

    def run(self, receptions: Sequence[Reception], public: PublicKnowledge) -> Evidence:
        """Return the evidence; ``ValueError`` without receptions, ``MalformedUpdate`` when they do not belong together."""
        ...


class AbstractDecoder:
    """Collects the blocks that the abstract air let the tap decode, and looks at what they are."""

    def __init__(self, *, seeds: SeedTree, control_margin_db: float = 3.0) -> None:
        """Take seeds for the positive control, which is run ``control_margin_db`` above the coding point's threshold."""
        self._seeds = seeds.child("positive-control")
        self._control_margin_db = control_margin_db

    def run(self, receptions: Sequence[Reception], public: PublicKnowledge) -> Evidence:
        """Return the evidence; ``ValueError`` without receptions, ``MalformedUpdate`` when they do not belong together."""
        guess, heard = self.guess(receptions)
        if any(r.block_bytes != public.design.payload_bytes for r in receptions):
            raise MalformedUpdate("the receptions are not of the announced design")
        sent = sum(int(r.indices.size) for r in receptions)
        levels = np.concatenate([r.snr_db for r in receptions]).astype(np.float64)
        coherence_blocks = sent * public.design.codewords * public.subbands
        return Evidence(
            client=public.client,
            fidelity=receptions[0].fidelity,
            transmissions=len(receptions),
            blocks=Proportion(count=heard, of=sent),
            bytes_known=guess.bytes_known,
            bytes_total=len(guess.data),
            snr_mean_db=to_db(float(np.mean(10.0 ** (levels / 10.0)))),
            snr_max_db=float(levels.max()),
            snr_bound_db=public.snr_mean_bound_db,
            control=self._control(public.design),
            log2_delta_block=public.design.log2_delta,
            log2_delta_total=total_log2_delta(public.design, sent),
            outage=0.0 if public.tap_outage is None else any_outage(public.tap_outage, coherence_blocks),
            markers=markers_in(guess.heard),
            uniformity_p=uniformity(guess.heard),
            design=public.design,
            tap_margin_db=public.tap_margin_db,
        )

    def guess(self, receptions: Sequence[Reception]) -> tuple[Guess, int]:
        """Return the best guess of the update's bytes, zeros where unknown, and the number of sound blocks."""
        return best_guess(receptions)

    def _control(self, design: SecrecyDesign) -> Control:
        """Plant an update, let a tap with ample SNR hear it, and attack it the same way, through the same bytes."""
        planted = self._seeds.child("update").generator().bytes(_CONTROL_BLOCKS * design.payload_bytes)
        threshold = required_snr_db(point_of(design), codewords=design.codewords, block_error_max=0.01)
        snr_db = threshold + self._control_margin_db
        own = self._seeds.child("channel")
        frame = cut(planted, design=design)
        reception = hear(frame, listener=Listener.TAP, design=design, snr=from_db(snr_db), fading=NO_FADING, seeds=own)
        guess, heard = self.guess([Reception.from_bytes(reception.to_bytes())])
        truth = np.frombuffer(planted, dtype=np.uint8)[guess.known].tobytes()
        return Control(
            snr_db=snr_db, blocks=Proportion(count=heard, of=frame.count), bytes_equal=heard > 0 and guess.heard == truth
        )


def _statement(e: Evidence) -> tuple[str, ...]:
    d = e.design
    dither = "" if d.modulation == "qpsk" else " and dither"
    low, high = e.blocks.interval
    said = [
        e.fidelity.claim,
        f"the tap decoded {e.blocks.count} of {e.blocks.of} hash blocks (95 % interval {low:.2e} to {high:.2e}) and knows "
        f"{e.bytes_known} of {e.bytes_total} sealed bytes; that it failed to decode is a sanity check, not evidence of secrecy",
        f"bound of the design: distinguishing advantage at most 2 x 2^{e.log2_delta_total:.1f} over all {e.blocks.of} blocks "
        f"sent, retransmissions included (2^{d.log2_delta:g} per block, mean over the public seed{dither}); "
        f"{d.modulation}, {d.codewords} codewords of {d.info_bits} in {d.code_bits} bits, "
        f"{d.message_bits} message and {d.random_bits} random bits per block",
        f"assumed: tap SNR at most {e.snr_bound_db:.2f} dB on average (path loss plus {e.tap_margin_db:g} dB), one antenna, a "
        "passive eavesdropper, an authenticated control channel, random bits from the operating system",
        "the bound is derived along published lines, not peer reviewed",
    ]
    if e.outage > 0.0:
        said.append(
            f"fading: at least one coherence block above the design SNR with probability {e.outage:.3g}, not part of the bound"
        )
    if not e.assumption_held:
        said.append(f"the assumption failed: the tap's mean SNR was {e.snr_mean_db:.2f} dB, so the bound does not apply here")
    if not e.valid:
        said.append("INVALID: the positive control was not recovered, so this attack says nothing")
    return tuple(said)


_conforms: type[Attack] = AbstractDecoder
