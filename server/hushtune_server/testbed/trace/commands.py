"""``hushtune trace``: follow one adapter from training to verdict."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hushtune_server.testbed.logbook import lines, readable
from hushtune_server.testbed.logbook.pretty import COLOURS
from hushtune_server.testbed.trace import naming
from hushtune_server.testbed.trace.story import Agreement, Step, Story, follow

_SHOWN: Final = 12
_VERDICT_BAD: Final = ("refused", "did not")


def register(app: App) -> None:
    """Add ``hushtune trace``."""
    app.command(trace)


def trace(
    digest: str,
    *,
    run: Annotated[str, Parameter(help="A run's id or a beginning of it, latest, or a folder of logs.")] = "latest",
    json_: Annotated[bool, Parameter(name="--json", help="The story as JSON.")] = False,
    runs: Annotated[Path, Parameter(help="Folder that holds the run directories.")] = Path("runs"),
) -> int:
    """Follow one adapter through all processes: trained, sealed, on air, heard, attacked, decoded, opened, judged.

    DIGEST is the beginning of any digest that the adapter has on its way: of the trained file, the sealed update, a frame, or the
    stored adapter (also the name of a version). `hushtune logs --event update_sealed` shows some.

    Example: hushtune trace e89fda1f --run latest
    """
    folder, directory = lines.find(runs, run)
    book = lines.Logbook(folder)
    found = list(book.fresh(ended=True))
    story = follow(found, naming.find(found, digest), run=directory)
    if json_:
        sys.stdout.write(json.dumps(story.to_json(), indent=2, ensure_ascii=False) + "\n")
        return 0
    console = Console(highlight=False)
    print_story(story, console=console, run=folder.parent.name if directory is not None else str(folder))
    if book.damaged:
        console.print(f"{sum(book.damaged.values())} damaged lines of the logs were left out", style="yellow")
    return 0


def print_story(story: Story, *, console: Console, run: str) -> None:
    """Print who, the digests on the way, the timeline, Eve's side, agreement and verdict."""
    slot = story.slot
    head = Text.assemble(("Adapter of ", "bold"), (readable.plain(slot.client), "bold green"), f", round {slot.round_id}, {run}")
    console.print(head)
    for what, digest in story.digests.items():
        asked = digest == story.asked.digest
        console.print(Text(f"  {what:<24}{digest[:_SHOWN]}{'  <- asked for' if asked else ''}", style="bold" if asked else ""))
    console.print(_timeline(story))
    for update in story.eve:
        console.print(Text(f"Eve ({update['part']}): {told_of_eve(update)}", style="red"))
    for agreement in story.agreements:
        mark, style = {True: ("same", "green"), False: ("DIFFERENT", "bold red"), None: ("only", "dim")}[agreement.holds]
        console.print(Text(f"{agreement.what}: {mark} at {', '.join(_seen(agreement))}", style=style))
    bad = story.verdict.startswith(_VERDICT_BAD)
    console.print(Text(f"Verdict: {readable.plain(story.verdict)}", style="bold red" if bad else "bold"))


def _seen(agreement: Agreement) -> list[str]:
    named = [f"{process} {digest[:_SHOWN]}" for process, digest in agreement.seen]
    return named if agreement.holds is False else [*dict.fromkeys(process for process, _ in agreement.seen)]


def _timeline(story: Story) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("after", "took"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("who", "what"):
        table.add_column(heading, no_wrap=True)
    table.add_column("", overflow="fold")
    begin = story.steps[0].ended if story.steps else 0.0
    for step in story.steps:
        table.add_row(*_row(step, begin=begin))
    return table


def _row(step: Step, *, begin: float) -> tuple[Text, Text, Text, Text, Text]:
    line = step.line
    took = "" if step.seconds is None else readable.duration(step.seconds)
    style = "bold red" if line.level == "error" else "yellow" if line.level == "warning" else "bold"
    return (
        Text(f"{step.ended - begin:.2f} s", style="dim"),
        Text(took),
        Text(readable.plain(line.process), style=COLOURS.get(line.role, "")),
        Text(step.title, style=style),
        Text(step.told),
    )


def told_of_eve(update: Mapping[str, Any]) -> str:
    """Return what the tap had of one part of an update."""
    errors = update.get("bit_error_rate")
    said = [
        f"knows {update['bytes_known']} of {update['bytes_total']} bytes",
        f"{update['crc_passes']} check sums held over {update['blocks_sent']} blocks",
        *([] if errors is None else [f"bit errors of its guess {errors:.5f}"]),
    ]
    if update.get("bound_void"):
        return "; ".join([*said, f"no bound may be claimed: {update['bound_void']}"])
    bound = update.get("log2_delta_total")
    held = {True: "its SNR assumption held", False: "its SNR assumption did NOT hold", None: "its SNR assumption was not checked"}
    return "; ".join([*said, *([] if bound is None else [f"leakage at most 2^{bound:.1f}"]), held[update.get("assumption_held")]])
