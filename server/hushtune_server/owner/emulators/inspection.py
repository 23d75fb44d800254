"""What stands at each position of an emulator, in words, and what does it add up to? Reads files only; needs no torch."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_never

from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.naming import block_of
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Drop, Harmonize, Keep, Share, Slot

_SCORES: Mapping[str, tuple[str, str]] = {
    "loss_rise_nats": ("{:+.4f}", "nats without it"),
    "influence": ("{:.4f}", "influence"),
    "score": ("{:+.4f}", "learned score"),
    "similarity_to_next": ("{:.4f}", "similar to the next"),
}
"""Statistics of blocks that a plan may record, and how to say them."""


def summary(plan: Plan) -> dict[str, str]:
    """Return what identifies a plan and what it consists of."""
    settings = [f"{k} = {v}" for k, v in sorted(plan.parameters.items()) if isinstance(v, int | float | str)]
    kinds = Counter(_kind(plan, slot) for slot in plan.slots)
    return {
        "plan": plan.digest.hex,
        "base": plan.base.hex,
        "method": plan.method,
        "settings": ", ".join(settings) or "none",
        "public text": "none was looked at" if plan.corpus is None else plan.corpus.hex,
        "blocks": f"{len(plan.slots)}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
    }


def contents(file: Path) -> dict[str, str]:
    """Return the sizes of a bundle, and the digest of its training on public text."""
    bundle = read_bundle(file)
    refinement = bundle.file.metadata.get("refinement_digest")
    return {
        "refinement": "none" if refinement is None else refinement,
        "adapter": f"{len(bundle.schema)} tensors, {sum(t.count for t in bundle.schema):,} numbers",
        "per token": f"{bundle.parameters_per_token:,} weights",
        "bytes": f"{file.stat().st_size:,}",
    }


def sizes(file: Path) -> dict[int, int]:
    """Return how many numbers a bundle stores for each block, by original index."""
    tensors = read_bundle(file).file
    found: Counter[int] = Counter()
    for name in tensors.names():
        block = block_of(name)
        if block is not None:
            count = 1
            for extent in tensors.shape(name):
                count *= extent
            found[block] += count
    return dict(found)


def lines(plan: Plan, *, stored: Mapping[int, int]) -> list[str]:
    """Return one line for each block: what stands there, how many numbers it stores, and what the plan recorded about it."""
    return [_line(plan, slot, stored) for slot in plan.slots]


def _line(plan: Plan, slot: Slot, stored: Mapping[int, int]) -> str:
    parts = [f"block {slot.index:>3}", f"{_kind(plan, slot):<11}", *filter(None, [_details(slot)])]
    if slot.index in stored:
        parts.append(f"{stored[slot.index]:,} numbers")
    return "  ".join([*parts, *_recorded(plan.parameters, slot.index)])


def _kind(plan: Plan, slot: Slot) -> str:
    match slot:
        case Keep():
            return "trained" if slot.index in plan.adapter else "kept"
        case Drop():
            return "dropped"
        case Share():
            return "shared"
        case Harmonize():
            return "harmonized"
        case Compress():
            return "compressed"
        case _:
            assert_never(slot)


def _details(slot: Slot) -> str:
    match slot:
        case Share():
            return f"block {slot.source} stands in"
        case Harmonize():
            return f"rank {slot.rank}"
        case Compress():
            ranks = [f"rank {len(components)} of {path}" for path, components in sorted(slot.ranks.items())]
            channels = [] if slot.channels is None else [f"{len(slot.channels)} neurons"]
            quant = [] if slot.quant is None else [f"{slot.quant.bits} bit in blocks of {slot.quant.block}"]
            return ", ".join([*ranks, *channels, *quant])
        case _:
            return ""


def _recorded(parameters: Mapping[str, Any], block: int) -> list[str]:
    found: list[str] = []
    for name, (form, words) in _SCORES.items():
        values = parameters.get(name)
        if isinstance(values, Mapping) and isinstance(value := values.get(str(block)), int | float):
            found.append(f"{form.format(value)} {words}")
    return found
