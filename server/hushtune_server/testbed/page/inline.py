"""How does a drawing get into a page? As SVG that takes the page's colours, whose names meet no other's, with words beside it."""

import io
import re
from typing import Any, Final
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

INK: Final = "#0a0b0c"
PAPER: Final = "#fefdfc"
OWNER: Final = "#1b6ca8"
TAP: Final = "#b3402a"
CLIENT: Final = "#2e7d4f"
AMBER: Final = "#b7791f"
VIOLET: Final = "#6b4fa0"
GREY: Final = "#6b6b6b"
LIGHT: Final = "#b0b0b0"
FAINT: Final = "#d9dcdf"

_THEMED: Final = {
    INK: "currentColor",
    PAPER: "var(--paper)",
    OWNER: "var(--owner)",
    TAP: "var(--tap)",
    CLIENT: "var(--client)",
    AMBER: "var(--amber)",
    VIOLET: "var(--violet)",
    GREY: "var(--muted)",
    LIGHT: "var(--line)",
    FAINT: "var(--faint)",
}
_SVG: Final = "http://www.w3.org/2000/svg"
_LINKS: Final = "{http://www.w3.org/1999/xlink}href"
_DROPPED: Final = (f"{{{_SVG}}}metadata",)

_SCREEN: Final[dict[Any, Any]] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": LIGHT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "font.size": 9.0,
}


def screen() -> dict[Any, Any]:
    """Return how matplotlib draws for a page: letters stay letters, colours are those that `inline` makes the page's."""
    return dict(_SCREEN)


def inline(figure: Figure, *, name: str, label: str) -> str:
    """Return ``figure`` as an SVG element for the body of a page; equal figures give equal text.

    Draw it within ``rc_context(screen())``. ``label`` says in words what it shows; ``name`` keeps the names inside apart from
    those of other figures on the page.
    """
    target = io.StringIO()
    with rc_context({**_SCREEN, "svg.hashsalt": name}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(target.getvalue())  # noqa: S314 - drawn by us a moment ago, not read from anywhere
    _clean(root)
    for node in root.iter():
        for key, text in [*node.attrib.items()]:
            # A page knows no namespaces of attributes.
            del node.attrib[key]
            node.attrib["href" if key == _LINKS else key] = _renamed(_themed(text), key=key, name=name)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label, "class": "drawing"}
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(root: ElementTree.Element) -> None:
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in _DROPPED:
                parent.remove(child)


def _themed(text: str) -> str:
    for colour, variable in _THEMED.items():
        text = text.replace(colour, variable)
    return text


def _renamed(text: str, *, key: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    if key == _LINKS and text.startswith("#"):
        return f"#{name}-{text[1:]}"
    return re.sub(r"url\(#", f"url(#{name}-", text)
