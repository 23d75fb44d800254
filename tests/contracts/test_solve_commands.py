"""Does ``hushtune solve`` tell the truth about its allocators, take its own files back, and name what is wrong with a file?"""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from hushtune_common.errors import ConfigError, DeadlineExceeded, Infeasible, MissingPackage
from hushtune_common.seeding import SeedTree
from hushtune_server.cli import main
from hushtune_server.coordinator.allocators import structured
from hushtune_server.coordinator.problems.draws import random_instance
from hushtune_server.coordinator.problems.forms import from_tree, to_tree
from hushtune_server.testbed.solve.compare import Bench
from hushtune_server.testbed.solve.files import instance_text, read_instance
from hushtune_server.testbed.solve.methods import METHODS, solver_of

pytestmark = pytest.mark.slow  # the first of them loads compiled code, whichever runs first

Solve = Callable[..., dict[str, Any]]


@pytest.fixture
def solve(capsys: pytest.CaptureFixture[str]) -> Solve:
    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert main(["solve", *arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def _as_it_is(_tree: dict[str, Any]) -> None: ...


def edited(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    tree = to_tree(random_instance(clients=3, seeds=SeedTree(1)))
    change(tree)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return str(path)


def test_the_objective_follows_from_the_printed_choice_alone(solve: Solve, tmp_path: Path) -> None:
    document = solve("--random", "6", "--seed", "3", "--write", str(tmp_path / "i.json"))
    tree = json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))
    times: list[float] = []
    energies: list[float] = []
    utility = 0.0
    for c, given in zip(tree["clients"], document["choice"]["clients"], strict=True):
        share, band, power = given["share"], given["bandwidth_mhz"], given["power_w"]
        x = power / band
        rate = band * np.log2((1 + c["gain_main_mhz_per_w"] * x) / (1 + c["gain_tap_mhz_per_w"] * x))
        work = c["train_tflop"] * (c["train_fixed_share"] + (1 - c["train_fixed_share"]) * share)
        plug = c["plug_in_tflop"] * share
        air = c["update_mbit"] * share / rate
        times.append(c["start_s"] + work / given["clock_tflops"] + air + plug / given["server_tflops"])
        energies.append(c["clock_energy_w_per_tflops3"] * work * given["clock_tflops"] ** 2 + power * air)
        energies.append(tree["server_energy_w_per_tflops3"] * plug * given["server_tflops"] ** 2)
        utility += c["utility_weight"] * np.log1p(c["utility_shape"] * share)
    cost = tree["time_weight_per_s"] * max(times) + tree["energy_weight_per_j"] * sum(energies)
    assert document["allocators"]["global"]["objective"] == pytest.approx(utility / cost, rel=1e-9)


def test_a_share_is_told_in_bytes_and_in_bits_per_weight(solve: Solve, tmp_path: Path) -> None:
    path = edited(tmp_path, lambda tree: tree.update(codec_bits=5.0))
    document, tree = solve(path), json.loads(Path(path).read_text(encoding="utf-8"))
    for c, given in zip(tree["clients"], document["choice"]["clients"], strict=True):
        assert given["budget_bytes"] == int(given["share"] * c["update_mbit"] * 125_000.0)
        assert given["bits_per_weight"] == pytest.approx(5.0 * given["share"])


def test_no_allocator_is_above_the_bound_and_global_reaches_it(solve: Solve) -> None:
    rows = solve("--random", "3", "--seed", "7", "--compare")["allocators"]
    assert list(rows) == list(METHODS)
    assert rows["global"]["gap"] <= 1e-9
    for row in rows.values():
        assert row["status"] in ("optimal", "feasible", "unavailable")
        if row["objective"] is not None:
            assert row["objective"] <= row["upper_bound"] * (1 + 1e-6)
            assert row["gap"] == pytest.approx(max(row["upper_bound"] / row["objective"] - 1.0, 0.0), abs=1e-12)
            assert row["cpu_ms"] > 0.0


def test_equal_seeds_give_equal_answers_and_others_do_not(solve: Solve) -> None:
    def objectives(seed: int) -> list[float]:
        found = solve("--random", "5", "--seed", str(seed), "--allocator", "random")["allocators"]["random"]
        return [found["objective"], found["upper_bound"]]

    assert objectives(4) == objectives(4)
    assert objectives(4) != objectives(5)


@pytest.mark.parametrize("suffix", [".toml", ".json"])
@pytest.mark.parametrize("scale", ["default", "extreme"])
def test_a_written_problem_comes_back_with_the_same_numbers(tmp_path: Path, suffix: str, scale: Any) -> None:
    drawn = random_instance(clients=4, seeds=SeedTree(2), scale=scale)
    path = tmp_path / f"i{suffix}"
    path.write_text(instance_text(drawn, suffix=suffix), encoding="utf-8")
    assert to_tree(read_instance(path)) == to_tree(drawn)


def test_a_file_is_solved_like_the_draw_it_was_written_from(solve: Solve, tmp_path: Path) -> None:
    path = str(tmp_path / "i.toml")
    drawn, read = solve("--random", "4", "--seed", "9", "--write", path), solve(path)
    assert tomllib.loads(Path(path).read_text(encoding="utf-8"))["clients"][3]["name"] == "client-4"
    assert drawn["choice"] == read["choice"]


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        ("bandwidth_mhz", float("nan"), "bandwidth_mhz"),
        ("bandwidth_mhz", 20e6, "not Hz"),
        ("codec_bits", 0.0, "codec_bits"),
        ("bandwidth_mhz", 10**400, "bandwidth_mhz"),
        ("bandwith_mhz", 1.0, "bandwith_mhz"),
        ("clients.1.power_max_w", -1, "clients.client-2.power_max_w"),
        ("clients.2.update_mbit", "much", "clients.client-3.update_mbit"),
        ("objective", {"kind": "difference", "price": "much"}, "objective.price"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], at: str, value: Any, said: str) -> None:
    def spoil(tree: dict[str, Any]) -> None:
        *way, last = at.split(".")
        for step in way:
            tree = cast(Any, tree)[int(step) if step.isdigit() else step]
        tree[last] = value

    assert main(["solve", edited(tmp_path, spoil)]) == ConfigError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "[1]"), ("a.json", "{"), ("a.json", "[" * 100_000), ("a.toml", "x"), ("a.txt", "")]
)
def test_what_is_no_problem_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert main(["solve", str(tmp_path / name)]) == ConfigError.exit_code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_that_is_not_there_is_named_with_the_command_that_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", str(tmp_path / "i.toml")]) == ConfigError.exit_code
    assert "--random 10 --write" in capsys.readouterr().err


def test_neither_a_file_nor_a_draw_nor_both_at_once_is_accepted(tmp_path: Path) -> None:
    assert main(["solve"]) == ConfigError.exit_code
    assert main(["solve", edited(tmp_path, _as_it_is), "--random", "3"]) == ConfigError.exit_code
    assert main(["solve", edited(tmp_path, _as_it_is), "--scale", "extreme"]) == ConfigError.exit_code


def test_an_impossible_deadline_ends_with_its_code_and_every_status_says_so(solve: Solve, tmp_path: Path) -> None:
    document = solve(edited(tmp_path, lambda t: t.update(deadline_s=0.01)), code=Infeasible.exit_code)
    row = document["allocators"]["global"]
    assert (row["status"], row["objective"], document["choice"]) == ("infeasible", None, None)
    assert "deadline_s" in row["problem"]
    assert document["upper_bound"] is None
    assert "deadline_s" in document["upper_bound_problem"]


def test_a_client_that_the_tap_hears_better_takes_no_part_and_is_named(solve: Solve, tmp_path: Path) -> None:
    def drown(tree: dict[str, Any]) -> None:
        tree["clients"][1]["gain_tap_mhz_per_w"] = 2.0 * tree["clients"][1]["gain_main_mhz_per_w"]

    document = solve(edited(tmp_path, drown))
    assert document["allocators"]["global"]["excluded"] == ["client-2"]
    assert document["choice"]["clients"][1]["share"] == 0.0
    assert document["allocators"]["global"]["gap"] <= 1e-9


def test_what_cannot_do_discrete_shares_says_so_and_global_can(solve: Solve, tmp_path: Path) -> None:
    rows = solve(edited(tmp_path, lambda t: t.update(share_levels=[0.25, 0.5, 1.0])), "--compare")["allocators"]
    assert rows["conic"]["status"] in ("unsupported", "unavailable")
    assert rows["global"]["objective"] > 0.0
    assert rows["equal_share"]["objective"] <= rows["global"]["upper_bound"]


def test_a_missing_package_costs_its_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, Any], sys.modules), "cvxpy", None)
    with pytest.raises(MissingPackage, match="cvxpy"):
        solver_of("communication_only", seeds=SeedTree(1))
    assert callable(solver_of("equal_share", seeds=SeedTree(1)))


def test_an_allocator_that_takes_too_long_is_stopped() -> None:
    bench = Bench(seeds=SeedTree(1), limit_s=0.1, tell=lambda _: None)
    instance = random_instance(clients=30, seeds=SeedTree(1))
    solver_of("conic", seeds=SeedTree(1))  # imported now: the limit is for solving
    row = bench.run(instance, "conic")
    assert row.status == "out_of_time"
    assert isinstance(row.error, DeadlineExceeded)
    assert bench.run(instance, "equal_share").solution is not None  # no alarm is left over


def test_what_is_measured_is_processor_time_and_the_best_of_five_short_runs() -> None:
    instance, steps = random_instance(clients=3, seeds=SeedTree(1)), iter([9.0, 0.09, 0.05, 0.02, 0.07, 0.03])
    ticks = (at for k, took in enumerate(steps) for at in (100.0 * k, 100.0 * k + took))
    bench = Bench(seeds=SeedTree(1), limit_s=60.0, tell=lambda _: None, cpu_time=lambda: next(ticks))
    assert bench.run(instance, "equal_share").cpu_ms == pytest.approx(9000.0)  # too long to be repeated
    assert bench.run(instance, "equal_share").cpu_ms == pytest.approx(20.0)


def test_admission_finds_the_best_set_of_clients_and_compares_on_it(solve: Solve, tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    document = solve("--random", "4", "--seed", "3", "--compare", "--admission", "--write", str(path))
    whole = from_tree(json.loads(path.read_text(encoding="utf-8")))
    sets = [np.array(mask) for mask in product([False, True], repeat=4) if any(mask)]
    values = [structured.solve(whole.select(mask)).evaluation.objective for mask in sets]
    best, rows = sets[int(np.argmax(values))], document["allocators"]
    assert not best.all()  # or nothing would be shown
    assert rows["global"]["objective"] == pytest.approx(max(values), rel=1e-9)
    assert document["admitted"] == best.sum()
    for row in (row for row in rows.values() if row["objective"] is not None):
        assert row["excluded"] == [name for name, taken in zip(whole.names, best, strict=True) if not taken]
        assert row["objective"] <= document["upper_bound"] * (1.0 + 1e-6)
        assert (row["status"], row["claim"]) == ("feasible", "none")


def test_admission_has_no_meaning_for_the_worst_off_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = edited(tmp_path, lambda t: t.update(objective={"kind": "max_min"}))
    assert main(["solve", path, "--admission"]) == ConfigError.exit_code
    assert "--admission" in capsys.readouterr().err


def test_costs_are_compared_the_right_way_round() -> None:
    instance = random_instance(clients=3, seeds=SeedTree(6))
    bench = Bench(seeds=SeedTree(6), limit_s=60.0, tell=lambda _: None)
    tree = to_tree(instance) | {"objective": {"kind": "cost", "utility_min": 3.0}}
    rows = list(bench.compare(from_tree(tree), ["global", "equal_share"]).rows.values())
    assert [row.status for row in rows] == ["optimal", "feasible"]
    assert rows[0].ratio == pytest.approx(1.0, abs=1e-6)
    assert 0.0 < (rows[1].ratio or 0.0) < 1.0


def test_figures_and_document_are_files_that_can_be_read(tmp_path: Path) -> None:
    out, folder = tmp_path / "r.json", tmp_path / "figures"
    contents: list[dict[str, bytes]] = []
    for _ in range(2):
        assert main(["solve", "--random", "3", "--figures", str(folder), "--out", str(out)]) == 0
        contents.append({path.name: path.read_bytes() for path in folder.glob("*")})
    assert set(contents[0]) == {"allocators.svg", "choice.svg"}
    assert contents[0]["choice.svg"] == contents[1]["choice.svg"]  # equal results give equal files
    assert contents[0]["allocators.svg"] == contents[1]["allocators.svg"]
    assert set(json.loads(out.read_text(encoding="utf-8"))["allocators"]) == {"global", "equal_share"}


def test_the_tables_fit_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--random", "23", "--allocator", "equal_share"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("and 3 more clients") for line in lines)
    assert any(line.startswith("equal_share") and "feasible" in line for line in lines)


def test_help_names_every_allocator_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(method in shown for method in METHODS)
    assert "Exit codes" in shown


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_the_examples_of_the_documentation_are_solved(solve: Solve, tmp_path: Path, suffix: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "SOLVE.md").read_text(encoding="utf-8")
    (example,) = re.findall(rf"```{suffix}\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / f"i.{suffix}").write_text(example, encoding="utf-8")
    row = solve(str(tmp_path / f"i.{suffix}"))["allocators"]["global"]
    assert row["worst_residual"] <= 1e-9
    assert 0.0 < row["objective"] <= row["upper_bound"]
