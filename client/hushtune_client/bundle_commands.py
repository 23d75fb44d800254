"""``hushtune-client bundle …``: check a release, train on it without a network, write the adapter as a sealed and signed file."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hushtune_client.offline import Telling
    from hushtune_client.own_training import OwnTraining
    from hushtune_common.config import ComputeConfig, DpConfig
    from hushtune_common.model.finetune import Progress as Step
    from hushtune_common.peft.indices import Counting

_File = Annotated[Path, Parameter(help="A signed bundle: a release or a return.")]
_Json = Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")]
_Release = Annotated[Path, Parameter(help="The release, as written by `hushtune bundle export-release`.")]
_Kit = Annotated[Path, Parameter(help="This client's kit; signs.")]
_TRUST = "a kit or `ca.crt` for everybody of that authority, or a file of pinned keys for one signer."
_Trusted = Annotated[Path | None, Parameter(help=f"Whom to trust: {_TRUST} The kit's own authority unless given.")]
_PostQuantum = Annotated[
    bool,
    Parameter(help="Refuse whatever a quantum computer could forge; needs pinned keys, as certificates are on P-256."),
]


def register(app: App) -> None:
    """Add the ``bundle`` commands to the command line."""
    bundle = App(name="bundle", help="Signed bundles: take part without a network.")
    bundle.command(train)
    bundle.command(write_emulator, name="emulator")
    bundle.command(inspect)
    bundle.command(verify)
    bundle.command(write_key, name="key")
    app.command(bundle)


def train(
    release: _Release,
    *,
    data: Annotated[
        str | None,
        Parameter(help="Your own text: txt:FILE (a record per line), jsonl:FILE or csv:FILE (field text). It stays here."),
    ] = None,
    out: Annotated[Path, Parameter(help="File to write the return to.")],
    kit: _Kit,
    trust: _Trusted = None,
    adapter_from: Annotated[
        Path | None,
        Parameter(
            help="Return what you trained yourself on the emulator (`bundle emulator`), and train nothing here: "
            "the folder of a LoRA, or a patch or adapter in a safetensors file. In place of --data."
        ),
    ] = None,
    indices: Annotated[
        Literal["short", "original"] | None,
        Parameter(help="Whether that LoRA's names count the emulator's blocks or the full model's; asked where nothing says it."),
    ] = None,
    require_post_quantum: _PostQuantum = False,
    share: Annotated[float, Parameter(help="How much of a full update's bytes to use, above 0 and at most 1.")] = 1.0,
    epochs: Annotated[int | None, Parameter(help="Passes over your text, at most what the release asks for.")] = None,
    epsilon: Annotated[
        float | None, Parameter(help="Train with differential privacy of single windows, at most so much.")
    ] = None,
    delta: Annotated[float, Parameter(help="The other half of the promise; with --epsilon.")] = 1e-5,
    threads: Annotated[int | None, Parameter(help="Torch threads; 1 unless given.")] = None,
    seed: Annotated[
        int | None,
        Parameter(help="Decides the order of windows, 0 unless given; privacy draws from the operating system instead."),
    ] = None,
    work: Annotated[
        Path | None, Parameter(help="Folder for the emulator while training lasts; that of --out unless given.")
    ] = None,
    licence: Annotated[str, Parameter(help="Your terms for the adapter, such as an SPDX expression.")] = "",
    describe: Annotated[
        tuple[str, ...], Parameter(help="What to say of your text in the open; nothing unless given; repeatable.")
    ] = (),
) -> None:
    """Train the adapter blocks of a release on your own text and write them sealed to its owner. No network is used.

    The return can be read by the owner alone: it is sealed to the owner's key. No wiretap code protects it on top, and what its
    statement says (who, when, how many windows and tokens) is in the open.

    With `--adapter-from my-lora` it returns what you trained elsewhere, and its statement says nothing of how that was done.

    Example: `hushtune-client bundle train release.htb --data txt:my-texts.txt --kit kits/c1 --out c1.htb`
    """
    from hushtune_client.offline import Order
    from hushtune_client.offline import train as trained
    from hushtune_common.clock import SystemClock
    from hushtune_common.release.inspection import SEALED
    from hushtune_common.release.trust import load_anchor

    own = _own_training(adapter_from, indices, unused={"--threads": threads, "--seed": seed})
    order = Order(
        release=release,
        data=data,
        own=own,
        out=out,
        kit=kit,
        anchor=load_anchor(trust or kit),
        require_post_quantum=require_post_quantum,
        share=share,
        epochs=epochs,
        dp=None if epsilon is None else _private(epsilon, delta),
        compute=_compute(1 if threads is None else threads),
        seed=seed or 0,
        work=work,
        licence=licence,
        described=describe,
    )
    done = trained(order, clock=SystemClock(), telling=_telling())
    statement = done.container.statement
    _print_pairs(
        {
            "return": str(out),
            "signed by": f"{statement.signer.identity} with {', '.join(statement.signer.algorithms)}",
            "adapter": f"{done.bytes_raw:,} bytes, encoded {done.bytes_encoded:,}, sealed {statement.payload.size:,}",
            "protection": SEALED,
        }
    )


def write_emulator(
    release: _Release,
    *,
    out: Annotated[Path, Parameter(help="File to write the emulator to, safetensors.")],
    kit: Annotated[Path, Parameter(help="This client's kit.")],
    trust: _Trusted = None,
    require_post_quantum: _PostQuantum = False,
) -> None:
    """Take the emulator out of a release that is believed, to train on it with tools of your own.

    `export-emulator` makes a plain model of it, `bundle train --adapter-from` returns what you made of that.

    Example: `hushtune-client bundle emulator release.htb --kit kits/c1 --out emulator.safetensors`
    """
    from hushtune_client import offline
    from hushtune_common.clock import SystemClock
    from hushtune_common.release.trust import load_anchor

    bundle = offline.write_emulator(
        release,
        out=out,
        kit=kit,
        anchor=load_anchor(trust or kit),
        clock=SystemClock(),
        telling=_telling(),
        require_post_quantum=require_post_quantum,
    )
    _print_pairs({"emulator": str(out), "of model": bundle.base_digest.hex, "next": f"hushtune-client export-emulator {out}"})


def inspect(file: _File, *, json_: _Json = False) -> None:
    """Show what a bundle says of itself, and whether its signatures are of the keys that it names. Trusts nobody.

    Example: `hushtune-client bundle inspect release.htb`
    """
    from hushtune_common.release.container import read_container
    from hushtune_common.release.inspection import facts, pairs

    container = read_container(file)
    if json_:
        print(json.dumps(facts(container), indent=1))
    else:
        _print_pairs(pairs(container))


def verify(
    file: _File,
    *,
    trust: Annotated[Path, Parameter(help=f"Whom to trust: {_TRUST}")],
    require_post_quantum: _PostQuantum = False,
    json_: _Json = False,
) -> None:
    """Check who signed a bundle, that they may, and that every byte is as signed. Exit code 0 says that all of it holds.

    Example: `hushtune-client bundle verify release.htb --trust kits/c1`
    """
    from hushtune_common.clock import SystemClock
    from hushtune_common.release.container import read_container
    from hushtune_common.release.inspection import believed, established, facts
    from hushtune_common.release.trust import load_anchor
    from hushtune_common.release.trust import verify as verified

    container = read_container(file)
    found = verified(container, anchor=load_anchor(trust), clock=SystemClock(), require_post_quantum=require_post_quantum)
    container.require_whole(progress=_show_bytes)
    if json_:
        print(json.dumps({**facts(container), "trusted": established(found)}, indent=1))
    else:
        _print_pairs({"verified": str(file), **believed(found)})


def write_key(
    kit: Annotated[Path, Parameter(help="The kit whose signing keys are meant; they are made if it has none.")],
    *,
    out: Annotated[Path, Parameter(help="File to write the public keys to; hand it over yourself to whoever is to pin them.")],
) -> None:
    """Write the public signing keys of a kit to a file that the owner can pin.

    Example: `hushtune-client bundle key kits/c1 --out c1.keys`
    """
    from hushtune_common.clock import SystemClock
    from hushtune_common.release.identity import signatory
    from hushtune_common.release.trust import write_pin

    signer = signatory(kit, clock=SystemClock()).signer
    write_pin(out, signer)
    _print_pairs({"signer": signer.identity, "algorithms": ", ".join(signer.algorithms), "key": signer.key.fingerprint.hex})


def _own_training(
    path: Path | None, indices: "Counting | None", *, unused: "Mapping[str, object | None]"
) -> "OwnTraining | None":
    """Return what was trained elsewhere, if anything; ``unused`` are options that then nothing would look at."""
    from hushtune_client.own_training import OwnTraining
    from hushtune_common.errors import ConfigError

    if path is None:
        if indices is not None:
            raise ConfigError("--indices", "says how --adapter-from counts blocks; give that, too")
        return None
    for option, value in unused.items():
        if value is not None:
            raise ConfigError(option, "is for a training here, and --adapter-from brings one that is over")
    return OwnTraining(path=path, indices=indices)


def _private(epsilon: float, delta: float) -> "DpConfig":
    import msgspec

    from hushtune_common.config import DpConfig
    from hushtune_common.errors import ConfigError

    try:
        return msgspec.convert({"epsilon": epsilon, "delta": delta}, DpConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("--epsilon, --delta", str(error)) from error


def _compute(threads: int) -> "ComputeConfig":
    from hushtune_common.config import ComputeConfig
    from hushtune_common.errors import ConfigError

    if threads < 1:
        raise ConfigError("--threads", f"counts from 1, got {threads}")
    return ComputeConfig(threads=threads)


def _telling() -> "Telling":
    from hushtune_client.offline import Telling

    return Telling(phase=lambda phase: print(phase, file=sys.stderr, flush=True), progress=_show_bytes, step=_show_step)


def _show_bytes(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        print(f"\r{done:,} of {total:,} bytes", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _show_step(step: "Step") -> None:
    if sys.stderr.isatty() or step.step == step.steps:
        text = (
            f"\rstep {step.step} of {step.steps}, loss {step.loss:.3f} nats, {step.tokens / max(step.wall_s, 1e-9):.0f} tokens/s"
        )
        print(text, end="\n" if step.step == step.steps else "", file=sys.stderr, flush=True)


def _print_pairs(pairs: "Mapping[str, str]") -> None:
    width = max(len(key) for key in pairs)
    for key, value in pairs.items():
        print(f"{key:<{width}}  {value}")
