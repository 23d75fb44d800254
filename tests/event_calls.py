"""Which events, with which fields, does the source log? Read off the syntax tree of every call that logs."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common/hushtune_common", "client/hushtune_client", "server/hushtune_server")
_OWN = {"level"}
"""Arguments of `log_event` that are no fields."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One place that logs: the event names that it may log, the fields it names, and whether it adds more that cannot be read."""

    where: str
    events: frozenset[str]
    fields: frozenset[str]
    more: bool


def calls() -> list[Call]:
    """Return every place in the source that logs an event; a name that cannot be read off is left as no name at all."""
    paths = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py")) if "wire/v1" not in p.as_posix()]
    return [call for path in paths for call in _Module(path).calls()]


class _Module:
    def __init__(self, path: Path) -> None:
        self.name = str(path.relative_to(ROOT))
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        self._constants = {
            node.targets[0].id: [node.value]
            for node in self.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        self.parent = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def calls(self) -> Iterator[Call]:
        for node in [*self._calls_of("log_event"), *self._calls_of("log_defect")]:
            yield from self._read(node, node.args[1], skipped=_OWN)

    def _read(self, node: ast.Call, event: ast.expr, *, skipped: set[str], passed: Sequence[str] = ()) -> Iterator[Call]:
        """Follow a call, and where its event is a parameter of the function around it, the calls of that function."""
        inside = self._function_of(node)
        fields, more = set(passed), False
        for keyword in node.keywords:
            if keyword.arg is not None:
                fields |= {keyword.arg} - skipped
            elif not (inside is not None and isinstance(keyword.value, ast.Name) and _is_rest(inside, keyword.value.id)):
                found = self._keys(keyword.value, inside)
                fields, more = fields | (found or set()), more or found is None
        names = self._names(event, inside)
        if names is None and inside is not None and isinstance(event, ast.Name) and event.id in _parameters(inside):
            position = _parameters(inside).index(event.id)
            own = set(_parameters(inside))
            for outer in self._calls_of(inside.name):
                given = next((k.value for k in outer.keywords if k.arg == event.id), None)
                given = outer.args[position - self._bound(inside)] if given is None else given
                yield from self._read(outer, given, skipped=own, passed=sorted(fields))
            return
        where = f"{self.name}:{node.lineno}"
        yield Call(where=where, events=frozenset(names or ()), fields=frozenset(fields), more=more)

    def _bound(self, function: _Function) -> int:
        return 1 if isinstance(self.parent.get(function), ast.ClassDef) else 0

    def _calls_of(self, name: str) -> list[ast.Call]:
        found = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call) and _called(n) == name]
        return sorted(found, key=lambda n: n.lineno)

    def _function_of(self, node: ast.AST) -> _Function | None:
        while (node := self.parent.get(node, self.tree)) is not self.tree:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                return node
        return None

    def _names(self, event: ast.expr, inside: _Function | None) -> set[str] | None:
        match event:
            case ast.Constant(value=str(name)):
                return {name}
            case ast.IfExp(body=body, orelse=orelse):
                return (self._names(body, inside) or set()) | (self._names(orelse, inside) or set())
            case ast.Name(id=name) if inside is not None:
                found = [self._names(value, inside) for value in _assigned(inside, name)]
                if not found and name not in _parameters(inside):
                    found = [self._names(value, None) for value in self._constants.get(name, [])]
                return set().union(*(f for f in found if f)) or None
            case _:
                return None

    def _keys(self, value: ast.expr, inside: _Function | None) -> set[str] | None:
        """Return the keys of a mapping that is written out somewhere in the module; `None` when it is not."""
        match value:
            case ast.Dict(keys=keys):
                return {k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
            case ast.IfExp(body=body, orelse=orelse):
                return _union([self._keys(body, inside), self._keys(orelse, inside)])
            case ast.Name(id=name) if inside is not None:
                return _union([self._keys(v, inside) for v in _assigned(inside, name)])
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return _union([self._keys(v, None) for v in _assigned(self.tree, name)])
            case ast.Call(func=ast.Name(id=name)):
                returned = [n.value for f in self.functions if f.name == name for n in ast.walk(f) if isinstance(n, ast.Return)]
                return _union([self._keys(r, None) for r in returned if r is not None])
            case _:
                return None


def _union(found: Sequence[set[str] | None]) -> set[str] | None:
    return None if not found or None in found else set().union(*(f for f in found if f is not None))


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _parameters(function: _Function) -> list[str]:
    arguments = function.args
    return [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]


def _is_rest(function: _Function, name: str) -> bool:
    return function.args.kwarg is not None and function.args.kwarg.arg == name


def _assigned(scope: ast.AST, name: str) -> list[ast.expr]:
    found: list[ast.expr] = []
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=target) | ast.Attribute(attr=target)], value=value) if target == name:
                found.append(value)
            case ast.AnnAssign(target=ast.Name(id=target) | ast.Attribute(attr=target), value=ast.expr() as value) if (
                target == name
            ):
                found.append(value)
            case _:
                pass
    return found
