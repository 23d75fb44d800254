"""Is the curve of loss over bytes honest: are the peers what they are called, and is ours held against them at equal bytes?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.testbed.codec import normal_float, schema
from hushtune_server.testbed.codec.low_rank import LowRank
from hushtune_server.testbed.codec.peer import Float32, Peer, packed_codes, parted, unpacked_codes, unzipped
from hushtune_server.testbed.codec.peers import peers_of
from hushtune_server.testbed.codec.plain_numbers import Integers
from hushtune_server.testbed.codec.schema import PeersConfig
from hushtune_server.testbed.codec.sparse import TopK, coded, decoded
from hushtune_server.testbed.codec.summary import statement, verdict
from hushtune_server.testbed.emulators.statistics import Interval
from tests.records import write_records

PUBLISHED_LEVELS = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
"""What bitsandbytes has in its kernels."""

SHAPES = {"a.weight": (40, 33), "b.norm": (48,), "c.weight": (20, 64)}
PEERS = peers_of(PeersConfig(ranks=(4,)))

Pair = tuple[dict[str, Float32], dict[str, Float32]]


def adapters(seed: int = 1, *, change: float = 1e-3) -> Pair:
    """Shipped and returned adapters."""
    draw = SeedTree(seed).generator()
    shipped = {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    moved = {name: np.float32(change) * draw.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    return shipped, {name: (shipped[name] + moved[name]).astype(np.float32) for name in shipped}


def sent(peer: Peer, pair: Pair) -> dict[str, Float32]:
    shipped, returned = pair
    return peer.decode(peer.encode(returned, shipped=shipped), shipped=shipped)


def named(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)


def change(pair: Pair, found: dict[str, Float32]) -> NDArray[np.float64]:
    """What was read as changed, all tensors in a row, in double precision."""
    return np.concatenate([(found[name].astype(np.float64) - pair[0][name]).reshape(-1) for name in SHAPES])


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_a_peer_read_has_the_names_and_shapes_of_what_it_wrote_and_equal_adapters_give_equal_bytes(peer: Peer) -> None:
    shipped, returned = adapters()
    found = sent(peer, (shipped, returned))
    assert {name: tensor.shape for name, tensor in found.items()} == SHAPES
    assert all(tensor.dtype == np.float32 for tensor in found.values())
    assert peer.encode(returned, shipped=shipped) == peer.encode(returned, shipped=shipped)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_an_adapter_that_did_not_change_comes_back_as_it_was_shipped(peer: Peer) -> None:
    shipped, _ = adapters()
    found = sent(peer, (shipped, {name: tensor.copy() for name, tensor in shipped.items()}))
    assert all(np.array_equal(found[name], shipped[name]) for name in shipped)


def test_the_exact_peer_returns_every_bit_of_numbers_of_any_size() -> None:
    shipped, returned = adapters(change=1.0)
    returned["a.weight"][0, :3] = [1e30, -0.0, 1e-40]
    found = sent(named("lossless"), (shipped, returned))
    assert all(found[name].tobytes() == returned[name].tobytes() for name in returned)


def test_normal_floats_have_the_levels_that_are_published() -> None:
    assert np.abs(normal_float.levels() - np.array(PUBLISHED_LEVELS)).max() < 1e-6


def test_the_dynamic_type_has_the_levels_of_its_definition() -> None:
    found = normal_float.dynamic_levels()
    assert found.size == len(set(found.tolist())) == 256
    assert {0.0, 1.0} <= set(found.tolist())
    assert found[found > 0].min() == pytest.approx(0.55e-6)  # one level in the lowest decade, at its middle
    assert ((found > 0.1) & (found < 1.0)).sum() == 64


def test_a_normal_float_is_the_nearest_level_times_a_scale_that_is_nearly_the_largest_of_its_block() -> None:
    values = SeedTree(4).generator().standard_normal(64 * 300, dtype=np.float32)
    parts = normal_float.NormalFloat().encode(values)
    found = normal_float.NormalFloat().decode(parts, shape=values.shape).reshape(-1, 64)
    blocks = values.reshape(-1, 64)
    scales = np.abs(found).max(axis=1)
    largest = np.abs(blocks).max(axis=1)
    assert np.abs(scales / largest - 1.0).max() < 0.02  # 8 bits of a scale
    nearest = np.abs(blocks[:, :, None] / largest[:, None, None] - np.array(PUBLISHED_LEVELS)).argmin(axis=2)
    assert np.allclose(found, np.array(PUBLISHED_LEVELS)[nearest] * scales[:, None], atol=1e-5)
    assert len(b"".join(parts)) == 4 + 4 * 2 + 300 + values.size // 2  # mean, two scales of scales, scales, codes


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_miss_by_half_a_step_at_most_and_take_the_bits_that_they_say(bits: int) -> None:
    values = SeedTree(2).generator().standard_normal(64 * 50, dtype=np.float32)
    coder = Integers(bits=bits)
    parts = coder.encode(values)
    missed = np.abs(coder.decode(parts, shape=values.shape) - values).reshape(-1, 64)
    step = np.abs(values).reshape(-1, 64).max(axis=1) / (2 ** (bits - 1) - 1)
    assert (missed <= 0.5 * step[:, None] * 1.003 + 2**-11 * 4.0).all()  # scales have eleven bits
    assert len(b"".join(parts)) == 4 + 2 * 50 + values.size * bits // 8


@pytest.mark.slow
@given(st.integers(0, 2**16), st.sampled_from([2, 4, 8]), st.integers(0, 40))
def test_packed_codes_come_back(seed: int, bits: int, count: int) -> None:
    codes = SeedTree(seed).generator().integers(0, 1 << bits, count).astype(np.uint8)
    packed = packed_codes(codes, bits=bits)
    assert len(packed) == -(-count * bits // 8)
    assert np.array_equal(unpacked_codes(packed, bits=bits)[:count], codes)


def test_signs_keep_the_energy_that_theory_gives_for_bell_shaped_changes() -> None:
    pair = adapters(change=1e-2)
    wanted, found = change(pair, pair[1]), change(pair, sent(named("sign"), pair))
    lost = np.square(wanted - found).sum() / np.square(wanted).sum()
    assert lost == pytest.approx(1.0 - 2.0 / np.pi, abs=0.03)  # mean of |x| is sqrt(2 / pi)


@pytest.mark.parametrize("share", [0.3, 0.05])
def test_the_largest_changes_keep_as_much_energy_as_any_choice_of_so_many(share: float) -> None:
    pair = adapters()
    wanted, found = change(pair, pair[1]), change(pair, sent(TopK(share=share), pair))
    count = round(share * wanted.size)
    best = np.sort(np.square(wanted))[-count:].sum()
    assert np.count_nonzero(found) == count
    assert np.square(wanted).sum() - np.square(wanted - found).sum() == pytest.approx(best, rel=1e-3)


@pytest.mark.slow
@given(st.integers(0, 2**16), st.floats(0.001, 0.9))
def test_coded_places_come_back_at_little_more_than_their_entropy(seed: int, share: float) -> None:
    size = 20_000
    places = np.flatnonzero(SeedTree(seed).generator().random(size) < share).astype(np.int64)
    data = coded(places)
    assert np.array_equal(decoded(data), places)
    p = max(places.size, 1) / size
    entropy = -size * (p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert 8 * (len(data) - 5) <= 64 + (1.1 * entropy if p < 0.5 else size)  # above a half, no more than a bit for every place


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_factors_leave_the_energy_that_eckart_and_young_say_no_matrix_of_the_rank_can_keep(shape: tuple[int, int]) -> None:
    matrix = SeedTree(9).generator().standard_normal(shape, dtype=np.float32)
    coder = LowRank(rank=5)
    found = coder.decode(coder.encode(matrix), shape=shape)
    rest = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[5:]
    assert np.square(matrix - found).sum() == pytest.approx(np.square(rest).sum(), rel=1e-4)


def test_zstandard_on_top_changes_bytes_and_nothing_else() -> None:
    pair = adapters()
    plain, packed = (named(name).encode(pair[1], shipped=pair[0]) for name in ("int4", "int4+zstd"))
    assert parted(plain) == [unzipped(part) for part in parted(packed)]


def test_a_difference_decides_only_when_its_whole_interval_does() -> None:
    ends = [(-0.2, -0.3, -0.1), (-0.1, -0.3, 0.1), (0.2, 0.1, 0.3), (0.0, 0.0, 0.0), (5e-5, 4e-5, 6e-5)]
    found = [verdict(Interval(value=value, low=low, high=high)) for value, low, high in ends]
    assert found == ["ours lower", "even", "peer lower", "even", "even"]


def test_a_peer_that_lies_below_ours_is_named() -> None:
    duels = [{"peer": "int4", "verdict": "peer lower"}, {"peer": "sign", "verdict": "ours lower"}]
    assert "BELOW OURS: int4" in statement(duels)
    assert "no peer lies below ours" in statement(duels[1:])
    assert "nothing is said" in statement([])


CURVE = """
name = "tiny"
seeds = [1, 2]
resamples = 200
[model]
source = "random:blocks=4,hidden=16,heads=2,vocab=256,seed=1"
adapter_bottom = 1
adapter_top = 1
[data]
private = "txt:private.txt"
public = "txt:public.txt"
window_tokens = 17
train_windows = 6
test_windows = 3
[training]
batch_windows = 3
learning_rate = 3e-3
[emulator]
method = "uniform"
drop = 1
[codec]
kind = "blockwise"
[curve]
budgets = [8, 4]
[peers]
integers = [4]
normal_float = false
top_k = [0.1]
ranks = [2]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a curve and its texts."""
    (tmp_path / "curve.toml").write_text(CURVE, encoding="utf-8")
    write_records(tmp_path)
    return tmp_path


def draw_curve(folder: Path, *more: str) -> int:
    arguments = ["codec", "curve", str(folder / "curve.toml"), "--out", str(folder / "out"), "--cache", str(folder / "cache")]
    return main([*arguments, *more])


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "tiny.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_curve_has_every_way_with_its_bytes_and_ours_at_each_peers_bytes(folder: Path) -> None:
    assert draw_curve(folder, "--document", str(folder / "doc" / "tiny.md")) == 0
    result = result_of(folder)
    rows = {row["name"]: row for row in [*result["ours"], *result["peers"]]}
    assert rows["lossless"]["increase_nats"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert rows["lossless"]["gain_kept"]["value"] == 1.0
    assert all(d["bytes_ours"] <= d["bytes_peer"] for d in result["duels"] if d["verdict"] != "no answer")
    assert {d["peer"] for d in result["duels"]} == {row["name"] for row in result["peers"]}
    assert rows["int4"]["perplexity"] == rows["int4+zstd"]["perplexity"]
    text = (folder / "doc" / "tiny.md").read_text(encoding="utf-8")
    assert result["statement"] in text
    assert (folder / "doc" / "tiny" / "curve.svg").is_file()


@pytest.mark.slow
def test_further_codecs_of_ours_are_in_the_curve_when_asked_for_also_where_they_fit_no_budget(folder: Path) -> None:
    others = 'also=[{rank=4}, {kind="jopeq", bits=8, noise={epsilon=4}}]'
    assert draw_curve(folder, "--set", others, "--set", "curve.budgets=[8,1]") == 0
    rows = {row["name"]: row for row in result_of(folder)["peers"]}
    found = [name for name in rows if name.startswith(("low-rank4+", "jopeq-eps4-"))]
    assert len(found) == 4
    assert ["failed" in rows[name] for name in sorted(found) if name.startswith("jopeq")] == [True, False]
    duels = {d["peer"]: d for d in result_of(folder)["duels"]}
    assert {name for name in found if "failed" not in rows[name]} <= duels.keys()


@pytest.mark.slow
def test_a_curve_that_was_killed_computes_only_what_is_missing(folder: Path) -> None:
    assert draw_curve(folder) == 0
    first = result_of(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*") if path.parent.name in ("cells", "adapters")}
    lost = next(path for path in before if path.name.startswith("score-"))
    lost.unlink()
    assert draw_curve(folder) == 0
    changed = {path.name.partition("-")[0] for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed <= {"score", "sent"}  # what was read is needed again to be scored
    assert all(
        row["increase_nats"] == old["increase_nats"] for row, old in zip(result_of(folder)["peers"], first["peers"], strict=True)
    )


@pytest.mark.slow
def test_an_adapter_whose_file_is_damaged_is_trained_again_to_the_same_bits(folder: Path) -> None:
    assert draw_curve(folder) == 0
    first = result_of(folder)["adapters"]
    file = folder / "out" / "adapters" / f"{first[0]['returned'][:32]}.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\x00\x00\x80\x3f")
    assert draw_curve(folder) == 0
    assert result_of(folder)["adapters"] == first
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("peers.integers=[3]", "peers"),
        ("curve.budgets=[4,4]", "curve.budgets"),
        ("emulator.drop=many", "emulator.drop"),
        ("codec.widths=3", "codec.widths"),
        ("seeds=[1,1]", "seeds"),
        ("training.dp.epsilon=3", "training.dp"),
    ],
)
def test_a_setting_that_is_wrong_is_named(folder: Path, change: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema.load(folder / "curve.toml", overrides=[change])
    assert caught.value.field.startswith(field)


def test_the_curve_of_the_repository_can_be_read() -> None:
    found = schema.load(Path(__file__).parents[2] / "scenarios" / "codec.toml")
    assert found.comparison.seeds == (1, 2, 3)
    assert [peer.name for peer in peers_of(found.peers)][:2] == ["lossless", "fp16+zstd"]
