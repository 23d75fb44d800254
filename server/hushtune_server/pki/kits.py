"""How does everything that one process needs get into one file?"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from hushtune_common import config
from hushtune_common.clock import Clock
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.messages import Caller, Role
from hushtune_common.store.disk import full_disk_is_typed
from hushtune_common.wire import archive
from hushtune_server.pki.files import PRIVATE, pem_of
from hushtune_server.pki.issuing import LOOPBACK, leaf


def create(
    authority: Path,
    caller: Caller,
    *,
    addresses: Mapping[Role, str],
    scenario: Scenario | None,
    out: Path,
    made_by: str,
    clock: Clock,
    hosts: Sequence[str] = (),
) -> archive.Archive:
    """Issue a certificate for ``caller`` and write it, with all that belongs to it, into the file ``out`` (0600).

    The scenario goes without folders, which differ by machine, and to an eavesdropper without its seed. Raises ``ConfigError``
    before anything is issued when ``out`` is there already, or scenario and addresses do not fit the process.
    """
    if out.exists():
        raise ConfigError("--out", f"{out} is there already; kits are not overwritten, since somebody may be using it")
    _require_fit(caller, addresses=addresses, scenario=scenario)
    made = leaf(authority, caller, hosts=(*LOOPBACK, *hosts), clock=clock)
    told = None if scenario is None else _for(caller, scenario)
    members = {
        archive.CA: made.ca,
        archive.LIST: made.revoked,
        archive.CERTIFICATE: pem_of(made.certificate),
        archive.KEY: pem_of(made.key),
        **({} if told is None else {archive.SCENARIO: tomli_w.dumps(config.to_toml_tree(told)).encode()}),
    }
    content = archive.compose(
        members,
        caller=caller,
        not_before=made.not_before,
        not_after=made.not_after,
        made_by=made_by,
        addresses=addresses,
        scenario=None if told is None else told.digest,
    )
    _write_new(out, content)
    return archive.parse(content, name=str(out))


def _require_fit(caller: Caller, *, addresses: Mapping[Role, str], scenario: Scenario | None) -> None:
    needed = {Role.CLIENT: (Role.OWNER, Role.COORDINATOR, Role.AIR)}.get(caller.role, ())
    missing = [role for role in needed if role not in addresses]
    if missing:
        raise ConfigError("--addresses", f"a client calls owner, coordinator and air; add {missing[0]}=HOST:PORT")
    if scenario is not None and caller.role is Role.CLIENT:
        scenario.client(caller.name)


def _for(caller: Caller, scenario: Scenario) -> Scenario:
    bare = config.without_folders(scenario)
    return config.without_seed(bare) if caller.role is Role.EAVESDROPPER else bare


def _write_new(out: Path, content: bytes) -> None:
    try:
        with full_disk_is_typed():
            out.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except OSError as error:
        raise ConfigError("--out", f"{out} cannot be written ({error.strerror})") from error
