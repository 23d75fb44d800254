"""How does the command line begin a client's life, and how does it tell how that ended?"""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from hushtune_common.errors import HushtuneError
from hushtune_common.outlook import METRICS_HELP, TRACES_HELP, Outlook
from hushtune_common.store.disk import disk_fault

if TYPE_CHECKING:
    from hushtune_client.app import ClientOptions

USAGE = 2
DEFECT = 70
INTERRUPTED = 130
_log = logging.getLogger(__name__)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What a client writes down, and where."""

    json_logs: Annotated[
        bool | None,
        Parameter(negative="--readable-logs", help="Log JSON lines or text for people; by default text on a terminal only."),
    ] = None
    log_level: Annotated[
        Literal["info", "warning", "error"], Parameter(help="What goes to standard output: lines at least as bad as this.")
    ] = "info"
    log_folder: Annotated[
        Path | None, Parameter(help="Also keep all lines here, as JSON in CLIENT.jsonl; at most 16 MiB, the latest ones.")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """Where a client may be watched."""

    metrics: Annotated[str | None, Parameter(help=METRICS_HELP)] = None
    traces: Annotated[str | None, Parameter(help=TRACES_HELP)] = None

    @property
    def outlook(self) -> Outlook:
        """The same, as both packages know it."""
        return Outlook(metrics=self.metrics, traces=self.traces)


def live(client: str, *, log: LogOptions, outlook: Outlook, begin: "Callable[[], ClientOptions]") -> int:
    """Configure the log, take part in a run with the options that ``begin`` makes, and return the exit code.

    ``outlook`` says where the process may be watched.

    Known faults, of ``begin`` too, are a line on standard error and in the log; everything else is a defect, told with its trace.
    """
    from hushtune_common import logs
    from hushtune_common.clock import SystemClock
    from hushtune_common.observed import observed
    from hushtune_common.seeding import SeedTree

    clock = SystemClock()
    as_json, level, folder = log.json_logs, log.log_level, log.log_folder
    try:
        logs.configure(clock=clock, json_lines=as_json, level=level, folder=folder, role="client", name=client, client=client)
        options = begin()
        from hushtune_client import app

        clients = [c.id for c in options.scenario.clients]
        with observed(outlook, role="client", clients=clients, state_dir=options.state_dir, name=client) as watched:
            return asyncio.run(app.run(replace(options, watched=watched), clock=clock, seeds=SeedTree(options.scenario.seed)))
    except HushtuneError as error:
        return failed(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # the edge of the process: what is neither typed nor the disk's is a defect, told with its trace
        fault = disk_fault(error)
        return _crashed(error) if fault is None else failed(fault)


def failed(error: HushtuneError) -> int:
    """Tell a known fault, and return its code."""
    if logging.getLogger().handlers:
        from hushtune_common.logs import log_event

        fields = {"reason": error.reason, "exit_code": error.exit_code, "problem": str(error)}
        log_event(_log, "process_failed", level=logging.ERROR, **fields)
    say(f"hushtune-client: {error}")
    return error.exit_code


def say(text: str) -> None:
    """Write to standard error, which may be a file on a full disk."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _crashed(error: Exception) -> int:
    from hushtune_common.logs import log_defect

    log_defect(_log, "process_crashed", error)
    say("hushtune-client: a defect of ours; its trace is in the log under process_crashed")
    return DEFECT
