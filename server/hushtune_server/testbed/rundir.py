"""A run directory: where an experiment keeps its scenario, logs, states and report, and how to find it again.

::

    runs/<id>/
      run.json            id, status, seed, versions, command line
      scenario.toml       resolved, defaults included;  scenario-tap.toml: the same without the seed
      logs/<name>.jsonl   one JSON object per event;  logs/<name>.stderr: anything else a process printed
      state/<name>/       each process's own state
      metrics.json        where each process's metrics are, while it runs (with --metrics)
      report.json         the result;  report.html: the same as a page for people
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import psutil
import tomli_w

from hushtune_common.config import Scenario, to_toml_tree, without_seed
from hushtune_common.errors import ConfigError

FINISHED = "finished"
INTERRUPTED = "interrupted"
FAILED = "failed"
RUNNING = "running"
GATHERED = "gathered"
"""Its processes write elsewhere, in containers or on other machines, and what they write is gathered here."""
LOST = "lost"
"""Said to be running, but its testbed is gone: it was killed, or the machine went down."""
AGGREGATE = "aggregate.safetensors"
SEALING_KEY = "sealing.key"
_KEPT_BYTES_MAX = 1 << 20
_SAME_SECOND_MAX = 100


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One run's directory."""

    path: Path

    @property
    def id(self) -> str:
        """The run's id, which is the directory's name."""
        return self.path.name

    def log(self, name: str) -> Path:
        """The JSON lines of process ``name``."""
        return self.path / "logs" / f"{name}.jsonl"

    def errors(self, name: str) -> Path:
        """What process ``name`` printed beside its log."""
        return self.path / "logs" / f"{name}.stderr"

    def state(self, name: str) -> Path:
        """The state directory of process ``name``."""
        return self.path / "state" / name

    def kit(self, name: str) -> Path:
        """The certificate kit of process ``name``."""
        return self.path / "kits" / name

    @property
    def scenario(self) -> Path:
        """The resolved scenario."""
        return self.path / "scenario.toml"

    @property
    def scenario_for_tap(self) -> Path:
        """The resolved scenario without its seed."""
        return self.path / "scenario-tap.toml"

    @property
    def metrics(self) -> Path:
        """Where the metrics of the run's processes are served, as Prometheus reads it; there with `--metrics` only."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The result."""
        return self.path / "report.json"

    def facts(self) -> dict[str, Any]:
        """Return ``run.json``; an empty mapping when it is not there yet."""
        return read_json(self.path / "run.json")

    @property
    def status(self) -> str:
        """How the run stands, as far as ``run.json`` and the machine's processes tell."""
        facts = self.facts()
        status = str(facts.get("status", "unknown"))
        return LOST if status == RUNNING and not _is_alive(facts.get("supervisor")) else status

    @property
    def is_over(self) -> bool:
        """Whether nobody writes into it any more, as far as is known."""
        return self.status not in (RUNNING, GATHERED, "unknown")

    def update(self, **facts: object) -> None:
        """Merge ``facts`` into ``run.json``."""
        write_json(self.path / "run.json", {**self.facts(), **facts})

    def forget_secrets(self) -> None:
        """Delete the run's keys: authority, kits, and the owner's that updates were sealed to; they were for this run only."""
        for name in ("pki", "kits"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.state("owner") / SEALING_KEY).unlink(missing_ok=True)

    def prune_blobs(self) -> None:
        """Delete what is big in the states (emulators, frames, single adapters); journals, evidence and the aggregate stay."""
        for file in [f for f in (self.path / "state").rglob("*") if f.is_file()]:
            if file.stat().st_size > _KEPT_BYTES_MAX and file.name != AGGREGATE:
                file.unlink()


def create(root: Path, scenario: Scenario, *, now: datetime) -> RunDirectory:
    """Make a new run directory below ``root`` and write the resolved scenario into it."""
    stamp = f"{scenario.name[:32]}-{now:%Y%m%d-%H%M%S}-s{scenario.seed}"
    try:
        run = _claim(root, stamp)
        for folder in ("logs", "state", "kits"):
            (run.path / folder).mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError("--runs", f"cannot create {root / stamp} ({error}); give a writable folder") from error
    run.scenario.write_text(tomli_w.dumps(to_toml_tree(scenario)), encoding="utf-8")
    run.scenario_for_tap.write_text(tomli_w.dumps(to_toml_tree(without_seed(scenario))), encoding="utf-8")
    return run


def _claim(root: Path, stamp: str) -> RunDirectory:
    """Make the folder of a run; making it is what keeps two that start in the same second apart."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, _SAME_SECOND_MAX + 1):
        run = RunDirectory(root / (stamp if number == 1 else f"{stamp}-{number}"))
        try:
            run.path.mkdir()
        except FileExistsError:
            continue
        return run
    raise FileExistsError(f"{_SAME_SECOND_MAX} runs of this second are there already")


def supervisor() -> dict[str, float]:
    """Return what identifies this process for as long as it lives: its id, and when it began, since ids are used again."""
    process = psutil.Process()
    return {"pid": process.pid, "created": process.create_time()}


def _is_alive(known: object) -> bool:
    match known:
        case {"pid": int(pid), "created": float(created)}:
            try:
                return abs(psutil.Process(pid).create_time() - created) < 1.0
            except psutil.Error:
                return False
        case _:
            return False


def find(root: Path, run_id: str) -> RunDirectory:
    """Return the run called ``run_id``, or the newest for ``latest``; a unique beginning or the path of a run is enough."""
    given = Path(run_id)
    if run_id != "latest" and (given / "run.json").is_file():
        return RunDirectory(given.resolve())
    if os.sep in run_id:
        raise ConfigError(
            run_id, f"holds no run.json, so it is no run directory; the runs in {root} are shown by: hushtune runs list"
        )
    runs = list(all_runs(root))
    if not runs:
        raise ConfigError("--runs", f"no runs in {root}; start one with: hushtune testbed run scenarios/demo.toml")
    if run_id == "latest":
        return runs[-1]
    matches = [r for r in runs if r.id == run_id] or [r for r in runs if r.id.startswith(run_id)]
    if len(matches) != 1:
        known = ", ".join(r.id for r in (matches or runs)[-5:])
        problem = "fits several runs" if matches else "no such run"
        raise ConfigError(run_id, f"{problem} in {root}; for example: {known}")
    return matches[0]


def all_runs(root: Path) -> Iterator[RunDirectory]:
    """Yield the runs below ``root``, oldest first."""
    found = [RunDirectory(p.parent) for p in root.glob("*/run.json")]
    yield from sorted(found, key=lambda r: (str(r.facts().get("started", "")), r.id))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from ``path``; empty when the file is missing or cut short."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace ``path`` atomically by ``value``, so that a reader never sees half of it."""
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a JSON lines file; a line cut short by a crash is left out."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield cast(dict[str, Any], value)
    except OSError:
        return


def default_root() -> Path:
    """``runs`` in the current folder."""
    return Path(os.curdir) / "runs"
