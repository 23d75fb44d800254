"""The dashboard in a real browser: it loads, follows a run that is replayed into its folder, and believes no name."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hushtune_common.clock import SystemClock
from hushtune_server.testbed.dashboard import serving
from tests.contracts.test_dashboard import HOSTILE, served
from tests.recorded import SCENARIO, Entry, append, tale

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WITHIN_MS = 5_000

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the page was tried in no browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page was tried in no browser"),
]


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "gathered"
    folder.mkdir()
    (folder / "scenario.toml").write_text(SCENARIO, encoding="utf-8")
    return folder


@contextmanager
def opened(browser: Any, logs: Path, *, width: int = 1366) -> Generator[tuple[Any, list[str]]]:
    """Yield the page about ``logs`` in a browser, and what its console complains of."""
    watch = serving.watch_of(logs.parent, str(logs), scenario=None, clock=SystemClock())
    with served(watch) as server:
        page, complaints = browser.new_page(viewport={"width": width, "height": 800}), list[str]()

        def complain(said: Any) -> None:
            complaints.append(str(getattr(said, "text", said)))

        page.on("console", complain)
        page.on("pageerror", complain)
        page.set_default_timeout(WITHIN_MS)
        page.goto(f"http://127.0.0.1:{server.port}/")
        yield page, complaints
        page.close()


def until(entries: list[Entry], moment: float) -> tuple[list[Entry], list[Entry]]:
    return [e for e in entries if e[0] <= moment], [e for e in entries if e[0] > moment]


def test_the_page_follows_a_run_to_its_end_and_nothing_is_wrong(browser: Any, logs: Path) -> None:
    now, later = until(tale(), 3.4)
    append(logs, now)
    with opened(browser, logs) as (page, complaints):
        page.wait_for_selector("text=step 3 of 6")
        assert page.locator(".card").count() == 3
        assert page.locator("text=✖ excluded").count() == 1
        now, later = until(later, 5.2)
        append(logs, now)
        page.wait_for_selector("text=4 to be sent again")
        append(logs, later)
        page.wait_for_selector("text=216.2")
        assert page.locator("#bytes .tag.good:has-text('digest equal')").count() == 2
        assert page.locator("#head").inner_text().count("2 of 3") == 1
        assert complaints == []


def again(entries: list[Entry], *, after: float, round_id: int) -> list[Entry]:
    """Return the same tale as another round; what is about the whole run is told once."""
    return [
        (moment + after, name, {**said, "round_id": round_id, **({"missing": ["c2", "c3"]} if "missing" in said else {})})
        for moment, name, said in entries
        if "round_id" in said
    ]


def test_a_round_can_be_chosen_and_the_page_says_without_whom_it_closed(browser: Any, logs: Path) -> None:
    append(logs, tale())
    with opened(browser, logs) as (page, complaints):
        page.wait_for_selector("text=216.2")
        assert not page.locator("#rounds").is_visible()
        append(logs, again(tale(), after=60.0, round_id=2))
        page.wait_for_selector("#rounds:visible")
        assert page.locator("#round option").all_inner_texts()[0] == "newest (2)"
        page.wait_for_selector("#head :text('closed by quorum without c2, c3')")
        assert page.locator("#clients .tag:has-text('closed by quorum without it')").count() == 2
        page.locator("#round").select_option("1")
        page.wait_for_selector("text=You are looking at round 1; the run has come to round 2.")
        assert page.locator("#clients .tag:has-text('closed by quorum without it')").count() == 1
        assert page.locator("#result tbody tr:has-text('kept')").count() == 2
        page.locator("#round").select_option("")
        page.wait_for_selector("#head .value:text('2')")
        assert complaints == []


def test_a_client_that_died_is_gone_in_the_next_round_too_until_it_is_heard_of_again(browser: Any, logs: Path) -> None:
    died: Entry = (
        3.0,
        "coordinator",
        {"event": "client_died", "role": "coordinator", "client": "c2", "silent_s": 12.0, "round_id": 1},
    )
    append(logs, [*until(tale(), 2.9)[0], died])
    with opened(browser, logs) as (page, complaints):
        page.wait_for_selector("#clients .phase:has-text('✖ silent for 12 s, taken for dead')")
        assert "taken for dead" in (page.locator(".map").get_attribute("aria-label") or "")
        later = again(until(tale(), 2.9)[0], after=60.0, round_id=2)
        append(logs, [entry for entry in later if entry[1] != "c2" and entry[2].get("client") != "c2"])
        page.wait_for_selector("#clients :text('fell silent in round 1 and has no part in this one')")
        assert page.locator("#processes tr:has-text('c2')").inner_text().count("✖ silent") == 1
        append(logs, [entry for entry in later if entry[1] == "c2"])
        page.wait_for_selector("#clients :text('fell silent')", state="detached")
        assert complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1366])
def test_no_word_of_a_drawing_is_cut_off_and_nothing_scrolls_sideways(browser: Any, logs: Path, width: int, theme: str) -> None:
    extremes = {"decision": "granted", "snr_main_db": 38.25, "snr_tap_bound_db": -41.25}
    append(logs, [*tale(), (9.0, "coordinator", {"event": "gate_decided", "round_id": 1, "client": "c1", **extremes})])
    with opened(browser, logs, width=width) as (page, complaints):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        page.wait_for_selector("text=216.2")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        cut = page.evaluate(
            """[...document.querySelectorAll('svg text')].filter(text => {
              const box = text.getBoundingClientRect(), room = text.ownerSVGElement.getBoundingClientRect();
              const beside = box.left < room.left - 1 || box.right > room.right + 1;
              return beside || box.top < room.top - 2 || box.bottom > room.bottom + 2;
            }).map(text => text.textContent)"""
        )
        assert cut == []
        assert complaints == []


def test_a_page_without_a_run_says_how_to_begin_one(browser: Any, tmp_path: Path) -> None:
    with opened(browser, tmp_path) as (page, complaints):
        page.wait_for_selector("#head :text('No run here yet.')")
        assert page.locator("main .empty").count() >= 4
        assert complaints == []


def test_the_first_paint_and_an_event_come_within_a_second(browser: Any, logs: Path) -> None:
    append(logs, tale())
    with opened(browser, logs) as (page, _):
        page.wait_for_selector("text=216.2")
        assert page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 1_000
        said = {"event": "run_stopped", "role": "owner", "round_id": 1, "reason": "told at once"}
        append(logs, [(40.0, "owner", said)])
        page.wait_for_selector("text=told at once", timeout=1_000)


def test_hostile_names_are_shown_letter_by_letter(browser: Any, logs: Path) -> None:
    append(logs, tale([HOSTILE, "__proto__", "constructor"]), files={HOSTILE: "c1"})
    with opened(browser, logs) as (page, complaints):
        page.wait_for_selector("text=216.2")
        headings = page.locator("#clients h3").all_inner_texts()
        assert any(HOSTILE in heading for heading in headings)
        assert any("__proto__" in heading for heading in headings)
        assert page.locator("img").count() == page.locator("main script").count() == 0
        assert page.evaluate("({}).gate === undefined && Object.prototype.toString.call({})") == "[object Object]"
        assert complaints == []


def test_everything_can_be_reached_by_keyboard_and_fits_a_phone(browser: Any, logs: Path) -> None:
    append(logs, tale())
    with opened(browser, logs, width=390) as (page, complaints):
        page.wait_for_selector("text=216.2")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        reached: list[str] = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
            )
        assert reached[:2] == ["skip", "theme"]
        assert {"scroll", "events", "trouble", "SUMMARY"} <= {*reached}
        unnamed = page.evaluate(
            "[...document.querySelectorAll('svg[role=img]')].filter(s => !s.getAttribute('aria-label')).length"
        )
        assert unnamed == 0
        assert complaints == []


def test_the_theme_is_switched_and_kept(browser: Any, logs: Path) -> None:
    append(logs, tale())
    with opened(browser, logs) as (page, complaints):
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.locator("#theme").click(click_count=2)
        assert page.locator("#theme").inner_text() == "Theme: dark"
        assert page.evaluate(ground) != light
        page.reload()
        assert page.locator("#theme").inner_text() == "Theme: dark"
        assert complaints == []
