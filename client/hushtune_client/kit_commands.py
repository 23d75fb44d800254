"""``hushtune-client join`` and ``doctor``: from one file to a client that takes part, and what stands in the way."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import App, Parameter

from hushtune_client import edge
from hushtune_common.errors import ConfigError

if TYPE_CHECKING:
    from hushtune_client.app import ClientOptions
    from hushtune_common.config import Scenario
    from hushtune_common.wire.archive import Archive

_KINDS = ("txt", "jsonl", "csv", "pkg")
_KIT, _RUN, _DATA = "kit", "run", "data.json"
_CLIENTS_CALL = ("owner", "coordinator", "air")
_Addresses = Annotated[
    tuple[str, ...],
    Parameter(help="Another address than the kit's, such as air=10.0.0.7:7002; repeatable, or with commas."),
]
_ScenarioFile = Annotated[Path | None, Parameter(help="The scenario file, where the kit has none.")]


def register(app: App) -> None:
    """Add the commands to the command line."""
    app.command(join)
    app.command(doctor)


def join(
    kit: Annotated[Path, Parameter(help="The kit file, as `hushtune kit create` made it.")],
    *,
    data: Annotated[
        tuple[str, ...],
        Parameter(
            help="Your own text, one or more files, used whole: .jsonl and .csv (field text), anything else a record per line. "
            "It stays here. Remembered for the next start.",
            consume_multiple=True,
        ),
    ] = (),
    state: Annotated[Path | None, Parameter(help="Folder of this client; `hushtune-NAME` here unless given.")] = None,
    addresses: _Addresses = (),
    scenario: _ScenarioFile = None,
    skip_doctor: Annotated[bool, Parameter(help="Start without looking first.")] = False,
    log: edge.LogOptions = edge.LogOptions(),  # noqa: B008 - frozen
    watching: edge.WatchOptions = edge.WatchOptions(),  # noqa: B008 - frozen
) -> int:
    """Take part in a run with a kit file: unpack it, look whether all is well, and start.

    The same command goes on where an earlier one was stopped. Only the sealed change of the adapter blocks leaves this machine.

    Example: `hushtune-client join alice-kit.zip --data my-texts.txt`
    """
    from hushtune_common.wire import archive

    found = archive.read(kit)
    _require_client(found, kit)
    folder = Path(f"hushtune-{found.caller.name}") if state is None else state

    def begin() -> "ClientOptions":
        sources = [_source(text) for text in data]
        outcome = archive.settle(found, _made(folder) / _KIT)
        edge.say(f"{found.caller.uri}: {_OUTCOMES[outcome]} {folder}")
        options = _options(found, folder, sources=sources, addresses=addresses, scenario=scenario)
        if not skip_doctor:
            _look(options, must_be_well=not options.state_dir.exists())
        return options

    return edge.live(found.caller.name, log=log, outlook=watching.outlook, begin=begin)


def doctor(
    kit: Annotated[Path, Parameter(help="A kit file, a kit folder, or the folder that `join` made.")],
    *,
    addresses: _Addresses = (),
    scenario: _ScenarioFile = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON instead of lines.")] = False,
) -> int:
    """Look whether this machine can take part: kit, certificates, clocks, versions, scenario, disk, and the way to each server.

    Exit code 0 says that nothing failed (there may be warnings), 1 that something did; each line that is not well has a remedy.

    Example: `hushtune-client doctor alice-kit.zip`
    """
    from hushtune_common.clock import SystemClock
    from hushtune_common.wire import consultation
    from hushtune_common.wire import doctor as wire_doctor

    places = consultation.parse_addresses(addresses)
    findings = consultation.consult(kit, addresses=places, scenario=scenario, state=None, clock=SystemClock())
    print(json.dumps(wire_doctor.as_json(findings), indent=1) if as_json else wire_doctor.render(findings))
    return 0 if wire_doctor.is_well(findings) else 1


_OUTCOMES: Mapping[str, str] = {
    "new": "kit unpacked to",
    "same": "going on in",
    "renewed": "certificate renewed in",
}


def _require_client(found: "Archive", kit: Path) -> None:
    from hushtune_common.messages import Role

    if found.caller.role is not Role.CLIENT:
        raise ConfigError(str(kit), f"is the kit of {found.caller.uri}, not of a client; on a server: `hushtune kit unpack`")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--state", f"cannot use the folder {folder} ({error.strerror})") from error
    return folder


def _options(
    found: "Archive", folder: Path, *, sources: Sequence[str], addresses: Sequence[str], scenario: Path | None
) -> "ClientOptions":
    from hushtune_client.app import ClientOptions
    from hushtune_common.messages import Role
    from hushtune_common.wire.consultation import parse_addresses

    places = {**found.addresses, **parse_addresses(addresses)}
    missing = [role for role in _CLIENTS_CALL if Role(role) not in places]
    if missing:
        raise ConfigError(
            "--addresses", f"the kit does not say where the {missing[0]} is; add --addresses {missing[0]}=HOST:PORT"
        )
    resolved = _scenario(found, folder / _KIT, scenario)
    resolved.client(found.caller.name)
    return ClientOptions(
        scenario=resolved,
        client_id=found.caller.name,
        kit=folder / _KIT,
        state_dir=folder / _RUN,
        owner=places[Role.OWNER],
        coordinator=places[Role.COORDINATOR],
        air=places[Role.AIR],
        data=_remembered(folder / _DATA, sources),
        own=None,
    )


def _scenario(found: "Archive", folder: Path, given: Path | None) -> "Scenario":
    from hushtune_common import config

    if given is None and found.scenario is None:
        raise ConfigError("--scenario", "this kit has no scenario; give the run's scenario file")
    resolved = config.load(folder / "scenario.toml" if given is None else given)
    if found.scenario is not None and resolved.digest != found.scenario:
        raise ConfigError(
            "--scenario", f"has digest {resolved.digest.short}, the kit is for {found.scenario.short}; leave it away"
        )
    return resolved


def _source(text: str) -> str:
    """Return a data source for what a person types: a source already, or a file whose ending says what is in it."""
    kind, colon, rest = text.partition(":")
    if kind == "pkg" and colon:
        return text
    path = Path(rest if colon and kind in _KINDS else text).expanduser().absolute()
    if not path.is_file():
        raise ConfigError("--data", f"there is no file {path}")
    by_ending = {".jsonl": "jsonl", ".csv": "csv"}.get(path.suffix.lower(), "txt")
    return f"{kind if colon and kind in _KINDS else by_ending}:{path}"


def _remembered(path: Path, given: Sequence[str]) -> tuple[str, ...]:
    """Return the sources given, and keep them for the next start; without any, those of the last one."""
    from hushtune_common.store.files import write_durably

    try:
        if given:
            write_durably(path, [msgspec.json.encode(list(given))])
        return tuple(msgspec.json.decode(path.read_bytes(), type=list[str])) if path.exists() else ()
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(str(path), f"cannot be used ({error}); name your files with --data") from error


def _look(options: "ClientOptions", *, must_be_well: bool) -> None:
    from hushtune_common.clock import SystemClock
    from hushtune_common.errors import OperatingFault
    from hushtune_common.messages import Role
    from hushtune_common.wire import doctor as wire_doctor

    examination = wire_doctor.examine(
        options.kit,
        addresses={Role.OWNER: options.owner, Role.COORDINATOR: options.coordinator, Role.AIR: options.air},
        scenario=options.scenario.digest,
        timing=options.scenario.timing,
        state=options.state_dir,
        clock=SystemClock(),
    )
    findings = asyncio.run(examination)
    edge.say(wire_doctor.render(findings))
    if must_be_well and not wire_doctor.is_well(findings):
        raise OperatingFault("something failed above; mend it and join again, or start anyway with --skip-doctor")
