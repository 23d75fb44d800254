"""``hushtune kit`` and ``hushtune doctor``: everything that a process needs in one file, and whether it can work with that."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.words import extra, print_pairs

_MADE_BY = "0.1.0"
_Role = Literal["owner", "coordinator", "air", "eavesdropper", "client", "operator"]
_File = Annotated[Path, Parameter(help="A kit file, as `hushtune kit create` made it.")]
_Addresses = Annotated[
    tuple[str, ...],
    Parameter(help="Where the servers listen: owner=HOST:PORT,coordinator=HOST:PORT,air=HOST:PORT."),
]

kit_app = App(name="kit", help="Kits as one file each: certificate, key, authority, addresses and scenario.")


def register(app: App) -> None:
    """Add ``kit`` and ``doctor`` to a command line."""
    app.command(kit_app)
    app.command(doctor)


@kit_app.command(name="create")
def create(
    *,
    client: Annotated[str | None, Parameter(help="The client's id in the scenario; short for --role client --name ID.")] = None,
    role: Annotated[_Role, Parameter(help="What the process is.")] = "client",
    name: Annotated[str | None, Parameter(help="Its name; that of its role unless given.")] = None,
    addresses: _Addresses = (),
    scenario: Annotated[Path | None, Parameter(help="The run's scenario file; goes into the kit, without folders.")] = None,
    set_: Annotated[
        tuple[str, ...],
        Parameter(name="--set", help="Override one scenario key, as the servers do: `path.to.key=value`; repeatable."),
    ] = (),
    host: Annotated[tuple[str, ...], Parameter(help="DNS name or IP address of a server beside localhost; repeatable.")] = (),
    authority: Annotated[Path, Parameter(help="The folder made by `hushtune pki init`.")] = Path("authority"),
    out: Annotated[Path, Parameter(help="The file to write; never overwritten.")],
) -> None:
    """Make one file of everything that a process needs; on its machine, `hushtune-client join FILE` is all there is to do.

    The file holds a private key: hand it over as you would a password. Server kits are unpacked by `hushtune kit unpack`.

    Example: `hushtune kit create --client c1 --scenario scenarios/demo.toml
    --addresses owner=owner.example.org:7003,coordinator=coordinator.example.org:7001,air=air.example.org:7002 --out c1-kit.zip`
    """
    with extra("pki"):
        from hushtune_server.pki import kits
    from hushtune_common import config
    from hushtune_common.clock import SystemClock
    from hushtune_common.messages import Caller, Role
    from hushtune_common.wire.consultation import parse_addresses

    if client is not None and (role != "client" or name is not None):
        raise ConfigError("--client", "stands for --role client and --name; give one or the other")
    called = client if client is not None else name if name is not None else role
    if called == "client":
        raise ConfigError("--client", "name the client, by its id in the scenario")
    try:
        caller = Caller(role=Role(role), name=called)
    except ValueError as error:
        raise ConfigError("--client" if client else "--name", str(error)) from error
    made = kits.create(
        authority,
        caller,
        addresses=parse_addresses(addresses),
        scenario=None if scenario is None else config.load(scenario, overrides=set_),
        out=out,
        made_by=_MADE_BY,
        clock=SystemClock(),
        hosts=host,
    )
    print(f"kit of {caller.uri} written to {out}, good until {made.not_after:%Y-%m-%d %H:%M} UTC")
    if role == "client":
        print(f"on the client's machine: hushtune-client join {out.name} --data YOUR-TEXT.txt")
    else:
        print(f"on the {role}'s machine: hushtune kit unpack {out.name} --out kits/{called}")


@kit_app.command(name="show")
def show(kit: _File) -> None:
    """Show whom a kit file is for, until when, and where it will call; nothing of the key.

    Example: `hushtune kit show c1-kit.zip`
    """
    from hushtune_common.wire import archive

    found = archive.read(kit)
    print_pairs(
        {
            "identity": found.caller.uri,
            "valid_from": found.not_before.isoformat(),
            "valid_until": found.not_after.isoformat(),
            "made_by": f"hushtune {found.made_by}, protocol {found.protocol}",
            "scenario": "none" if found.scenario is None else found.scenario.hex,
            **{f"address_{role}": address for role, address in found.addresses.items()},
        }
    )


@kit_app.command(name="unpack")
def unpack(kit: _File, *, out: Annotated[Path, Parameter(help="Folder to make; never one that is there already.")]) -> None:
    """Unpack a kit file into a kit folder, as every `serve` wants it, with the scenario beside the certificate.

    Files that the scenario names (plans, texts) go into the same folder.

    Example: `hushtune kit unpack air-kit.zip --out kits/air`
    """
    from hushtune_common.wire import archive

    found = archive.read(kit)
    archive.unpack(found, out)
    print(f"kit of {found.caller.uri} unpacked to {out}")


def doctor(
    kit: Annotated[Path, Parameter(help="A kit folder or a kit file, of any role.")],
    *,
    addresses: _Addresses = (),
    scenario: Annotated[Path | None, Parameter(help="The scenario file that the servers should run.")] = None,
    state: Annotated[Path | None, Parameter(help="The folder whose disk is looked at; the kit's unless given.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print JSON instead of lines.")] = False,
) -> int:
    """Look whether a process can work: kit, certificates, clocks, versions, scenario, disk, and the way to the servers it calls.

    Exit code 0 says that nothing failed (there may be warnings), 1 that something did; each line that is not well has a remedy.

    Example: `hushtune doctor kits/owner --scenario scenarios/demo.toml
    --addresses coordinator=coordinator.example.org:7001,air=air.example.org:7002`
    """
    from hushtune_common.clock import SystemClock
    from hushtune_common.wire import consultation
    from hushtune_common.wire import doctor as wire_doctor

    places = consultation.parse_addresses(addresses)
    findings = consultation.consult(kit, addresses=places, scenario=scenario, state=state, clock=SystemClock())
    print(json.dumps(wire_doctor.as_json(findings), indent=1) if as_json else wire_doctor.render(findings))
    return 0 if wire_doctor.is_well(findings) else 1
