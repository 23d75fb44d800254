"""The page of a run says what its files say, believes no name in them, and needs nothing but itself."""

import json
import re
import shutil
from html.parser import HTMLParser
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from hushtune_common import config
from hushtune_common.errors import ConfigError
from hushtune_server import cli
from hushtune_server.testbed import rundir
from hushtune_server.testbed.page import claims, commands, intervals, links, pages, phases, tables, ways
from hushtune_server.testbed.page.gathering import gather
from hushtune_server.testbed.rundir import RunDirectory, write_json
from tests.contracts.test_plots import sender
from tests.contracts.test_trace import lines_of

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>&lt;b&gt;$\\frac{1}{2}$</style>{{ 7 * 7 }}"""


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def client(name: str) -> dict[str, Any]:
    gate = {"snr_main_db": 17.64, "snr_tap_bound_db": -6.13, "block_error_rate": 3e-4, "rate_coded": 4.5, "rate_gaussian": 5.6}
    planned = {"airtime_s": 3.4, "train_s": 0.4, "compute_j": 3.0, "radio_j": 0.006}
    return {
        "id": name,
        "gate": "granted",
        "gate_reason": f"closes for {name}",
        "gate_numbers": gate,
        "assignment": {"planned": planned, "bandwidth_hz": 5.3e6, "power_w": 2e-3, "clock_flops": 2e12, "adapter_share": 0.36},
        "update": {"share": 0.36, "budget_bytes": 10_000, "bytes_encoded": 9_000, "bytes_sealed": 9_100, "bits_per_weight": 2.9},
        "bytes_raw": 113_000,
        "bytes_uploaded": 13_000,
        "energy_j": 3.006,
        "accepted": True,
        "outcome": "accepted",
        "plug_in": {"perplexity": 218.5},
    }


def heard(name: str) -> dict[str, Any]:
    return {
        **sender(name),
        "protection": "payload",
        "owner_has_every_byte": True,
        "snr_tap_true_db": -15.4,
        "tap_bits": {"bit_error_rate": 0.49871, "bits_compared": 81_758_760},
        "tap_crc_passes": 0,
        "density": {"values_bits": [200.0, 210.0, 190.0], "max_bits": 210.0, "budget_bits": 2888},
        "log2_delta_total": -52.63,
        "log2_delta_all_rounds": -51.63,
        "bound_void": None,
        "tap_assumption_held": True,
    }


def run_in(folder: Path, *, name: str = "c1", **more: Any) -> RunDirectory:
    run = rundir.RunDirectory(folder / "small-1")
    (run.path / "logs").mkdir(parents=True)
    shutil.copy(ROOT / "scenarios/small.toml", run.scenario)
    facts = {"id": run.id, "started": "2026-11-22T09:48:14+00:00", "status": "finished", "command": ["testbed", "run", "x.toml"]}
    write_json(run.path / "run.json", facts)
    score = {"perplexity": 265.8, "loss_nats": 5.58}
    report: dict[str, Any] = {
        "run": run.id,
        "status": "finished",
        "problem": None,
        "scenario": "small",
        "scenario_digest": "ab" * 32,
        "seed": 1,
        "fidelity": "bit_exact",
        "settings": {"full_zero_shot": score, "plug_in": {"perplexity": 216.2, "loss_nats": 5.38}},
        "clients": [client(name)],
        "plan": {name: {"planned": {"compute_j": 3.0}, "realised": {"compute_j": 3.0, "radio_j": 0.006}, "train_wall_s": 39.5}},
        "equal_share": {"objective": 0.8, "clients": {name: {"bandwidth_hz": 6.7e6, "energy_j": 1.5}}},
        "allocation": {"method": "global", "objective": 1.24, "gap": 3e-4, "notes": []},
        "rounds": [{"round_id": 1, "accepted": [name], "missing": [], "owner": {"kept": True}, "uplink_bytes": 13_000}],
        "link": {"round_id": 1, "rounds": 1, "caveat": "no evidence of secrecy", "claim": "bit_exact", "clients": [heard(name)]},
        "eavesdropper": {"summary": "leakage bound at most 2^-52.6 per update"},
        "assumptions": ["an assumption"],
        "test_windows": 16,
        "wall_s": 150.2,
        "versions": {"python": "3.11"},
        "peak_rss_bytes": {"owner": 2_000_000_000},
    }
    write_json(run.report, {**report, **more})
    log = [
        {"event": "phase_changed", "role": "client", "phase": "training"},
        {"event": "training_progressed", "role": "client", "client": name, "round_id": 1, "step": 1, "loss": 5.7},
        {"event": "training_progressed", "role": "client", "client": name, "round_id": 1, "step": 2, "loss": 5.6},
        {"event": "verdict_missed", "level": "warning", "role": "client", "client": name, "problem": f"gone, says {name}"},
    ]
    lines = [json.dumps({"time": f"2026-11-22T09:48:{10 * k:02}+00:00", **entry}) for k, entry in enumerate(log)]
    run.log("c1").write_text("\n".join([*lines, "{damaged"]), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pages.write(run_in(tmp_path_factory.mktemp("runs"))).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_says_what_the_report_says(text: str) -> None:
    shown = Page(text).text
    for words in (
        "265.8 → 216.2",
        "-18.7 %",
        "0.49871",
        "17.6",
        "5.3 MHz",
        "6.7 MHz",
        "3.01 J",
        "13 kB",
        "1 damaged lines",
        "gone, says c1",
    ):
        assert words.replace(" ", "") in shown.replace(" ", "").replace("\N{NO-BREAK SPACE}", ""), words
    for assumption in ("an assumption, not a measurement", "passive", "not peer reviewed", "bounds what it may learn from that"):
        assert assumption in shown
    assert "2<sup>\N{MINUS SIGN}52.6</sup>" in text


@pytest.mark.slow
def test_the_page_fetches_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")], tag
        assert all(str(attributes[key]).startswith("#") for key in ("href", "src", "xlink:href") if key in attributes), attributes
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text


@pytest.mark.slow
def test_every_table_has_headings_with_scopes_and_every_figure_says_what_it_shows(text: str) -> None:
    page = Page(text)
    headings = [attributes for tag, attributes in page.elements if tag == "th"]
    assert headings
    assert {attributes.get("scope") for attributes in headings} == {"col", "row"}
    assert sum(tag == "caption" for tag, _ in page.elements) == sum(tag == "table" for tag, _ in page.elements) > 8
    figures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(figures) >= 9
    assert all(attributes["role"] == "img" and len(str(attributes["aria-label"])) > 20 for attributes in figures)


@pytest.mark.slow
def test_no_two_elements_of_the_page_have_one_name_and_every_link_inside_leads_somewhere(text: str) -> None:
    attributes = [found for _, found in Page(text).elements]
    names = [str(found["id"]) for found in attributes if "id" in found]
    assert len(names) == len(set(names))
    linked = {str(found["href"])[1:] for found in attributes if str(found.get("href", "")).startswith("#")}
    linked |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert linked
    assert linked <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", [HOSTILE, "a" * 3000 + "\u202e{% raw %}", "$\\bad{$"])
def test_a_hostile_name_is_text_and_nothing_else(tmp_path: Path, name: str) -> None:
    run = run_in(tmp_path, name=name, problem=f"failed: {name}", scenario=name, eavesdropper={"summary": name})
    harmless = Page(pages.render(gather(run_in(tmp_path / "other"))))
    page = Page(pages.render(gather(run)))
    for tag in ("script", "img", "style", "table", "section", "b", "h2"):
        assert page.count(tag) == harmless.count(tag), tag
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert name.split("{{")[0][:24] in page.text


@pytest.mark.slow
def test_a_run_that_failed_early_has_a_page_that_says_so(tmp_path: Path) -> None:
    run = rundir.RunDirectory(tmp_path / "small-2")
    (run.path / "logs").mkdir(parents=True)
    shutil.copy(ROOT / "scenarios/small.toml", run.scenario)
    write_json(run.path / "run.json", {"id": "small-2", "status": "failed", "problem": "owner: the text is not installed"})
    shown = Page(pages.render(gather(run))).text
    assert "owner: the text is not installed" in shown
    assert "Not scored: the run did not get that far" in shown
    assert "0 of 3" in shown


@pytest.mark.slow
def test_a_void_bound_is_claimed_nowhere(tmp_path: Path) -> None:
    void = {**heard("c1"), "bound_void": "the tap's SNR was above what the design assumed"}
    page = Page(pages.render(gather(run_in(tmp_path, link={"round_id": 1, "rounds": 1, "clients": [void]}))))
    assert ("div", {"class": "claim void"}) in page.elements
    assert "VOID in this run. c1: the tap's SNR was above" in page.text


def test_a_bound_that_was_void_in_an_earlier_round_is_claimed_nowhere(tmp_path: Path) -> None:
    void = {**heard("c1"), "log2_delta_total": -40.0, "bound_void": "the tap's SNR was above what the design assumed"}
    link = {"round_id": 2, "rounds": 2, "clients": [heard("c1")], "earlier": [{"round_id": 1, "clients": [void]}]}
    material = gather(run_in(tmp_path, link=link, shared_out=rounds_of(2)))
    claim = claims.claims(material)[0]
    assert claim.stands == claims.VOID
    assert "c1, round 1: the tap's SNR was above" in claim.says
    assert "2^-40.0" in claim.says
    assert next(card for card in pages.cards(material) if "leakage" in card.label).value == "void"


@pytest.mark.slow
def test_figures_are_written_as_asked_and_equal_runs_give_equal_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_in(tmp_path)
    for folder in ("one", "two"):
        command = [
            "report",
            str(run.path),
            "--out",
            str(tmp_path / "x.html"),
            "--figures",
            str(tmp_path / folder),
            "--formats",
            "svg",
        ]
        assert cli.main(command) == 0
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert {
        "settings.svg",
        "link.svg",
        "allocation.svg",
        "timeline.svg",
        "ledger.svg",
        "losses.svg",
        "constellation.svg",
    } <= names
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    assert str(tmp_path / "x.html") in capsys.readouterr().out


@pytest.mark.slow
def test_runs_side_by_side_differ_where_their_scenarios_do(tmp_path: Path) -> None:
    one, two = run_in(tmp_path / "a"), run_in(tmp_path / "b", run=HOSTILE)
    two.scenario.write_text(two.scenario.read_text().replace("drop = 8", "drop = 6"))
    out = tmp_path / "c.html"
    assert cli.main(["report", "--compare", str(one.path), str(two.path), "--out", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert "owner.emulator.drop 8 6" in page.text
    assert "learning_rate" not in page.text
    assert not [tag for tag, _ in page.elements if tag in ("script", "img")]


def swept(folder: Path, seeds: dict[int, tuple[float, float]], **more: Any) -> list[RunDirectory]:
    """Return a run for each seed, with these perplexities before and after plugging in."""

    def score(perplexity: float) -> dict[str, float]:
        return {"perplexity": perplexity, "loss_nats": log(perplexity)}

    return [
        run_in(folder / str(seed), seed=seed, settings={"full_zero_shot": score(before), "plug_in": score(after)}, **more)
        for seed, (before, after) in seeds.items()
    ]


@pytest.mark.slow
def test_a_sweep_has_every_seed_its_mean_with_students_interval_and_a_link_to_every_run(tmp_path: Path) -> None:
    runs = swept(tmp_path / "runs", {1: (200.0, 150.0), 2: (210.0, 147.0), 3: (190.0, 152.0)}, scenario=HOSTILE)
    out = tmp_path / "pages" / "sweep.html"
    out.parent.mkdir()
    assert cli.main(["report", "--sweep", *(str(run.path) for run in runs), "--out", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    shown = page.text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    assert "seed 1 seed 2 seed 3 mean (95 %) s.d." in shown
    # Student's interval with t(0.975; 2) = 4.3027 of the logarithms, worked out by hand:
    assert "149.7 (143.5 to 156.0) 2.5" in shown  # of 5.0106, 4.9904, 5.0239: 5.0083 and 0.01685
    assert "-25.0 % -30.0 % -20.0 % -25.0 % (-36.6 to -11.6 %) 5.0" in shown  # of 0.75, 0.7, 0.8: -0.28917 and 0.06678
    assert "The scenarios are the same, line by line." in shown
    links = [Path(str(found["href"])) for tag, found in page.elements if tag == "a" and not str(found["href"]).startswith("#")]
    assert [(out.parent / link).resolve() for link in links] == [(run.path / "report.html").resolve() for run in runs]
    assert not {tag for tag, _ in page.elements} & {"script", "img", "link"}


@pytest.mark.slow
def test_a_sweep_that_ended_early_says_so_and_one_seed_has_no_interval(tmp_path: Path) -> None:
    (run,) = swept(tmp_path / "runs", {1: (200.0, 150.0)}, status="failed")
    shown = Page(commands.write_sweep([run], problem="Seed 1 failed and ended the sweep.").read_text(encoding="utf-8")).text
    assert "Seed 1 failed and ended the sweep." in shown
    assert "no sweep of one scenario" not in shown
    assert "150.0 – –" in shown


@pytest.mark.slow
def test_runs_that_are_no_sweep_are_not_passed_off_as_one(tmp_path: Path) -> None:
    runs = [*swept(tmp_path / "a", {1: (2.0, 1.0)}), *swept(tmp_path / "b", {1: (2.0, 1.0)})]
    runs[1].scenario.write_text(runs[1].scenario.read_text().replace("drop = 8", "drop = 6"))
    shown = Page(commands.write_sweep(runs).read_text(encoding="utf-8")).text
    assert "they differ in more than the seed, as below; a seed is there more than once" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a", "b"], "--compare"),
        (["--compare", "--sweep", "a"], "two pages"),
        (["--compare", "small-1"], "2 to"),
        (["--formats", "gif", "--figures", "f"], "png, pdf, svg"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    run_in(tmp_path)
    shutil.copytree(tmp_path / "small-1", tmp_path / "a")
    shutil.copytree(tmp_path / "small-1", tmp_path / "b")
    assert cli.main(["report", *arguments, "--runs", str(tmp_path)]) == ConfigError.exit_code
    assert told in capsys.readouterr().err


def test_an_equal_share_is_what_dividing_the_band_gives(tmp_path: Path) -> None:
    from hushtune_server.testbed import equal_share

    scenario = config.load(ROOT / "scenarios/small.toml")
    report = {"round_id": 1, "gain_main": 1e-9, "gain_tap": 3e-12, "power_max": 0.2, "clock_max": 2e12, "energy_max": 5000.0}
    report |= {"sample_count": 24, "update_bits": 226_000_000, "train_flops": 7.5e11, "energy_w_per_flops3": 1e-36}
    found = equal_share.of(scenario, {"reports": [{"client": name, **report} for name in ("c1", "c2", "c3")]})
    assert found is not None
    bands = [entry["bandwidth_hz"] for entry in found["clients"].values()]
    assert bands == pytest.approx([scenario.air.bandwidth_hz / 3] * 3)
    assert all(entry["clock_flops"] == pytest.approx(0.7 * 2e12) for entry in found["clients"].values())
    assert equal_share.of(scenario, {"reports": []}) is None
    assert "problem" in (equal_share.of(scenario, {"reports": [{"client": 7}]}) or {})


def test_a_phase_lasts_until_the_next_one(tmp_path: Path) -> None:
    material = gather(run_in(tmp_path))
    (span,) = phases.spans(material.lines)["c1"]
    assert (span.kind, span.seconds) == ("training", 30.0)
    assert tables.log_summary(material).rows[0][:2] == ("training_progressed", "2")


@pytest.mark.parametrize(
    ("added", "claim", "says"),
    [
        (
            "[training.dp]\nepsilon = 8.0\ndelta = 1e-5\nclip_norm = 1.0\n",
            "Privacy of a client's text towards the owner",
            "Epsilon at most 8",
        ),
        ("[codec.noise]\nepsilon = 4.0\nclip = 5e-3\nblock = 1\n", "Noise in every update", "epsilon 4.0 for each block of 1"),
    ],
)
def test_a_claim_is_made_where_the_scenario_has_what_it_rests_on(tmp_path: Path, added: str, claim: str, says: str) -> None:
    plain, run = run_in(tmp_path / "plain"), run_in(tmp_path / "more")
    run.scenario.write_text(run.scenario.read_text() + "\n" + added)
    before = {c.title: c for c in claims.claims(gather(plain)) if c.stands == claims.HOLDS}
    after = {c.title: c for c in claims.claims(gather(run)) if c.stands == claims.HOLDS}
    assert claim not in before
    assert says in after[claim].says
    assert after[claim].rests_on


def test_what_the_owner_learns_is_a_sum_where_updates_are_added_unseen(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.scenario.write_text(run.scenario.read_text() + '\n[owner.aggregation]\nkind = "secure"\n')
    owner = next(entry for entry in claims.learns(gather(run)) if entry.who == "Owner")
    assert "in the clear" not in owner.what
    assert "sum" in owner.what


def test_a_report_of_an_earlier_version_is_gathered_anew(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    write_json(run.report, {"run": run.id, "settings": {}})
    assert [entry["id"] for entry in gather(run).clients] == ["c1", "c2", "c3"]


def test_the_way_of_an_adapter_is_one_row_and_disagreement_stands_out(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    for name, written in lines_of(received="f" * 64).items():
        rows = [json.dumps({"time": f"2026-11-22T09:41:{entry.pop('at'):02}+00:00", **entry}) for entry in written]
        run.log(name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    made = ways.ways(gather(run))
    assert [row[:2] for row in made.rows] == [("c1", "1"), ("c2", "1")]
    assert [row[-2] for row in made.rows] == ["NO", "not known"]
    assert made.bad == frozenset({0})


def test_a_referee_of_an_earlier_version_that_said_less_is_believed_that_much(tmp_path: Path) -> None:
    heard_less = {"client": "c1", "transmissions": 1, "log2_delta_total": -52.63, "protection": "payload"}
    material = gather(run_in(tmp_path, link={"rounds": 1, "clients": [heard_less]}))
    assert links.ears(material, material.rounds[-1]).rows[0][:2] == ("c1", "payload")
    assert "2^-52.6" in claims.claims(material)[0].says


def assigned(name: str, *, owner_db: float, gate: str = "granted", **more: Any) -> dict[str, Any]:
    """Return what a report has of a client in one round."""
    cost = {"energy_j": 2.0, "bytes_uploaded": 10}
    told = client(name)
    numbers = {**told["gate_numbers"], "snr_main_db": owner_db}
    return {**told, "gate": gate, "gate_numbers": numbers, "cost": cost, "missing_because": None, **more}


def rounds_of(count: int) -> list[dict[str, Any]]:
    return [
        {
            "round_id": n,
            "allocation": {"method": "global", "objective": n},
            "equal_share": {},
            "clients": [assigned("c1", owner_db=n)],
        }
        for n in range(1, count + 1)
    ]


@pytest.mark.slow
def test_every_round_has_its_gate_its_allocation_and_both_ears_the_latest_first(tmp_path: Path) -> None:
    brief = {**heard("c1"), "constellation": None, "density": None, "tap_bits": {"bit_error_rate": 0.44444}}
    link = {"round_id": 3, "rounds": 3, "clients": [heard("c1")], "earlier": [{"round_id": 2, "clients": [brief]}]}
    ended = [{"round_id": n, "accepted": ["c1"], "missing": ["c2"] if n == 2 else [], "owner": {}} for n in (1, 2, 3)]
    material = gather(run_in(tmp_path, shared_out=rounds_of(3), link=link, rounds=ended))
    page = Page(pages.render(material))
    assert [links.gate(each).rows[0][2] for each in material.rounds] == ["1.0", "2.0", "3.0"]
    assert "0.44444" in links.ears(material, material.rounds[1]).rows[0][4]
    opened = [found for tag, found in page.elements if tag == "details" and found.get("class") == "round"]
    assert ["open" in found for found in opened] == [True, False, False] * 2
    assert "Round 2: accepted c1; closed by quorum without c2" in page.text
    assert tables.energy_of_rounds(material) == {1: 2.0, 2: 2.0, 3: 2.0}


def test_why_a_client_is_missing_stands_beside_what_the_gate_said(tmp_path: Path) -> None:
    told = [{**each, "clients": [assigned("c1", owner_db=1.0, missing_because="died during the round")]} for each in rounds_of(2)]
    material = gather(run_in(tmp_path, shared_out=told))
    assert links.reasons(material.rounds[0]) == [("c1", "closes for c1; died during the round")]


def windows(losses: list[float]) -> dict[str, Any]:
    return {"perplexity": exp(fmean(losses)), "loss_nats": fmean(losses), "windows_nats": losses}


def test_an_interval_over_windows_is_that_of_their_mean_and_a_paired_one_is_narrower() -> None:
    drawn = np.random.default_rng(1).normal(5.0, 0.5, size=200)
    base, tuned = windows(list(drawn + 0.2)), windows(list(drawn))
    own, beside = intervals.perplexity(tuned), intervals.change(tuned, base)
    assert own is not None
    assert beside is not None
    half = 1.96 * drawn.std() / 200**0.5
    assert (log(own.low), log(own.high)) == pytest.approx((drawn.mean() - half, drawn.mean() + half), abs=0.1 * half)
    assert (beside.low, beside.high) == pytest.approx((100 * (exp(-0.2) - 1),) * 2)
    assert intervals.perplexity(windows([1.0, 2.0])) is None
    assert intervals.change(tuned, {"perplexity": 2.0}) is None


def test_the_interval_of_few_seeds_is_students() -> None:
    found = intervals.mean([131.9, 134.2, 121.7])  # t(0.975; 2) = 4.3027, sample deviation 6.6531
    assert found is not None
    assert (found.value, found.high - found.value) == pytest.approx((129.2667, 4.3027 * 6.6531 / 3**0.5), rel=1e-4)
    assert intervals.mean([1.0]) is intervals.ratio([1.0]) is intervals.ratio([1.0, 0.0]) is None
    wide = intervals.ratio([313.6, 381.7])
    assert wide is not None
    assert 0.0 < wide.low < wide.value < wide.high
