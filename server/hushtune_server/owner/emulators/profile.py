"""What has to be measured of the full model before an emulator is planned?

Letters in shapes: N windows, T tokens.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError
from hushtune_common.methods import EmulatorOptions, GradotOptions, ScaleotOptions
from hushtune_common.model.language import LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.gradients import gradient_scores, weight_of
from hushtune_server.owner.emulators.hidden_states import influences, similarities
from hushtune_server.owner.emulators.leaving_out import ablation_losses, greedy_order
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic, require_layout
from hushtune_server.owner.emulators.text import PublicText

SIMILARITY_WINDOWS = 512
"""Windows whose pooled hidden states are compared (CRaSh looks at about as many texts); fewer when there are fewer."""

_OF_WEIGHTS = frozenset({Statistic.NEURON_NORMS})
"""Statistics for which no text is looked at."""

_OF_ADAPTER = frozenset({Statistic.GREEDY_ORDER, Statistic.GRADIENT_SCORES, Statistic.REPLACEMENT_SCORES})
"""Statistics that depend on which blocks are adapter blocks."""


def profile(
    model: LanguageModel,
    text: PublicText,
    *,
    request: EmulatorRequest,
    method: EmulatorMethod,
    seeds: SeedTree,
    work: Path,
    progress: Callable[[int, int], None],
    cpu_time: Callable[[], float] = time.process_time,
) -> Profile:
    """Measure what ``method`` needs of the full ``model`` on public ``text``, and nothing else.

    ``progress`` is called with passes done and passes in all, of one statistic after the other; ``work`` is a folder for
    intermediate results of long measurements, which go on there when they were interrupted.
    """
    begin = cpu_time()
    found = Profile(base=request.base, adapter=request.adapter, settings=_settings_of(method))
    if method.needs - _OF_WEIGHTS:
        found = replace(found, corpus=text.corpus, tokens=_windows(method, text).size)
    for statistic in sorted(method.needs):
        found = _with(statistic, found, model, text, request=request, method=method, seeds=seeds, work=work, progress=progress)
    return replace(found, cpu_s=cpu_time() - begin)


def require_measured_for(found: Profile, *, method: EmulatorMethod, request: EmulatorRequest) -> None:
    """Raise `ConfigError` when statistics that depend on adapter blocks or options were measured for others."""
    if found.adapter is None:
        return
    if found.adapter != request.adapter and method.needs & _OF_ADAPTER:
        raise ConfigError("profile", f"was measured for adapter blocks {list(found.adapter)}, not {list(request.adapter)}")
    for name, asked in _settings_of(method).items():
        if name in found.settings and found.settings[name] != asked:
            raise ConfigError("profile", f"was measured with {name} = {found.settings[name]!r}, not {asked!r}; profile again")


def _settings_of(method: EmulatorMethod) -> dict[str, Any]:
    """Return the options that what is measured depends on, beside the number of tokens, which plans record.

    How far a greedy order goes is not one: a shorter one is its beginning.
    """
    from hushtune_server.owner.emulators.scaleot import SECOND_STAGE  # it plans as well, and knows this module's vocabulary

    options: dict[str, Any] = msgspec.to_builtins(method.options)
    if Statistic.REPLACEMENT_SCORES in method.needs:
        return {name: value for name, value in options.items() if name not in SECOND_STAGE}
    return {"damping": options["damping"]} if Statistic.GRADIENT_SCORES in method.needs else {}


def neuron_norms(model: LanguageModel, request: EmulatorRequest) -> dict[int, Float32]:
    """Return the norms (F,) of every middle block's feed-forward neurons: of all weights that go in, and out again (FedPFT)."""
    layout, norms = require_layout(request), dict[int, Float32]()
    for block in request.middle:
        module = model.parts.blocks[block]
        squares = [np.square(weight_of(module, m)).sum(axis=1) for m in layout.up]
        squares.append(np.square(weight_of(module, layout.down)).sum(axis=0))
        norms[block] = np.sqrt(np.sum(squares, axis=0)).astype(np.float32)
    return norms


def _with(
    statistic: Statistic,
    found: Profile,
    model: LanguageModel,
    text: PublicText,
    *,
    request: EmulatorRequest,
    method: EmulatorMethod,
    seeds: SeedTree,
    work: Path,
    progress: Callable[[int, int], None],
) -> Profile:
    """Return the profile with one statistic more."""
    windows, options = _windows(method, text), method.options
    match statistic:
        case Statistic.ABLATION_LOSS:
            loss, losses = ablation_losses(model, windows, request=request, progress=progress)
            return replace(found, loss=loss, ablation_losses=losses)
        case Statistic.GREEDY_ORDER:
            drop = _drop_of(options, request)
            order = greedy_order(model, windows, request=request, drop=drop, work=work, progress=progress)
            return replace(found, loss=order.loss, greedy_order=order.blocks, greedy_losses=order.losses)
        case Statistic.INFLUENCE:
            loss, turned = influences(model, windows, request=request, progress=progress)
            return replace(found, loss=loss, influences=turned)
        case Statistic.SIMILARITY:
            return replace(found, similarity=similarities(model, windows, request=request, progress=progress))
        case Statistic.NEURON_NORMS:
            return replace(found, neuron_norms=neuron_norms(model, request))
        case Statistic.GRADIENT_SCORES:
            damping = options.damping if isinstance(options, GradotOptions) else GradotOptions().damping
            scores = gradient_scores(model, windows, request=request, damping=damping, progress=progress)
            return replace(found, loss=scores.loss, component_scores=scores.components, channel_scores=scores.channels)
        case Statistic.REPLACEMENT_SCORES:
            learned, trained = _replacement_scores(
                options, model, text, request=request, seeds=seeds, work=work, progress=progress
            )
            return replace(found, replacement_scores=learned, trained=trained)


def _windows(method: EmulatorMethod, text: PublicText) -> NDArray[np.int64]:
    """Return the windows (N, T) that a method's statistics look at."""
    tokens = method.options.profile_tokens
    if Statistic.SIMILARITY in method.needs:
        tokens = max(tokens, SIMILARITY_WINDOWS * text.windows.shape[1])
    return text.spread(tokens=tokens)


def _drop_of(options: EmulatorOptions, request: EmulatorRequest) -> int:
    # A longer order than the method asks for would cost a pass for every block that is left.
    return int(getattr(options, "drop", len(request.middle)))


def _replacement_scores(
    options: EmulatorOptions,
    model: LanguageModel,
    text: PublicText,
    *,
    request: EmulatorRequest,
    seeds: SeedTree,
    work: Path,
    progress: Callable[[int, int], None],
) -> tuple[Mapping[int, float], Mapping[str, Float32]]:
    from hushtune_server.owner.emulators.scaleot import learn_replacements  # it plans as well, and knows this module's vocabulary

    if not isinstance(options, ScaleotOptions):
        raise ValueError(f"replacement scores are learned as the options of scaleot say, these are {type(options).__name__}")
    return learn_replacements(model, text, request=request, options=options, seeds=seeds, work=work, progress=progress)
