"""Do the modelled costs follow from their definitions, and is an update never larger than was reported?"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from hushtune_client.emulator import open_emulator
from hushtune_client.telemetry import (
    PathSize,
    WorkMeter,
    compute_energy,
    device_report,
    require_affordable,
    training_flops,
    transmit_energy,
    update_bits,
)
from hushtune_common.adapter import AdapterState
from hushtune_common.codec.pipeline import budget_bytes, make_codec
from hushtune_common.config import ClientConfig, CodecConfig, Position
from hushtune_common.crypto import envelope
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import Infeasible
from hushtune_common.messages import SEALING_BYTES, Digest, EmulatorManifest, TensorSpec
from hushtune_common.model.bundle import read_bundle
from hushtune_common.seeding import SeedTree
from hushtune_common.units import FlopPerSecond, PowerRatio, Second, Watt
from tests.models import ADAPTER, tiny_bundle, tiny_source

DEVICE = ClientConfig(id="c1", position=Position(x_m=1.0, y_m=2.0))


def test_the_flops_of_a_stack_of_square_layers_are_those_of_its_matrix_products() -> None:
    tokens, width, depth, trained = 5, 8, 6, 2
    product = 2 * tokens * width * width  # a multiplication and an addition per weight and token
    forward, backward, gradients = depth * product, depth * product, trained * product
    path = PathSize(matmul=depth * width * width, adapter=trained * width * width)
    assert training_flops(path, tokens=tokens) == forward + backward + gradients


@pytest.mark.parametrize("tied", [0, 1])
def test_a_token_passes_every_weight_but_a_looked_up_embedding(tmp_path: Path, tied: int) -> None:
    source = tiny_source(f"random:blocks=6,hidden=32,heads=4,tied={tied}")
    path = tiny_bundle(tmp_path, 2, 3, source=source)
    bundle = read_bundle(path)
    manifest = EmulatorManifest(
        emulator=Digest.of(path.read_bytes()),
        size_bytes=path.stat().st_size,
        base=bundle.base_digest,
        plan=bundle.plan.digest,
        tokenizer=bundle.tokens.digest,
        adapter=bundle.schema,
        sealing_key=HybridPrivateKey.generate().public.to_bytes(),
        codec="any",
    )
    size = open_emulator(path, manifest=manifest).path_size
    model = bundle.load()
    inside = sum(p.numel() for n, p in model.module.named_parameters() if "layers." in n or n.endswith("model.norm.weight"))
    assert size.matmul == inside + model.vocabulary * 32  # the head, whether or not it is the embedding
    assert size.adapter == sum(p.numel() for p in model.adapter_parameters(ADAPTER).values())


@given(st.floats(1e10, 1e13), st.floats(1e9, 1e15))
def test_energy_is_power_times_time(clock: float, flops: float) -> None:
    power_w = DEVICE.energy_w_per_flops3 * clock**3
    seconds = flops / clock
    assert compute_energy(DEVICE, clock=FlopPerSecond(clock), flops=flops) == pytest.approx(power_w * seconds)


def test_half_the_clock_costs_a_quarter_of_the_energy() -> None:
    full = compute_energy(DEVICE, clock=FlopPerSecond(2e12), flops=1e12)
    assert compute_energy(DEVICE, clock=FlopPerSecond(1e12), flops=1e12) == pytest.approx(full / 4)


def test_sending_costs_the_radiated_power_for_the_time_on_air() -> None:
    assert transmit_energy(power=Watt(0.2), airtime=Second(3.0)) == pytest.approx(0.6)


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("shape", [(64, 64), (100,), (7, 9, 11)])
def test_incompressible_training_fits_the_reported_size_which_is_that_of_its_bits(bits: int, shape: tuple[int, ...]) -> None:
    config = CodecConfig(bits=bits)
    shipped = AdapterState({"model.layers.0.w": np.zeros(shape, np.float32)})
    noise = SeedTree(1).generator().uniform(-1.0, 1.0, shape).astype(np.float32)
    codec = make_codec(config, shipped=shipped)
    encoded = codec.encode(AdapterState({"model.layers.0.w": noise}), budget_bytes=codec.bytes_max)
    reported = update_bits((TensorSpec(name="model.layers.0.w", shape=shape, dtype="F32", block=0),), codec=config)
    assert 8 * (len(encoded) + envelope.OVERHEAD_MAX) <= reported == 8 * (codec.bytes_max + SEALING_BYTES)
    assert bits * noise.size < reported < bits * noise.size + 8 * (SEALING_BYTES + 1000)


def test_the_coordinator_counts_the_same_bytes_for_a_share_as_the_codec_does() -> None:
    schema = (TensorSpec(name="model.layers.0.w", shape=(64, 100), dtype="F32", block=0),)
    report = device_report(
        DEVICE,
        round_id=1,
        gain_main=PowerRatio(1e-9),
        gain_tap=PowerRatio(1e-10),
        sample_count=1,
        expected_bits=update_bits(schema, codec=CodecConfig()),
        train_flops=1e12,
    )
    for share in np.geomspace(0.01, 1.0, 50).tolist():
        budget = budget_bytes(schema, config=CodecConfig(), share=share)
        assert report.budget_bytes(share) == budget
        assert report.sealed_bits(budget) == 8 * (budget + envelope.OVERHEAD_MAX)


def test_sealing_adds_as_much_as_the_coordinator_takes_off() -> None:
    assert envelope.OVERHEAD_MAX == SEALING_BYTES


def test_the_report_carries_limits_and_sizes_and_nothing_of_the_data() -> None:
    report = device_report(
        DEVICE,
        round_id=2,
        gain_main=PowerRatio(1e-9),
        gain_tap=PowerRatio(1e-10),
        sample_count=10,
        expected_bits=99,
        train_flops=1e12,
    )
    assert (report.client, report.round_id, report.sample_count, report.update_bits) == ("c1", 2, 10, 99)
    assert (report.power_max, report.clock_max, report.energy_max) == (
        DEVICE.power_max_w,
        DEVICE.clock_max_flops,
        DEVICE.energy_max_j,
    )


@pytest.mark.parametrize(("matmul", "adapter"), [(10, 0), (10, 11), (0, 0)])
def test_an_impossible_path_is_refused(matmul: int, adapter: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        PathSize(matmul=matmul, adapter=adapter)


def test_training_that_costs_more_than_the_device_has_is_refused_with_what_it_would_take() -> None:
    path, clock = PathSize(matmul=1000, adapter=100), FlopPerSecond(1.0e12)
    needed = compute_energy(DEVICE, clock=clock, flops=training_flops(path, tokens=50))
    enough = structs.replace(DEVICE, energy_max_j=needed)
    require_affordable(enough, path, clock=clock, tokens=50)
    with pytest.raises(Infeasible, match="energy_max_j"):
        require_affordable(enough, path, clock=clock, tokens=51)


def test_time_and_energy_of_training_follow_a_clock_that_changes() -> None:
    path, fast, slow = PathSize(matmul=1000, adapter=100), FlopPerSecond(2.0e12), FlopPerSecond(1.0e12)
    meter, per_token = WorkMeter(DEVICE, path), training_flops(path, tokens=1)
    meter.reached(30, clock=fast)
    meter.reached(50, clock=slow)
    assert meter.flops == pytest.approx(50 * per_token)
    assert meter.seconds == pytest.approx(30 * per_token / fast + 20 * per_token / slow)
    kappa = DEVICE.energy_w_per_flops3
    assert meter.energy == pytest.approx(kappa * per_token * (30 * fast**2 + 20 * slow**2))
