"""``hushtune bundle …``: look into signed bundles, check them, hand an emulator out as a file, take an adapter in from one.

`inspect` believes nobody and says what a file says of itself; `verify` says whether that may be believed. Both read files only.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hushtune_server.words import extra, print_pairs, show_phase, show_progress

if TYPE_CHECKING:
    from hushtune_common.config import Scenario
    from hushtune_server.owner.releases import Telling

_MODEL_CACHE = Path.home() / ".cache" / "hushtune"

_File = Annotated[Path, Parameter(help="A signed bundle: a release or a return.")]
_Json = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")]
_Trust = Annotated[
    Path,
    Parameter(help="Whom to trust: a kit or `ca.crt` for everybody of that authority, or a file of pinned keys for one signer."),
]
_PostQuantum = Annotated[
    bool,
    Parameter(help="Refuse whatever a quantum computer could forge; needs pinned keys, as certificates are on P-256."),
]
_ScenarioFile = Annotated[Path, Parameter(help="The owner's scenario.")]
_Set = Annotated[tuple[str, ...], Parameter(name="--set", help="Override one scenario key: `path.to.key=value`; repeatable.")]
_State = Annotated[Path, Parameter(help="The owner's state folder; made if missing.")]
_Cache = Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")]


def register(app: App) -> None:
    """Add the ``bundle`` commands to the command line."""
    bundle = App(name="bundle", help="Signed bundles: inspect, verify, and exchange adapters as files where there is no network.")
    bundle.command(inspect)
    bundle.command(verify)
    bundle.command(write_key, name="key")
    bundle.command(export_release, name="export-release")
    bundle.command(import_return, name="import-return")
    app.command(bundle)


def inspect(file: _File, *, json_: _Json = False) -> None:
    """Show what a bundle says of itself, and whether its signatures are of the keys that it names. Trusts nobody.

    Example: `hushtune bundle inspect release.htb`
    """
    with extra("pki"):
        from hushtune_common.release.container import read_container
        from hushtune_common.release.inspection import facts, pairs
    container = read_container(file)
    if json_:
        print(json.dumps(facts(container), indent=1))
    else:
        print_pairs(pairs(container))


def verify(file: _File, *, trust: _Trust, require_post_quantum: _PostQuantum = False, json_: _Json = False) -> None:
    """Check who signed a bundle, that they may, and that every byte is as signed. Exit code 0 says that all of it holds.

    Example: `hushtune bundle verify return.htb --trust kits/owner`
    """
    with extra("pki"):
        from hushtune_common.release.container import read_container
        from hushtune_common.release.inspection import believed, established, facts
        from hushtune_common.release.trust import load_anchor
        from hushtune_common.release.trust import verify as verified
    from hushtune_common.clock import SystemClock

    container = read_container(file)
    found = verified(container, anchor=load_anchor(trust), clock=SystemClock(), require_post_quantum=require_post_quantum)
    container.require_whole(progress=show_progress)
    if json_:
        print(json.dumps({**facts(container), "trusted": established(found)}, indent=1))
    else:
        print_pairs({"verified": str(file), **believed(found)})


def write_key(
    kit: Annotated[Path, Parameter(help="The kit whose signing keys are meant; they are made if it has none.")],
    *,
    out: Annotated[Path, Parameter(help="File to write the public keys to; hand it over yourself to whoever is to pin them.")],
) -> None:
    """Write the public signing keys of a kit to a file that others can pin (`--trust`).

    Example: `hushtune bundle key kits/owner --out owner.keys`
    """
    with extra("pki"):
        from hushtune_common.release.identity import signatory
        from hushtune_common.release.trust import write_pin
    from hushtune_common.clock import SystemClock

    signer = signatory(kit, clock=SystemClock()).signer
    write_pin(out, signer)
    print_pairs({"signer": signer.identity, "algorithms": ", ".join(signer.algorithms), "key": signer.key.fingerprint.hex})


def export_release(
    scenario: _ScenarioFile,
    *,
    state: _State,
    kit: Annotated[Path, Parameter(help="The owner's kit; signs.")],
    out: Annotated[Path, Parameter(help="File to write the release to.")],
    emulator: Annotated[
        Path | None, Parameter(help="The emulator (`hushtune emulator build`); else the one that this owner published last.")
    ] = None,
    client: Annotated[
        tuple[str, ...], Parameter(help="For this client of the scenario; repeatable; all of them unless given.")
    ] = (),
    run: Annotated[
        str | None, Parameter(help="Name of the run of its returns, `offline-…`; made of the emulator if not given.")
    ] = None,
    round_: Annotated[int, Parameter(name="--round", help="Round that returns belong to.")] = 1,
    licence: Annotated[str, Parameter(help="Terms of use of the emulator, such as an SPDX expression.")] = "",
    cache: _Cache = _MODEL_CACHE,
    set_: _Set = (),
) -> None:
    """Write an emulator as a signed release: one file with all that a client needs to train, without a network.

    What it shows of the model is entered in the owner's exposure ledger first. The release itself is not secret from whoever
    holds the file.

    Example: `hushtune bundle export-release scenarios/demo.toml --state state/owner --kit kits/owner
    --emulator emulator.safetensors --out release.htb --licence Apache-2.0`
    """
    with extra("owner"):
        from hushtune_server.owner.releases import Export
        from hushtune_server.owner.releases import export_release as export
    from hushtune_common.clock import SystemClock

    order = Export(
        scenario=_resolved(scenario, set_),
        state=state,
        kit=kit,
        out=out,
        cache=cache,
        emulator=emulator,
        recipients=client,
        run=run,
        round_id=round_,
        licence=licence,
    )
    container = export(order, clock=SystemClock(), telling=_telling())
    statement = container.statement
    print_pairs(
        {
            "release": str(out),
            "statement": container.digest.hex,
            "signed by": f"{statement.signer.identity} with {', '.join(statement.signer.algorithms)}",
            "run, round": f"{statement.run}, {statement.round_id}",
            "emulator": f"{statement.payload.size:,} bytes, {statement.payload.digest}",
        }
    )


def import_return(
    file: Annotated[Path, Parameter(help="The return, as written by `hushtune-client bundle train`.")],
    *,
    scenario: _ScenarioFile,
    state: _State,
    trust: _Trust,
    require_post_quantum: _PostQuantum = False,
    emulator: Annotated[
        Path | None, Parameter(help="The emulator that was released, if it no longer lies where it was exported from.")
    ] = None,
    cache: _Cache = _MODEL_CACHE,
    json_: _Json = False,
    set_: _Set = (),
) -> None:
    """Take an adapter in from a file: check it, store it with those from the air, and try it in the model on public text.

    The same return again changes nothing and gives the same answer; another one of the same client and round is refused.

    Example: `hushtune bundle import-return c1.htb --scenario scenarios/demo.toml --state state/owner --trust kits/owner`
    """
    with extra("owner"):
        from hushtune_common.release.trust import load_anchor
        from hushtune_server.owner.returns import Import
        from hushtune_server.owner.returns import import_return as take_in
    from hushtune_common.clock import SystemClock

    order = Import(
        scenario=_resolved(scenario, set_),
        file=file,
        state=state,
        cache=cache,
        anchor=load_anchor(trust),
        emulator=emulator,
        require_post_quantum=require_post_quantum,
    )
    found = take_in(order, clock=SystemClock(), telling=_telling())
    if json_:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print_pairs(found.to_pairs())


def _resolved(path: Path, overrides: tuple[str, ...]) -> "Scenario":
    from hushtune_common import config

    return config.load(path, overrides=overrides)


def _telling() -> "Telling":
    from hushtune_server.owner.releases import Telling

    return Telling(phase=show_phase, progress=show_progress)
