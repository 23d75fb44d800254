"""What can a scenario set, to what, and what does each setting mean? Read off the tables themselves."""

import ast
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import msgspec
from msgspec.inspect import (
    BoolType,
    Field,
    FloatType,
    IntType,
    LiteralType,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from hushtune_common.config import Scenario
from hushtune_common.schema import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key of a scenario: its full path, what it may be, what it is when nobody says anything, and what it means."""

    key: str
    kind: str
    default: str | None
    """As TOML writes it; None: it has to be given."""
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Settings that belong together, such as those of ``[coordinator.allocator]``."""

    path: str
    meaning: str
    settings: tuple[Setting, ...]
    repeats: bool = False
    """It may stand several times."""

    @property
    def heading(self) -> str:
        """As it stands above its settings in a file, and of which kind it is."""
        name, _, kind = self.path.removesuffix("]").partition("[")
        return f"[[{name}]]" if self.repeats else f"[{name}]" + (f" {kind}" if kind else "")


@cache
def tables() -> tuple[Table, ...]:
    """Return every table of a scenario, the scenario itself first, each with its own settings in the order of the code.

    The path of a table that is of one of several kinds ends in ``[kind]``.
    """
    whole = type_info(Scenario)
    if not isinstance(whole, StructType):
        raise TypeError("a scenario is a table")
    return tuple(_tables(whole, path=""))


def _tables(
    struct: StructType, *, path: str, given: object = None, said: Collection[str] = (), repeats: bool = False
) -> Iterator[Table]:
    """Yield a table and those in it; ``given`` is the whole table by default, ``said`` has settings that were told before."""
    section = cast("type[Section]", struct.cls)
    own = [_setting(field, section, path=path, given=given) for field in struct.fields if not _sections_of(field.type)]
    yield Table(
        path=path + (f"[{struct.tag}]" if struct.tag_field is not None else ""),
        meaning=_sentence(inspect.getdoc(section) or ""),
        settings=tuple(setting for setting in own if setting.key.rpartition(".")[2] not in said),
        repeats=repeats,
    )
    for field in struct.fields:
        inner = _sections_of(field.type)
        if len(inner) > 1:
            yield from _kinds(inner, path=_join(path, field.name), default=field.default)
        elif inner:
            default = getattr(given, field.name, None) if given is not None else field.default
            yield from _tables(
                inner[0],
                path=_join(path, field.name),
                given=default if isinstance(default, Section) else None,
                repeats=isinstance(field.type, VarTupleType),
            )


def _kinds(structs: Sequence[StructType], *, path: str, default: object) -> Iterator[Table]:
    """Yield what tables of every kind have, then what each has beside it."""
    known = [{field.name: field.default for field in struct.fields} for struct in structs]
    common = [field for field in structs[0].fields if all(names.get(field.name, ...) == field.default for names in known)]
    tag_field = str(structs[0].tag_field)
    tag = Setting(
        key=_join(path, tag_field),
        kind=", ".join(f"`{struct.tag}`" for struct in structs),
        default=as_toml(type(default).__struct_config__.tag) if isinstance(default, Section) else None,
        meaning="Which of the tables below this one is.",
    )
    section = cast("type[Section]", structs[0].cls)
    shared = [_setting(field, section, path=path) for field in common]
    yield Table(path=path, meaning=f"One table; its `{tag_field}` says what else it may set.", settings=(tag, *shared))
    for struct in structs:
        yield from _tables(struct, path=path, said={field.name for field in common})


def _setting(field: Field, section: type[Section], *, path: str, given: object = None) -> Setting:
    default = field.default if given is None else getattr(given, field.name)
    return Setting(
        key=_join(path, field.name),
        kind=_kind(field.type),
        default=None if given is None and field.required else as_toml(default),
        meaning=meaning_of(section, field.name),
    )


def _sections_of(kind: Type) -> tuple[StructType, ...]:
    """Return the tables that a value of this type may be."""
    if isinstance(kind, StructType):
        return (kind,)
    if isinstance(kind, UnionType):
        return tuple(option for option in kind.types if isinstance(option, StructType))
    return _sections_of(kind.item_type) if isinstance(kind, VarTupleType) else ()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _kind(kind: Type) -> str:
    """Return in words what a value may be, its bounds included."""
    match kind:
        case BoolType():
            return "true or false"
        case LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case StrType():
            return "text"
        case IntType():
            return "whole number" + _bounds(kind)
        case FloatType():
            return "number" + _bounds(kind)
        case VarTupleType():
            return f"list of {_kind(kind.item_type)}" if not _sections_of(kind) else "tables"
        case UnionType():
            return " or ".join(_kind(option) for option in kind.types if not isinstance(option, NoneType))
        case _:
            raise TypeError(f"no words for {kind}")


def _bounds(kind: IntType | FloatType) -> str:
    signs = (("from ", kind.ge), ("above ", kind.gt), ("to ", kind.le), ("below ", kind.lt), ("a multiple of ", kind.multiple_of))
    said = [f"{word}{bound:_}" if isinstance(bound, int) else f"{word}{bound:g}" for word, bound in signs if bound is not None]
    return " " + ", ".join(said).replace(", to ", " to ") if said else ""


def as_toml(value: Any) -> str:
    """Return a default as one would write it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case int():
            return f"{value:_}"
        case float():
            return f"{value:g}"
        case tuple():
            return "[" + ", ".join(as_toml(part) for part in cast("tuple[Any, ...]", value)) + "]"
        case msgspec.Struct():
            return "{ " + ", ".join(f"{n} = {as_toml(v)}" for n, v in msgspec.structs.asdict(value).items()) + " }"
        case _:
            raise TypeError(f"no words for {value!r}")


def meaning_of(section: type[Section], name: str) -> str:
    """Return the docstring that stands below a setting, that of the table which it was first declared in if it has none."""
    for cls in section.__mro__:
        told = _docstrings(cls).get(name) if issubclass(cls, Section) and cls is not Section else None
        if told:
            return told
    return ""


@cache
def _docstrings(cls: type) -> Mapping[str, str]:
    """Return what stands below each annotated name in the body of a class: Python keeps it in the source alone."""
    (body,) = ast.parse(inspect.getsource(cls)).body
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{cls} is no class")
    found: dict[str, str] = {}
    for declared, following in zip(body.body, body.body[1:], strict=False):
        match declared, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = _sentence(text)
            case _:
                pass
    return found


def _sentence(text: str) -> str:
    """Return a docstring as one line of Markdown."""
    return re.sub(r"``(.*?)``", r"`\1`", " ".join(text.split()))
