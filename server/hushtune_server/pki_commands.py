"""What can a person type after ``hushtune pki``? An authority, kits, renewals, and what was withdrawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.words import extra, print_pairs

if TYPE_CHECKING:
    from hushtune_common.messages import Caller
    from hushtune_server.pki import Published, Row

_Role = Literal["owner", "coordinator", "air", "eavesdropper", "client", "operator"]
_Authority = Annotated[Path, Parameter(help="The folder made by `hushtune pki init`.")]
_Host = Annotated[tuple[str, ...], Parameter(help="DNS name or IP address of a server beside localhost; repeatable.")]
_Into = Annotated[
    tuple[Path, ...],
    Parameter(help="A kit folder to put the list into beside those of the register; repeatable."),
]

pki_app = App(name="pki", help="A tiny certificate authority: who is who, and who is not any more.")


def register(app: App) -> None:
    """Add ``pki`` to a command line."""
    app.command(pki_app)


@pki_app.command(name="init")
def init(directory: Annotated[Path, Parameter(help="Folder for `ca.crt` and `ca.key`; the key never leaves it.")]) -> None:
    """Make a certificate authority.

    Example: `hushtune pki init authority`
    """
    with extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock

    pki.init(directory, clock=SystemClock())
    print(f"authority made in {directory}; next: hushtune pki issue {directory} --role client --name c1 --out kits/c1")


@pki_app.command(name="issue")
def issue(
    authority: _Authority,
    *,
    role: Annotated[_Role, Parameter(help="What the process is.")],
    name: Annotated[str, Parameter(help="Its name; a client's is its id in the scenario.")],
    out: Annotated[Path, Parameter(help="Folder of the new kit.")],
    host: _Host = (),
) -> None:
    """Issue a kit: the folder that one process needs to prove who it is. Valid for 90 days.

    For a client on another machine, `hushtune kit create` makes one file of everything that it needs.

    Example: `hushtune pki issue authority --role air --name air --out kits/air --host air.example --host 10.0.0.7`
    """
    with extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock
    from hushtune_common.messages import Role

    pki.issue(authority, role=Role(role), name=name, out=out, clock=SystemClock(), hosts=(*pki.LOOPBACK, *host))
    print(f"kit of {role} {name} written to {out}")


@pki_app.command(name="renew")
def renew(
    authority: _Authority,
    kits: Annotated[tuple[Path, ...], Parameter(help="The kit folders to renew, of any role.")],
    *,
    keep_key: Annotated[bool, Parameter(help="Certify the kit's old key again instead of making a new one.")] = False,
    host: _Host = (),
) -> None:
    """Give kits a new certificate of the same identity, valid for 90 days, and the newest revocation list.

    A running server shows the new certificate from the next connection on, without a restart. The old one stays good until its
    end; revoke it when its key may be known to others.

    Example: `hushtune pki renew authority kits/owner kits/air`
    """
    with extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock

    if not kits:
        raise ConfigError("KITS", "name at least one kit folder to renew")
    for kit in kits:
        made = pki.renew(authority, kit, clock=SystemClock(), keep_key=keep_key, hosts=host)
        print(f"{kit}: {made.caller.uri} until {made.not_after:%Y-%m-%d %H:%M} UTC, serial {made.certificate.serial_number:x}")


@pki_app.command(name="revoke")
def revoke(
    authority: _Authority,
    *,
    role: Annotated[_Role | None, Parameter(help="Role of the process whose certificates are withdrawn.")] = None,
    name: Annotated[str | None, Parameter(help="Its name.")] = None,
    serial: Annotated[str | None, Parameter(help="Withdraw one certificate only, by its hexadecimal serial.")] = None,
    reason: Annotated[
        Literal["key-compromise", "superseded", "left", "privilege-withdrawn"], Parameter(help="Why, for the list.")
    ] = "privilege-withdrawn",
    into: _Into = (),
) -> None:
    """Withdraw a process's certificates before their time, and put the signed list into the kits of this machine.

    Servers go by the new list within seconds: calls of a revoked process are refused and its open streams are ended, each with
    the reason. Take `ca.crl` to the kit folders of servers on other machines by hand; it is public.

    Example: `hushtune pki revoke authority --role client --name c1 --reason key-compromise`
    """
    with extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock

    caller = _named(role, name)
    done = pki.revoke(authority, clock=SystemClock(), caller=caller, serial=serial, reason=reason, into=into)
    for number in done.added:
        print(f"revoked: serial {number:x}{'' if caller is None else f' of {caller.uri}'}")
    _tell(done, authority, into=into)


@pki_app.command(name="publish")
def publish(authority: _Authority, *, into: _Into = ()) -> None:
    """Sign the revocation list for another 90 days, and put it into the kits of this machine.

    Needed when a server says that its list ends soon; renewing its kit does it too.

    Example: `hushtune pki publish authority --into /mnt/air/kit`
    """
    with extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock

    _tell(pki.publish(authority, clock=SystemClock(), into=into), authority, into=into)


@pki_app.command(name="show")
def show(
    folder: Annotated[Path, Parameter(help="A kit, for what it says; or the authority, for a table of what it issued.")],
) -> None:
    """Show whom a kit identifies and until when; of an authority, every certificate with its serial and state.

    Example: `hushtune pki show authority`
    """
    with extra("pki"):
        from hushtune_server import pki
    from hushtune_common.clock import SystemClock

    if (folder / "ca.key").exists():
        _print_table(pki.table(folder, clock=SystemClock()))
    else:
        print_pairs(pki.show(folder))


def _named(role: str | None, name: str | None) -> "Caller | None":
    from hushtune_common.messages import Caller, Role

    if (role is None) != (name is None):
        raise ConfigError("pki revoke", "--role and --name belong together")
    if role is None or name is None:
        return None
    try:
        return Caller(role=Role(role), name=name)
    except ValueError as error:
        raise ConfigError("--name", str(error)) from error


def _tell(done: "Published", authority: Path, *, into: "Sequence[Path]") -> None:
    """Say where the list is; `ConfigError` for a folder that was named and did not get it."""
    for folder in done.placed:
        print(f"list placed in {folder}")
    for folder in done.missed:
        print(f"not there any more, or of another authority: {folder}")
    print(f"servers on other machines: copy {authority / 'ca.crl'} into their kit folders; no restart is needed")
    for folder in into:
        if folder.resolve() in done.missed:
            raise ConfigError("--into", f"{folder} is no kit folder of this authority; everything else has the list")


def _print_table(rows: "Sequence[Row]") -> None:
    lines = [("identity", "serial", "valid until (UTC)", "state")]
    lines += [(row.identity, row.serial, row.valid_until, row.state) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        print("  ".join(f"{word:<{width}}" for word, width in zip(line, widths, strict=True)).rstrip())
