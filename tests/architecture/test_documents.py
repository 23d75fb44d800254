"""Do the commands in the documents exist, and do the scenarios load?"""

import re
import shlex
from itertools import dropwhile
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from cyclopts import App

from hushtune_client import cli as client_cli
from hushtune_common import config
from hushtune_server import cli as server_cli
from hushtune_server.testbed.codec import schema as curves
from hushtune_server.testbed.emulators import schema as emulators

ROOT = Path(__file__).resolve().parents[2]
COMPARISONS = sorted((ROOT / "scenarios").glob("emulators*.toml"))
CURVE = ROOT / "scenarios/codec.toml"
SCENARIOS = sorted({*(ROOT / "scenarios").glob("*.toml")} - {*COMPARISONS, CURVE})


def commands_of(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def parse_compose(arguments: list[str]) -> None:
    files = [arguments[n + 1] for n, word in enumerate(arguments) if word == "-f"] or ["docker-compose.yml"]
    known: set[str] = set()
    for file in files:
        known |= set(cast(dict[str, Any], yaml.safe_load((ROOT / file).read_text(encoding="utf-8")))["services"])
    options = {"-f", "--profile"}
    command, *rest = [w for n, w in enumerate(arguments) if w not in options and (n == 0 or arguments[n - 1] not in options)]
    assert command in {"build", "up", "down", "stop", "start", "logs", "ps", "run", "exec"}
    named = [word for word in rest if not word.startswith("-")]
    assert set(named[: 1 if command in {"run", "exec"} else None]) <= known
    if command == "exec":
        assert rest[1] == "hushtune"
        parse(server_cli.app, rest[2:])


def parse_kubectl(arguments: list[str]) -> None:
    assert arguments[0] in {"apply", "delete", "get", "logs", "wait"}
    assert all((ROOT / word).exists() for word in arguments if "/kubernetes" in word)
    manifests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "deploy/kubernetes").glob("*.yaml"))
    named = [word.partition("/") for word in arguments if re.match("(job|statefulset)/", word)]
    assert all(
        re.search(rf"^kind: {kind}$\n.*\n  name: {name}$", manifests, re.MULTILINE | re.IGNORECASE) for kind, _, name in named
    )


def parse(app: App, arguments: list[str]) -> None:
    app.parse_args(arguments, exit_on_error=False, print_error=False)


DOCUMENTS = ("README.md", "docs/OPERATIONS.md", "docs/tutorial.md")


@pytest.mark.parametrize("line", [*dict.fromkeys(line for document in DOCUMENTS for line in commands_of(document))])
def test_a_command_of_the_readme_the_operators_and_the_tutorial_parses(line: str) -> None:
    program, *arguments = dropwhile(lambda word: re.match(r"[A-Z_]+=", word), shlex.split(line))
    match Path(program).name:
        case "docker-compose":
            parse_compose(arguments)
        case "compose-test" | "containers" | "fetch-wheels" | "kits":
            assert (ROOT / program).is_file()
        case "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert {a for a in arguments if "=" not in a} <= set(targets)
        case "hushtune":
            parse(server_cli.app, arguments)
        case "hushtune-client":
            parse(client_cli.app, arguments)
        case "kubectl":
            parse_kubectl(arguments)
        case other:
            pytest.fail(f"a document shows an unknown program: {other}")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.name)
def test_a_shipped_scenario_loads_and_its_plan_is_there(path: Path) -> None:
    scenario = config.load(path)
    assert scenario.owner.emulator.plan is None or Path(scenario.owner.emulator.plan).is_file()


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.name)
def test_a_shipped_comparison_of_emulators_loads(path: Path) -> None:
    assert len(emulators.load(path).emulators) >= 2


def test_the_shipped_comparison_of_codecs_loads() -> None:
    assert len(curves.load(CURVE).comparison.seeds) >= 3
