"""What does the device do, and what does it cost? FLOPs, energy and sizes.

Energy is *modelled*, not measured: power = kappa * clock**3 while computing, and the radiated power while sending.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hushtune_common.codec.pipeline import budget_bytes
from hushtune_common.config import ClientConfig, CodecConfig
from hushtune_common.crypto import envelope
from hushtune_common.errors import Infeasible
from hushtune_common.messages import ClientId, ClientReport, TensorSpec
from hushtune_common.units import FlopPerSecond, Joule, PowerRatio, Second, Watt

ENERGY_LABEL = "modelled"
"""Stands beside every energy that this module computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSize:
    """How many parameters a token passes in the emulator.

    ``matmul`` counts the weights of all blocks, final norm and output head (a tied embedding counts here once, as the head; an
    embedding lookup multiplies nothing). ``adapter`` counts the trained ones among them.
    """

    matmul: int
    adapter: int

    def __post_init__(self) -> None:
        """Refuse sizes that contradict each other."""
        if not 0 < self.adapter <= self.matmul:
            raise ValueError(f"{self.adapter} trained of {self.matmul} parameters is impossible")


def training_flops(path: PathSize, *, tokens: int) -> float:
    """Return the floating-point operations of training on ``tokens`` tokens in all.

    One multiplication and one addition per weight and token, three times: forward through every block and the head, backward to
    the activations of every block and the head (the bottom adapter needs them all), and the weight gradients of the adapter only.
    Attention scores and the optimiser are left out; both are below a few per cent at the window lengths used here.
    """
    return (2.0 * path.matmul + 2.0 * path.matmul + 2.0 * path.adapter) * tokens


def compute_energy(device: ClientConfig, *, clock: FlopPerSecond, flops: float) -> Joule:
    """Return kappa * clock**2 * flops: power kappa * clock**3 over flops / clock seconds."""
    return Joule(device.energy_w_per_flops3 * clock**2 * flops)


class WorkMeter:
    """Counts the modelled time and energy of training, also when the clock changes in the middle of it."""

    def __init__(self, device: ClientConfig, path: PathSize) -> None:
        """Take whose energy is counted and what a token passes."""
        self._device = device
        self._path = path
        self._tokens = 0
        self.flops = 0.0
        self.seconds = Second(0.0)
        self.energy = Joule(0.0)

    def reached(self, tokens: int, *, clock: FlopPerSecond) -> None:
        """Count what came since the last call, at ``clock``; ``tokens`` counts from the start of training."""
        flops = training_flops(self._path, tokens=tokens - self._tokens)
        self._tokens = tokens
        self.flops += flops
        self.seconds = Second(self.seconds + flops / clock)
        self.energy = Joule(self.energy + compute_energy(self._device, clock=clock, flops=flops))


def require_affordable(device: ClientConfig, path: PathSize, *, clock: FlopPerSecond, tokens: int) -> None:
    """Raise `Infeasible` when training on ``tokens`` tokens at ``clock`` would cost more than the device's energy for a round."""
    needed = compute_energy(device, clock=clock, flops=training_flops(path, tokens=tokens))
    if needed > device.energy_max_j:
        raise Infeasible(
            f"training needs {needed:.3g} J ({ENERGY_LABEL}) at {clock:.3g} FLOP/s, energy_max_j is {device.energy_max_j:g}: "
            "raise it, or lower the clock, training.epochs or data.train_windows"
        )


def transmit_energy(*, power: Watt, airtime: Second) -> Joule:
    """Return the radiated energy of one transmission."""
    return Joule(power * airtime)


def sealed_bits(payload_bytes: int) -> int:
    """Return the size in bits of a sealed update of so many bytes; it never exceeds this, whatever the data are."""
    return 8 * (payload_bytes + envelope.OVERHEAD_MAX)


def update_bits(schema: Sequence[TensorSpec], *, codec: CodecConfig) -> int:
    """Return the size in bits of a sealed update with all bytes of its codec granted."""
    return sealed_bits(budget_bytes(schema, config=codec))


def device_report(
    device: ClientConfig,
    *,
    round_id: int,
    gain_main: PowerRatio,
    gain_tap: PowerRatio,
    sample_count: int,
    expected_bits: int,
    train_flops: float,
) -> ClientReport:
    """Return what the coordinator may know: the device's limits, its two gains, and two sizes. Never text, tokens or losses."""
    return ClientReport(
        client=ClientId(device.id),
        round_id=round_id,
        gain_main=gain_main,
        gain_tap=gain_tap,
        power_max=Watt(device.power_max_w),
        clock_max=FlopPerSecond(device.clock_max_flops),
        energy_max=Joule(device.energy_max_j),
        sample_count=sample_count,
        update_bits=expected_bits,
        train_flops=train_flops,
        energy_w_per_flops3=device.energy_w_per_flops3,
    )
