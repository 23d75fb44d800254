"""How is a process watched from outside? Its events go to metrics, and to traces, where a person asked for them; else nowhere."""

import logging
import shutil
from collections.abc import Collection, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hushtune_common.errors import MissingPackage
from hushtune_common.events.event import CLIENT
from hushtune_common.logs import EventHandler, log_event
from hushtune_common.metrics.watch import Watch
from hushtune_common.outlook import Outlook
from hushtune_common.traces.tracer import Tracer

_log = logging.getLogger(__name__)


@contextmanager
def observed(
    outlook: Outlook, *, role: str, clients: Collection[str], state_dir: Path, name: str | None = None
) -> Generator[Watch]:
    """Let a process of ``role`` be watched while the context lasts, and yield where it offers what is read of its state.

    ``name`` is a client's id, and its role for any other process; ``clients`` are those of the scenario. Raises
    ``MissingPackage`` naming the extra, and ``ConfigError`` or ``AddressInUse`` naming the option.
    """
    with ExitStack() as stack:
        watch = Watch()
        if outlook.metrics not in (None, "off"):
            watch = stack.enter_context(_counted(outlook.metrics, role=role, clients=clients))
        if outlook.traces is not None:
            stack.enter_context(_traced(outlook.traces, role=role, name=name or role, clients=clients))
        watch.offer("hushtune_disk_free_bytes", lambda: float(shutil.disk_usage(state_dir).free))
        watch.offer("hushtune_disk_size_bytes", lambda: float(shutil.disk_usage(state_dir).total))
        yield watch


@contextmanager
def _counted(where: str, *, role: str, clients: Collection[str]) -> Generator[Watch]:
    with _extra("metrics", role=role):
        from hushtune_common.metrics.board import Board
        from hushtune_common.metrics.serving import Place, served
    board = Board(role=role, clients=clients)
    with served(board, Place.parse(where)) as address, _handed(EventHandler(board.told)):
        log_event(_log, "metrics_served", address=address)
        yield board.watch


@contextmanager
def _traced(url: str, *, role: str, name: str, clients: Collection[str]) -> Generator[None]:
    with _extra("otel", role=role):
        from hushtune_common.traces.export import endpoint, exporting
    where = endpoint(url)
    with exporting(where, role=role, name=name) as exporter:
        tracer = Tracer(role=role, name=name, clients=clients, done=exporter.take)
        with _handed(EventHandler(tracer.told)):
            log_event(_log, "tracing_started", address=where)
            yield


@contextmanager
def _handed(handler: EventHandler) -> Generator[None]:
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def _extra(name: str, *, role: str) -> Generator[None]:
    """Turn a missing third-party package into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith("hushtune"):
            raise
        distribution = "hushtune-client" if role == CLIENT else "hushtune-server"
        raise MissingPackage(package, f"not installed; run: pip install '{distribution}[{name}]'") from error
