"""``hushtune testbed bench`` and ``hushtune testbed load``: what the transport costs, and what a coordinator bears."""

import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from hushtune_common.clock import SystemClock
from hushtune_common.errors import ConfigError

_CLIENTS_MAX = 1000
_IDLE_S = 30.0

Json = dict[str, Any]


def register(testbed: App) -> None:
    """Add ``load`` and ``bench`` to the commands of the testbed."""
    testbed.command(load)
    testbed.command(bench)


def load(
    *,
    clients: Annotated[int, Parameter(help="Light clients, 100 to a process.")] = 200,
    rounds: Annotated[int, Parameter(help="Rounds to play; the first one, in which everybody connects, does not count.")] = 10,
    kill: Annotated[
        bool, Parameter(help="Kill the coordinator (SIGKILL) in the middle, start it again, tell what that cost.")
    ] = False,
    json_: Annotated[bool, Parameter(name="--json", help="Print the result as one JSON object.")] = False,
) -> int:
    """Let many clients that train nothing play rounds against a real coordinator, and tell how that went.

    Every client has a certificate, a connection over mutual TLS, a journal and the production state machine of its own; reports,
    assignments, completions, settlements and the end of each round go over real gRPC. Training, sealing and the air are left
    out: a client says on a pipe that it would have sent, and the owner's part settles. Shares of the band are equal.

    Told are rounds per second, the memory that each client takes at both ends, how long clients wait and how evenly.

    Examples: `hushtune testbed load`, `hushtune testbed load --clients 20 --rounds 50 --kill`
    """
    from hushtune_server.testbed.transport.app import told

    if not 1 <= clients <= _CLIENTS_MAX:
        raise ConfigError("--clients", f"between 1 and {_CLIENTS_MAX}, got {clients}")
    if rounds < (4 if kill else 2):
        raise ConfigError("--rounds", f"at least {4 if kill else 2}, so that there is something to compare, got {rounds}")
    figures = _loaded(clients=clients, rounds=rounds, kill=kill)
    _print(figures, lines=told(figures), json_=json_)
    return 0


def bench(
    *,
    parts: Annotated[
        str, Parameter(help="What to measure, separated by commas: upload, rounds, giant, death, listener, load.")
    ] = "upload,rounds,giant,death,listener,load",
    giant_gb: Annotated[float, Parameter(help="Size of the giant blob in 10^9 bytes; 10 is the documented one.")] = 1.0,
    repetitions: Annotated[int, Parameter(help="How often to measure a transfer; medians are told.")] = 31,
    out: Annotated[Path | None, Parameter(help="Folder for transport.json, the result with all its raw numbers.")] = None,
    document: Annotated[
        Path | None, Parameter(help="Write the results as a Markdown document, such as docs/results/transport.md.")
    ] = None,
    json_: Annotated[bool, Parameter(name="--json", help="Print the result as one JSON document.")] = False,
) -> int:
    """Measure the transport beside named peers in the same run, over loopback and mutual TLS.

    `upload`: 10 MB and the durable acknowledgement, beside a bare gRPC stream that hashes and syncs as often. `rounds`: control
    rounds per second with 20 light clients, and what a killed coordinator costs. `giant`: a large blob through processes whose
    memory is watched. `death`: how long a killed and a stopped client go unnoticed, with default timing (takes half a minute of
    waiting). `listener`: the air's soft values to one listener, beside a bare stream and without the noise. `load`: what
    `hushtune testbed load` tells, with 200 clients.

    Ratios are worth something on a busy machine too, seconds on an idle one only.

    Examples: `hushtune testbed bench --parts upload,listener`,
    `hushtune testbed bench --giant-gb 10 --document docs/results/transport.md`
    """
    from hushtune_server.testbed.transport.bench import PARTS, measure
    from hushtune_server.testbed.transport.document import document_text, told

    chosen = [part.strip() for part in parts.split(",")]
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise ConfigError("--parts", f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if not 0.001 <= giant_gb <= 1000.0 or repetitions < 1:
        raise ConfigError("--giant-gb, --repetitions", "at least 0.001 (1 MB), and at least one repetition")
    found = measure(
        chosen, giant_bytes=round(giant_gb * 1e9), repetitions=repetitions, clock=SystemClock(), tell=_tell, load=_loaded
    )
    found["command"] = _said(parts, giant_gb, repetitions)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "transport.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if document is not None:
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_text(document_text(found), encoding="utf-8")
    _print(found, lines=told(found), json_=json_)
    return 0


def _loaded(*, clients: int, rounds: int, kill: bool) -> Json:
    from hushtune_server.testbed.transport.app import LoadOrder, run_load
    from hushtune_server.testbed.transport.crowd import scenario_of

    scenario = scenario_of(clients=clients, rounds=rounds, idle_s=_IDLE_S)
    with tempfile.TemporaryDirectory(prefix="hushtune-load-") as folder:
        order = LoadOrder(scenario=scenario, folder=Path(folder), kill_in=rounds // 2 if kill else None)
        return asyncio.run(run_load(order, clock=SystemClock()))


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _said(parts: str, giant_gb: float, repetitions: int) -> str:
    """Return the command with what changes its numbers, as a person would type it."""
    words = ["hushtune", "testbed", "bench", "--parts", parts, "--giant-gb", f"{giant_gb:g}", "--repetitions", str(repetitions)]
    return shlex.join(words)


def _print(found: Json, *, lines: Sequence[tuple[str, str]], json_: bool) -> None:
    if json_:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print(f"{label:<{width}}  {value}")
