"""What every process is doing right now: a fold over their log events, and its rendering."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_QUIET = {"transfer_progressed", "training_progressed", "phase_changed"}
_COORDINATORS = {"round_opened", "round_closed"}
"""Told by the coordinator and echoed by every client; once is enough."""


@dataclass(slots=True)
class ProcessView:
    """One line of the live view."""

    name: str
    phase: str = "starting"
    done: float = 0.0
    total: float = 0.0
    detail: str = ""
    ended: bool = False

    def apply(self, event: Mapping[str, Any]) -> None:
        """Fold one log event; unknown events change nothing."""
        match event.get("event"):
            case "phase_changed":
                self.phase, self.done, self.total = str(event.get("phase", "")), 0.0, 0.0
            case "training_progressed":
                self.phase = "training"
                self.done, self.total = _number(event, "step"), _number(event, "steps")
                self.detail = f"loss {_number(event, 'loss'):.3f}  {_number(event, 'tokens_per_s'):.0f} tok/s"
            case "transfer_progressed":
                self.phase = f"{event.get('kind', 'blob')} transfer"
                self.done, self.total = _number(event, "bytes_done"), _number(event, "bytes_total")
                self.detail = f"{self.done / 1e6:.1f} / {self.total / 1e6:.1f} MB"
            case "profile_progressed" | "evaluation_progressed":
                self.done, self.total = _number(event, "done"), _number(event, "total")
            case "training_finished":
                self.done = self.total = 0.0
                self.detail = f"loss {_number(event, 'loss_first'):.3f} -> {_number(event, 'loss_last'):.3f}"
            case "process_ended":
                code = event.get("code")
                self.ended, self.done, self.total = True, 0.0, 0.0
                self.phase = "done" if code == 0 else f"ended with code {code}"
            case _:
                pass


@dataclass(slots=True)
class View:
    """All processes and the latest notable events."""

    title: str
    processes: dict[str, ProcessView] = field(default_factory=dict[str, ProcessView])
    news: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def apply(self, name: str, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Fold the events of process ``name``; return what is worth telling of them."""
        process = self.processes.setdefault(name, ProcessView(name))
        told: list[str] = []
        for event in events:
            process.apply(event)
            line = headline(event)
            if line:
                told.append(line)
        self.news.extend((name, line) for line in told)
        del self.news[:-12]
        return told

    def render(self, *, elapsed_s: float) -> RenderableType:
        """Return the screen: a table of processes above the latest events."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("process", "doing", "progress", ""):
            table.add_column(heading, style="bold" if heading == "process" else "")
        for process in self.processes.values():
            bar: RenderableType = ProgressBar(total=process.total, completed=process.done, width=24) if process.total > 0 else ""
            phase = Text(process.phase, style="dim" if process.ended else "")
            table.add_row(process.name, phase, bar, Text(process.detail, style="dim"))
        news = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, told in self.news:
            news.add_row(Text(name, style="cyan"), Text(told))
        return Group(Text(f"{self.title}   {elapsed_s:.0f} s", style="italic"), table, Text(""), news)


def headline(event: Mapping[str, Any]) -> str:
    """Return what a person wants to read of an event, or nothing."""
    kind = str(event.get("event", ""))
    if kind in _QUIET or (kind in _COORDINATORS and event.get("role") != "coordinator"):
        return ""
    teller = _HEADLINES.get(kind)
    if teller is None and str(event.get("level", "info")) in {"warning", "error", "critical"}:
        why = next((str(event[k]) for k in ("problem", "failed_reason", "reason") if event.get(k)), "")
        return f"{kind} {why}".strip()
    return teller(event) if teller else ""


def _number(event: Mapping[str, Any], key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _names(event: Mapping[str, Any], key: str) -> str:
    return ", ".join(str(name) for name in event.get(key) or ()) or "nobody"


def _mb(event: Mapping[str, Any], key: str) -> str:
    return f"{_number(event, key) / 1e6:.2f} MB"


def _gate(event: Mapping[str, Any]) -> str:
    return (
        f"secrecy gate for {event.get('client')}: {str(event.get('decision')).upper()}  "
        f"owner hears {_number(event, 'snr_main_db'):.1f} dB, tap assumed at most {_number(event, 'snr_tap_bound_db'):.1f} dB, "
        f"{_number(event, 'rate_coded'):.2f} secret bit/symbol"
    )


def _noise(event: Mapping[str, Any]) -> str:
    terms: Mapping[str, Any] = event.get("terms") or {}
    return f"hidden in noise: {terms.get('statement', '')}"


_HEADLINES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "connections_cut": lambda e: f"cut {e.get('connections')} connections to {e.get('server')}",
    "serving_started": lambda e: f"serving at {e.get('address')}",
    "exposure_measured": lambda e: (
        f"the emulator shows {100 * _number(e, 'share'):.1f} % of the model, "
        f"{100 * _number(e, 'verbatim_share'):.1f} % word for word"
    ),
    "emulator_published": lambda e: (
        f"emulator by {e.get('method')} published, {_mb(e, 'bytes_total')}; its adapter gradients point "
        f"{_number(e, 'gradient_cosine'):.2f} the model's way (cosine), middle alike {_number(e, 'middle_cka'):.2f} (CKA)"
    ),
    "emulator_renewed": lambda e: (
        f"round {e.get('round_id', '')} starts from what the model kept: {_mb(e, 'bytes_revision')} to fetch"
        if e.get("changed")
        else f"round {e.get('round_id', '')} starts where the one before did"
    ),
    "emulator_verified": lambda e: (
        f"emulator {str(e.get('digest', ''))[:12]} verified, {_mb(e, 'bytes')}, {_mb(e, 'bytes_fetched')} of it fetched"
    ),
    "run_stopped": lambda e: f"no further round: {e.get('reason', '')}",
    "utility_told": lambda e: (
        f"an update is worth {_number(e, 'offset'):.3g} - {_number(e, 'weight'):.3g} * share^-{_number(e, 'shape'):.3g}, "
        "as measured"
    ),
    "assignments_solved": lambda e: f"resources shared out by {e.get('method')}",
    "round_opened": lambda e: f"round {e.get('round_id', '')} opened",
    "gate_decided": _gate,
    "training_finished": lambda e: (
        f"trained {e.get('steps')} steps in {_number(e, 'train_s'):.0f} s at clock share {_number(e, 'clock_share'):.2f}, "
        f"{_number(e, 'energy_j'):.0f} J (modelled)"
    ),
    "update_encoded": lambda e: (
        f"adapter {_mb(e, 'bytes_raw')} -> {_mb(e, 'bytes_encoded')}, {_number(e, 'bits_per_weight'):.2f} bits per weight "
        f"(share {_number(e, 'adapter_share'):.3f} granted)"
    ),
    "update_noised": _noise,
    "update_sealed": lambda e: f"sealed {_mb(e, 'bytes_sealed')}, digest {str(e.get('digest', ''))[:12]}",
    "frame_transmitted": lambda e: (
        f"attempt {e.get('attempt')}: {e.get('blocks')} blocks on air for {_number(e, 'airtime_s'):.1f} s, "
        f"{e.get('missing')} to repeat ({e.get('fidelity')})"
    ),
    "update_accepted": lambda e: f"accepted the adapter of {e.get('client')}",
    "update_refused": lambda e: f"refused the adapter of {e.get('client')}: {e.get('reason')}",
    "plugin_evaluated": lambda e: (
        f"plug-in of {e.get('client')}: public perplexity {_number(e, 'perplexity_public_before'):.1f} -> "
        f"{_number(e, 'perplexity_public'):.1f}"
    ),
    "plugin_kept": lambda _: "kept the plug-in",
    "plugin_rolled_back": lambda e: f"rolled back: {e.get('reason', '')}",
    "reception_attacked": lambda e: (
        f"heard {e.get('blocks_heard')} of {e.get('blocks')} blocks of {e.get('client')} ({e.get('fidelity')})"
    ),
    "round_closed": lambda e: (
        f"round {e.get('round_id', '')} closed: accepted {_names(e, 'accepted')}; missing {_names(e, 'missing')}"
    ),
    "client_died": lambda e: f"client {e.get('client')} died ({_number(e, 'silent_s'):.0f} s silent)",
    "setting_evaluated": lambda e: f"{e.get('setting')}: perplexity {_number(e, 'perplexity'):.1f}",
}
