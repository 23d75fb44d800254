"""What did a person ask to see of a process from outside? The options, and their words; importing it costs nothing."""

from dataclasses import dataclass

METRICS_HELP = (
    "Serve what this process counts, for Prometheus, at PORT or HOST:PORT: on this machine only unless a host is named; port 0 "
    "takes a free one, which is logged as `metrics_served`. Whoever reaches it can read it (docs/METRICS.md). "
    "Off unless given, or with `off`."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """``metrics`` is an address to serve them at; nothing where it is none, or ``off``."""

    metrics: str | None = None
