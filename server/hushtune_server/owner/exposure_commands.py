"""``hushtune owner exposure``: what has anybody seen of the owner's models, over all releases?"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.words import extra

if TYPE_CHECKING:
    from hushtune_server.owner.ledger import Release, Standing


def register(owner: App) -> None:
    """Add the command to those of the owner."""
    owner.command(show_exposure, name="exposure")


def show_exposure(
    *,
    state: Annotated[Path, Parameter(help="The owner's state folder; it holds the ledger of releases.")],
    together: Annotated[tuple[str, ...], Parameter(help="Also show what these know together, as `c1,c2`; repeatable.")] = (),
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show for each model what every recipient has seen of it, all releases put together. Changes nothing.

    Example: `hushtune owner exposure --state state/owner --together c1,c2`
    """
    with extra("owner"):
        from hushtune_server.owner.ledger import LEDGER, read_ledger

    if not state.is_dir():
        raise ConfigError("--state", f"there is no folder {state}; give the one that `hushtune owner serve` was given")
    releases = read_ledger(state / LEDGER)
    found = [*_standings(releases, [text.split(",") for text in together])]
    if json_:
        print(json.dumps([_row(s) for s in found], indent=1))
    elif not found:
        print("nothing was released")
    else:
        for s in found:
            print(f"model {s.base.short}  {' + '.join(s.who):<24}  {s.share:7.2%}  in {s.releases} releases")


def _standings(releases: Sequence["Release"], together: Sequence[Sequence[str]]) -> "Iterator[Standing]":
    from hushtune_server.owner.ledger import standing

    alone = sorted({name for release in releases for name in release.recipients})
    strangers = sorted({name for group in together for name in group} - {*alone})
    if strangers:
        raise ConfigError("--together", f"nothing was released to {strangers[0]!r}; known are {', '.join(alone) or 'none'}")
    models = {release.base: release.coverage for release in releases}
    for base, model in models.items():
        yield from (standing(releases, group, base=base, model=model) for group in [*([name] for name in alone), *together])


def _row(found: "Standing") -> dict[str, object]:
    return {
        "model": found.base.hex,
        "who": list(found.who),
        "releases": found.releases,
        "shown": found.shown,
        "total": found.total,
        "share": found.share,
    }
