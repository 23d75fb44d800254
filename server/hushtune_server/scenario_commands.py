"""``hushtune scenario``: is a scenario sound, what does it come to, and what could it say?"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import App, Parameter

from hushtune_common import config
from hushtune_common.errors import ConfigError
from hushtune_common.schema import Section
from hushtune_server.settings import Setting, Table, as_toml, tables
from hushtune_server.words import extra, print_pairs, write_page

_INTRODUCTION: Final = """# Settings

Made by `hushtune scenario settings --document docs/SETTINGS.md`; edit the docstrings in `common/hushtune_common/config`,
`methods.py` and `aggregation.py` instead of this page.

A scenario is one TOML file that every process of a run reads. All that it can say stands here; a key that does not is refused,
with the nearest that does. `--set path.to.key=value` overrides a setting on the command line, and `hushtune scenario check FILE`
says whether a scenario is sound and in what it differs from the defaults. Units are in the names: `_s` seconds, `_j` joules, `_w`
watts, `_hz`, `_db` decibels, `_m` metres, `share` of 1. Tables in two pairs of brackets may stand several times.
"""


def register(app: App) -> None:
    """Add the ``scenario`` commands to the command line."""
    scenario = App(name="scenario", help="Scenarios: what one may say, whether one is sound, and what it comes to.")
    scenario.command(check)
    scenario.command(settings)
    app.command(scenario)


def check(
    scenario: Annotated[Path, Parameter(help="The scenario file.")],
    *,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", help="Override one key: `path.to.key=value`; repeatable.")] = (),
    resolved: Annotated[bool, Parameter(help="Print the whole scenario as TOML, defaults and overrides included.")] = False,
) -> int:
    """Say whether SCENARIO is sound, which digest its processes compare, and where it departs from the defaults.

    A mistake ends with code 3 and one line that names the key and the remedy. Files that it names are not read.

    Example: hushtune scenario check scenarios/demo.toml --set coordinator.rounds=3
    """
    whole = config.load(scenario, overrides=set_)
    if resolved:
        with extra("pki"):
            import tomli_w
        sys.stdout.write(tomli_w.dumps(config.to_toml_tree(whole)))
        return 0
    print_pairs(
        {
            "name": whole.name,
            "digest": whole.digest.hex,
            "clients": ", ".join(client.id for client in whole.clients),
            "rounds": str(whole.coordinator.rounds),
            "model": whole.model.source,
            "text": f"{whole.data.private} (private), {whole.data.public} (public)",
        }
    )
    changed = dict(_changed(config.without_folders(whole)))
    print("\nsettings that are not the default:" if changed else "\nevery setting is the default")
    print_pairs({f"  {key}": said for key, said in changed.items()})
    return 0


def settings(
    pattern: Annotated[str, Parameter(help="Part of a key or of its meaning; all settings without it.")] = "",
    *,
    document: Annotated[Path | None, Parameter(help="Write the page about all settings to this file.")] = None,
) -> int:
    """Say what a scenario can set: key, what it may be, its default, and what it means.

    Example: hushtune scenario settings fading
    """
    if document is not None:
        write_page(document, page(), holds=f"{sum(len(table.settings) for table in tables())} settings")
        return 0
    found = list(_matching(pattern.lower()))
    if not found:
        raise ConfigError("PATTERN", f"no setting has {pattern!r} in its key or meaning; hushtune scenario settings lists all")
    for table in found:
        print(f"\n{table.heading}   {table.meaning}" if table.path else table.meaning)
        for setting in table.settings:
            default = "required" if setting.default is None else f"default {setting.default}"
            print(f"  {setting.key}   {setting.kind.replace('`', '')}; {default}\n      {setting.meaning}")
    return 0


def page() -> str:
    """Return docs/SETTINGS.md."""
    return _INTRODUCTION + "".join(_section(table) for table in tables() if table.settings)


def _section(table: Table) -> str:
    title = f"`{table.heading}`" if table.path else "The scenario"
    rows = "".join(_row(setting) for setting in table.settings)
    return f"\n## {title}\n\n{table.meaning}\n\n| setting | may be | default | meaning |\n|---|---|---|---|\n{rows}"


def _row(setting: Setting) -> str:
    default = "required" if setting.default is None else f"`{setting.default}`"
    cells = (f"`{setting.key.rpartition('.')[2]}`", setting.kind, default, setting.meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _matching(pattern: str) -> Iterator[Table]:
    for table in tables():
        kept = tuple(s for s in table.settings if pattern in s.key.lower() or pattern in s.meaning.lower())
        if kept:
            yield replace(table, settings=kept)


def _changed(section: Section, *, path: str = "", given: object = None) -> Iterator[tuple[str, str]]:
    """Yield every setting that could have been left out and is not what it then would be, by its path."""
    tag = section.__struct_config__.tag
    if tag is not None and type(section) is not type(given):
        yield f"{path}{section.__struct_config__.tag_field}", as_toml(tag)
    same = given if type(section) is type(given) else None
    for field in msgspec.structs.fields(section):
        value = getattr(section, field.name)
        default = field.default if same is None else getattr(same, field.name)
        if isinstance(value, Section):
            if default is None:
                yield f"{path}{field.name}", "given; left out by default"
            yield from _changed(value, path=f"{path}{field.name}.", given=default)
        elif field.name == "moves" and value:
            yield f"{path}{field.name}", f"{len(value)}"
        elif default is not msgspec.NODEFAULT and value != default:
            yield f"{path}{field.name}", as_toml(value)
