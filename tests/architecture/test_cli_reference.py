"""Does docs/CLI.md name every command and option that there is, and nothing else?"""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from cyclopts import App

from scripts import cli_reference

COMMAND_HEADING = re.compile(r"^#{2,6} (hushtune.*)$", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def page() -> str:
    return cli_reference.PAGE.read_text(encoding="utf-8")


def walk(app: App, path: str) -> Iterator[tuple[str, App]]:
    yield path, app
    for name in app:
        if not name.startswith("-"):
            yield from walk(app[name], f"{path} {name}")


COMMANDS = dict(pair for app in cli_reference.APPS for pair in walk(app, app.name[0]))


def test_the_page_about_commands_is_up_to_date(page: str) -> None:
    assert page == cli_reference.document(), "run: scripts/cli-reference"


def test_every_command_has_its_place_on_the_page_and_nothing_else_has(page: str) -> None:
    assert sorted(COMMAND_HEADING.findall(page)) == sorted(COMMANDS)


def test_every_option_of_every_command_stands_in_its_place(page: str) -> None:
    _, *rest = COMMAND_HEADING.split(page)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    missing = [
        (path, name)
        for path, app in COMMANDS.items()
        if app.default_command is not None
        for argument in app.assemble_argument_collection(default_parameter=cli_reference.APPS[0].default_parameter)
        if argument.parse and argument.show
        for name in argument.names
        if name.startswith("--") and not re.search(rf"{re.escape(name)}[ ,`]", sections[path])
    ]
    assert missing == []


def test_a_usage_line_shows_the_command_and_not_how_the_page_was_made(page: str) -> None:
    usages = re.findall(r"^```console\n(.*)\n```$", page, flags=re.MULTILINE)
    assert usages
    assert [usage for usage in usages if not any(usage.startswith(path) for path in COMMANDS) or " -m " in usage] == []


def test_the_page_names_nobodys_home_and_hides_no_word_in_a_tag(page: str) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", page, flags=re.DOTALL | re.MULTILINE)
    assert re.search(r"(?<!\\)<", prose) is None
    assert re.search(r"\[default: (/root|/home|/Users|[A-Z]:)", page) is None
    assert "[default: ~/.cache/hushtune]" in page


@pytest.mark.slow
def test_making_the_page_needs_no_torch() -> None:
    said = "import sys; from scripts import cli_reference as made; made.document(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], cwd=cli_reference.PAGE.parents[1], check=False).returncode == 0
