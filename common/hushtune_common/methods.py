"""Which methods make an emulator, and what can be set of each?

One table, ``[owner.emulator]``; its key ``method`` says which of these it is, so that an option of another method is refused
where the scenario is read. "Reconstructed" marks what a publication leaves open and we chose.
"""

from typing import Annotated, Literal, TypeGuard, get_args

from msgspec import Meta

from hushtune_common.schema import Count, NotNegative, Positive, Section, Share, Whole

Ranking = Literal["uniform", "influence", "ablation", "greedy"]
"""How the blocks to leave out are chosen where a method does something else with the rest."""

OpenShare = Annotated[float, Meta(ge=0.0, le=1.0)]


class EmulatorOptions(Section, frozen=True, tag_field="method"):
    """What every method has."""

    plan: str | None = None
    """A plan file beside the scenario; without one the owner profiles its public text first."""
    profile_tokens: Count = 768
    """Tokens of public text that are looked at before planning."""
    quantise_bits: Literal[0, 4, 8] = 0
    """Ship the matrices of frozen blocks as integers of this many bits, 0 for as they are; the last step of any method."""
    quantise_block: Annotated[int, Meta(ge=16, le=1024, multiple_of=2)] = 64
    """Weights that share one scale."""


class Refining(EmulatorOptions, frozen=True):
    """Training of the emulator's own parts on public text; the adapter blocks are never touched."""

    steps: Whole = 300
    """Steps of training, at most."""
    batch_windows: Count = 8
    """Windows of public text per step."""
    learning_rate: Positive = 3e-4
    """Highest rate of the optimiser."""
    warmup_share: OpenShare = 0.1
    """Share of the steps in which the rate rises."""
    plateau_share: NotNegative = 0.0
    """Stop early when the loss of the last tenth of the steps improved on the tenth before by less than this share; 0 never."""


class UniformOptions(EmulatorOptions, frozen=True, tag="uniform"):
    """Evenly spaced layer drop."""

    drop: Whole = 8
    """Blocks to leave out."""
    rounding: Literal["half_up", "half_even", "floor"] = "half_up"
    """Published code bases differ here; it decides which blocks stay."""


class InfluenceOptions(EmulatorOptions, frozen=True, tag="influence"):
    """Drops the blocks that turn the hidden state least: one pass over public text."""

    drop: Whole = 8
    """Blocks to leave out."""
    adjacent_max: Count = 4
    """Never drop more than this many neighbours."""


class AblationOptions(EmulatorOptions, frozen=True, tag="ablation"):
    """Drops the blocks whose loss public text misses least, each by itself."""

    drop: Whole = 8
    """Blocks to leave out."""


class GreedyOptions(EmulatorOptions, frozen=True, tag="greedy"):
    """Ablation, measured again after every drop: sees how blocks interact, at ``drop`` times the cost."""

    drop: Whole = 8
    """Blocks to leave out."""


class DistillOptions(Refining, frozen=True, tag="distill"):
    """Drops blocks, then trains those that stay to give the whole middle's output (offsite-tuning)."""

    drop: Whole = 8
    """Blocks to leave out."""
    ranking: Ranking = "ablation"
    """How the blocks to leave out are chosen."""
    language_weight: NotNegative = 1.0
    """Weight of the loss of the next token."""
    hidden_weight: NotNegative = 30.0
    """Weight of the error of the middle's output."""
    layerwise_weight: NotNegative = 0.0
    """Weight of the same error after every block of the middle that stayed."""
    logits_weight: NotNegative = 0.0
    """Weight of the divergence from the model's own predictions."""
    hidden_scale: Literal["overall", "channel"] = "overall"
    """Measure errors of the hidden state against its mean square as a whole, or each channel against its own variance, so that
    the few channels of huge magnitude that many models have do not decide alone."""
    harmonizer_rank: Whole = 0
    """Put a harmonizer of this rank where blocks were dropped and train it too; 0 leaves the gap."""
    harmonizer_start: Literal["nothing", "regression"] = "nothing"
    """Start as no block at all, or as the affine map that fits best what the block adds."""
    fit_tokens: Count = 20_000
    """Tokens of public text that a regression looks at."""
    ridge: Positive = 1e-2
    """Its penalty, as a share of each input's variance."""


class LinearOptions(DistillOptions, frozen=True, tag="linear"):
    """Puts affine maps found by regression in the place of blocks; ours. Trains nothing unless ``steps`` are asked for."""

    steps: Whole = 0
    harmonizer_rank: Count = 256
    harmonizer_start: Literal["nothing", "regression"] = "regression"


class CrashOptions(EmulatorOptions, frozen=True, tag="crash"):
    """Clusters neighbours by similarity, keeps one of each cluster, and lets it stand in for the rest."""

    drop: Whole = 8
    """Blocks to leave out."""
    share: bool = True
    """Let kept blocks stand in for removed ones; without it clustering alone decides what is dropped."""
    prefer_frozen: bool = False
    """At equal distance take a block that is not trained."""


class ScaleotOptions(Refining, frozen=True, tag="scaleot"):
    """Learns which blocks matter and harmonizers that replace the others, then cuts the rank of what stays."""

    steps: Whole = 150
    """A step of the default batch took 4.5 s of one core on SmolLM2-135M, 1.6 s in bf16."""
    replace: Whole = 8
    """Blocks that a harmonizer replaces."""
    rank: Count = 64
    """Rank of a harmonizer."""
    group: Annotated[int, Meta(ge=2)] = 4
    """Neighbouring blocks that are drawn from together."""
    candidates: Annotated[int, Meta(ge=2)] = 3
    """Choices of blocks that are tried against each other in a step."""
    reward_rate: Positive = 0.1
    """How far a step moves the scores of blocks."""
    reward: Literal["centred", "standardised"] = "standardised"
    """Divide rewards by their spread as well; reconstructed."""
    sampler: Literal["threshold", "gumbel_topk"] = "threshold"
    """Reconstructed."""
    chosen: Literal["global", "group"] = "global"
    """Replace the lowest scores of all, or the lowest of each group; reconstructed."""
    hidden_weight: NotNegative = 0.0
    """Weight of the error of the middle's output beside the language loss; reconstructed."""
    rank_keep: Share = 1.0
    """Share of singular values kept in the attention matrices of blocks that stay; 1 leaves them as they are."""


class GradotOptions(EmulatorOptions, frozen=True, tag="gradot"):
    """Cuts ranks of attention and channels of MLPs where the adapter blocks' gradients stay and the loss goes up."""

    attention_keep: Share = 0.6
    """Share of singular values that stay in attention matrices."""
    channel_keep: Share = 0.6
    """Share of channels that stay in MLPs."""
    top_keep: OpenShare = 0.05
    """Share of the largest singular values of a matrix that always stay."""
    attention_lambda: NotNegative = 1.0
    """Reconstructed: weight of raising the loss against keeping gradients, both scaled to their medians."""
    channel_lambda: NotNegative = 1.0
    """Reconstructed: the same as ``attention_lambda``, for channels."""
    damping: Positive = 1e-3
    """Added to the diagonal of second moments, as a share of its mean."""


class WidthOptions(Refining, frozen=True, tag="width"):
    """Keeps the feed-forward neurons of largest norm in every middle block (FedPFT); attention stays whole."""

    channel_keep: Share = 0.25
    """Share of the feed-forward neurons that stay."""
    hidden_weight: NotNegative = 30.0
    """Weight of the error of the middle's output in training."""
    language_weight: NotNegative = 0.0
    """Weight of the loss of the next token in training."""


class MarginOptions(Refining, frozen=True, tag="margin"):
    """Trains the emulator to be worse than the model by a margin while its adapter gradients point the same way.

    Reconstructed from an abstract: the terms and their weights are ours.
    """

    steps: Whole = 100
    batch_windows: Count = 4
    """Second derivatives make steps dear: on SmolLM2-135M one took 4.2 s of one core and 3 GB, 1.8 s in bf16."""
    drop: Whole = 8
    """Blocks to leave out."""
    ranking: Ranking = "ablation"
    """How the blocks to leave out are chosen."""
    margin_nats: NotNegative = 1.0
    """How much higher the emulator's loss is to be than the model's."""
    gradient_weight: NotNegative = 1.0
    """Weight of the angle between the adapter blocks' gradients in emulator and model."""
    hidden_weight: NotNegative = 0.0
    """Weight of the relative error of the middle's output."""
    one_sided: bool = False
    """Punish only a loss below the margin."""
    harmonizer_rank: Whole = 0
    """Rank of harmonizers where blocks were dropped; 0: none."""


MethodOptions = (
    AblationOptions
    | UniformOptions
    | InfluenceOptions
    | GreedyOptions
    | DistillOptions
    | LinearOptions
    | CrashOptions
    | ScaleotOptions
    | GradotOptions
    | WidthOptions
    | MarginOptions
)

METHOD_DEFAULT = "ablation"


def method_of(options: type[EmulatorOptions] | EmulatorOptions) -> str:
    """Return the name of a method by its options."""
    return str(options.__struct_config__.tag)


def starts_fitted(options: EmulatorOptions) -> TypeGuard[DistillOptions]:
    """Whether harmonizers are found by regression before anything is trained."""
    return isinstance(options, DistillOptions) and options.harmonizer_start == "regression" and options.harmonizer_rank > 0


def can_align(options: EmulatorOptions) -> TypeGuard[Refining]:
    """Whether an emulator of this method has parts that public text can align anew with another state of its model.

    Harmonizers of ``scaleot`` were learned together with the scores that chose them, by a training of its own.
    """
    trains = isinstance(options, Refining) and not isinstance(options, ScaleotOptions) and options.steps > 0
    return trains or starts_fitted(options)


OPTIONS: dict[str, type[EmulatorOptions]] = {method_of(options): options for options in get_args(MethodOptions)}
"""Options by name of the method."""
