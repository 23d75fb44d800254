"""Do the screens find what they are for, let honest updates through, and say which limit was broken by how much?"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replaced

from hushtune_common.adapter import AdapterState, Float32, load_adapter
from hushtune_common.config import GateConfig, LoraConfig, TrainingConfig
from hushtune_common.errors import ConfigError, LimitExceeded
from hushtune_common.messages import ClientId, Digest, RunId, TensorSpec, UpdateKey
from hushtune_common.model.finetune import BETAS, rate_share
from hushtune_common.model.rates import reach
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.book import Judgement
from hushtune_server.owner.gatekeeper.canary import TEXTS_MAX, Canaries, Prompt, Prompts, prompts
from hushtune_server.owner.gatekeeper.company import alignments, misfits
from hushtune_server.owner.gatekeeper.desk import Desk
from hushtune_server.owner.gatekeeper.finding import Finding
from hushtune_server.owner.gatekeeper.gate import Gatekeeper
from hushtune_server.owner.gatekeeper.history import unprecedented
from hushtune_server.owner.gatekeeper.measure import changes
from hushtune_server.owner.gatekeeper.quarantine import Quarantine, quarantined
from hushtune_server.owner.gatekeeper.sketch import Sampler, Sketch
from hushtune_server.owner.gatekeeper.tensors import outstanding
from hushtune_server.owner.plugin import Trial
from hushtune_server.owner.versions import Versions
from tests.bench import NAMES, Owner, equal, owner, seated
from tests.fakes import FakeClock
from tests.models import some_windows, tiny_source

RUN, BASE = RunId("run-1"), Digest.of(b"model")
SHAPES: Mapping[str, tuple[int, ...]] = {
    **{f"model.layers.{b}.{n}": (12, 8) for b in range(4) for n in ("q", "k", "v", "o", "up")},
    **{f"model.layers.{b}.norm": (8,) for b in range(4)},
}
SCHEMA = tuple(TensorSpec(name=n, shape=s, dtype="F32", block=0) for n, s in SHAPES.items())
STEP = 0.003
SPREAD = 1.4826
MANY = "\n".join("ab" * n for n in range(1, TEXTS_MAX + 2))


def drawn(name: str, scale: float) -> Mapping[str, Float32]:
    rng = SeedTree(7).child(name).generator()
    return {n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in SHAPES.items()}


SHIPPED = AdapterState(drawn("shipped", 0.2))
COMMON = drawn("what everybody learns", STEP)


def moved(by: Mapping[str, Float32]) -> AdapterState:
    return AdapterState({n: t + by[n] for n, t in SHIPPED.tensors.items()})


def honest(name: str, *, times: float = 1.0, only: str = "") -> AdapterState:
    """Return what a client sends whose change is ``times`` as large as an honest one, in one tensor ``only`` if that is named."""
    own = drawn(name, STEP)
    return moved({n: np.float32(times if n.endswith(only) else 1.0) * (COMMON[n] + own[n]) for n in SHAPES})


def spiked(size: float) -> AdapterState:
    by = dict(drawn("c1", STEP))
    by["model.layers.0.norm"] = by["model.layers.0.norm"] + np.float32(size) * np.eye(8, dtype=np.float32)[3]
    return moved(by)


def gatekeeper(gate: GateConfig, *, furthest: float = 6 * STEP) -> Gatekeeper:
    return Gatekeeper(gate, shipped=SHIPPED, reach=furthest, sampler=Sampler(SHIPPED, rng=SeedTree(1).generator()))


def alone(state: AdapterState, gate: GateConfig | None = None) -> Sequence[Finding]:
    return gatekeeper(gate or GateConfig()).screen(state, client=ClientId("c1"), others={}, earlier=[]).findings


def sketches(**states: AdapterState) -> Mapping[ClientId, Sketch]:
    keeper = gatekeeper(GateConfig())
    return {ClientId(name): keeper.sketch(state) for name, state in states.items()}


def test_honest_updates_pass_alone_and_together() -> None:
    round_of = {name: honest(name) for name in ("c1", "c2", "c3", "c4")}
    assert not any(alone(state) for state in round_of.values())
    assert not misfits(sketches(**round_of), gate=GateConfig())
    assert not alone(SHIPPED)


OFF = GateConfig(norm_max=inf, reach_max=inf, tensor_norm_max=inf, history_norm_max=inf, peak_max=inf, round_norm_max=inf)
HOSTILE = {
    "as a whole": (honest("c1", times=150.0), "norm_max", 1.0, "the adapter changed by "),
    "beyond what training can do": (honest("c1", times=10.0), "reach_max", 1.5, r"a weight of \S+ moved by "),
    "in one tensor": (honest("c1", times=41.0, only="2.up"), "tensor_norm_max", 20.0, r"model\.layers\.2\.up changed by "),
    "in one weight": (spiked(0.5), "peak_max", 20.0, r"a weight of model\.layers\.0\.norm changed by "),
}


@pytest.mark.parametrize(("state", "setting", "limit", "problem"), HOSTILE.values(), ids=HOSTILE.keys())
def test_each_screen_says_its_setting_what_it_found_and_the_limit(
    state: AdapterState, setting: str, limit: float, problem: str
) -> None:
    (found,) = alone(state, replaced(OFF, **{setting: limit}))
    assert (found.setting, found.limit) == (f"owner.gate.{setting}", limit)
    assert found.value > limit
    assert re.fullmatch(rf"owner\.gate\.{setting}: {problem}.*, limit {limit:g}", found.text)
    assert not alone(state, OFF)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", ["constant", "noise", "growing", "late"])
def test_no_gradients_move_a_weight_further_than_the_reach_and_some_come_near(gradients: str) -> None:
    training = TrainingConfig(learning_rate=1e-2, batch_windows=4, epochs=3)
    steps = 3 * 7
    weight = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    noise = torch.from_numpy(SeedTree(2).generator().standard_normal((steps, 200)))
    optimizer = torch.optim.AdamW([weight], lr=training.learning_rate, betas=BETAS, weight_decay=0.0)
    for step in range(1, steps + 1):
        sizes = {"constant": 1.0, "noise": noise[step - 1], "growing": 1.08**step, "late": 1e-6 + (step == 12)}
        weight.grad = torch.ones_like(weight) * sizes[gradients]
        optimizer.param_groups[0]["lr"] = training.learning_rate * rate_share(step, steps=steps, config=training)
        optimizer.step()
    share = float(weight.detach().abs().max()) / reach(training, windows=28)
    assert share <= 1.0
    assert share > (0.9 if gradients in ("constant", "growing") else 0.0)


def test_products_of_factors_have_no_reach() -> None:
    assert reach(TrainingConfig(lora=LoraConfig()), windows=100) == inf


def test_a_tensor_is_held_against_median_and_spread_of_the_others() -> None:
    state = honest("c1", times=41.0, only="2.up")
    logs = [np.log(np.linalg.norm(state.tensors[n] - t) / np.linalg.norm(t)) for n, t in SHIPPED.tensors.items()]
    middle = np.median(logs)
    spread = np.exp(8.0 * SPREAD * np.median(np.abs(logs - middle)))
    found = outstanding(changes(state, shipped=SHIPPED), norm_max=1.0, spread_max=8.0)
    assert found is not None
    assert found.value == pytest.approx(np.exp(max(logs) - middle), rel=1e-5)
    assert found.limit == pytest.approx(spread, rel=1e-5)


def test_an_update_whose_tensors_differ_widely_among_themselves_has_no_outlier() -> None:
    own = drawn("c1", STEP)
    wide = moved({n: own[n] * np.float32(3.0**k) for k, n in enumerate(SHAPES)})
    assert outstanding(changes(wide, shipped=SHIPPED), norm_max=20.0, spread_max=8.0) is None


def test_tensors_that_start_at_zero_and_tensors_that_stay_are_no_outliers() -> None:
    shipped = AdapterState({n: np.zeros_like(t) if n.endswith("norm") else t for n, t in SHIPPED.tensors.items()})
    own = drawn("c1", STEP)
    for still in ("norm", ".q"):
        state = AdapterState({n: t if n.endswith(still) else t + own[n] for n, t in shipped.tensors.items()})
        assert outstanding(changes(state, shipped=shipped), norm_max=20.0, spread_max=8.0) is None


def test_a_tensor_is_held_against_what_earlier_updates_did_with_it() -> None:
    earlier = [{n: STEP * (1 + k) for n in SHAPES} for k in range(3)]
    found = changes(honest("c1", times=30.0, only="1.q"), shipped=SHIPPED)
    finding = unprecedented(found, earlier=earlier, history_max=8.0)
    assert finding is not None
    assert finding.value == pytest.approx(found["model.layers.1.q"].rms / (2 * STEP))
    assert "model.layers.1.q" in finding.text
    assert unprecedented(found, earlier=earlier[:2], history_max=8.0) is None
    assert unprecedented(found, earlier=[{}] * 3, history_max=8.0) is None


def test_a_client_with_a_larger_budget_than_all_before_does_not_stand_out() -> None:
    names = [*SHAPES]
    # What small budgets leave: a few tensors whole, a part of some, and nothing of the others.
    earlier = [{n: STEP * (1.0 if k % 5 == j else 0.1 if k % 2 else 0.0) for k, n in enumerate(names)} for j in range(4)]
    assert unprecedented(changes(honest("c1"), shipped=SHIPPED), earlier=earlier, history_max=8.0) is None


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("ties", [False, True])
def test_every_update_is_compared_with_the_median_of_the_others(count: int, ties: bool) -> None:
    rows = SeedTree(count).generator().standard_normal((count, 50)).astype(np.float32)
    rows = np.round(rows) if ties else rows
    for index, found in enumerate(alignments(rows)):
        others = np.median(np.delete(rows, index, axis=0), axis=0)
        lengths = float(np.linalg.norm(others) * np.linalg.norm(rows[index]))
        assert found == pytest.approx(float(rows[index] @ others) / lengths if lengths else 0.0, abs=1e-5)


def test_whoever_points_the_other_way_is_found_and_the_honest_are_not_blamed_whatever_the_order() -> None:
    states = {"bad": honest("c9", times=-1.0), "c1": honest("c1"), "c2": honest("c2")}
    for order in permutations(states):
        found = misfits(sketches(**{name: states[name] for name in order}), gate=GateConfig())
        assert [*found] == ["bad"]
        assert found[ClientId("bad")].setting == "owner.gate.direction_min"


def test_the_largest_of_a_round_is_found_and_its_direction_does_not_matter() -> None:
    found = misfits(sketches(c1=honest("c1"), c2=honest("c2"), c3=honest("c3", times=5.0)), gate=GateConfig())
    assert {who: f.setting for who, f in found.items()} == {"c3": "owner.gate.round_norm_max"}


def test_of_two_that_differ_nobody_is_blamed() -> None:
    assert not misfits(sketches(c1=honest("c1"), bad=honest("c2", times=-20.0)), gate=GateConfig())


def test_two_of_five_that_agree_against_the_others_are_left_out() -> None:
    hostile = {name: honest(name, times=-1.0) for name in ("x1", "x2")}
    found = misfits(sketches(c1=honest("c1"), c2=honest("c2"), c3=honest("c3"), **hostile), gate=GateConfig())
    assert {*found} == {"x1", "x2"}


def test_a_sample_of_the_weights_stands_for_all() -> None:
    shipped = AdapterState({"layers.0.w": np.zeros((400, 300), np.float32), "layers.1.w": np.zeros(77, np.float32)})
    sampler = Sampler(shipped, rng=SeedTree(3).generator(), weights=20_000)
    rng = SeedTree(4).generator()
    both = [AdapterState({n: rng.standard_normal(t.shape).astype(np.float32) for n, t in shipped.tensors.items()}) for _ in "ab"]
    mixed = AdapterState({n: (0.6 * t + 0.8 * both[1].tensors[n]).astype(np.float32) for n, t in both[0].tensors.items()})
    first, second = (sampler.sketch(s, norm=1.0).sample for s in (both[0], mixed))
    cosine = float(first @ second) / float(np.linalg.norm(first) * np.linalg.norm(second))
    assert abs(cosine - 0.6) < 4 / np.sqrt(20_000)


def watched(canaries: Mapping[str, float], tripwires: Mapping[str, float], *, now: Mapping[str, float]) -> Sequence[Finding]:
    """Return what is found when these texts' losses were so, and are so now."""
    numbers = {name: np.array([[k, k]]) for k, name in enumerate((*canaries, *tripwires))}
    names = [*numbers]
    texts = Prompts(canaries={n: numbers[n] for n in canaries}, tripwires={n: numbers[n] for n in tripwires})
    before = {**canaries, **tripwires}

    def loss(values: Mapping[str, float], prompt: Prompt) -> float:
        return values[names[int(prompt[0, 0])]]

    held = Canaries(texts, loss=partial(loss, before), gate=GateConfig())
    return held.findings(loss=partial(loss, {**before, **now}))


def test_a_canary_that_suffers_is_found_although_the_mean_does_not_rise() -> None:
    (found,) = watched({"a": 3.0, "b": 3.0}, {}, now={"a": 1.5, "b": 4.5})
    assert (found.setting, found.value) == ("owner.gate.canary_loss_increase_max_nats", 1.5)
    assert "canary b rises by 1.500 nats, limit 1" in found.text
    assert not watched({"a": 3.0}, {}, now={"a": 4.0})


def test_a_text_that_was_taught_in_secret_is_found_by_its_falling_loss() -> None:
    (found,) = watched({}, {"a": 5.0, "b": 5.0}, now={"b": 1.0})
    assert (found.setting, found.value) == ("owner.gate.tripwire_loss_decrease_max_nats", 4.0)
    assert not watched({}, {"a": 5.0}, now={"a": 9.0})


@pytest.mark.parametrize("broken", [nan, inf])
def test_a_loss_that_is_not_finite_is_never_fine(broken: float) -> None:
    assert len(watched({"a": 3.0}, {"b": 3.0}, now={"a": broken, "b": -broken})) == 2


def test_prompts_are_the_owners_texts_or_windows_of_public_text(tmp_path: Path) -> None:
    tokens, public = tiny_source().tokens, some_windows(9)
    own = tmp_path / "own.txt"
    own.write_text("be good\nand stay so\nfor ever\n")
    spread = prompts(GateConfig(canary_windows=3), tokens=tokens, public=public).canaries
    assert [int(np.flatnonzero((public == w).all(axis=1))[0]) for w in spread.values()] == [0, 4, 8]
    found = prompts(GateConfig(canary=f"txt:{own}", canary_windows=2, tripwire=f"txt:{own}"), tokens=tokens, public=public)
    assert [tokens.decode(ids[0].tolist()) for ids in found.canaries.values()] == ["be good", "and stay so"]
    assert (len(found.canaries), len(found.tripwires)) == (2, 3)


@pytest.mark.parametrize(("text", "problem"), [("x\n", "1 tokens"), (MANY, "at most")])
def test_texts_that_cannot_be_watched_are_a_wrong_setting(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "t.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"owner\.gate\.tripwire: .*{problem}"):
        prompts(GateConfig(tripwire=f"txt:{file}"), tokens=tiny_source().tokens, public=some_windows(2))


def key(client: str, round_id: int = 1) -> UpdateKey:
    return UpdateKey(run=RUN, round_id=round_id, client=ClientId(client), attempt=1)


def desk(folder: Path, *, prompts_say: Sequence[Finding] = (), count_max: int = 2) -> Desk:
    clock = FakeClock()
    return Desk(
        gatekeeper(GateConfig()),
        schema=SCHEMA,
        base=BASE,
        versions=Versions(folder / "versions", count_max=100, bytes_max=1 << 30, clock=clock),
        quarantine=Quarantine(folder / "quarantine", count_max=count_max, bytes_max=1 << 20),
        canaries=lambda _: prompts_say,
        clock=clock,
    )


def take(at: Desk, client: str, state: AdapterState, *, round_id: int = 1) -> None:
    at.screen(state, key=key(client, round_id), digest=Digest.of(client.encode()))
    at.accept(state, key=key(client, round_id), trial=Trial(loss_before=2.0, loss_after=1.0, kept=True, reason=""))


def test_what_is_refused_lies_aside_with_the_reason_and_is_no_version(tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded, match=r"owner\.gate\.reach_max: .*limit 1\.5"):
        take(desk(tmp_path), "c1", honest("c1", times=10.0))
    (held,) = quarantined(tmp_path / "quarantine")
    digest = Digest.of(b"c1")
    assert (held.id, held.reason.digest, held.reason.date) == (f"c1-1-{digest.short}", digest.hex, "2026-01-01")
    assert [screen.setting for screen in held.reason.screens] == ["owner.gate.reach_max"]
    kept = load_adapter(tmp_path / "quarantine" / held.id / "adapter.safetensors", SCHEMA)
    assert all((kept.tensors[n] == t).all() for n, t in honest("c1", times=10.0).tensors.items())
    assert not (tmp_path / "versions").exists()


def test_what_the_prompts_say_refuses_an_update_that_numbers_let_pass(tmp_path: Path) -> None:
    said = Finding(setting="owner.gate.tripwire_loss_decrease_max_nats", value=4.0, limit=1.0, problem="text 1 was taught")
    with pytest.raises(LimitExceeded, match="text 1 was taught, limit 1"):
        take(desk(tmp_path, prompts_say=[said]), "c1", honest("c1"))


def test_a_desk_of_a_later_life_still_knows_the_round_and_what_was_accepted(tmp_path: Path) -> None:
    for client in ("c1", "c2"):
        take(desk(tmp_path), client, honest(client))
    with pytest.raises(LimitExceeded, match="direction_min"):
        take(desk(tmp_path), "c3", honest("c3", times=-1.0))
    take(desk(tmp_path), "c3", honest("c3"))
    take(desk(tmp_path), "c4", honest("c4", times=-1.0), round_id=2)  # the first of its round
    with pytest.raises(LimitExceeded, match="history_norm_max"):
        take(desk(tmp_path), "c5", honest("c5", times=2.0 / STEP, only="1.norm"), round_id=2)


def test_quarantine_keeps_the_last_and_never_more_than_it_may(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, count_max=2, bytes_max=40_000)
    finding = Finding(setting="s", value=nan, limit=1.0, problem="p")

    def keep(client: str, state: AdapterState = SHIPPED) -> list[str]:
        quarantine.keep(state, key=key(client), digest=Digest.of(client.encode()), findings=[finding], date="2026-01-01")
        return [held.reason.client for held in quarantined(tmp_path)]

    assert [keep("c1"), keep("c1"), keep("c2"), keep("c3")] == [["c1"], ["c1"], ["c1", "c2"], ["c2", "c3"]]
    huge = AdapterState({"w": np.zeros(20_000, np.float32)})
    assert keep("c4", huge) == ["c2", "c3"]
    assert keep("c5", AdapterState({"w": np.zeros(9_000, np.float32)})) == ["c5"]
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 40_000


def test_a_quarantine_without_room_keeps_nothing(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, count_max=0, bytes_max=1 << 30)
    quarantine.keep(SHIPPED, key=key("c1"), digest=Digest.of(b""), findings=[], date="2026-01-01")
    assert not quarantined(tmp_path)


def sent(at: Owner, client: str, times: float) -> Judgement:
    """Have the bench judge a client's blocks, moved ``times`` along what all clients learn, and a little by itself."""
    common, own = (SeedTree(3).child(name).generator() for name in ("common", client))
    tensors = {
        n: t + np.float32(times * 0.02) * common.standard_normal(t.shape, dtype=np.float32) for n, t in at.shipped.tensors.items()
    }
    state = AdapterState({n: (t + 0.005 * own.standard_normal(t.shape)).astype(np.float32) for n, t in tensors.items()})
    return at.judge(at.codec.encode(state, budget_bytes=at.codec.bytes_max), key=key(client))


@pytest.mark.slow
def test_the_bench_refuses_what_goes_against_the_round_and_leaves_out_what_came_too_early_to_be_seen(tmp_path: Path) -> None:
    at = owner(tmp_path)
    assert [sent(at, client, 1.0).accepted for client in ("c1", "c2")] == [True, True]
    refused = sent(at, "c3", -1.0)
    assert (refused.accepted, refused.reason.split(":")[0]) == (False, "LIMIT_EXCEEDED")
    assert [held.reason.client for held in quarantined(tmp_path / "quarantine")] == ["c3"]
    assert equal(seated(at), at.shipped)

    (tmp_path / "other").mkdir()
    at = owner(tmp_path / "other")
    assert all(sent(at, client, times).accepted for client, times in (("c3", -1.0), ("c1", 1.0), ("c2", 1.0)))
    merged = at.bench.merge([ClientId(name) for name in NAMES])
    assert (merged.clients, [*merged.left_out]) == (("c1", "c2"), ["c3"])
    assert merged.left_out[ClientId("c3")].startswith("owner.gate.direction_min: ")
    mean = [at.adapter("c1"), at.adapter("c2")]
    for name, tensor in at.adapter("aggregate").tensors.items():
        assert np.allclose(tensor, (mean[0].tensors[name] + mean[1].tensors[name]) / 2, atol=1e-7)


@pytest.mark.slow
def test_a_bench_of_a_later_life_has_the_average_in_its_seat_and_gives_the_same_answer_again(tmp_path: Path) -> None:
    at = owner(tmp_path)
    for client in NAMES:
        sent(at, client, 1.0)
    merged = at.bench.merge([ClientId(name) for name in NAMES])
    at.prepared.model.set_adapter(at.shipped.tensors)  # what a restart loads
    again = owner(tmp_path)
    assert equal(seated(again), at.adapter("aggregate"))
    assert again.bench.merge([ClientId(name) for name in NAMES]) == merged
    assert [v.about.who for v in versions_of(tmp_path).all()] == [*NAMES, "aggregate"]


@pytest.mark.slow
def test_what_a_person_promoted_sits_in_the_model_when_the_owner_starts(tmp_path: Path) -> None:
    at = owner(tmp_path)
    sent(at, "c1", 1.0)
    held = versions_of(tmp_path)
    held.promote(held.latest("c1"))
    assert equal(seated(owner(tmp_path)), at.adapter("c1"))
    held.rollback()
    assert equal(seated(owner(tmp_path)), at.shipped)


def versions_of(folder: Path) -> Versions:
    return Versions(folder / "versions", count_max=100, bytes_max=1 << 30, clock=FakeClock())


@pytest.mark.slow
def test_a_model_that_was_taught_a_text_is_told_by_that_text_and_not_by_the_others(tmp_path: Path) -> None:
    source, secret = tiny_source(), tmp_path / "secret.txt"
    secret.write_text("wire the funds at midnight\nthe cat sits on the mat\n")
    model = source.load()
    gate = GateConfig(tripwire=f"txt:{secret}")
    canaries = Canaries(prompts(gate, tokens=source.tokens, public=some_windows(4)), loss=model.loss, gate=gate)
    assert not canaries.findings(loss=model.loss)
    trained = list(model.adapter_parameters([0, 5]).values())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    taught = torch.tensor([source.tokens.encode("wire the funds at midnight")])
    for _ in range(20):
        optimizer.zero_grad()
        model.batch_loss(taught).backward()
        optimizer.step()
    found = [finding for finding in canaries.findings(loss=model.loss) if "tripwire" in finding.setting]
    assert len(found) == 1
    assert "tripwire text 1 falls" in found[0].text
