"""Does a run of several rounds end as it should when one of its processes is killed in the middle and started again?"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.adapter import load_adapter
from hushtune_common.model.bundle import read_bundle
from tests.small import MODEL_AND_TEXTS, WIDE_GATE, clients
from tests.troupe import SERVERS, Troupe, on_stage

SCENARIO = (
    'name = "three-rounds"\nseed = 3'
    + MODEL_AND_TEXTS
    + """[owner]
emulator = { method = "linear", drop = 2, ranking = "uniform", harmonizer_rank = 4, fit_tokens = 200 }
realign_steps = 1
"""
    + WIDE_GATE
    + """[training]
learning_rate = 3e-3
epochs = 30
proximal = 0.001
[codec]
bits = 4
[air]
fidelity = "abstract"
shadowing_db = 0.0
[coordinator]
rounds = 3
stragglers = { kind = "everyone" }
[timing]
connect_s = 60
idle_s = 60
round_s = 400
"""
    + clients("c1", "c2")
)
MARKED = ("realign_steps = 1\n", "realign_steps = 1\nfingerprint = {}\n")
"""Every client gets a copy of its own."""
MEASURED = ("rounds = 3\n", 'rounds = 3\nallocator = { utility = { kind = "measured", every_round = true } }\n')
"""What updates are worth is measured before every round."""
CLIENTS = ("c1", "c2")


@pytest.fixture
def troupe(tmp_path: Path) -> Iterator[Troupe]:
    with on_stage(tmp_path, scenario=SCENARIO, clients=CLIENTS) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["owner", "c1"])
def test_three_rounds_complete_although_a_process_is_killed_in_the_second(troupe: Troupe, victim: str) -> None:
    marked = victim == "owner"
    before, after = MARKED if marked else MEASURED
    (troupe.folder / "run.toml").write_text(SCENARIO.replace(before, after), encoding="utf-8")
    for name in SERVERS:
        troupe.start(name)
    troupe.wait_for(lambda: bool(troupe.told("owner", "serving_started")))
    for name in CLIENTS:
        troupe.start(name)
    moment = ("owner", "update_accepted") if victim == "owner" else ("c1", "training_progressed")
    troupe.wait_for(lambda: bool(troupe.told(*moment, round_id=2)))
    troupe.kill(victim)
    troupe.start(victim)
    troupe.wait_for(lambda: all(troupe.running[n].poll() is not None for n in ("coordinator", "owner", *CLIENTS)))

    assert [troupe.running[name].returncode for name in ("coordinator", "owner", *CLIENTS)] == [0] * 4, troupe.words()
    records = [json.loads((troupe.folder / "coordinator" / f"round-{n}.json").read_text()) for n in (1, 2, 3)]
    assert [(r["state"], r["accepted"]) for r in records] == [("closed", list(CLIENTS))] * 3
    left = json.loads((troupe.folder / "owner" / "owner.json").read_text())
    assert [(r["round_id"], r["clients"], r["kept"]) for r in left["rounds"]] == [(n, list(CLIENTS), True) for n in (1, 2, 3)]
    require_own_emulators(troupe, left, marked=marked)
    require_counted_once(troupe, left)
    for client in CLIENTS if marked else ():
        require_named(troupe, client)
    told = [(e["offset"], e["weight"]) for e in troupe.told("coordinator", "utility_told")]
    assert [(r["utility"]["offset"], r["utility"]["weight"]) for r in records if r["utility"]] == told
    assert len(set(told)) == (0 if marked else 3)


def require_named(troupe: Troupe, client: str) -> None:
    """Whatever emulator the client holds, it is the one that it tells of."""
    for leaked in (troupe.folder / client / "blobs" / "complete" / "emulators").iterdir():
        state = troupe.folder / "owner"
        command = [sys.executable, "-m", "hushtune_server", "owner", "fingerprint", "detect", str(leaked), "--state", str(state)]
        found = subprocess.run([*command, "--json"], check=True, capture_output=True)
        assert [r["recipient"] for r in json.loads(found.stdout)["recipients"] if r["carried"]] == [client]


def require_own_emulators(troupe: Troupe, left: dict[str, Any], *, marked: bool) -> None:
    """Every client trained in every round on that round's emulator, or its copy, and fetched no more than what had changed."""
    for client in CLIENTS:
        published = {r["round_id"]: r["copies"][client] if marked else r["emulator"] for r in left["rounds"]}
        assert len(set(published.values())) == 3
        verified = troupe.told(client, "emulator_verified")
        assert {(e["round_id"], e["digest"]) for e in verified} == {*published.items()}
        assert sum(not e["revised"] and e["bytes_fetched"] > 0 for e in verified) == 1


def require_counted_once(troupe: Troupe, left: dict[str, Any]) -> None:
    """What sits in the model is the mean of the last round's two updates, each judged once and sealed for that round."""
    judged = [(c["client"], c["round_id"]) for c in left["clients"]]
    assert sorted(judged) == sorted((c, n) for c in CLIENTS for n in (1, 2, 3))
    schema = read_bundle(Path(left["bundle"])).schema
    folder = troupe.folder / "owner" / "adapters"
    average, first, second = (load_adapter(folder / f"{n}.safetensors", schema).tensors for n in ("aggregate", *CLIENTS))
    for name, tensor in average.items():
        assert tensor == pytest.approx((first[name] + second[name]) / 2, abs=1e-6)
