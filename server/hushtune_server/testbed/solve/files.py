"""How does an instance come from a file, TOML or JSON, and get back into one?"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tomli_w

from hushtune_common.errors import ConfigError
from hushtune_common.store.disk import disk_fault
from hushtune_server.coordinator.problems.forms import from_tree, to_tree
from hushtune_server.coordinator.problems.instance import Instance

_SUFFIXES: Final = (".toml", ".json")


def read_instance(path: Path) -> Instance:
    """Return the instance in ``path``; ``ConfigError`` names the file, or the field and the client in it, and the remedy."""
    check_form(path, option="INSTANCE")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            "INSTANCE", f"cannot read {path} ({said}); make one with: hushtune solve --random 10 --write {path}"
        ) from error
    try:
        tree: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both parsers' errors are ValueErrors
        raise ConfigError("INSTANCE", f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError("INSTANCE", f"{path} holds no table of fields; docs/SOLVE.md shows the form")
    return from_tree(tree)


def instance_text(instance: Instance, *, suffix: str) -> str:
    """Return the file of an instance; reading it gives the same numbers."""
    tree = to_tree(instance)
    return json.dumps(tree, indent=1, allow_nan=False) + "\n" if suffix == ".json" else tomli_w.dumps(tree)


def check_form(path: Path, *, option: str) -> None:
    """Raise ``ConfigError`` unless the name says which form the file has."""
    if path.suffix not in _SUFFIXES:
        raise ConfigError(option, f"{path} ends in neither .toml nor .json; the name says how it is written")


def check_place(path: Path, *, option: str) -> None:
    """Raise ``ConfigError`` where nothing can be written: better now than after a long run."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(option, f"cannot write {path}: give a file in a folder that exists")


def write_text(path: Path, text: str, *, option: str) -> None:
    """Write a file; ``StorageFull`` or ``ConfigError`` where that fails."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise disk_fault(error) or ConfigError(option, f"cannot write {path} ({error.strerror})") from error
