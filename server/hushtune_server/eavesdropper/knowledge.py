"""What may everybody know about one part of one client's update: the design, and the assumptions behind it."""

from dataclasses import dataclass

from hushtune_common.config import Scenario
from hushtune_common.link.secrecy import any_outage, outage_factor
from hushtune_common.messages import Part, SecrecyDesign, TapModel
from hushtune_common.units import Decibel, to_db


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKnowledge:
    """Public facts: whose part, how it is coded, what the scenario assumes of the tap, and where random bits come from.

    ``tap_outage`` is the outage probability per coherence block of a design that tolerates one; ``decode_share`` is how much of
    what it hears the tap decodes, with up to ``iterations``.
    """

    client: str
    part: Part
    design: SecrecyDesign
    tap_margin_db: float
    tap_outage: float
    randomness: str
    decode_share: float
    iterations: int

    @staticmethod
    def of(scenario: Scenario, *, client: str, part: Part, design: SecrecyDesign) -> "PublicKnowledge":
        """Return what the scenario says."""
        return PublicKnowledge(
            client=client,
            part=part,
            design=design,
            tap_margin_db=scenario.secrecy.tap_margin_db,
            tap_outage=scenario.secrecy.tap_outage,
            randomness=scenario.secrecy.randomness,
            decode_share=scenario.eavesdropper.decode_share,
            iterations=scenario.eavesdropper.iterations,
        )

    @property
    def snr_bound_db(self) -> Decibel | None:
        """The tap SNR that the design allows, None for an open part, which assumes nothing.

        In white noise the most that any block may have; with fading the most that the mean may be: for a design with outage its
        design SNR less the factor kept for Rayleigh peaks, for an interleaved one the design SNR itself.
        """
        if not self.design.secret:
            return None
        kept = to_db(outage_factor(self.tap_outage)) if self.design.tap_model is TapModel.OUTAGE else 0.0
        return Decibel(self.design.snr_tap_design_db - kept)

    def held(self, *, snr_mean_db: float, snr_max_db: float) -> bool | None:
        """Return whether SNRs stayed within the assumption (to the precision of a 32-bit float), None for an open part."""
        bound = self.snr_bound_db
        if bound is None:
            return None
        seen = snr_max_db if self.design.tap_model is TapModel.FIXED else snr_mean_db
        return seen <= bound + 1e-4

    def outage(self, blocks: int) -> float:
        """Return the probability that any coherence block of so many hash blocks is above the design SNR; never in the bound."""
        if not self.design.secret or self.design.tap_model is not TapModel.OUTAGE:
            return 0.0
        return any_outage(self.tap_outage, blocks * self.design.codewords * self.design.subbands)
