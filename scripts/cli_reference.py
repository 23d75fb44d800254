"""What can be typed after ``hushtune`` and ``hushtune-client``? docs/CLI.md, made from the commands themselves and nothing else.

``scripts/cli-reference`` writes the page, ``scripts/cli-reference --check`` compares it and fails when it is stale.
"""

import re
import sys
from pathlib import Path
from typing import Final

from hushtune_client import cli as client_cli
from hushtune_server import cli as server_cli

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "CLI.md"
APPS: Final = (server_cli.app, client_cli.app)

_INTRODUCTION: Final = """# Commands

Made by `scripts/cli-reference` from the commands themselves; edit their docstrings and help texts instead of this page.

`hushtune` is for the owner, the coordinator, the air, the eavesdropper and the testbed; `hushtune-client` is all that a data
owner needs. Every command also takes `--help`, and both programs take `--version`. Parameters in capitals may be given by place
or by name; `...` takes several values, or the option several times. What the exit codes mean is in the
[README](../README.md#exit-codes), how to begin in the [tutorial](tutorial.md).
"""

_CODE: Final = re.compile(r"(^```.*?^```$|`[^`]*`)", flags=re.DOTALL | re.MULTILINE)
_HOW_WE_RUN: Final = re.compile(r"^(hushtune[a-z0-9 -]*?) -m [\w.]+", flags=re.MULTILINE)


def document() -> str:
    """Return the whole page; the same for every user, wherever their home is."""
    parts = [_INTRODUCTION, *(app.generate_docs(heading_level=2) for app in APPS)]
    return "\n".join(_readable(part).strip() + "\n" for part in parts)


def _readable(text: str) -> str:
    """Leave out how this script was started, write the home folder as ``~``, and keep words in
    angle brackets from becoming HTML."""
    text = _HOW_WE_RUN.sub(r"\1", text).replace("## Table of Contents", "**All of them**:")
    text = text.replace(f"[default: {Path.home()}/", "[default: ~/")
    words = _CODE.split(text)  # every second one is code
    words[::2] = [word.replace("<", r"\<") for word in words[::2]]
    return "".join(words)


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` compare it; the exit code is 1 for a stale page, 2 for anything else that is asked."""
    if arguments not in ([], ["--check"]):
        print("usage: scripts/cli-reference [--check]", file=sys.stderr)
        return 2
    if not arguments:
        PAGE.write_text(document(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != document():
        print("docs/CLI.md is stale; run scripts/cli-reference", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
