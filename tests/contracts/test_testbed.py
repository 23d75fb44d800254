"""Does the testbed show, keep and find what its processes said?"""

import asyncio
import io
import json
import shutil
import signal
import stat
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hushtune_common import config
from hushtune_common.clock import SystemClock
from hushtune_common.crypto.keys import HybridPrivateKey
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Role
from hushtune_common.noise import Statement
from hushtune_server import pki
from hushtune_server.testbed import commands, report, rundir, sweep, tables
from hushtune_server.testbed.processes import Child, ChildFailed, LogFollower, failed_among
from hushtune_server.testbed.view import View

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def scenario() -> config.Scenario:
    return config.load(ROOT / "scenarios" / "demo.toml")


def write_log(run: rundir.RunDirectory, name: str, *events: dict[str, Any]) -> None:
    run.log(name).write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")


def printed(body: dict[str, Any], *, width: int = 80) -> str:
    stream = io.StringIO()
    tables.print_report(body, console=Console(file=stream, width=width))
    return stream.getvalue()


def test_the_resolved_scenario_in_a_run_directory_is_the_scenario(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    assert config.load(run.scenario) == scenario
    assert run.id == "demo-20260102-030405-s1"


def test_the_taps_scenario_has_the_same_digest_and_no_seed(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    tap = config.load(run.scenario_for_tap)
    assert (tap.seed, tap.digest) == (0, scenario.digest)


def test_two_runs_of_the_same_second_do_not_share_a_directory(tmp_path: Path, scenario: config.Scenario) -> None:
    runs = [rundir.create(tmp_path, scenario, now=NOW) for _ in range(3)]
    assert len({r.path for r in runs}) == 3


def test_a_new_run_finds_a_free_name_whatever_was_deleted_before(tmp_path: Path, scenario: config.Scenario) -> None:
    first, *others = [rundir.create(tmp_path, scenario, now=NOW) for _ in range(3)]
    shutil.rmtree(first.path)
    again = [rundir.create(tmp_path, scenario, now=NOW) for _ in range(2)]
    assert len({r.path for r in (*others, *again)}) == 4


def test_a_run_whose_testbed_is_gone_is_not_said_to_be_running(
    tmp_path: Path, scenario: config.Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, orphaned, cut = (rundir.create(tmp_path, scenario, now=NOW) for _ in range(3))
    mine.update(started="1", status=rundir.RUNNING, supervisor=rundir.supervisor())
    orphaned.update(started="2", status=rundir.RUNNING, supervisor={**rundir.supervisor(), "created": 1.0})
    (cut.path / "run.json").write_text('{"status": "runn', encoding="utf-8")
    assert [r.status for r in (mine, orphaned, cut)] == ["running", "lost", "unknown"]
    commands.list_runs(runs=tmp_path)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == ["unknown", "running", "lost"]


def test_a_run_is_found_by_a_unique_beginning_and_the_newest_by_name(tmp_path: Path, scenario: config.Scenario) -> None:
    first = rundir.create(tmp_path, scenario, now=NOW)
    first.update(started="2026-01-02")
    second = rundir.create(tmp_path, scenario, now=NOW.replace(year=2027))
    second.update(started="2027-01-02")
    assert rundir.find(tmp_path, "latest").path == second.path
    assert rundir.find(tmp_path, "demo-2026").path == first.path
    with pytest.raises(ConfigError, match="fits several runs"):
        rundir.find(tmp_path, "demo-202")
    with pytest.raises(ConfigError, match="no such run"):
        rundir.find(tmp_path, "other")


def test_a_run_is_found_by_its_path_wherever_it_lies(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path / "elsewhere", scenario, now=NOW)
    run.update(started="2026-01-02")
    assert rundir.find(tmp_path / "runs", str(run.path)).path == run.path
    with pytest.raises(ConfigError, match="holds no run"):
        rundir.find(tmp_path / "runs", str(tmp_path))


def test_a_log_cut_short_by_a_crash_still_gives_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"event": "one"}\n{"event": "two"}\n{"event": "thr')
    assert [e["event"] for e in rundir.read_log(path)] == ["one", "two"]


@given(st.lists(st.integers(min_value=0, max_value=9), max_size=12), st.data())
def test_a_follower_gives_every_line_once_however_the_file_grows(values: list[int], data: st.DataObject) -> None:
    whole = b"".join(b'{"event": "e", "n": %d}\n' % n for n in values)
    cuts = sorted(data.draw(st.lists(st.integers(min_value=0, max_value=len(whole)), max_size=5)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        follower, seen = LogFollower(path), list[int]()
        for cut in [*cuts, len(whole)]:
            path.write_bytes(whole[:cut])
            seen += [int(e["n"]) for e in follower.fresh()]
    assert seen == values


def test_the_view_follows_training_and_shows_the_gate() -> None:
    view = View("run")
    view.apply("c1", [{"event": "training_progressed", "step": 3, "steps": 9, "loss": 5.0, "tokens_per_s": 100.0}])
    view.apply(
        "coordinator",
        [
            {
                "event": "gate_decided",
                "client": "c1",
                "decision": "granted",
                "snr_main_db": 12.0,
                "snr_tap_bound_db": -4.0,
                "rate_coded": 2.5,
            }
        ],
    )
    stream = io.StringIO()
    Console(file=stream, width=140).print(view.render(elapsed_s=7.0))
    assert (view.processes["c1"].done, view.processes["c1"].total) == (3, 9)
    assert "GRANTED" in stream.getvalue()
    assert "owner hears 12.0 dB, tap assumed at most -4.0 dB" in stream.getvalue()


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["event", "phase", "step", "loss", "client", "level", "reason"]), st.none() | st.text())
    )
)
def test_no_event_whatever_it_holds_breaks_the_view(events: list[dict[str, Any]]) -> None:
    View("run").apply("c1", events)


def test_the_report_of_a_run_that_died_at_once_is_readable(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    run.update(status=rundir.FAILED, problem="owner ended with code 3", wall_s=1.0)
    body = report.write(run, scenario)
    assert [c["outcome"] for c in body["clients"]] == ["no update arrived"] * 3
    assert body["settings"] == {}
    assert "owner ended with code 3" in printed(body)


def test_the_report_says_why_a_client_is_not_in_the_result(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    run.state("coordinator").mkdir()
    gate = {"decision": "excluded", "reason": "the tap is nearer", "snr_main_db": 1.0, "snr_tap_bound_db": 9.0, "rate_coded": 0.0}
    entry = {
        "round_id": 1,
        "allocation": {"method": "equal_share"},
        "assignments": [{"client": "c1", "gate": gate}],
        "completions": [{"client": "c1", "uploaded": False, "reason": "gate excluded"}],
        "accepted": ["c3"],
        "died": ["c2"],
    }
    rundir.write_json(run.state("coordinator") / "round-1.json", entry)
    outcomes = {c["id"]: c["outcome"] for c in report.write(run, scenario)["clients"]}
    assert outcomes == {"c1": "did not upload: gate excluded", "c2": "died during the round", "c3": "accepted"}
    late = {**entry, "died": [], "completions": [{"client": "c2", "uploaded": True, "reason": ""}]}
    rundir.write_json(run.state("coordinator") / "round-1.json", late)
    assert report.write(run, scenario)["clients"][1]["outcome"] == "delivered, and not judged before the round closed"


@pytest.mark.parametrize("name", ["owner", "referee", "aggregate"])
def test_no_client_takes_the_folder_or_the_file_of_something_else(scenario: config.Scenario, name: str) -> None:
    clients = [{"id": name, "position": {"x_m": 1.0, "y_m": 0.0}}]
    with pytest.raises(ConfigError, match=f"id '{name}'"):
        config.parse({**config.to_toml_tree(scenario), "clients": clients})


def test_states_keys_and_logs_of_a_run_are_for_its_user_only(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    for folder in ("logs", "state", "kits"):
        assert stat.S_IMODE((run.path / folder).stat().st_mode) == 0o700


def test_what_a_client_says_is_printed_as_it_is(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    run.state("coordinator").mkdir()
    entry = {"round_id": 1, "completions": [{"client": "c1", "uploaded": False, "reason": "[/red] no [bold]room"}]}
    rundir.write_json(run.state("coordinator") / "round-1.json", entry)
    run.update(status=rundir.FAILED, problem="c1: [/red] no [bold]room")
    body = report.write(run, scenario)
    assert "c1: did not upload: [/red] no [bold]room" in printed(body)
    assert "failed: c1: [/red] no [bold]room" in printed(body)


def test_the_report_tells_of_the_last_round_only(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    run.state("coordinator").mkdir()
    for round_id in (1, 2):
        rundir.write_json(run.state("coordinator") / f"round-{round_id}.json", {"round_id": round_id, "accepted": []})
    write_log(run, "c1", {"event": "verdict_received", "round_id": 1, "accepted": True})
    write_log(run, "owner", {"event": "update_refused", "round_id": 1, "client": "c2", "reason": "MALFORMED"})
    first, second, _ = report.write(run, scenario)["clients"]
    assert (first["verdict"], second["outcome"]) == (None, "no update arrived")


PLANNED = {"wait_s": 0.0, "train_s": 100.0, "airtime_s": 20.0, "plug_in_s": 1.0, "compute_j": 400.0, "radio_j": 2.0}


def planned_run(tmp_path: Path, scenario: config.Scenario) -> rundir.RunDirectory:
    """A run whose first client trained as planned, sent twice, once retold after a restart, and less than was expected."""
    run = rundir.create(tmp_path, scenario, now=NOW)
    run.state("coordinator").mkdir()
    planned = [{"client": c, "planned": {**PLANNED, "update_bits": 1.6e8}} for c in ("c1", "c2")]
    rundir.write_json(run.state("coordinator") / "round-1.json", {"round_id": 1, "assignments": planned, "accepted": ["c1"]})
    told = {"event": "frame_transmitted", "round_id": 1}
    write_log(
        run,
        "c1",
        {"event": "training_finished", "round_id": 1, "train_s": 7.5, "train_modelled_s": 100.0, "energy_j": 400.0},
        {"event": "update_sealed", "round_id": 1, "bytes_sealed": 18_000_000},
        {**told, "attempt": 1, "airtime_s": 18.0, "energy_j": 1.8},
        {**told, "attempt": 1, "airtime_s": 18.0, "energy_j": 1.8},
        {**told, "attempt": 2, "airtime_s": 1.0, "energy_j": 0.1},
        {**told, "attempt": 1, "round_id": 9, "airtime_s": 500.0, "energy_j": 50.0},
    )
    return run


def test_what_came_is_held_against_the_plan(tmp_path: Path, scenario: config.Scenario) -> None:
    entry = report.write(planned_run(tmp_path, scenario), scenario)["plan"]["c1"]
    assert entry["realised"] == {
        "train_s": 100.0,
        "airtime_s": pytest.approx(19.0),
        "update_bits": 1.44e8,
        "compute_j": 400.0,
        "radio_j": pytest.approx(1.9),
    }
    off = {"train_s": 0.0, "airtime_s": -5.0, "update_bits": -10.0, "compute_j": 0.0, "radio_j": -5.0}
    assert entry["deviation_percent"] == pytest.approx(off)
    assert entry["train_wall_s"] == 7.5


def test_a_plan_of_which_nothing_came_has_no_deviation_and_no_plan_no_entry(tmp_path: Path, scenario: config.Scenario) -> None:
    body = report.write(planned_run(tmp_path, scenario), scenario)
    assert set(body["plan"]["c2"]["deviation_percent"].values()) == {None}
    assert body["plan"]["c3"] is None
    shown = printed(body)
    assert "-10.0 %" in shown
    assert "device's, not this machine's" in " ".join(shown.split())


def test_what_noise_promises_of_an_update_is_shown_with_the_sum_that_it_comes_to(
    tmp_path: Path, scenario: config.Scenario
) -> None:
    noisy = msgspec.structs.replace(
        scenario, codec=config.CodecConfig(kind="jopeq", bits=4, noise=config.NoiseConfig(epsilon=2.0))
    )
    run = planned_run(tmp_path, noisy)
    said = Statement.of(config.NoiseConfig(epsilon=2.0).promise, counts=[1000, 500], rounds=1)
    write_log(run, "c1", {"event": "update_noised", "round_id": 1, "terms": said.terms})
    body = report.write(run, noisy)
    assert body["clients"][0]["noise"]["epsilon_update"] == 3000.0
    assert body["clients"][1]["noise"] is None
    assert any("local differential privacy with epsilon 2," in line for line in body["assumptions"])
    assert not any("nothing here bounds" in line for line in body["assumptions"])
    assert "3000 for the whole update; for the whole this rules out nothing" in " ".join(printed(body, width=200).split())


def test_an_update_is_shown_with_its_share_its_bytes_and_its_bits_per_weight(tmp_path: Path, scenario: config.Scenario) -> None:
    run = planned_run(tmp_path, scenario)
    granted = {"client": "c1", "protection": "payload", "adapter_share": 0.5, "budget_bytes": 3_000_000}
    withheld = {"client": "c2", "protection": None, "adapter_share": 1.0, "budget_bytes": 6_000_000}
    curve = {"offset": 0.5, "weight": 0.02, "shape": 1.25, "share_min": 0.1, "points": [[0.1, 0.15, 0.1, 0.2]]}
    rundir.write_json(
        run.state("coordinator") / "round-1.json", {"round_id": 1, "assignments": [granted, withheld], "utility": curve}
    )
    write_log(
        run,
        "c1",
        {"event": "update_encoded", "round_id": 1, "bytes_raw": 32_000_000, "bytes_encoded": 2_980_000},
        {"event": "update_sealed", "round_id": 1, "bytes_sealed": 2_981_300},
    )
    body = report.write(run, scenario)
    assert body["clients"][0]["update"] == {
        "share": 0.5,
        "budget_bytes": 3_000_000,
        "bytes_encoded": 2_980_000,
        "bytes_sealed": 2_981_300,
        "bits_per_weight_granted": 3.0,
        "bits_per_weight": pytest.approx(2.98),
    }
    assert set(body["clients"][1]["update"].values()) == {None}
    shown = printed(body, width=200)
    assert [cell for cell in ("0.500", "3.000", "2.980", "2.981") if cell not in shown] == []
    assert "0.5 - 0.02 * share^-1.25 (from 0.15 at 0.1)" in shown


def test_every_table_fits_eighty_columns(tmp_path: Path, scenario: config.Scenario) -> None:
    body = report.write(planned_run(tmp_path, scenario), scenario)
    body["settings"] = {name: {"perplexity": 123.4} for name, _ in tables.SETTINGS}
    assert max(len(line) for line in printed(body).splitlines()) <= 80
    assert "…" not in printed(body)


def test_what_is_assumed_modelled_or_abstract_says_so_in_the_tables(tmp_path: Path, scenario: config.Scenario) -> None:
    shown = printed(report.write(rundir.create(tmp_path, scenario, now=NOW), scenario), width=120)
    for words in ("fidelity: bit_exact", "tap dB (assumed)", "clock and energy are modelled"):
        assert words in shown


def test_a_sweep_reports_mean_and_sample_deviation() -> None:
    values = [150.0, 160.0, 175.0]
    reports = [{"run": str(v), "seed": k, "settings": {"plug_in": {"perplexity": v}}} for k, v in enumerate(values)]
    (spread,) = sweep.summarise(reports).values()
    assert spread.mean == pytest.approx(statistics.fmean(values))
    assert spread.deviation == pytest.approx(statistics.stdev(values))


def test_pruning_keeps_the_aggregate_and_small_files(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    adapters = run.state("owner") / "adapters"
    adapters.mkdir(parents=True)
    for name in ("aggregate.safetensors", "c1.safetensors"):
        (adapters / name).write_bytes(bytes(2 << 20))
    (run.state("owner") / "owner.json").write_text("{}")
    run.prune_blobs()
    assert sorted(p.name for p in run.state("owner").rglob("*") if p.is_file()) == ["aggregate.safetensors", "owner.json"]


def test_forgetting_a_runs_secrets_leaves_none_of_its_keys(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    pki.init(run.path / "pki", clock=SystemClock())
    pki.issue(run.path / "pki", role=Role.OWNER, name="owner", out=run.kit("owner"), clock=SystemClock())
    run.state("owner").mkdir()
    HybridPrivateKey.generate().save(run.state("owner") / rundir.SEALING_KEY)
    run.forget_secrets()
    run.forget_secrets()
    assert not [p for p in run.path.rglob("*.key")]


async def ended(folder: Path, name: str, code: int) -> Child:
    """Return a process that has ended with ``code``; a negative one is the signal that killed it."""
    how = f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", how)
    await process.wait()
    return Child(name=name, process=process, log=LogFollower(folder / f"{name}.jsonl"), errors=folder / f"{name}.stderr")


def test_a_run_is_spoilt_by_whoever_must_last_or_succeed_and_not_by_a_dead_client(tmp_path: Path) -> None:
    async def play() -> None:
        done, killed = await ended(tmp_path, "owner", 0), await ended(tmp_path, "c1", -signal.SIGKILL)
        refused = await ended(tmp_path, "coordinator", 9)
        assert failed_among(lasting=[], essential=[done, refused], others=[killed]) is None
        assert failed_among(lasting=[done], essential=[], others=[]) is done
        assert failed_among(lasting=[], essential=[refused, killed], others=[]) is killed
        misled = await ended(tmp_path, "c2", 3)
        assert failed_among(lasting=[], essential=[done], others=[killed, misled]) is misled

    asyncio.run(play())


def test_a_killed_process_is_named_with_its_signal_and_gives_a_listed_exit_code(tmp_path: Path) -> None:
    async def play() -> list[ChildFailed]:
        (tmp_path / "owner.stderr").write_text("hushtune: the disk is full\n", encoding="utf-8")
        return [ChildFailed(await ended(tmp_path, "owner", code)) for code in (-signal.SIGKILL, 0, 12)]

    killed, stopped, failed = asyncio.run(play())
    assert (killed.code, str(killed)) == (10, "owner: was killed by SIGKILL (out of memory, or by hand)")
    assert (stopped.code, str(stopped)) == (10, "owner: was told to stop before the run was over")
    assert (failed.code, str(failed)) == (12, "owner: the disk is full")


def test_the_report_says_when_the_tap_was_stopped_too_early(tmp_path: Path, scenario: config.Scenario) -> None:
    run = rundir.create(tmp_path, scenario, now=NOW)
    run.state("eavesdropper").mkdir()
    rundir.write_json(run.state("eavesdropper") / "evidence.json", {"summary": "decoded 0 of 5 hash blocks"})
    write_log(run, "air", {"event": "frame_carried"}, {"event": "frame_carried"})
    write_log(run, "eavesdropper", {"event": "reception_attacked"})
    assert "stopped before it had attacked everything" in printed(report.write(run, scenario))
    write_log(run, "eavesdropper", {"event": "reception_attacked"}, {"event": "reception_attacked"})
    assert "stopped before" not in printed(report.write(run, scenario))
