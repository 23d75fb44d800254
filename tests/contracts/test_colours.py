"""Can everybody read the pages? Contrast of every pair of colours that meet, by WCAG 2.2, in both themes of both pages."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

TESTBED = Path(__file__).resolve().parents[2] / "server/hushtune_server/testbed"
SHEETS = {"dashboard": TESTBED / "dashboard/static/style.css", "report": TESTBED / "page/templates/style.css"}
TEXT, DRAWN = 4.5, 3.0
"""Least ratios: of text (success criterion 1.4.3), and of what else has to be seen (1.4.11)."""

GROUNDS = {
    "paper": ("ink", "muted", "owner"),
    "card": ("ink", "muted", "owner", "tap", "client", "amber", "good", "bad"),
    "code": ("ink", "bad"),
    "badwash": ("ink", "bad"),
    "strongwash": ("ink", "muted"),
    "goodwash": ("good",),
    "waitwash": ("ink", "amber", "muted"),
}
"""Which colours text has on which ground."""


def themes(sheet: Path) -> list[dict[str, str]]:
    """Return the colours by name of every block of variables: light first, then dark."""
    blocks = re.findall(r":root[^{]*\{([^{}]*--paper[^{}]*)\}", sheet.read_text(encoding="utf-8"))
    return [dict(re.findall(r"--(\w+):\s*(#[0-9a-f]{6})", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the well-known grey that just fails


@pytest.mark.parametrize("page", SHEETS)
def test_text_can_be_read_on_every_ground_that_it_stands_on(page: str) -> None:
    found = themes(SHEETS[page])
    assert len(found) >= 2
    weak = [
        (number, ink, ground, round(contrast(theme[ink], theme[ground]), 2))
        for number, theme in enumerate(found)
        for ground, inks in GROUNDS.items()
        for ink in inks
        if ground in theme and ink in theme and contrast(theme[ink], theme[ground]) < TEXT
    ]
    assert weak == []


@pytest.mark.parametrize("page", SHEETS)
def test_what_is_drawn_can_be_told_from_what_it_is_drawn_on(page: str) -> None:
    for theme in themes(SHEETS[page]):
        drawn = [theme[name] for name in ("owner", "tap", "client", "amber", "good", "bad", "muted") if name in theme]
        assert min(contrast(colour, theme["card"]) for colour in drawn) >= DRAWN


def test_the_dark_theme_that_is_chosen_is_the_one_that_the_system_asks_for() -> None:
    dark = themes(SHEETS["dashboard"])[1:]
    assert all(one == other for one, other in pairwise(dark))
