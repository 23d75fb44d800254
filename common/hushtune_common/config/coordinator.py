"""What a scenario says of how resources are shared, when a round closes, what is waited for and what is bounded."""

from typing import Annotated, Literal

from msgspec import Meta

from hushtune_common.schema import Count, NotNegative, Positive, Section, Share


class UtilityConfig(Section, frozen=True):
    """What an update is worth, by the share phi of its bytes: assumed, or measured by the owner."""

    kind: Literal["log", "exponential", "power", "scaling", "measured"] = "log"
    """Assumed (reconstructed) are ``log``: weight * ln(1 + shape * phi); ``exponential``: weight * (1 - exp(-shape * phi));
    ``power``: weight * phi**shape; ``scaling``: weight * (1 - (phi / share_min)**-shape / 2). With ``measured`` the owner encodes
    an adapter of its own at several shares before the first round and looks how much better the plug-in gets with each; the
    round waits for that."""
    weight: Positive = 1.0
    """Factor of an assumed utility; not for ``measured``."""
    shape: Positive = 20.0
    """How soon an assumed utility flattens out; not for ``measured``."""
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
    """Cost of a second of the round, in units of utility."""
    energy_weight_per_j: Positive = 0.01
    """Cost of a joule that clients spend, in units of utility."""
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
    """``quorum`` closes ``wait_after_s`` after a ``share`` of the clients has delivered, ``deadline`` at the end of
    ``timing.round_s`` with whoever has, ``everyone`` when all have; each at that end at the latest, and at once when nobody is
    waited for."""
    share: Share = 0.6
    """Share of a round's clients that is enough, with ``quorum``."""
    wait_after_s: NotNegative = 20.0
    """How long the others still have to deliver when the quorum is there; the owner has ``timing.idle_s`` to judge each."""


class CoordinatorConfig(Section, frozen=True):
    """The coordinator."""

    allocator: AllocatorConfig = AllocatorConfig()
    stragglers: StragglersConfig = StragglersConfig()
    rounds: Count = 1
    """Most rounds of the run; see ``owner.patience``."""

    def __post_init__(self) -> None:
        """What is done after every round but the last needs a second one."""
        if self.allocator.utility.every_round and self.rounds == 1:
            raise ValueError("allocator.utility.every_round: there is one round; set coordinator.rounds, or leave it out")


class TimingConfig(Section, frozen=True):
    """The three timeouts; every other wait is derived from them."""

    connect_s: Positive = 20.0
    """From dialling to a usable channel, TLS included, and until a server that is still loading serves."""
    idle_s: Positive = 30.0
    """Without any progress: a transfer, a stream, the answer to a call. A client that is silent for as long counts as dead, one
    whose connection broke after half of it."""
    round_s: Positive = 900.0
    """From the opening of a round to its close, at most."""


class StateConfig(Section, frozen=True):
    """What a process makes sure of before it tells anybody. A matter of each machine: the scenario's digest is without it."""

    durability: Literal["process", "power"] = "process"
    """What its journal survives: the end of the process, or a loss of power as well, for one wait for the disk per commit."""


class LimitsConfig(Section, frozen=True):
    """Bounds on everything a peer can make us hold."""

    clients_max: Count = 64
    """Clients of a scenario."""
    update_bytes_max: Count = 268_435_456
    """Largest sealed update."""
    frame_bytes_max: Count = 1_073_741_824
    """Largest frame: an update with its random bits and its error correction."""
    emulator_bytes_max: Count = 17_179_869_184
    """Largest emulator, on the owner's disk and on a client's."""
    attempts_max: Count = 8
    """Transmissions of one update, and tries in a row to reach a peer."""
    calls_max: Count = 256
    """Calls of one caller that a server works on at the same time, over all its connections; a stream is one call."""
    joins_max: Count = 1000
    """How often a member may enter a run, each time after it left or was taken for dead."""
    channel_changes_max: Count = 256
    """How often the channel of one client may be another one in one round."""
    directives_max: Count = 20_000
    """Words of the coordinator that one client takes in a run, each of which is an event for ever; at least eight per round."""
    runs_max: Count = 64
    """Runs that one client may write frames of, over the life of an air; only the owner knows which of them it takes part in."""
