"""``hushtune metrics``: which metrics there are, what feeds them, and how many time series they can become."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hushtune_common.metrics.table import METRICS
from hushtune_server.testbed.metrics import document
from hushtune_server.words import write_page


def register(app: App) -> None:
    """Add ``hushtune metrics``."""
    metrics = App(name="metrics", help="Look up what the processes of a run count and measure.")
    metrics.command(catalogue)
    app.command(metrics)


def catalogue(
    *,
    document_: Annotated[Path | None, Parameter(name="--document", help="Write the page about all metrics to this file.")] = None,
    json_: Annotated[bool, Parameter(name="--json", help="The table as JSON.")] = False,
) -> int:
    """List every metric that a process may have, with its labels, what feeds it, and its time series at most.

    Example: hushtune metrics catalogue --document docs/METRICS.md
    """
    if document_ is not None:
        write_page(document_, document.document(), holds=f"{len(METRICS)} metrics")
    elif json_:
        sys.stdout.write(json.dumps(document.as_json(), indent=2, ensure_ascii=False) + "\n")
    else:
        for metric in METRICS.values():
            print(document.explanation(metric))
    return 0
