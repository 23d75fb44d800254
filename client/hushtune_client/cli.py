"""What can a data owner type after ``hushtune-client``?

Each command imports what it needs inside its own branch, so help is instant.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from hushtune_client import bundle_commands, edge, kit_commands
from hushtune_common.errors import HushtuneError
from hushtune_common.helptext import default_worth_showing
from hushtune_common.store.disk import disk_fault

if TYPE_CHECKING:
    from hushtune_client.app import ClientOptions
    from hushtune_client.own_training import OwnTraining
    from hushtune_common.messages import Role
    from hushtune_common.peft.indices import Counting

_Kit = Annotated[Path, Parameter(help="Folder with this client's certificate and key (`hushtune pki issue --role client`).")]
_Owner = Annotated[str, Parameter(help="Address of the model owner, HOST:PORT.")]
_Coordinator = Annotated[str, Parameter(help="Address of the coordinator, HOST:PORT.")]
_Air = Annotated[str, Parameter(help="Address of the air, HOST:PORT.")]

app = App(
    name="hushtune-client",
    help="Fine-tune on your own text without handing it out: an emulator comes in, a sealed adapter goes home.",
    version="0.1.0",
    result_action="return_value",
    default_parameter=Parameter(negative=(), show_default=default_worth_showing),
)


@app.command(name="run")
def run(
    scenario: Annotated[Path, Parameter(help="The scenario file, the same one that every other process of the run reads.")],
    *,
    client: Annotated[
        str, Parameter(help="Which of the scenario's clients this is, such as c1; the kit must be of that client.")
    ],
    kit: _Kit,
    owner: _Owner,
    coordinator: _Coordinator,
    air: _Air,
    state: Annotated[Path, Parameter(help="Folder for what must survive a restart; made if missing, one per client and run.")],
    data: Annotated[
        str | None,
        Parameter(
            help="Your own text, used whole: txt:FILE (a record per line), jsonl:FILE or csv:FILE (field text). "
            "Without it the client takes its share of the scenario's private data."
        ),
    ] = None,
    adapter_from: Annotated[
        Path | None,
        Parameter(
            help="Take part with what you trained yourself on the emulator (`export-emulator`), and train nothing here: "
            "the folder of a LoRA, or a patch or adapter in a safetensors file."
        ),
    ] = None,
    indices: Annotated[
        Literal["short", "original"] | None,
        Parameter(help="Whether that LoRA's names count the emulator's blocks or the full model's; asked where nothing says it."),
    ] = None,
    set_: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            help="Override one scenario key, path.to.key=value; repeatable, and the same for every process.",
        ),
    ] = (),
    log: edge.LogOptions = edge.LogOptions(),  # noqa: B008 - frozen
    watching: edge.WatchOptions = edge.WatchOptions(),  # noqa: B008 - frozen
) -> int:
    """Take part in a run as one data owner, until its last round is over.

    The text stays on this machine: only the sealed change of the adapter blocks is sent. Ctrl-C leaves the run in order; started
    again with the same state folder, the client goes on where it was.

    With `--adapter-from my-lora` it returns what you trained elsewhere; what does not fit the emulator is refused before anything
    is promised to anybody.

    Example: `hushtune-client run scenarios/demo.toml --client c1 --kit kits/c1 --state state/c1
    --owner 127.0.0.1:7003 --coordinator 127.0.0.1:7001 --air 127.0.0.1:7002 --data txt:my-texts.txt`
    """

    def begin() -> "ClientOptions":
        from hushtune_client.app import ClientOptions
        from hushtune_common import config

        return ClientOptions(
            scenario=config.load(scenario, overrides=set_),
            client_id=client,
            kit=kit,
            state_dir=state,
            owner=owner,
            coordinator=coordinator,
            air=air,
            data=() if data is None else (data,),
            own=_own_training(adapter_from, indices),
        )

    return edge.live(client, log=log, outlook=watching.outlook, begin=begin)


@app.command(name="health")
def health(*, kit: _Kit, owner: _Owner, coordinator: _Coordinator, air: _Air) -> int:
    """Ask the three counterparts whether they serve; exit code 0 says that all do, 1 that some do not.

    Example: `hushtune-client health --kit kits/c1 --owner 127.0.0.1:7003 --coordinator 127.0.0.1:7001 --air 127.0.0.1:7002`
    """
    from hushtune_common.errors import OperatingFault
    from hushtune_common.messages import Role

    good = True
    for role, address in ((Role.OWNER, owner), (Role.COORDINATOR, coordinator), (Role.AIR, air)):
        try:
            serving = asyncio.run(_ask_health(kit, role, address))
            print(f"{role} at {address}: {'serving' if serving else 'not serving'}")
        except OperatingFault as error:
            serving = False
            print(f"{role} at {address}: {error}")
        good = good and serving
    return 0 if good else 1


@app.command(name="export-emulator")
def export_emulator(
    bundle: Annotated[Path, Parameter(help="An emulator, as the owner publishes it.")],
    *,
    out: Annotated[Path, Parameter(help="Folder of the plain model; made if missing.")],
) -> None:
    """Write an emulator as a plain transformers model of fewer blocks, to train LoRA on it with tools of your own.

    `hushtune.json` beside it says which blocks those are, and in `layers_to_transform` which of them may be trained.

    Example: `hushtune-client export-emulator emulator.safetensors --out short-model`
    """
    from hushtune_client.own_training import export_model

    note = export_model(bundle, out)
    print(f"model of {len(note.blocks)} blocks written to {out}; train with layers_to_transform={list(note.layers_to_transform)}")
    print(f"then: hushtune-client import-adapter YOUR-LORA --bundle {bundle} --out adapter.safetensors")


@app.command(name="import-adapter")
def import_adapter(
    folder: Annotated[Path, Parameter(help="The LoRA checkpoint that PEFT's save_pretrained wrote.")],
    *,
    bundle: Annotated[Path, Parameter(help="The emulator that it was trained on.")],
    out: Annotated[Path, Parameter(help="File to write the adapter blocks to, safetensors.")],
    indices: Annotated[
        Literal["short", "original"] | None,
        Parameter(help="Whether names count the emulator's blocks or the full model's; known where hushtune.json says it."),
    ] = None,
) -> None:
    """Merge your own LoRA into an emulator's adapter blocks: what a training of ours would have returned.

    Example: `hushtune-client import-adapter my-lora --bundle emulator.safetensors --out adapter.safetensors`
    """
    from hushtune_client.own_training import OwnTraining, write_result

    imported = write_result(OwnTraining(path=folder, indices=indices), bundle=bundle, result=out)
    print(f"adapter blocks written to {out}: {imported.summary}")


@app.command(name="rehearse")
def rehearse(
    scenario: Annotated[Path, Parameter(help="The scenario file that the coordinator runs.")],
    *,
    clients: Annotated[str, Parameter(help="Names of the scenario's clients to take part as, separated by commas.")],
    kits: Annotated[Path, Parameter(help="Folder with a kit for each of them, named like the client.")],
    coordinator: _Coordinator,
    state: Annotated[Path, Parameter(help="Folder for what must survive a restart; one below it for each client.")],
) -> int:
    """Take part as several clients that train nothing and send nothing, to see what a coordinator bears.

    Each is a real client up to its first sheet of private text: its own certificate, connection, journal and state machine.
    Whoever plays the owner settles for the `update_rehearsed` events on standard output. `hushtune testbed load` does all of it.

    Example: `hushtune-client rehearse load.toml --clients c1,c2 --kits kits --state state --coordinator 127.0.0.1:7001`
    """
    from hushtune_client.rehearsal import app as rehearsal
    from hushtune_common import config, logs
    from hushtune_common.clock import SystemClock
    from hushtune_common.seeding import SeedTree

    clock = SystemClock()
    logs.configure(clock=clock, json_lines=True, role="client", name="rehearsal")
    resolved = config.load(scenario)
    names = tuple(resolved.client(name.strip()).id for name in clients.split(","))
    options = rehearsal.RehearsalOptions(scenario=resolved, clients=names, kits=kits, state_dir=state, coordinator=coordinator)
    return asyncio.run(rehearsal.run(options, clock=clock, seeds=SeedTree(resolved.seed)))


bundle_commands.register(app)
kit_commands.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a known fault is one line on standard error and its class's code."""
    try:
        result = app(sys.argv[1:] if arguments is None else list(arguments), exit_on_error=False)
    except CycloptsError:
        return edge.USAGE  # already explained on standard error
    except KeyboardInterrupt:
        return edge.INTERRUPTED
    except HushtuneError as error:
        return edge.failed(error)
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        return edge.failed(fault)
    return result if isinstance(result, int) else 0


def _own_training(folder: Path | None, indices: "Counting | None") -> "OwnTraining | None":
    from hushtune_client.own_training import OwnTraining
    from hushtune_common.errors import ConfigError

    if folder is None and indices is not None:
        raise ConfigError("--indices", "says how --adapter-from counts blocks; give that, too")
    return None if folder is None else OwnTraining(path=folder, indices=indices)


async def _ask_health(kit: Path, role: "Role", address: str) -> bool:
    from hushtune_common.config import TimingConfig
    from hushtune_common.wire import endpoint, preflight

    return await preflight.health(address, role=role, kit=endpoint.Kit.load(kit), timing=TimingConfig())
