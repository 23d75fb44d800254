"""``hushtune owner adapters``: which adapters were accepted, which were refused, and which one is to sit in the model?"""

import json
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.owner.commands import MODEL_CACHE
from hushtune_server.words import extra, print_pairs, show_phase, show_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hushtune_server.owner.gatekeeper.quarantine import Quarantined
    from hushtune_server.owner.versions import Version, Versions

_State = Annotated[Path, Parameter(help="The owner's state folder.")]
_Name = Annotated[str, Parameter(name="ID", help="Of a version: its id, its digest, or as much of either as is clear.")]
_Json = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")]
_ANY = 1 << 62
_SHOWN = 5


def register(owner: App) -> None:
    """Add the commands to those of the owner."""
    adapters = App(name="adapters", help="Adapters that were accepted, side by side, and those that were refused.")
    adapters.command(list_adapters, name="list")
    adapters.command(show_adapter, name="show")
    adapters.command(promote, name="promote")
    adapters.command(roll_back, name="rollback")
    adapters.command(average, name="average")
    owner.command(adapters)


def list_adapters(*, state: _State, json_: _Json = False) -> None:
    """List every version and everything in quarantine, in order; `*` sits in the model. Changes nothing.

    Example: `hushtune owner adapters list --state state/owner`
    """
    versions, aside = _versions(state), _quarantined(state)
    known, current = versions.all(), versions.current
    if json_:
        rows = [_row(v) for v in known]
        body = {"current": None if current is None else current.id, "versions": rows, "quarantine": [_aside(q) for q in aside]}
        print(json.dumps(body, indent=1))
        return
    print(f"{'*' if current is None else ' '} {'own':<44} the model's own adapter blocks")
    for v in known:
        print(f"{'*' if v == current else ' '} {v.id:<44} {_date(v.date)}  {_outcome(v)}")
    for q in aside:
        print(f"! {q.id:<44} {q.reason.date:<16}  refused: {'; '.join(_reasons(q))}")


def show_adapter(name: _Name, *, state: _State, json_: _Json = False) -> None:
    """Show all that is known of one version, or of one update in quarantine. Changes nothing.

    Example: `hushtune owner adapters show run-1.1.aggregate --state state/owner`
    """
    held = next((q for q in _quarantined(state) if q.id == name), None)
    versions = _versions(state)
    if held is not None:
        body = _aside(held)
        pairs = {**body, "screens": "; ".join(_reasons(held))}
    else:
        version = versions.find(name)
        body = {**_row(version), "current": version == versions.current, "profile": dict(version.about.profile)}
        pairs = {**body, "parents": " ".join(version.about.parents), "profile": _largest(version)}
    if json_:
        print(json.dumps(body, indent=1))
    else:
        print_pairs({key: "" if value is None else str(value) for key, value in pairs.items()})


def promote(name: _Name, *, state: _State) -> None:
    """Let a version sit in the model from the owner's next start on; `own` stands for the model's own adapter blocks.

    The owner must not be running. Nothing is evaluated: `show` has what public text said.
    Example: `hushtune owner adapters promote run-1.1.c2 --state state/owner`
    """
    from hushtune_server.owner.versions import OWN

    versions = _versions(state)
    versions.hold()
    version = None if name == OWN else versions.find(name)
    if version is not None:
        versions.require_whole(version)
    versions.promote(version)
    print(f"{OWN if version is None else version.id} sits in the model from the owner's next start on")


def roll_back(*, state: _State) -> None:
    """Go back to what sat in the model before, from the owner's next start on. The owner must not be running.

    Example: `hushtune owner adapters rollback --state state/owner`
    """
    from hushtune_server.owner.versions import OWN

    versions = _versions(state)
    versions.hold()
    version = versions.rollback()
    print(f"{OWN if version is None else version.id} sits in the model from the owner's next start on")


def average(
    scenario: Annotated[Path, Parameter(help="The scenario whose model the adapters are of, and whose gate judges them.")],
    *,
    state: _State,
    run: Annotated[
        str | None, Parameter(help="Run of the returns, such as offline-0123456789ab; asked where there are several.")
    ] = None,
    round_: Annotated[int | None, Parameter(name="--round", help="Round of the returns; asked where there are several.")] = None,
    emulator: Annotated[
        Path | None, Parameter(help="The emulator that was released, if it no longer lies where it was exported from.")
    ] = None,
    cache: Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")] = MODEL_CACHE,
    json_: _Json = False,
    set_: Annotated[
        tuple[str, ...],
        Parameter(name="--set", help="Override one scenario key: `path.to.key=value`; repeatable."),
    ] = (),
) -> int:
    """Average the accepted returns of a round that came in files, judge the mean on public text, and keep it or not.

    What is kept sits in the model from the owner's next start on; `rollback` undoes that. Who harms public text alone, or does
    not go with the others, is left out. The owner must not be running. Exit code 0: the mean was kept; 1: it was not.

    Example: `hushtune owner adapters average scenarios/demo.toml --state state/owner`
    """
    from hushtune_common import config
    from hushtune_common.clock import SystemClock

    _require_folder(state)
    with extra("owner"):
        from hushtune_server.owner.offline_average import Averaging, average_returns
        from hushtune_server.owner.offline_bench import Place
        from hushtune_server.owner.releases import Telling

    place = Place(scenario=config.load(scenario, overrides=set_), state=state, cache=cache)
    order = Averaging(at=place, run=run, round_id=round_, emulator=emulator)
    found = average_returns(order, clock=SystemClock(), telling=Telling(phase=show_phase, progress=show_progress))
    if json_:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print_pairs(found.to_pairs())
    return 0 if found.kept else 1


def _versions(state: Path) -> "Versions":
    _require_folder(state)
    with extra("owner"):
        from hushtune_server.owner.versions import FOLDER, Versions
    from hushtune_common.clock import SystemClock

    return Versions(state / FOLDER, count_max=_ANY, bytes_max=_ANY, clock=SystemClock())


def _require_folder(state: Path) -> None:
    if not state.is_dir():
        raise ConfigError("--state", f"there is no folder {state}; give the one that `hushtune owner serve` was given")


def _quarantined(state: Path) -> "Sequence[Quarantined]":
    with extra("owner"):
        from hushtune_server.owner.gatekeeper.quarantine import FOLDER, quarantined

    return quarantined(state / FOLDER)


def _row(version: "Version") -> dict[str, Any]:
    about = version.about
    return {
        "id": version.id,
        "run": about.run,
        "round_id": about.round_id,
        "who": about.who,
        "digest": version.digest.hex,
        "bytes": version.size,
        "date": version.date,
        "kept": about.kept,
        "reason": about.reason,
        "perplexity_public_before": None if about.loss_before is None else exp(about.loss_before),
        "perplexity_public": None if about.loss_after is None else exp(about.loss_after),
        "parents": list(about.parents),
        "base": about.base.hex,
    }


def _aside(held: "Quarantined") -> dict[str, Any]:
    reason = held.reason
    return {
        "id": held.id,
        "run": reason.run,
        "round_id": reason.round_id,
        "client": reason.client,
        "digest_sealed": reason.digest,
        "bytes": held.size,
        "date": reason.date,
        "screens": [{name: getattr(screen, name) for name in screen.__struct_fields__} for screen in reason.screens],
    }


def _reasons(held: "Quarantined") -> list[str]:
    return [f"{screen.setting}: {screen.problem}, limit {_number(screen.limit)}" for screen in held.reason.screens]


def _outcome(version: "Version") -> str:
    row = _row(version)
    before, after = (_number(row[name]) for name in ("perplexity_public_before", "perplexity_public"))
    verdict = "kept" if version.about.kept else f"not kept: {version.about.reason}"
    return f"perplexity {before} -> {after}  {version.size / 1e6:.1f} MB  {verdict}"


def _largest(version: "Version") -> str:
    ordered = sorted(version.about.profile.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {rms:.3g}" for name, rms in ordered[:_SHOWN])


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _date(text: str) -> str:
    return text[:16].replace("T", " ")
