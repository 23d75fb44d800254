"""How soon is the dashboard there, and how soon is an event on it? First paint and line-to-page, in a real browser on loopback.

``PYTHONPATH=. python benchmarks/dashboard.py [--paints 10] [--events 20] [--run RUN_DIRECTORY] [--json]``: needs playwright and
Chromium. The logs are those of a finished run, or a short tale of three clients; every event is a line appended to the
coordinator's log, and is on the page when the browser has drawn a frame after the text appeared.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from threading import Thread
from time import monotonic, time
from typing import Any

from playwright.sync_api import sync_playwright

from hushtune_common.clock import SystemClock
from hushtune_server.testbed.dashboard import serving
from tests.recorded import SCENARIO, append, tale

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SEEN = """
(text) => new Promise((resolve) => {
  const look = () => document.getElementById("events-b").textContent.includes(text)
    ? requestAnimationFrame(() => requestAnimationFrame(() => resolve(Date.now() / 1000))) : setTimeout(look, 5);
  look();
})
"""
_PAINTED = """
() => { const paint = performance.getEntriesByName("first-contentful-paint")[0]; return paint ? paint.startTime / 1000 : null; }
"""


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description="First paint of the dashboard, and the time from a line to the page.")
    parser.add_argument("--paints", type=int, default=10, help="times that the page is opened")
    parser.add_argument("--events", type=int, default=20, help="lines that are waited for")
    parser.add_argument("--run", type=Path, help="a run directory whose logs to take instead of the tale")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _served(_logs(Path(folder), given.run)) as (url, logs):
        found = _measure(url, logs, paints=given.paints, events=given.events)
    if given.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for what, seconds in found.items():
        print(f"{what}: median {1e3 * median(seconds):.0f} ms, most {1e3 * max(seconds):.0f} ms, of {len(seconds)}")


def _logs(folder: Path, run: Path | None) -> Path:
    if run is not None:
        shutil.copytree(run / "logs", folder / "logs")
        shutil.copy(run / "scenario.toml", folder / "logs")
    else:
        (folder / "logs").mkdir()
        (folder / "logs" / "scenario.toml").write_text(SCENARIO, encoding="utf-8")
        append(folder / "logs", tale())
    return folder / "logs"


@contextmanager
def _served(logs: Path) -> Generator[tuple[str, Path]]:
    address = serving.address_of("127.0.0.1:0")
    with serving.bound(address) as listening:
        watch = serving.watch_of(logs.parent, str(logs), scenario=None, clock=SystemClock())
        web = serving.server(watch, address, own_signals=False)
        thread = Thread(target=lambda: asyncio.run(web.serve(sockets=[listening])), daemon=True)
        thread.start()
        yield serving.url_of(listening), logs
        web.should_exit = True
        thread.join(timeout=10)


def _measure(url: str, logs: Path, *, paints: int, events: int) -> dict[str, list[float]]:
    browser_at = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_at, args=["--no-sandbox", "--disable-gpu"])
        told = [_opened(browser, url) for _ in range(paints)]
        page: Any = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(url)
        page.wait_for_selector("#events-b li")
        waited = [_until_seen(page, logs, number) for number in range(events)]
        browser.close()
    return {
        "first paint": [first for first, _ in told],
        "whole state drawn": [drawn for _, drawn in told],
        "line to page": waited,
    }


def _opened(browser: Any, url: str) -> tuple[float, float]:
    """Return how long the first paint took, and until the whole state was drawn, in a browser without anything in its cache."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    page, begun = context.new_page(), monotonic()
    page.goto(url)
    page.wait_for_selector("#clients-b .card")
    drawn = monotonic() - begun
    page.wait_for_function(_PAINTED)
    first = float(page.evaluate(_PAINTED))
    context.close()
    return first, drawn


def _until_seen(page: Any, logs: Path, number: int) -> float:
    reason = f"benchmark line {number}."
    line = {"time": datetime.now(UTC).isoformat(), "level": "info", "role": "coordinator", "name": "coordinator"}
    begun = time()
    with (logs / "coordinator.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "event": "run_stopped", "round_id": 1, "reason": reason}) + "\n")
    return float(page.evaluate(_SEEN, reason)) - begun


if __name__ == "__main__":
    main()
