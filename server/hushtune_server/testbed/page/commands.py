"""``hushtune report``: a run as one page, its figures as files, or several runs side by side."""

from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.testbed import rundir

COMPARISON: Final = "compare.html"
_COMPARED_MAX: Final = 12
_SEEDS_MAX: Final = 64


def register(app: App) -> None:
    """Add ``hushtune report``."""
    app.command(report)


def report(
    *run: str,
    out: Annotated[Path | None, Parameter(help="The file to write; beside the run's report.json unless given.")] = None,
    compare: Annotated[bool, Parameter(help="Put all RUNs side by side on one page.")] = False,
    sweep: Annotated[bool, Parameter(help="Tell RUNs, one scenario with several seeds, as one: means and intervals.")] = False,
    figures: Annotated[Path | None, Parameter(help="Write every figure of the page to this folder as well.")] = None,
    formats: Annotated[str, Parameter(help="As what: png, pdf, svg, separated by commas.")] = "png,pdf",
    runs: Annotated[Path, Parameter(help="Folder that holds the run directories.")] = Path("runs"),
) -> int:
    """Write RUN (its id, a beginning of it, a run directory, or the latest) as one HTML page that needs nothing else.

    The page has the result, every claim with what it rests on, link and eavesdropper, allocation, clients, energy and time, a
    summary of the logs, and how to do it again. It follows light and dark, fits a phone, prints, and runs no script.

    Example: hushtune report latest --out result.html --figures figures

    Example: hushtune report --compare demo-2026 small-2026

    Example: hushtune report --sweep demo-20261122-101500-s1 demo-20261122-102000-s2
    """
    from hushtune_server.testbed.page.figures import drawings, save
    from hushtune_server.testbed.page.gathering import gather
    from hushtune_server.testbed.page.pages import PAGE, put, render

    found = [rundir.find(runs, name) for name in (run or ("latest",))]
    if compare and sweep:
        raise ConfigError("--compare", "and --sweep are two pages; give one of them")
    if sweep:
        print(write_sweep(found, out=out))
        return 0
    if compare:
        return _compare(found, out or runs / COMPARISON)
    if len(found) > 1:
        raise ConfigError(
            "RUN", "one page is about one run; several go side by side with --compare, or, as seeds of one scenario, with --sweep"
        )
    material = gather(found[0])
    print(put(found[0].path / PAGE if out is None else out, render(material)))
    if figures is not None:
        for path in save(drawings(material), figures, formats=[kind.strip() for kind in formats.split(",") if kind.strip()]):
            print(path)
    return 0


def write_sweep(found: list[rundir.RunDirectory], *, out: Path | None = None, problem: str = "") -> Path:
    """Write one page about the runs of a sweep, beside them unless ``out`` says where; return where it lies.

    ``problem`` says why the sweep ended early. `ConfigError` for too many runs, or where the page cannot be written.
    """
    from hushtune_server.testbed.page import sweeps
    from hushtune_server.testbed.page.gathering import gather
    from hushtune_server.testbed.page.pages import put

    if len(found) > _SEEDS_MAX:
        raise ConfigError("--sweep", f"has room for {_SEEDS_MAX} runs, got {len(found)}")
    at = out or found[0].path.parent / f"sweep-{found[0].id}.html"
    return put(at, sweeps.render([gather(run) for run in found], at=at, problem=problem))


def _compare(found: list[rundir.RunDirectory], out: Path) -> int:
    from hushtune_server.testbed.page import compare
    from hushtune_server.testbed.page.gathering import gather
    from hushtune_server.testbed.page.pages import put

    if not 2 <= len(found) <= _COMPARED_MAX:
        raise ConfigError("--compare", f"needs 2 to {_COMPARED_MAX} runs, got {len(found)}; hushtune runs list shows them")
    print(put(out, compare.render([gather(run) for run in found])))
    return 0
