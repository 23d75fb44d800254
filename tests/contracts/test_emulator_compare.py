"""Is the comparison of emulators honest: paired, resumable, chosen on text of its own, and exact about what is wrong?"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError, Infeasible, TrainerFailed
from hushtune_common.model.plan import Plan
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.testbed.emulators.cells import Cell, Cells, Done
from hushtune_server.testbed.emulators.schema import parse
from hushtune_server.testbed.emulators.search import Demands, Point, answer, front
from hushtune_server.testbed.emulators.statistics import Bootstrap, difference, mean_of, recovery
from tests.models import some_windows, tiny_bundle
from tests.records import write_records

COMPARISON = """
name = "tiny"
seeds = [1, 2]
[model]
source = "random:blocks=4,hidden=16,heads=2,vocab=256,seed=1"
adapter_bottom = 1
adapter_top = 1
[data]
private = "txt:private.txt"
public = "txt:public.txt"
window_tokens = 17
train_windows = 6
test_windows = 2
[training]
batch_windows = 3
[selection]
learning_rates = [1e-3, 3e-3]
[[emulators]]
name = "every-other"
method = "uniform"
drop = 1
[[emulators]]
name = "least-missed"
method = "ablation"
drop = 1
profile_tokens = 34
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a comparison and its texts."""
    (tmp_path / "comparison.toml").write_text(COMPARISON, encoding="utf-8")
    write_records(tmp_path)
    return tmp_path


def compare(folder: Path, *more: str) -> int:
    arguments = ["emulator", "compare", "--scenario", str(folder / "comparison.toml"), "--out", str(folder / "out")]
    return main([*arguments, "--cache", str(folder / "cache"), *more])


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "tiny.json").read_text(encoding="utf-8"))


def cells_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "out" / "cells").glob("*.json")}


@pytest.mark.slow
def test_five_settings_of_every_emulator_come_with_intervals_around_them(folder: Path) -> None:
    assert compare(folder) == 0
    result = result_of(folder)
    rows = {row["name"]: row for row in result["emulators"]}
    assert set(rows) == {"every-other", "least-missed"}
    settings = dict(result["settings"])
    for row in rows.values():
        settings |= row["settings"]
        plug_in, emulator = row["settings"]["plug_in"]["nats"], row["settings"]["emulator_fine_tuned"]["nats"]
        assert row["delta"]["value"] == pytest.approx(emulator - plug_in)
        start, best = result["settings"]["full_zero_shot"]["nats"], result["settings"]["full_fine_tuned"]["nats"]
        assert row["recovery"]["value"] == pytest.approx((start - plug_in) / (start - best))
    wanted = {"full_zero_shot", "emulator_zero_shot", "full_fine_tuned", "emulator_fine_tuned", "plug_in", "bound"}
    assert set(settings) == wanted
    assert all(s["nats_low"] <= s["nats"] <= s["nats_high"] for s in settings.values())


@pytest.mark.slow
def test_what_regression_found_is_in_the_emulator_that_is_scored(folder: Path) -> None:
    options = 'method = "linear"\ndrop = 1\nprofile_tokens = 34\nfit_tokens = 400\nharmonizer_rank = 16\n'
    fitted = '[[emulators]]\nname = "fitted"\n' + options
    gap = fitted.replace('"fitted"', '"gap"') + 'harmonizer_start = "nothing"\n'
    with (folder / "comparison.toml").open("a", encoding="utf-8") as file:
        file.write(fitted + gap)
    assert compare(folder, "--methods", "fitted,gap,least-missed") == 0
    scores = {row["name"]: row["settings"]["emulator_zero_shot"]["nats"] for row in result_of(folder)["emulators"]}
    assert scores["gap"] == pytest.approx(scores["least-missed"], abs=1e-5)  # an untrained harmonizer is a gap
    assert scores["fitted"] != pytest.approx(scores["gap"], abs=1e-4)


@pytest.mark.slow
def test_two_comparisons_at_once_in_one_folder_give_what_they_give_alone(folder: Path) -> None:
    command = [sys.executable, "-m", "hushtune_server", "emulator", "compare", "--scenario", str(folder / "comparison.toml")]
    together = [
        subprocess.Popen(
            [*command, "--out", str(folder / "out"), "--cache", str(folder / "cache"), "--methods", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("every-other", "least-missed")
    ]
    assert [process.wait(timeout=120) for process in together] == [0, 0]
    assert compare(folder) == 0
    shared = result_of(folder)
    (folder / "out").rename(folder / "before")
    assert compare(folder) == 0
    alone = result_of(folder)
    assert [row["settings"] for row in shared["emulators"]] == [row["settings"] for row in alone["emulators"]]


@pytest.mark.slow
def test_a_comparison_that_was_killed_computes_only_what_is_missing(folder: Path) -> None:
    assert compare(folder) == 0
    first, before = result_of(folder), cells_of(folder)
    lost = sorted(path for path in before if path.name.startswith("train-"))[0]
    lost.unlink()
    assert compare(folder) == 0
    after = cells_of(folder)
    assert {path for path in after if after[path] != before[path]} == {lost}
    assert {**result_of(folder), "date": ""} == {**first, "date": ""}


@pytest.mark.slow
def test_the_first_seed_chooses_the_rate_on_text_that_no_arm_is_trained_or_scored_on(folder: Path) -> None:
    assert compare(folder, "--methods", "every-other") == 0
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in cells_of(folder)]
    trained = {(c["title"], c["key"]["seed"]): c["result"] for c in stored if c["kind"] == "train"}
    first = trained["every-other, adapter blocks, seed 1", 1]
    best = min(first["grid"], key=lambda row: row["held_out"])
    assert first["chosen"] == [best["learning_rate"], best["epochs"]]
    second = trained["every-other, adapter blocks, seed 2", 2]
    assert [[row["learning_rate"], row["epochs"]] for row in second["grid"]] == [first["chosen"]]
    assert result_of(folder)["data"]["windows"] == {"train": 5, "select": 1, "test": 2}


@pytest.mark.slow
def test_a_training_that_diverges_is_told_and_stops_no_other_cell(folder: Path) -> None:
    assert compare(folder, "--set", "selection.learning_rates=[1e38]", "--set", "selection.full_rate_share=1e-41") == 0
    result = result_of(folder)
    assert all(row["failed"] and "delta" not in row for row in result["emulators"])
    assert {"full_zero_shot", "full_fine_tuned"} <= set(result["settings"])
    assert "bound" not in result["settings"]


FITTED = """
[[emulators]]
name = "fitted"
method = "linear"
drop = 1
harmonizer_rank = 8
fit_tokens = 200
profile_tokens = 34
"""


@pytest.mark.slow
def test_an_emulator_whose_training_diverges_is_told_and_stops_no_other(folder: Path) -> None:
    (folder / "comparison.toml").write_text(COMPARISON + FITTED + "steps = 2\nlearning_rate = 1e38\n", encoding="utf-8")
    for _ in range(2):  # the second time it is known
        assert compare(folder, "--methods", "fitted,every-other", "--seeds", "1", "--set", "attacks=[]") == 0
        rows = {row["name"]: row for row in result_of(folder)["emulators"]}
        assert "lower owner.emulator.learning_rate" in rows["fitted"]["failed"][0]
        assert "plug_in" in rows["every-other"]["settings"]


@pytest.mark.slow
def test_a_document_names_the_whole_command(folder: Path) -> None:
    assert compare(folder, "--methods", "every-other", "--seeds", "1", "--set", "attacks=[]") == 0
    said = result_of(folder)["command"]
    assert said.endswith("--methods every-other --seeds 1 --set 'attacks=[]'")


@pytest.mark.parametrize("seeds", ["", ",", "1,1", "--1", "²", "1-2"])
def test_seeds_are_whole_numbers_each_named_once(folder: Path, capsys: pytest.CaptureFixture[str], seeds: str) -> None:
    assert compare(folder, f"--seeds={seeds}") == ConfigError.exit_code
    assert "--seeds" in capsys.readouterr().err


@pytest.mark.slow
def test_an_emulator_that_fits_a_budget_is_the_largest_of_its_method_that_does(folder: Path) -> None:
    text = COMPARISON.replace("drop = 1\nprofile_tokens", "fit = true\nprofile_tokens")
    (folder / "comparison.toml").write_text(text, encoding="utf-8")
    assert compare(folder, "--set", 'budget.same_as="every-other"', "--seeds", "1", "--set", "attacks=[]") == 0
    rows = {row["name"]: row for row in result_of(folder)["emulators"]}
    assert rows["least-missed"]["bytes"] == rows["every-other"]["bytes"]
    assert rows["least-missed"]["options"]["drop"] == 1


@pytest.mark.slow
def test_a_budget_that_no_size_meets_is_refused_with_the_least(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = COMPARISON.replace("drop = 1\nprofile_tokens", "fit = true\nprofile_tokens")
    (folder / "comparison.toml").write_text(text, encoding="utf-8")
    assert compare(folder, "--methods", "least-missed", "--set", "budget.bytes=100") == ConfigError.exit_code
    assert "smallest emulator" in capsys.readouterr().err


def test_what_diverged_is_settled_with_its_reason_and_not_tried_again(tmp_path: Path) -> None:
    told: list[Done] = []
    cells = Cells(tmp_path, clock=SystemClock(), tell=told.append)
    cell = Cell(kind="train", title="a training", key={"seed": 1})

    def diverges() -> dict[str, Any]:
        raise TrainerFailed("the loss of step 3 is nan")

    assert cells.settle(cell, diverges) == cells.settle(cell, dict) == {"failed": "the loss of step 3 is nan"}
    assert [done.reused for done in told] == [False, True]


def test_a_cell_that_was_cut_short_is_computed_again(tmp_path: Path) -> None:
    cells = Cells(tmp_path, clock=SystemClock(), tell=lambda _done: None)
    cell = Cell(kind="score", title="a score", key={"seed": 1})
    cells.settle(cell, lambda: {"losses": [1.0]})
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert cells.settle(cell, lambda: {"losses": [2.0]}) == {"losses": [2.0]}


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    scores = SeedTree(1).generator().normal(3.0, 0.5, (1, 400))
    found = Bootstrap(windows=400, seeds=1, resamples=20_000, tree=SeedTree(2)).interval({"arm": scores}, mean_of("arm"))
    error = float(scores.std()) / np.sqrt(400)  # of a mean of draws with replacement from these scores
    assert found.value == float(scores.mean())
    # A quantile of 20,000 draws at 2.5 % is known to about 0.02 standard errors; three of those.
    assert (found.value - found.low) / error == pytest.approx(1.96, abs=0.1)
    assert (found.high - found.value) / error == pytest.approx(1.96, abs=0.1)


def test_seeds_that_differ_widen_the_interval_as_their_variance_says() -> None:
    scores = np.repeat(np.array([[1.0], [2.0], [3.0], [4.0]]), 50, axis=1)
    bootstrap = Bootstrap(windows=50, seeds=4, resamples=20_000, tree=SeedTree(2))
    found = bootstrap.interval({"arm": scores}, mean_of("arm"))
    # The mean of four draws with replacement out of 1, 2, 3, 4 times a quarter: 2.5 % of the mass is below 1.5 and above 3.5.
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 1.5, 3.5))


def test_what_two_arms_share_does_not_widen_the_interval_of_their_difference() -> None:
    hard = SeedTree(1).generator().normal(3.0, 1.0, (1, 60))
    bootstrap = Bootstrap(windows=60, seeds=3, resamples=1000, tree=SeedTree(2))
    found = bootstrap.interval({"a": np.repeat(hard, 3, axis=0) + 0.25, "b": hard}, difference("a", "b"))
    assert (found.low, found.high) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_recovery_is_the_share_of_the_gain_in_log_perplexity() -> None:
    share = recovery(start="start", reached="reached", best="best")
    means = {name: np.log(np.array(value)) for name, value in {"start": 100.0, "reached": 20.0, "best": 10.0}.items()}
    assert float(share(means)) == pytest.approx(np.log(5.0) / np.log(10.0))
    assert np.isnan(float(share({**means, "best": means["start"]})))


ONE: Mapping[str, Any] = {"name": "one", "method": "uniform", "drop": 2}


@pytest.mark.parametrize(
    ("changes", "field", "hint"),
    [
        ({"sedes": [1]}, "sedes", "seeds"),
        ({"data": {"private": "txt:a", "public": "txt:b", "test_window": 3}}, "data.test_window", "data.test_windows"),
        ({"emulators": [{**ONE, "dorp": 3}]}, "emulators[0].dorp", "drop"),
        ({"emulators": [{**ONE, "method": "unifrom"}]}, "emulators[0].method", "uniform"),
        ({"emulators": [{**ONE, "drop": -1}]}, "emulators[0].drop", ">= 0"),
        ({"emulators": [{**ONE, "fit": True}]}, "budget", "budget.bytes"),
        ({"emulators": [ONE, ONE]}, "emulators", "'one' appears more than once"),
        ({"emulators": [{**ONE, "plan": "x.json"}]}, "emulators[0].plan", "own plans"),
        ({"budget": {"same_as": "two"}}, "budget.same_as", "no emulator 'two'"),
        ({"budget": {"same_as": "one", "bytes": 3}}, "budget", "not both"),
        ({"seeds": [1, 1]}, "seeds", "twice"),
        ({"claims": [{"text": "", "first": "one", "second": "two"}]}, "claims[0].second", "the comparison has one"),
        ({"claims": [{"text": "", "first": "one", "second": "one"}]}, "claims[0].second", "two emulators"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_path_with_a_hint(changes: Mapping[str, Any], field: str, hint: str) -> None:
    tree = {"name": "c", "model": {"source": "random:"}, "data": {"private": "txt:a", "public": "txt:b"}, "emulators": [ONE]}
    with pytest.raises(ConfigError) as refused:
        parse({**tree, **changes})
    assert refused.value.field == field
    assert hint in refused.value.problem


def test_a_method_that_the_comparison_does_not_have_is_named_with_those_it_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(folder, "--methods", "crash") == ConfigError.exit_code
    assert "every-other, least-missed" in capsys.readouterr().err


NUMBERS = st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0])
POINTS = st.lists(st.tuples(st.integers(1, 4), NUMBERS, NUMBERS), min_size=1, max_size=8)


def points(rows: list[tuple[int, float, float]]) -> list[Point]:
    return [Point(name=f"p{k}", bytes=size, plug_in=plug_in, gap=gap) for k, (size, plug_in, gap) in enumerate(rows)]


@given(POINTS)
def test_the_front_is_what_nothing_else_is_at_least_as_good_as_everywhere(rows: list[tuple[int, float, float]]) -> None:
    found = {p.name for p in front(points(rows))}
    for k, (size, plug_in, gap) in enumerate(rows):
        better = [r for r in rows if r != (size, plug_in, gap) and r[0] <= size and r[1] >= plug_in and r[2] >= gap]
        assert (f"p{k}" in found) == (not better)


@given(POINTS, NUMBERS, NUMBERS, st.integers(1, 4))
def test_what_is_taken_meets_every_demand_and_has_the_best_plug_in_of_all_that_do(
    rows: list[tuple[int, float, float]], plug_in_min: float, gap_min: float, bytes_max: int
) -> None:
    found = answer(points(rows), Demands(plug_in_min=plug_in_min, gap_min=gap_min, bytes_max=bytes_max))
    fit = [r for r in rows if r[0] <= bytes_max and r[1] >= plug_in_min and r[2] >= gap_min]
    assert (found.taken is None) == (not fit) == (found.problem is not None)
    if found.taken is not None:
        assert found.taken.plug_in == max(r[1] for r in fit)
        assert found.taken in found.front


def test_a_demand_that_nobody_meets_is_named_with_what_is_missing() -> None:
    rows = points([(300, 0.9, -0.2), (200, 0.7, 0.1)])
    problem = answer(rows, Demands(gap_min=0.25)).problem
    assert problem == "gap is missed by 0.1500 even by p1, the best at it"
    both = answer(rows, Demands(gap_min=0.0, plug_in_min=0.75)).problem
    assert both == "each demand can be met, but not all at once; p1 comes nearest: plug-in is missed by 0.0500"


@pytest.mark.slow
def test_a_search_tries_sizes_and_writes_the_plan_to_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = folder / "plan.json"
    where = ["--scenario", str(folder / "comparison.toml"), "--out", str(folder / "out"), "--cache", str(folder / "cache")]
    more = ["--methods", "every-other", "--sizes", "2", "--seeds", "1", "--plan", str(plan), "--json"]
    assert main(["emulator", "search", *where, *more, "--plug-in-min", "-1000"]) == 0
    found = json.loads(capsys.readouterr().out)
    dropped = {"every-other-size-0": (), "every-other-size-2": (1, 2)}
    assert Plan.from_json(plan.read_bytes()).dropped == dropped[found["taken"]["name"]]
    assert main(["emulator", "search", *where, *more, "--bytes-max", "10"]) == Infeasible.exit_code
    assert "bytes are exceeded" in capsys.readouterr().err


@pytest.mark.slow
def test_the_document_has_the_numbers_of_the_result_and_its_figures_beside_it(folder: Path) -> None:
    file = folder / "doc" / "emulators.md"
    assert compare(folder, "--seeds", "1", "--document", str(file)) == 0
    text = file.read_text(encoding="utf-8")
    for row in result_of(folder)["emulators"]:
        assert f"{row['settings']['plug_in']['perplexity']:.2f}" in text
        assert row["plan_digest"][:16] in text
    for figure in ("plug_in", "delta", "importance"):
        assert (folder / "doc" / "emulators" / f"{figure}.svg").is_file()
        assert f"(emulators/{figure}.svg)" in text


@pytest.mark.slow
def test_a_claim_is_upheld_only_by_an_interval_above_zero(folder: Path) -> None:
    first, second = "every-other", "least-missed"
    both = [(first, second, "plug_in"), (second, first, "plug_in"), (first, second, "hides")]
    claims = [{"text": m, "first": a, "second": b, "measure": m} for a, b, m in both]
    written = ", ".join("{" + ", ".join(f'{k} = "{v}"' for k, v in c.items()) + "}" for c in claims)
    assert compare(folder, "--set", "attacks=[]", "--set", f"claims=[{written}]", "--document", str(folder / "doc.md")) == 0
    result = result_of(folder)
    settings = {row["name"]: {k: v["nats"] for k, v in row["settings"].items()} for row in result["emulators"]}
    gain = settings[second]["plug_in"] - settings[first]["plug_in"]
    hidden = settings[first]["emulator_zero_shot"] - settings[second]["emulator_zero_shot"] + gain
    assert [c["difference"]["value"] for c in result["claims"]] == pytest.approx([gain, -gain, hidden])
    assert all(c["holds"] == (c["difference"]["low"] > 0.0) for c in result["claims"])
    assert not (result["claims"][0]["holds"] and result["claims"][1]["holds"])
    assert "## What is claimed" in (folder / "doc.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_document_claims_no_choice_where_there_was_none_and_says_how_rates_were_found(folder: Path) -> None:
    file = folder / "doc.md"
    found = ["--set", "selection.learning_rates=[1e-3]", "--set", 'selection.note="by a look at test scores"']
    few = ["--methods", "every-other", "--seeds", "1", "--set", "attacks=[]"]
    assert compare(folder, *few, *found, "--document", str(file)) == 0
    text = file.read_text(encoding="utf-8")
    assert "1 are left out" in text
    assert "how these were found: by a look at test scores" in text
    assert "the first seed chooses" not in text


@pytest.mark.slow
def test_a_process_of_its_own_says_how_fast_training_was_and_how_large_it_became(tmp_path: Path) -> None:
    windows = some_windows(6).tolist()
    order = {"bundle": str(tiny_bundle(tmp_path, 2)), "trained": "adapter", "windows": windows, "training": {"batch_windows": 2}}
    done = subprocess.run(
        [sys.executable, "-m", "hushtune_server.testbed.emulators.cost_child"],
        input=json.dumps({**order, "compute": {}}),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["steps"] == 3
    assert found["tokens_per_s"] > 0.0
    # It has torch loaded, and is not this process, which holds what pytest and hypothesis do as well.
    assert 5e7 < found["idle_bytes"] < found["peak_bytes"] < 4e9


@pytest.mark.slow
def test_an_encoder_is_compared_by_the_texts_that_it_tells_apart(folder: Path) -> None:
    questions = [f"{'who' if k % 2 else 'where'} is number {k} of {'people' if k % 2 else 'places'}" for k in range(40)]
    rows = [json.dumps({"text": text, "label": text.split()[0]}) for text in map(_worded, questions)]
    (folder / "private.jsonl").write_text("\n".join(rows), encoding="utf-8")
    text = COMPARISON.replace("random:", "random:family=bert,").replace("txt:private.txt", "jsonl:private.jsonl")
    text = text.replace('name = "tiny"', 'name = "tiny"\ntask = "classify"').replace("train_windows = 6", "train_windows = 20")
    (folder / "comparison.toml").write_text(text.replace("test_windows = 2", "test_windows = 10"), encoding="utf-8")
    assert compare(folder, "--methods", "every-other", "--seeds", "1") == 0
    result = result_of(folder)
    assert result["data"]["windows"] == {"train": 18, "select": 2, "test": 10}
    (row,) = result["emulators"]
    for score in (*result["settings"].values(), *row["settings"].values()):
        assert score["accuracy"] == pytest.approx(1.0 - score["error"])
        assert (10 * score["accuracy"]) % 1 == pytest.approx(0.0, abs=1e-9)
    assert {"full_zero_shot", "full_fine_tuned", "bound"} == set(result["settings"])


def _worded(text: str) -> str:
    """Spell numbers: texts that differ in digits only count as the same."""
    return "".join("abcdefghij"[int(c)] if c.isdigit() else c for c in text)
