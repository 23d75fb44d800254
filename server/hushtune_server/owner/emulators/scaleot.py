"""ScaleOT (arXiv 2412.09812): learned scores say which blocks harmonizers replace, and what stays loses rank.

Scores and harmonizers are learned together: a step trains the harmonizers of a drawn choice of blocks, then other choices are
tried and the scores of blocks whose presence paid rise. "Reconstructed" in the options marks what the paper leaves open.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune_common.adapter import Float32
from hushtune_common.methods import ScaleotOptions
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.layout import BlockLayout
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Compress, Harmonize, Keep, Slot
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.batches import Batches
from hushtune_server.owner.emulators.checkpoint import arithmetic_facts, digest_of_arrays, shelf
from hushtune_server.owner.emulators.harmonizers import Harmonized, harmonized
from hushtune_server.owner.emulators.method import EmulatorMethod, EmulatorRequest, Profile, Statistic
from hushtune_server.owner.emulators.text import PublicText
from hushtune_server.owner.emulators.training import Learned, Lesson, Report, train, unheard

Floats = NDArray[np.float64]

DIGITS = 4
"""Decimals of scores that decide."""

SECOND_STAGE = ("plan", "profile_tokens", "quantise_bits", "quantise_block", "replace", "chosen", "rank_keep")
"""Options that what is learned does not depend on."""


@dataclass(frozen=True, slots=True)
class Scaleot:
    """Replaces the blocks of lowest learned score by their harmonizers; attention matrices of the others lose rank if asked.

    Scores tell blocks of one group apart: equally many of each group always stay and rewards sum to zero, so that within a group
    scores rise and fall against each other. ``chosen`` says whether they are compared over all groups all the same.
    """

    options: ScaleotOptions

    @property
    def needs(self) -> frozenset[Statistic]:
        """The learned scores; harmonizers come with them."""
        return frozenset({Statistic.REPLACEMENT_SCORES})

    def plan(self, profile: Profile, request: EmulatorRequest, *, seeds: SeedTree) -> Plan:
        """Return the plan; ``seeds`` are not used here. ``ValueError`` when the scores were not learned."""
        request.require_droppable(self.options.replace, option="replace")
        missing = sorted(set(request.middle) - set(profile.replacement_scores))
        if missing:
            raise ValueError(f"the profile has no replacement score of block {missing[0]}")
        scores = {block: round(profile.replacement_scores[block], DIGITS) for block in request.middle}
        gone = replaced(scores, options=self.options)
        settings = msgspec.to_builtins(self.options)
        return Plan(
            base=request.base,
            adapter=request.adapter,
            slots=tuple(self._slot(block, gone=gone, request=request) for block in request.blocks),
            method="scaleot",
            parameters={
                **{name: settings[name] for name in ("replace", "rank", "group", "chosen", "rank_keep")},
                "score": {str(block): score for block, score in scores.items()},
            },
            corpus=profile.corpus,
        )

    def sizes(self, request: EmulatorRequest) -> Iterator["Scaleot"]:
        """Replace nothing, then one block more each time."""
        return (Scaleot(msgspec.structs.replace(self.options, replace=count)) for count in range(len(request.middle) + 1))

    def _slot(self, block: int, *, gone: frozenset[int], request: EmulatorRequest) -> Slot:
        if block in gone:
            return Harmonize(block, self.options.rank)
        if block in request.adapter or self.options.rank_keep == 1:
            return Keep(block)
        if request.layout is None:
            raise ValueError("cutting ranks needs the layout of a block in the request")
        return Compress(index=block, ranks=_ranks(request.layout, share=self.options.rank_keep))


def _ranks(layout: BlockLayout, *, share: float) -> dict[str, tuple[int, ...]]:
    # Rounded first: 0.7 * 10 is more than 7 in binary.
    return {m.path: tuple(range(ceil(round(share * min(m.rows, m.columns), 6)))) for m in layout.attention}


def replaced(scores: Mapping[int, float], *, options: ScaleotOptions) -> frozenset[int]:
    """Return the ``options.replace`` blocks that harmonizers replace; equal scores let the lower index go.

    Of all blocks, or of each group a share: then the first k groups together lose the whole part of their share.
    """
    if options.chosen == "global":
        return frozenset(_lowest(scores, count=options.replace))
    gone, seen, count = set[int](), 0, len(scores)
    for group in groups(sorted(scores), size=options.group):
        before, seen = seen, seen + len(group)
        due = options.replace * seen // count - options.replace * before // count
        gone.update(_lowest({block: scores[block] for block in group}, count=due))
    return frozenset(gone)


def _lowest(scores: Mapping[int, float], *, count: int) -> list[int]:
    return sorted(scores, key=lambda block: (scores[block], block))[:count]


def groups(middle: Sequence[int], *, size: int) -> list[Sequence[int]]:
    """Return the middle blocks in groups of ``size`` consecutive ones; the last may be shorter.

    One that would be alone joins the group before: alone it would always stay, and its harmonizer would never learn.
    """
    found = [middle[begin : begin + size] for begin in range(0, len(middle), size)]
    return found if len(found) < 2 or len(found[-1]) > 1 else [*found[:-2], [*found[-2], *found[-1]]]


def sampled(scores: Mapping[int, float], *, options: ScaleotOptions, seeds: SeedTree) -> frozenset[int]:
    """Draw which blocks harmonizers replace: of every group the upper half, rounded up, stays.

    A block of score s draws uniformly from 0 to sigmoid(s) and stays if that is not below its group's median (``threshold``), or
    the largest of log sigmoid(s) and Gumbel noise stay (``gumbel_topk``). A block that is all there is of the middle is replaced.
    """
    rng, gone = seeds.generator(), set[int]()
    for group in groups(sorted(scores), size=options.group):
        likely = sigmoid(np.array([scores[block] for block in group]))
        draws = (
            rng.random(len(group)) * likely if options.sampler == "threshold" else np.log(likely) + rng.gumbel(size=len(group))
        )
        stays = ceil(len(group) / 2) if len(group) > 1 else 0
        gone.update(group[position] for position in np.argsort(-draws, kind="stable")[stays:])
    return frozenset(gone)


def rewards(losses: Sequence[float], *, standardised: bool) -> Floats:
    """Return exp(-loss) minus its mean over the candidates, (C,), divided by its spread if asked. They sum to zero.

    Large losses have tiny exponentials; where the spread is divided out anyway, the least loss is subtracted first, which scales
    all of them alike.
    """
    values = np.exp(-np.asarray(losses, dtype=np.float64) + (min(losses) if standardised else 0.0))
    centred = values - values.mean()
    spread = float(centred.std())
    return centred / spread if standardised and spread > 0 else centred


def raised(scores: Mapping[int, float], *, tried: Sequence[frozenset[int]], gains: Floats, rate: float) -> dict[int, float]:
    """Return the scores after candidates that replaced ``tried`` earned ``gains``: REINFORCE on what stayed in each."""
    slopes = {block: float(p * (1.0 - p)) for block, s in scores.items() for p in [sigmoid(np.array(s))]}
    earned = {block: sum(float(g) for gone, g in zip(tried, gains, strict=True) if block not in gone) for block in scores}
    return {block: score + rate * earned[block] * slopes[block] for block, score in scores.items()}


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def learn_replacements(
    model: LanguageModel,
    text: PublicText,
    *,
    request: EmulatorRequest,
    options: ScaleotOptions,
    seeds: SeedTree,
    work: Path,
    progress: Callable[[int, int], None],
    report: Report = unheard,
) -> tuple[dict[int, float], dict[str, Float32]]:
    """Return a score for each middle block, and the trained harmonizers' tensors by the names that they have in an emulator.

    ``progress`` hears of steps done and in all, ``report`` of the loss too. The same arguments give the same bits on a CPU; an
    interrupted call goes on from its last checkpoint below ``work``, and one that was complete is not repeated. Raises
    `TrainerFailed` when numbers stop being finite.
    """
    if not request.middle:
        return {}, {}
    search = _Search(model, text, request=request, options=options, seeds=seeds)

    def told(learned: Learned) -> None:
        progress(learned.step, learned.steps)
        report(learned)

    facts = {
        "method": "scaleot",
        "options": {k: v for k, v in msgspec.to_builtins(options).items() if k not in SECOND_STAGE},
        "base": request.base.hex,
        "adapter": list(request.adapter),
        "windows": digest_of_arrays({"windows": text.windows}),
        "seeds": [seeds.root, *seeds.path],
        "arithmetic": arithmetic_facts(model),
    }
    stored = train(search.lesson, options=options, shelf=shelf(work, facts=facts), report=told)
    scores = dict(zip(request.middle, stored.ledger.numbers, strict=True))
    return scores, {name: stored.tensors.tensor(name) for name in stored.tensors.names()}


class _Search:
    """Trains harmonizers and scores in turns. The scores are the lesson's numbers, in order of the middle blocks."""

    def __init__(
        self, model: LanguageModel, text: PublicText, *, request: EmulatorRequest, options: ScaleotOptions, seeds: SeedTree
    ) -> None:
        self._options, self._seeds, self._middle = options, seeds, request.middle
        self._model: Harmonized = harmonized(model, middle=request.middle, rank=options.rank, seeds=seeds)
        self._lessons, self._trials = (
            Batches(windows=text.windows, size=options.batch_windows, seeds=seeds.child(name)) for name in ("lessons", "trials")
        )
        self.lesson = Lesson(
            parameters=self._model.parameters(),
            terms=self._terms,
            tokens=self._lessons.tokens,
            after=self._try_others,
            numbers=[0.0] * len(request.middle),
        )

    def _terms(self, step: int) -> dict[str, Tensor]:
        return self._model.terms(
            self._tokens(self._lessons, step),
            replaced=self._sampled("lesson", step),
            hidden_weight=self._options.hidden_weight,
        )

    def _try_others(self, step: int) -> None:
        tried = [self._sampled(f"candidate {k}", step) for k in range(self._options.candidates)]
        losses = self._model.losses(self._tokens(self._trials, step), candidates=tried)
        gains = rewards(losses, standardised=self._options.reward == "standardised")
        better = raised(self._scores(), tried=tried, gains=gains, rate=self._options.reward_rate)
        self.lesson.numbers[:] = [better[block] for block in self._middle]

    def _sampled(self, what: str, step: int) -> frozenset[int]:
        return sampled(self._scores(), options=self._options, seeds=self._seeds.child("choice", what, str(step)))

    def _scores(self) -> dict[int, float]:
        return dict(zip(self._middle, self.lesson.numbers, strict=True))

    def _tokens(self, batches: Batches, step: int) -> Tensor:
        return torch.from_numpy(batches.of(step)).to(self._model.model.device)


_conforms: type[EmulatorMethod] = Scaleot
