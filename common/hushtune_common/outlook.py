"""What did a person ask to see of a process from outside? The options, and their words; importing it costs nothing."""

from dataclasses import dataclass

METRICS_HELP = (
    "Serve what this process counts, for Prometheus, at PORT or HOST:PORT: on this machine only unless a host is named; port 0 "
    "takes a free one, which is logged as `metrics_served`. Whoever reaches it can read it (docs/METRICS.md). "
    "Off unless given, or with `off`."
)

TRACES_HELP = (
    "Send a trace of every adapter to the OTLP collector at this URL, such as http://127.0.0.1:4318. The run never waits for it. "
    "Off unless given."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """``metrics`` is an address to serve them at; nothing where it is none, or ``off``. ``traces`` is a collector's URL."""

    metrics: str | None = None
    traces: str | None = None
