"""How large may an emulator be to fit into so many bytes?"""

from dataclasses import replace

from hushtune_common.errors import ConfigError
from hushtune_common.methods import method_of
from hushtune_common.model.materialise import EmulatorTensors
from hushtune_common.model.weights import Weights
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile

ROOT = SeedTree(0)


def fit(
    method: EmulatorMethod,
    profile: Profile,
    request: EmulatorRequest,
    *,
    weights: Weights,
    bytes_max: int,
    seeds: SeedTree = ROOT,
) -> EmulatorMethod:
    """Return the method at its largest size whose emulator's tensors take at most ``bytes_max``; its other options stay.

    The largest is the one that keeps most: what stands in for a block can take more bytes than the block. A greedy order may be
    shorter than the size needs: of blocks that are alike it matters how many go, not which; measure again for the size found.
    `ConfigError` names the smallest emulator of the method when even that is too large.
    """
    complete = _with_whole_order(profile, request)
    least: int | None = None
    for candidate in method.sizes(request):
        plan = candidate.plan(complete, request, seeds=seeds)
        size = EmulatorTensors(weights, plan).size_bytes
        if size <= bytes_max:
            return candidate
        least = size if least is None else min(least, size)
    raise ConfigError(
        "bytes_max",
        f"{bytes_max} bytes are too few: the smallest emulator of method {method_of(method.options)} has {least} bytes",
    )


def _with_whole_order(profile: Profile, request: EmulatorRequest) -> Profile:
    rest = tuple(b for b in request.middle if b not in profile.greedy_order)
    losses = (*profile.greedy_losses, *[profile.loss] * len(rest))
    return replace(profile, greedy_order=(*profile.greedy_order, *rest), greedy_losses=losses)
