"""Is the repository what its documents say?"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "common" / "hushtune_common", ROOT / "client" / "hushtune_client", ROOT / "server" / "hushtune_server")


def source_files() -> list[Path]:
    return [p for package in PACKAGES for p in package.rglob("*.py") if "wire/v1" not in p.as_posix()]


def test_a_module_of_common_is_used_by_two_processes_or_by_other_common_modules() -> None:
    users: dict[str, set[str]] = {}
    for path in source_files():
        relative = path.relative_to(ROOT)
        process = "/".join(relative.parts[1:3]) if relative.parts[0] == "server" else relative.parts[0]
        for module in re.findall(r"hushtune_common(?:\.\w+)+", path.read_text(encoding="utf-8")):
            users.setdefault(module, set()).add(process)
    lonely: list[str] = []
    for path in (ROOT / "common" / "hushtune_common").rglob("*.py"):
        if path.name == "__init__.py" or "v1" in path.parts:
            continue
        module = ".".join(path.relative_to(ROOT / "common").with_suffix("").parts)
        used = {u for name, who in users.items() if name == module or name.startswith(module + ".") for u in who}
        parent, _, leaf = module.rpartition(".")
        used |= {_process(p) for p in source_files() if _imports_from(p, parent, leaf)}
        if len(used) < 2 and "common" not in used:
            lonely.append(f"{module}: used by {sorted(used)}")
    assert lonely == []


def _process(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return "/".join(relative.parts[1:3]) if relative.parts[0] == "server" else relative.parts[0]


def _imports_from(path: Path, parent: str, leaf: str) -> bool:
    return any(
        re.search(rf"\b{leaf}\b", names)
        for names in re.findall(rf"from {re.escape(parent)} import ([\w, ]+)", path.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("pattern", [r"^\s*(import|from) (pickle|dill|shelve)\b", r"torch\.load\(", r"\b(TODO|FIXME|XXX)\b"])
def test_nothing_banned_is_in_the_source(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in source_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert found == []


def test_every_module_says_in_its_first_line_which_question_it_answers() -> None:
    silent = [str(p.relative_to(ROOT)) for p in source_files() if not p.read_text(encoding="utf-8").startswith('"""')]
    assert silent == []


def test_every_dependency_of_the_distributions_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    missing: set[str] = set()
    for member in ("common", "client", "server"):
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]
        lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
        names = {re.split(r"[\[<>=! ]", requirement)[0].lower() for requirements in lists for requirement in requirements}
        missing |= {name for name in names if not name.startswith("hushtune") and name not in pinned}
    assert missing == set()


@pytest.mark.parametrize("role", ["coordinator", "air", "eavesdropper"])
def test_light_roles_load_neither_torch_nor_cryptography(role: str) -> None:
    code = (
        f"import sys, hushtune_server.{role}.app; heavy = {{'torch', 'cryptography', 'transformers'}} & set(sys.modules); "
        "sys.exit(','.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_clients_parent_process_does_not_load_torch() -> None:
    code = "import sys, hushtune_client.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
