"""What can a person type after ``hushtune``? Roles, keys, plans and checks; testbed and runs join where they are installed.

Each command imports its application inside its own branch: the coordinator's machine needs no torch, and help is instant.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from hushtune_common.errors import ConfigError, HushtuneError, MissingPackage
from hushtune_common.helptext import default_worth_showing
from hushtune_common.outlook import METRICS_HELP, TRACES_HELP, Outlook
from hushtune_common.store.disk import disk_fault
from hushtune_server import bundle_commands, handshakes, kit_commands, peft_commands, pki_commands, scenario_commands
from hushtune_server.owner import adapter_commands, exposure_commands
from hushtune_server.owner import commands as emulator_commands
from hushtune_server.owner.calibration import commands as calibration_commands
from hushtune_server.owner.fingerprint import commands as fingerprint_commands
from hushtune_server.words import extra

if TYPE_CHECKING:
    from hushtune_common.clock import Clock
    from hushtune_common.config import Scenario
    from hushtune_common.metrics.watch import Watch
    from hushtune_common.seeding import SeedTree

_log = logging.getLogger(__name__)
_USAGE = 2
_DEFECT = 70
_INTERRUPTED = 130

GROUPS = {  # as the help page lists them; a command in none of them would stand alone at its top, which a test forbids
    "Runs on this machine": ("scenario", "testbed", "runs", "dashboard", "report", "logs", "metrics", "trace"),
    "Roles, each a process": ("owner", "coordinator", "air", "eavesdropper"),
    "Who is who, and does it work": ("pki", "kit", "doctor", "health"),
    "Studies of one part": ("emulator", "codec", "link", "solve", "membership", "experiments"),
    "As files": ("bundle", "peft"),
    "About this program": ("--help", "--version"),
}

_Start = Callable[["Scenario", "Clock", "SeedTree", "Watch"], Coroutine[Any, Any, int]]
_ScenarioFile = Annotated[Path, Parameter(help="The scenario file, the same for every process.")]
_Listen = Annotated[str, Parameter(help="Address to listen on; port 0 takes a free one, which is logged as `serving_started`.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RoleOptions:
    """What every role needs."""

    kit: Annotated[Path, Parameter(help="Folder with this process's certificate and key (`hushtune pki issue`).")]
    state: Annotated[Path, Parameter(help="Folder for everything this process must remember; made if missing.")]
    set: Annotated[tuple[str, ...], Parameter(help="Override one scenario key: `path.to.key=value`; repeatable.")] = ()
    json_logs: Annotated[
        bool | None,
        Parameter(negative="--readable-logs", help="Log JSON lines or text for people; by default text on a terminal only."),
    ] = None
    log_level: Annotated[
        Literal["info", "warning", "error"], Parameter(help="What goes to standard output: lines at least as bad as this.")
    ] = "info"
    log_folder: Annotated[
        Path | None, Parameter(help="Also keep all lines here, as JSON in ROLE.jsonl; at most 16 MiB, the latest ones.")
    ] = None
    metrics: Annotated[str | None, Parameter(help=METRICS_HELP)] = None
    traces: Annotated[str | None, Parameter(help=TRACES_HELP)] = None

    @property
    def outlook(self) -> Outlook:
        """Where this process may be watched."""
        return Outlook(metrics=self.metrics, traces=self.traces)


app = App(
    name="hushtune",
    help="Fine-tune a language model across parties that trust each other with neither model nor data.",
    version="0.1.0",
    result_action="return_value",
    default_parameter=Parameter(negative=(), show_default=default_worth_showing),
)
_owner = App(name="owner", help="The model owner: publishes an emulator, judges what comes back.")
_coordinator = App(
    name="coordinator", help="The coordinator: who takes part, with which resources. Never weights, keys or scores."
)
_air = App(name="air", help="The air: carries each frame to two receivers, the owner's and the eavesdropper's.")
_eavesdropper = App(name="eavesdropper", help="The eavesdropper: hears what the tap hears and tries to make something of it.")
for _group in (_owner, _coordinator, _air, _eavesdropper):
    app.command(_group)


@_owner.command(name="serve")
def owner_serve(
    scenario: _ScenarioFile,
    *,
    coordinator: Annotated[str, Parameter(help="Address of the coordinator.")],
    air: Annotated[str, Parameter(help="Address of the air.")],
    options: RoleOptions,
    listen: _Listen = "127.0.0.1:0",
    cache: Annotated[Path | None, Parameter(help="Folder for converted models; inside the state folder unless given.")] = None,
) -> int:
    """Serve the owner of a scenario until its last round is over.

    Example: `hushtune owner serve scenarios/demo.toml --kit kits/owner --state state/owner
    --coordinator 127.0.0.1:7001 --air 127.0.0.1:7002`
    """

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree", watch: "Watch") -> Coroutine[Any, Any, int]:
        from hushtune_server.owner.app import OwnerOptions, serve

        chosen = OwnerOptions(
            scenario=resolved,
            listen=listen,
            kit=options.kit,
            state_dir=options.state,
            cache_dir=options.state / "cache" if cache is None else cache,
            coordinator=coordinator,
            air=air,
            watch=watch,
        )
        return serve(chosen, clock=clock, seeds=seeds)

    return _run_role("owner", scenario, options, start)


@_coordinator.command(name="serve")
def coordinator_serve(
    scenario: _ScenarioFile,
    *,
    options: RoleOptions,
    run: Annotated[str, Parameter(help="Name of this run; part of every update's key.")] = "run-1",
    listen: _Listen = "127.0.0.1:0",
) -> int:
    """Serve the coordinator of a scenario until its last round is over.

    Example: `hushtune coordinator serve scenarios/demo.toml --kit kits/coordinator --state state/coordinator
    --listen 0.0.0.0:7001`
    """

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree", watch: "Watch") -> Coroutine[Any, Any, int]:
        from hushtune_common.messages import RunId
        from hushtune_server.coordinator.app import CoordinatorOptions, serve

        chosen = CoordinatorOptions(
            scenario=resolved, run=RunId(run), listen=listen, kit=options.kit, state_dir=options.state, watch=watch
        )
        return serve(chosen, clock=clock, seeds=seeds)

    return _run_role("coordinator", scenario, options, start)


@_air.command(name="serve")
def air_serve(scenario: _ScenarioFile, *, options: RoleOptions, listen: _Listen = "127.0.0.1:0") -> int:
    """Serve the air of a scenario until told to stop.

    Example: `hushtune air serve scenarios/demo.toml --kit kits/air --state state/air --listen 0.0.0.0:7002`
    """

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree", watch: "Watch") -> Coroutine[Any, Any, int]:
        from hushtune_server.air.app import AirOptions, serve

        chosen = AirOptions(scenario=resolved, listen=listen, kit=options.kit, state_dir=options.state, watch=watch)
        return serve(chosen, clock=clock, seeds=seeds)

    return _run_role("air", scenario, options, start)


@_eavesdropper.command(name="listen")
def eavesdropper_listen(
    scenario: _ScenarioFile, *, air: Annotated[str, Parameter(help="Address of the air.")], options: RoleOptions
) -> int:
    """Listen on the tap and attack every reception until told to stop. The scenario's seed is set to zero first.

    Example: `hushtune eavesdropper listen scenarios/demo.toml --kit kits/eavesdropper --state state/eavesdropper
    --air 127.0.0.1:7002`
    """

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree", watch: "Watch") -> Coroutine[Any, Any, int]:
        from hushtune_server.eavesdropper.app import EavesdropperOptions, listen

        chosen = EavesdropperOptions(scenario=resolved, kit=options.kit, state_dir=options.state, air=air, watch=watch)
        return listen(chosen, clock=clock, seeds=seeds)

    return _run_role("eavesdropper", scenario, options, start)


@app.command(name="health")
def health(
    address: Annotated[str, Parameter(help="Host and port of the server.")],
    *,
    role: Annotated[Literal["owner", "coordinator", "air"], Parameter(help="What its certificate must say it is.")],
    kit: Annotated[Path, Parameter(help="The kit of the side that asks.")],
) -> int:
    """Ask a server whether it serves; exit code 0 says yes, 1 says no.

    Example: `hushtune health 127.0.0.1:7002 --role air --kit kits/operator`
    """
    from hushtune_common.config import TimingConfig
    from hushtune_common.messages import Role
    from hushtune_common.wire import endpoint, preflight

    asked = preflight.health(address, role=Role(role), kit=endpoint.Kit.load(kit), timing=TimingConfig())
    serving = asyncio.run(asked)
    print(f"{role} at {address}: {'serving' if serving else 'not serving'}")
    return 0 if serving else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a known fault is one line on standard error and its class's code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with extra("testbed"):
            result = app(tokens, exit_on_error=False)
    except CycloptsError:
        return _USAGE  # already explained on standard error
    except KeyboardInterrupt:
        return _INTERRUPTED
    except HushtuneError as error:
        return _failed(error)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        return _failed(fault)
    return result if isinstance(result, int) else 0


def _run_role(role: str, scenario: Path, options: RoleOptions, start: _Start) -> int:
    """Configure the log, resolve the scenario, run the role's event loop, then end without waiting for worker threads."""
    from hushtune_common import config
    from hushtune_common.clock import SystemClock
    from hushtune_common.observed import observed
    from hushtune_common.seeding import SeedTree

    clock = SystemClock()
    try:
        _begin_logs(role, options, clock=clock)
        resolved = config.load(scenario, overrides=options.set)
        _make_folder(options.state)
        clients = [c.id for c in resolved.clients]
        with (
            extra(role),
            handshakes.told(clock),
            observed(options.outlook, role=role, clients=clients, state_dir=options.state) as watch,
        ):
            code = asyncio.run(start(resolved, clock, SeedTree(resolved.seed).child(role), watch))
    except HushtuneError as error:
        code = _failed(error)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:  # the edge of the process: what is neither typed nor the disk's is a defect, told with its trace
        fault = disk_fault(error)
        code = _crashed(role, error) if fault is None else _failed(fault)
    _leave(code)
    return code


def _begin_logs(role: str, options: RoleOptions, *, clock: "Clock") -> None:
    from hushtune_common import logs

    as_json, level, folder = options.json_logs, options.log_level, options.log_folder
    logs.configure(clock=clock, json_lines=as_json, level=level, folder=folder, role=role, name=role)


def _make_folder(state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may hold adapters in the clear
    except OSError as error:
        raise ConfigError("--state", f"cannot use the folder {state} ({error.strerror})") from error


def _leave(code: int) -> None:
    """End now: a worker thread may still be inside torch, and joining it would keep a stopped process alive for minutes."""
    with suppress(OSError):  # on a full disk nothing more can be said, and the code still tells
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _crashed(role: str, error: Exception) -> int:
    from hushtune_common.logs import log_defect

    log_defect(_log, "process_crashed", error)
    _say(f"hushtune {role}: a defect of ours; its trace is in the log under process_crashed")
    return _DEFECT


def _failed(error: HushtuneError) -> int:
    if logging.getLogger().handlers:
        from hushtune_common.logs import log_event

        fields = {"reason": error.reason, "exit_code": error.exit_code, "problem": str(error)}
        log_event(_log, "process_failed", level=logging.ERROR, **fields)
    _say(f"hushtune: {error}")
    return error.exit_code


def _say(text: str) -> None:
    with suppress(OSError):  # standard error may be a file on a full disk
        print(text, file=sys.stderr, flush=True)


def _add_testbed() -> None:
    """Register the commands of the testbed; a machine that only runs a role gets a hint of what is missing."""
    try:
        with extra("testbed"):
            from hushtune_server.testbed import commands
            from hushtune_server.testbed.codec import commands as codec_commands
    except MissingPackage as missing:
        for name in (
            "testbed",
            "runs",
            "logs",
            "trace",
            "report",
            "dashboard",
            "metrics",
            "link",
            "membership",
            "solve",
            "experiments",
        ):
            app.command(_refusal(missing), name=name, help=f"Not available here: {missing}")
        for name in ("compare", "search"):
            app["emulator"].command(_refusal(missing), name=name, help=f"Not available here: {missing}")
        app["codec"].command(_refusal(missing), name="curve", help=f"Not available here: {missing}")
        return
    commands.register(app)
    codec_commands.register(app["codec"])


def _refusal(missing: MissingPackage) -> Callable[..., None]:
    def refuse(*_arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
        raise missing

    return refuse


emulator_commands.register(app)
exposure_commands.register(_owner)
bundle_commands.register(app)
adapter_commands.register(_owner)
fingerprint_commands.register(_owner)
calibration_commands.register(app)
peft_commands.register(app)
pki_commands.register(app)
kit_commands.register(app)
scenario_commands.register(app)
_add_testbed()
for _place, (_title, _names) in enumerate(GROUPS.items()):
    _together = Group(_title, sort_key=_place)
    for _row, _name in enumerate(_names):
        app[_name].group, app[_name].sort_key = _together, _row
