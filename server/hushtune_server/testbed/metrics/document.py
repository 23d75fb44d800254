"""What does the table of metrics look like on paper? docs/METRICS.md, made from the table and from nothing else."""

from collections.abc import Iterator, Mapping, Sequence

from hushtune_common.config import LimitsConfig
from hushtune_common.events.event import ROLES
from hushtune_common.metrics.labels import ALL
from hushtune_common.metrics.metric import Feed, Label, Metric
from hushtune_common.metrics.table import BY_EVENT, CALLS, METRICS, READINGS, TRAINER

_EVENTS = "hushtune_events_total"
_LISTED_MAX = 20
_CLIENTS_MAX = LimitsConfig().clients_max

_INTRODUCTION = f"""# Metrics

Made by `hushtune metrics catalogue --document docs/METRICS.md`; edit `common/hushtune_common/metrics` instead of this page.

With `--metrics PORT`, every process serves what it counts in the format of Prometheus, at `/metrics` of a port of its own: on
this machine only, unless a host is named ([how to use it](OPERATIONS.md#metrics-and-traces)). Nothing of this is on by default.

Metrics follow from [events](EVENTS.md): what writes a line into the log also counts it, so log and metrics cannot disagree. What
has no event is read from the process's state when somebody asks, and calls between processes are counted as they end.

Names carry base units: `_seconds`, `_bytes`, `_joules`; `_total` only rises while a process lives. A label has a value out of a
list that is known beforehand, and `other` for everything else, so that a peer cannot make a process hold more series by what it
says. Run, round, digest and free text are never labels. `client` names a client of the scenario, of which there are at most
`limits.clients_max` ({_CLIENTS_MAX} unless set); `aggregate` stands for the mean of a round.

No metric holds a secret, a word of text or a weight. Together they do tell what the roles keep apart: a client's loss, the
owner's scores on public text, who was granted what ([threat model](THREAT_MODEL.md)).

The operating system's figures of the process come as `process_*`, Python's version as `python_info`; those of a client's training
process, while there is one, as `{TRAINER}_process_*`.
"""


def document() -> str:
    """Return the whole page."""
    return "".join(
        [
            _INTRODUCTION,
            *_group("From events", BY_EVENT),
            *_group("From the process's state", READINGS),
            *_group("Calls between processes", CALLS),
        ]
    )


def _group(title: str, metrics: Sequence[Metric]) -> Iterator[str]:
    yield f"\n## {title}\n"
    for metric in metrics:
        yield f"\n### `{metric.name}`\n\n{metric.help} A {metric.kind}. By: {_by(metric.by)}.\n\n"
        for label in metric.labels:
            yield f"- `{label.name}`: {_values(label)}\n"
        for feed in metric.feeds:
            yield f"- fed by {_fed(feed)}\n"
        if metric.name == _EVENTS:
            yield "- fed by every event\n"
        yield f"- at most {series(metric)} series\n"


def series(metric: Metric) -> str:
    """Return how many time series one process can have of it, by the number of clients where that counts."""
    alone, one_more = metric.series_max(0), metric.series_max(1) - metric.series_max(0)
    return f"{alone}" if one_more == 0 else f"{alone} and {one_more} for each client"


def _values(label: Label) -> str:
    shown = ", ".join(sorted(label.allowed)) if len(label.allowed) <= _LISTED_MAX else f"one of {len(label.allowed)} names"
    return f"{shown}, or a client of the scenario" if label.clients else shown


def _fed(feed: Feed) -> str:
    by = f"`{feed.event}`" + (f", field `{feed.value}`" if feed.value else "")
    labels = [f"`{name}` = {value}" for name, value in feed.fixed.items()]
    labels += [f"`{name}` from `{source}`" for name, source in feed.read.items() if name != source]
    return ", ".join([by, *labels, *(f"only where `{name}` is {value}" for name, value in feed.only.items())])


def _by(roles: Sequence[str]) -> str:
    return "every process" if {*roles} == {*ALL} else ", ".join(role for role in ROLES if role in roles)


def explanation(metric: Metric) -> str:
    """Return what there is to know about one metric, for a terminal."""
    lines = [f"{metric.name}   {metric.kind}, by {_by(metric.by)}, at most {series(metric)} series", f"  {metric.help}"]
    lines += [f"    {label.name}: {_values(label)}" for label in metric.labels]
    return "\n".join([*lines, *(f"    fed by {_fed(feed)}" for feed in metric.feeds)])


def as_json() -> list[Mapping[str, object]]:
    """Return the table as plain values."""
    return [
        {
            "metric": metric.name,
            "kind": metric.kind,
            "help": metric.help,
            "by": list(metric.by),
            "labels": {label.name: sorted(label.allowed) for label in metric.labels},
            "events": sorted({feed.event for feed in metric.feeds}),
            "series_max": metric.series_max(_CLIENTS_MAX),
        }
        for metric in METRICS.values()
    ]
