"""What every command says the same way: a missing package, and pairs of words."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from hushtune_common.errors import MissingPackage


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


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Print keys and values in two columns."""
    width = max((len(key) for key in pairs), default=0)
    for key, value in pairs.items():
        print(f"{key:<{width}}  {value}")
