"""``hushtune owner fingerprint``: give each recipient a copy of its own, and tell whose copy a leaked file was."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hushtune_common.config import FingerprintConfig
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_server.words import extra

if TYPE_CHECKING:
    from hushtune_server.owner.fingerprint.detect import Report
    from hushtune_server.owner.fingerprint.register import Register

_DEFAULT = FingerprintConfig()
_STRENGTH_MAX = 0.1
_State = Annotated[Path, Parameter(help="The owner's state folder; `fingerprint/` in it has the secret and what was marked.")]


def register(owner: App) -> None:
    """Add the commands to those of the owner."""
    fingerprint = App(name="fingerprint", help="Marks in the frozen weights of emulators, one for every recipient.")
    fingerprint.command(mark, name="mark")
    fingerprint.command(detect_mark, name="detect")
    owner.command(fingerprint)


def mark(
    bundle: Annotated[Path, Parameter(help="An emulator without a mark, as `hushtune emulator build` writes it.")],
    *,
    recipient: Annotated[str, Parameter(help="Whose copy it is to be: a client's id.")],
    out: Annotated[Path, Parameter(help="Where to write the copy.")],
    state: _State,
    strength: Annotated[float, Parameter(help="Size of the mark over each tensor's root mean square.")] = _DEFAULT.strength,
) -> None:
    """Write a recipient's own copy of an emulator, and remember what tells it from all others.

    Example: `hushtune owner fingerprint mark bundle.safetensors --recipient c1 --out c1.safetensors --state state/owner`
    """
    if not 0.0 < strength <= _STRENGTH_MAX:
        raise ConfigError("--strength", f"lies above 0 and is at most {_STRENGTH_MAX}, got {strength:g}")
    register_ = _register(state)
    try:
        register_.write_copy(out, bundle=bundle, recipient=recipient, strength=strength)
    except OSError as error:
        raise ConfigError(str(error.filename or out), f"cannot be used ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError("--recipient", str(error)) from error
    print(f"copy of {recipient} written to {out}")


def detect_mark(
    leaked: Annotated[Path, Parameter(help="A safetensors file: an emulator, a part of one, or what somebody made of it.")],
    *,
    state: _State,
    false_alarm_max: Annotated[
        float, Parameter(help="Chance, at most, that anybody is named whose mark the file does not carry.")
    ] = _DEFAULT.false_alarm_max,
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")] = False,
) -> int:
    """Tell whose copy a file was; exit code 0 says that somebody's mark is in it, 1 that nobody's is. Changes nothing.

    Example: `hushtune owner fingerprint detect leaked.safetensors --state state/owner`
    """
    register_ = _register(state)
    references = register_.references
    if not references:
        raise ConfigError("--state", "nothing was marked here; copies are made by `hushtune owner fingerprint mark`")
    from hushtune_server.owner.fingerprint.detect import detect

    try:
        report = detect(leaked, references=references, key=register_.key)
    except (OSError, MalformedUpdate) as error:
        raise ConfigError(str(leaked), str(error)) from error
    named = {s.recipient for s in report.carried(false_alarm_max=false_alarm_max)}
    if json_:
        rows = [{**asdict(s), "carried": s.recipient in named} for s in report.suspicions]
        print(json.dumps({"tensors": report.tensors, "weights": report.weights, "recipients": rows}, indent=1))
    else:
        _print(report, named=named)
    return 0 if named else 1


def _print(report: "Report", *, named: set[str]) -> None:
    print(f"{report.weights:,} weights in {report.tensors} tensors compared")
    for s in report.suspicions:
        verdict = "carries this mark" if s.recipient in named else ""
        print(f"{s.recipient:<24} score {s.score:9.1f}  by chance {_chance(s.chance)}  mark left {s.left:7.1%}  {verdict}")


def _chance(value: float) -> str:
    return f"{value:8.1e}" if value > 0.0 else "< 1e-300"


def _register(state: Path) -> "Register":
    if not state.is_dir():
        raise ConfigError("--state", f"there is no folder {state}; give the owner's")
    with extra("owner"):
        from hushtune_server.owner.fingerprint.register import FOLDER, Register

    return Register(state / FOLDER)
