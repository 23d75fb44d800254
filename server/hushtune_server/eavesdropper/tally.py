"""What has been counted while attacking one part of an update, over all its transmissions?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_server.eavesdropper.decode import Reading
from hushtune_server.eavesdropper.proportion import Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts and sums; SNRs are linear.

    ``coded`` and ``bare`` blocks reached the tap; ``decoded`` of the coded ones were tried, ``crc_passes`` of those and
    ``bare_heard`` of the bare ones came through. ``words`` were decoded, ``words_converged`` of them to a codeword, in
    ``iterations`` altogether. ``sign_errors`` of ``signs`` soft values are wrong by their own account.
    """

    coded: int = 0
    decoded: int = 0
    crc_passes: int = 0
    words: int = 0
    words_converged: int = 0
    iterations: int = 0
    bare: int = 0
    bare_heard: int = 0
    snr_sum: float = 0.0
    snr_max: float = 0.0
    sign_errors: float = 0.0
    signs: int = 0

    @property
    def blocks(self) -> int:
        """Hash blocks that reached the tap, in whatever form."""
        return self.coded + self.bare

    @property
    def heard(self) -> Proportion | None:
        """Of the blocks tried, those that came through; None before the first."""
        tried = self.decoded + self.bare
        return Proportion(count=self.crc_passes + self.bare_heard, of=tried) if tried else None

    def plus(self, reading: Reading, *, snr_db: NDArray[np.float32]) -> "Tally":
        """Return the counts with one more chunk, whose blocks had SNRs of ``snr_db``."""
        snr = 10.0 ** (snr_db.astype(np.float64) / 10.0)
        return Tally(
            coded=self.coded + reading.coded,
            decoded=self.decoded + len(reading.indices),
            crc_passes=self.crc_passes + int(reading.sound.sum()),
            words=self.words + reading.iterations.size,
            words_converged=self.words_converged + int(np.count_nonzero(reading.iterations > 0)),
            iterations=self.iterations + int(np.abs(reading.iterations).sum(dtype=np.int64)),
            bare=self.bare + reading.bare,
            bare_heard=self.bare_heard + len(reading.bare_indices),
            snr_sum=self.snr_sum + float(snr.sum()),
            snr_max=max(self.snr_max, float(snr.max())),
            sign_errors=self.sign_errors + reading.sign_errors,
            signs=self.signs + reading.signs,
        )
