"""Which way did every adapter go? One row for each: what it was called on its way, whether both ends agree, and the verdict."""

from collections.abc import Sequence
from typing import Final

from hushtune_server.testbed.logbook.lines import Line
from hushtune_server.testbed.page.gathering import Material
from hushtune_server.testbed.page.tables import NOTHING, Column, Table, shown, table
from hushtune_server.testbed.trace.naming import SEALED, STORED, TRAINED, Name, Slot, names
from hushtune_server.testbed.trace.story import Story, follow

_SHOWN: Final = 8
_WAYS_MAX: Final = 200


def ways(material: Material) -> Table:
    """Return a row for each update that a client sealed, the first ones where there are very many."""
    stories = [follow(material.lines, name, run=None) for name in _sealed(material.lines)[:_WAYS_MAX]]
    columns = [
        Column(heading="client", cell=lambda s: s.slot.client, numeric=False),
        Column(heading="round", cell=lambda s: str(s.slot.round_id)),
        Column(heading="trained", cell=lambda s: _digest(s, TRAINED), numeric=False),
        Column(heading="sealed", cell=lambda s: _digest(s, SEALED), numeric=False),
        Column(heading="stored", cell=lambda s: _digest(s, STORED), numeric=False),
        Column(heading="transmissions", cell=lambda s: str(sum(step.line.event == "frame_carried" for step in s.steps))),
        Column(heading="gate to verdict", cell=_took),
        Column(
            heading="both ends agree", cell=lambda s: {True: "yes", False: "NO", None: "not known"}[_agrees(s)], numeric=False
        ),
        Column(heading="verdict", cell=lambda s: s.verdict, numeric=False),
    ]
    bad = frozenset(k for k, story in enumerate(stories) if _agrees(story) is False or story.verdict.startswith("refused"))
    note = "hushtune trace, with any of these digests, tells the whole way: who, when, how long, and Eve's side of it."
    return table("The way of every adapter", columns, stories, note=note, bad=bad, empty="No update was sealed.")


def _sealed(lines: Sequence[Line]) -> list[Name]:
    first: dict[Slot, Name] = {}
    for name in names(lines):
        if name.what == SEALED and name.slot is not None:
            first.setdefault(name.slot, name)
    return [first[slot] for slot in sorted(first)]


def _digest(story: Story, what: str) -> str:
    found = story.digests.get(what)
    return NOTHING if found is None else found[:_SHOWN]


def _took(story: Story) -> str:
    return shown("seconds", story.steps[-1].ended - story.steps[0].ended) if len(story.steps) > 1 else NOTHING


def _agrees(story: Story) -> bool | None:
    found = [agreement.holds for agreement in story.agreements]
    return False if False in found else True if True in found else None
