"""What a scenario says of the owner: what it shows, accepts and releases."""

from typing import Annotated

from msgspec import Meta

from hushtune_common.aggregation import AggregationOptions, MeanConfig
from hushtune_common.methods import AblationOptions, MethodOptions
from hushtune_common.schema import Count, Name, NotNegative, Positive, Section, Share, Whole


class GateConfig(Section, frozen=True):
    """What the owner accepts back. A limit of ``inf`` leaves its screen out."""

    norm_max: Positive = 1.0
    """Largest relative change of the adapter blocks, ``|returned - shipped| / |shipped|``."""
    reach_max: Positive = 1.5
    """Largest change of one weight, as a multiple of the most that this scenario's AdamW can move it, times the round's number;
    above 1 only for what error feedback makes up for. Clients keep what they encode within it, so below 1 it refuses what
    training did. Not looked at with ``training.lora``, whose products have no such bound."""
    tensor_norm_max: Positive = 20.0
    """Largest relative change of one tensor, as a multiple of the median over the update's tensors ..."""
    tensor_spread_max: Positive = 8.0
    """... provided that its logarithm also lies this many robust standard deviations (1.4826 MAD) above the median."""
    history_norm_max: Positive = 8.0
    """Largest change of one tensor, as a multiple of its median over the updates that were accepted before (at least three)."""
    peak_max: Positive = 50.0
    """Largest change of one weight, as a multiple of the root mean square change over the whole update."""
    round_norm_max: Positive = 4.0
    """Largest change, as a multiple of the median over the round's updates (at least three)."""
    direction_min: Annotated[float, Meta(ge=-1.0, le=1.0)] = -0.1
    """Least cosine of an update to the coordinate-wise median of the others of its round (at least three updates); -1: none."""
    public_loss_increase_max_nats: NotNegative = 0.5
    """Roll back when the plug-in's loss on public text rises by more than this."""
    canary: str | None = None
    """The owner's own prompts, a record each, in any form that ``data.public`` may have; none: windows of the public text."""
    canary_windows: Whole = 4
    """Prompts or windows to look at, each by itself; 0: none."""
    canary_loss_increase_max_nats: NotNegative = 1.0
    """No prompt's loss may lie further above that of the owner's own model."""
    tripwire: str | None = None
    """Texts that nobody has a reason to train on, such as known triggers of backdoors, in the same forms."""
    tripwire_loss_decrease_max_nats: NotNegative = 1.0
    """No such text's loss may lie further below that of the owner's own model: then somebody has taught it."""
    quarantine_count_max: Whole = 16
    """Refused adapters that are kept for inspection; the oldest go first."""
    quarantine_bytes_max: Whole = 2_147_483_648
    """Bytes of them, at most."""
    versions_count_max: Count = 256
    """Accepted adapters that are kept beside each other; the oldest go first, what sits in the model stays."""
    versions_bytes_max: Count = 8_589_934_592
    """Bytes of them, at most."""


class FingerprintConfig(Section, frozen=True):
    """How the emulator of each recipient is marked, so that a leaked copy names whose it was."""

    strength: Annotated[float, Meta(ge=0.0, le=0.1)] = 0.002
    """Size of the mark on every frozen weight, as a share of the root mean square of its tensor; 0: no mark."""
    false_alarm_max: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-6
    """Chance, at most, that a file with nobody's mark is said to carry somebody's."""


class ExposureConfig(Section, frozen=True):
    """What the owner lets others see of its model, counted over everything that it ever released to them."""

    share_max: Share = 1.0
    """Refuse a release after which any client, or any set that may collude, has seen more than this share of the parameters."""
    colluding: tuple[tuple[Name, ...], ...] = ()
    """Sets of clients, also of earlier runs, that are taken to put together what they were given."""


class OwnerConfig(Section, frozen=True):
    """The owner."""

    clock_max_flops: Positive = 2.0e13
    """Its machine, shared among the plug-ins of a round; modelled."""
    energy_w_per_flops3: Positive = 2.0e-38
    """kappa of ``power = kappa * clock**3``; 2e-38 gives 160 W at 20 TFLOP/s."""
    plug_in_flops: Positive = 4.0e12
    """Work of judging one update: passes over the public text; modelled."""
    patience: Whole = 0
    """End the run after so many rounds in a row that did not lower the best loss on public text; 0 plays every round."""
    min_improvement_nats: Positive = 1e-3
    """By how much at least a round has to lower it."""
    realign_steps: Whole = 0
    """Align the emulator's middle anew with the model as it is after every round, on public text: what is trained is trained for
    so many steps more, stand-ins that are only fitted are fitted again. 0 sends the new adapter blocks alone."""
    emulator: MethodOptions = AblationOptions()
    gate: GateConfig = GateConfig()
    aggregation: AggregationOptions = MeanConfig()
    exposure: ExposureConfig = ExposureConfig()
    fingerprint: FingerprintConfig | None = None
    """Give every client of a run a marked copy of its own; without, all get the same emulator."""
