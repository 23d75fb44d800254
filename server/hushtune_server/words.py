"""What every command says the same way: a missing package, pairs of words, and how far it is."""

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hushtune_common.errors import ConfigError, MissingPackage


@contextmanager
def extra(name: str) -> Generator[None]:
    """Turn a missing third-party package into the command that installs it; a missing module of ours stays a defect."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith("hushtune"):
            raise
        raise MissingPackage(package, f"not installed; run: pip install 'hushtune-server[{name}]'") from error


def show_phase(phase: str) -> None:
    """Say on standard error what is being done."""
    print(phase, file=sys.stderr, flush=True)


def show_progress(done: int, total: int) -> None:
    """Say on standard error how many bytes are done; only at the end unless a person is there to watch."""
    if sys.stderr.isatty() or done == total:
        print(f"\r{done:,} of {total:,} bytes", end="\n" if done == total else "", file=sys.stderr, flush=True)


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Print keys and values in two columns."""
    width = max((len(key) for key in pairs), default=0)
    for key, value in pairs.items():
        print(f"{key:<{width}}  {value}")


def write_page(path: Path, text: str, *, holds: str) -> None:
    """Write a generated page where ``--document`` says, and tell what it ``holds``; `ConfigError` when that is not possible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError("--document", f"cannot write {path} ({error.strerror})") from error
    print(f"{path}: {holds}")
