"""Does a decoder refuse what no encoder made, or return finite numbers, in bounded time and memory? By a hundred thousand tries.

`benchmarks/codec_fuzz.py` makes as many more as one likes of the same kind.
"""

import resource

import pytest

from hushtune_common.codec import container
from hushtune_common.errors import MalformedUpdate
from tests.codec_fuzz import MEMORY_MAX, SCHEMA, Tally, attempt, run, targets

BLOBS = 100_000


@pytest.mark.slow
def test_a_hundred_thousand_mutated_blobs_are_refused_or_finite_in_little_time_and_memory():
    tally, known = Tally(), targets()
    run(0, first=0, count=2_000, tally=tally, known=known)  # compiles, and fills the allocator
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally.slowest_s = 0.0
    run(0, first=2_000, count=BLOBS - 2_000, tally=tally, known=known)
    assert tally.slowest_s < 0.25  # of the processor's time; a few milliseconds, unless a page has to be found first
    assert tally.memory < MEMORY_MAX
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB: nothing is kept
    assert sum(tally.outcomes.values()) == BLOBS
    # The tries get past digests and tables: of every codec many decode, and many more do not.
    for target in known:
        decoded, refused = (tally.outcomes[f"{target.name} {outcome}"] for outcome in ("decoded", "refused"))
        assert 0.03 * BLOBS / 3 < decoded < refused


def test_the_blobs_that_are_mutated_decode_as_they_are_and_have_all_forms():
    forms: set[tuple[str, int]] = set()
    for target in targets():
        for form, sections in target.made:
            blob = container.write(target.label, container.Contents(form=form, sections=sections))
            assert attempt(target, blob, both=True) == "decoded"
            forms.add((target.name, form))
    assert {("rate_distortion", f) for f in (0, 1, 2)} | {("lossless", f) for f in (1, 2)} <= forms
    assert len([f for name, f in forms if name == "blockwise"]) >= 3


def test_every_form_that_there_is_not_is_refused():
    for target in targets():
        sections = target.made[0][1]
        for form in range(9, 256):
            blob = container.write(target.label, container.Contents(form=form, sections=sections))
            with pytest.raises(MalformedUpdate, match=r"form|bits per weight"):
                target.codec.decode(blob, SCHEMA)
