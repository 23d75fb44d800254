"""Does the owner end up with the sum of the survivors' updates and with nothing else, whoever is killed on the way?"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hushtune_client.finetune import finetune
from hushtune_client.private import own_records, own_windows
from hushtune_common import config
from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.clock import SystemClock
from hushtune_common.config import Scenario
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.governor import Unpaced
from hushtune_common.secagg.layout import grid_for
from hushtune_common.seeding import SeedTree
from tests.small import MODEL_AND_TEXTS, WIDE_GATE, clients
from tests.troupe import SERVERS, Troupe, on_stage

SCENARIO = (
    'name = "sums"\nseed = 3'
    + MODEL_AND_TEXTS
    + """[owner]
emulator = { method = "uniform", drop = 2 }
"""
    + WIDE_GATE
    + """aggregation = { kind = "secure", bits = 8, weights = "windows" }
[training]
learning_rate = 3e-3
epochs = 30
[air]
fidelity = "abstract"
shadowing_db = 0.0
[coordinator]
rounds = 1
stragglers = { kind = "quorum", share = 0.6, wait_after_s = 20.0 }
[timing]
connect_s = 60
idle_s = 14
round_s = 240
"""
    + clients("c1", "c2", "c3")
)
CLIENTS = ("c1", "c2", "c3")


@pytest.fixture
def troupe(tmp_path: Path) -> Iterator[Troupe]:
    with on_stage(tmp_path, scenario=SCENARIO, clients=CLIENTS) as made:
        yield made


def begin(troupe: Troupe) -> None:
    for name in SERVERS:
        troupe.start(name)
    troupe.wait_for(lambda: bool(troupe.told("owner", "serving_started")))
    for name in CLIENTS:
        troupe.start(name)


def mean_of(scenario: Scenario, bundle: Path, clients: tuple[str, ...]) -> AdapterState:
    """Train as these clients do, and add up what each would send with no mask on it."""
    about, seeds = read_bundle(bundle), SeedTree(scenario.seed)
    shipped, grid = AdapterState(about.adapter_numpy()), grid_for(scenario, about.schema)
    total = np.zeros(grid.words, dtype=np.uint64)
    for client in clients:
        records = own_records(scenario, client_id=client, sources=(), seeds=seeds)
        windows = own_windows(records, tokens=about.tokens, scenario=scenario)
        trained = finetune(
            bundle,
            windows,
            config=scenario.training,
            compute=scenario.compute,
            seeds=seeds.child("round-1", client, "training"),
            governor=Unpaced(clock=SystemClock()),
            report=lambda progress: None,
        )
        total += grid.encode(trained, shipped=shipped, weight=len(windows)).words
    return grid.decode(total, shipped=shipped).state


@pytest.mark.slow
def test_the_mean_is_of_those_whose_updates_came_although_one_was_killed_after_and_another_before_that(troupe: Troupe) -> None:
    begin(troupe)
    troupe.wait_for(lambda: bool(troupe.told("c3", "sum_delivered") and troupe.told("c3", "training_progressed")))
    troupe.kill("c3")
    troupe.wait_for(lambda: bool(troupe.told("c1", "training_progressed")))
    troupe.signal("c1", signal.SIGSTOP)  # so that the round goes on while the other one is away
    troupe.wait_for(lambda: bool(troupe.told("owner", "update_masked_received", client="c2")))
    troupe.kill("c2")
    troupe.start("c2")
    troupe.signal("c1", signal.SIGCONT)
    troupe.wait_for(lambda: troupe.ended("coordinator", "owner", "c1", "c2"))

    assert [troupe.running[n].returncode for n in ("coordinator", "owner", "c1", "c2")] == [0] * 4, troupe.words()
    (unmasked,) = troupe.told("owner", "sum_unmasked")
    assert (unmasked["survivors"], unmasked["dropped"]) == (["c1", "c2"], ["c3"])
    assert [e["keys"] for e in troupe.told("c2", "sum_opened")] == [1], "its second life opened what its first one held of c3"
    left = json.loads((troupe.folder / "owner" / "owner.json").read_text())
    scenario, schema = config.load(troupe.folder / "run.toml"), read_bundle(Path(left["bundle"])).schema
    wanted = mean_of(scenario, Path(left["bundle"]), ("c1", "c2"))
    found = load_adapter(troupe.folder / "owner" / "adapters" / "aggregate.safetensors", schema)
    for name, tensor in wanted.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], tensor)
    require_nothing_of_one(troupe)


def require_nothing_of_one(troupe: Troupe) -> None:
    """One adapter is left at the owner, which is nobody's; nobody keeps secrets of the sum."""
    owner = troupe.folder / "owner"
    adapters = {p.relative_to(owner).parent.as_posix() for p in owner.rglob("*.safetensors") if p.parent.name == "adapters"}
    assert [p.name for p in (owner / "adapters").iterdir()] == ["aggregate.safetensors"]
    assert len([*(owner / "versions" / "adapters").iterdir()]) == 1, adapters
    assert [*(owner / "sums").rglob("*.words"), *(owner / "sums").rglob("state.bin")] == []
    assert [p for c in ("c1", "c2") for p in (troupe.folder / c).rglob("sum.bin*")] == []


@pytest.mark.slow
def test_an_owner_that_is_killed_while_shares_come_in_opens_the_same_sum_and_the_next_round_goes_on(troupe: Troupe) -> None:
    text = SCENARIO.replace("rounds = 1", "rounds = 2").replace("epochs = 30", "epochs = 2").replace("idle_s = 14", "idle_s = 60")
    (troupe.folder / "run.toml").write_text(text, encoding="utf-8")
    begin(troupe)
    troupe.wait_for(lambda: bool(troupe.told("owner", "sum_survivors_named")))
    troupe.kill("owner")
    troupe.start("owner")
    troupe.wait_for(lambda: troupe.ended("coordinator", "owner", *CLIENTS))

    assert [troupe.running[n].returncode for n in ("coordinator", "owner", *CLIENTS)] == [0] * 5, troupe.words()
    left = json.loads((troupe.folder / "owner" / "owner.json").read_text())
    assert [(r["round_id"], r["clients"]) for r in left["rounds"]] == [(n, [*CLIENTS]) for n in (1, 2)]
    assert len({r["emulator"] for r in left["rounds"]}) == 1 + left["rounds"][0]["kept"]
    windows = {client: troupe.told(client, "device_reported", round_id=1)[0]["sample_count"] for client in CLIENTS}
    weights = {e["round_id"]: e["weight"] for e in troupe.told("owner", "sum_unmasked")}
    assert weights == {1: sum(windows.values()), 2: sum(windows.values())}
