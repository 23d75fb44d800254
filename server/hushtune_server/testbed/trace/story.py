"""What happened to one adapter: steps in order of time, whether both ends name the same bytes, Eve's side, and the verdict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from hushtune_server.testbed.logbook.lines import Line
from hushtune_server.testbed.rundir import RunDirectory, read_json
from hushtune_server.testbed.trace.naming import FRAME, SEALED, Name, Slot, names
from hushtune_server.testbed.trace.telling import TITLES, tell

Json = dict[str, Any]

_DURATION: Final[Mapping[str, str]] = {
    "training_finished": "train_s",
    "frame_carried": "airtime_s",
}
_OF_ALL: Final = frozenset({"adapters_averaged", "plugin_kept", "plugin_rolled_back", "round_closed", "round_failed"})
_FIRST: Final = "gate_decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happened: ``ended`` in seconds since 1970, ``seconds`` it took where that is known."""

    ended: float
    seconds: float | None
    line: Line

    @property
    def title(self) -> str:
        """What happened, in a word or two."""
        return TITLES[self.line.event]

    @property
    def told(self) -> str:
        """The numbers of it, in words."""
        return tell(self.line)

    def to_json(self) -> Json:
        """Return plain values, the line as it was written included."""
        told = {"time": self.line.record.get("time"), "process": self.line.process, "event": self.line.event}
        return {**told, "seconds": self.seconds, "what": self.title, "told": self.told, "record": dict(self.line.record)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What each process calls the same thing, as process and digest; ``holds`` is `None` while fewer than two have named it."""

    what: str
    seen: tuple[tuple[str, str], ...]

    @property
    def holds(self) -> bool | None:
        """Whether all name the same digest."""
        if len({process for process, _ in self.seen}) < 2:
            return None
        return len({digest for _, digest in self.seen}) == 1

    def to_json(self) -> Json:
        """Return plain values."""
        return {
            "what": self.what,
            "holds": self.holds,
            "seen": [{"process": process, "digest": digest} for process, digest in self.seen],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The way of one adapter."""

    slot: Slot
    asked: Name
    digests: Mapping[str, str]
    steps: tuple[Step, ...]
    agreements: tuple[Agreement, ...]
    eve: tuple[Json, ...]
    verdict: str

    def to_json(self) -> Json:
        """Return plain values."""
        return {
            **asdict(self.slot),
            "asked": {"what": self.asked.what, "digest": self.asked.digest, "attempt": self.asked.attempt},
            "digests": dict(self.digests),
            "steps": [step.to_json() for step in self.steps],
            "agreements": [a.to_json() for a in self.agreements],
            "eavesdropper": list(self.eve),
            "verdict": self.verdict,
        }


def follow(lines: Sequence[Line], asked: Name, *, run: RunDirectory | None) -> Story:
    """Return the story of the adapter that ``asked`` names; ``run`` adds what lies beside the logs, where there is one."""
    slot = asked.slot
    if slot is None:
        raise ValueError(f"{asked.what} is no client's")
    mine = [name for name in names(lines) if name.slot == slot]
    steps = tuple(_step(line) for line in lines if _belongs(line, slot, lines))
    begin = next((k for k, step in enumerate(steps) if step.line.event == _FIRST), 0)
    digests = {_label(name): name.digest for name in mine}
    return Story(
        slot=slot,
        asked=asked,
        digests=digests,
        steps=steps[begin:],
        agreements=tuple(_agreements(mine)),
        eve=() if run is None else tuple(_eve(run, slot)),
        verdict=_verdict(steps, slot),
    )


def _label(name: Name) -> str:
    return name.what if name.attempt is None else f"{name.what}, attempt {name.attempt}"


def _step(line: Line) -> Step:
    seconds = line.record.get(_DURATION.get(line.event, "seconds"))
    return Step(ended=line.moment, seconds=float(seconds) if isinstance(seconds, int | float) else None, line=line)


def _belongs(line: Line, slot: Slot, lines: Sequence[Line]) -> bool:
    if line.event not in TITLES:
        return False
    if line.event in _OF_ALL:
        return line.role != "client" and line.round_id == slot.round_id and _concerns(line, slot.client)
    if line.event == "transfer_finished":
        return line.process == slot.client and line.record.get("kind") == "frame" and _round_at(line, lines) == slot.round_id
    return line.client == slot.client and line.round_id == slot.round_id


def _concerns(line: Line, client: str) -> bool:
    listed = (cast(Sequence[object], line.record.get(key) or ()) for key in ("clients", "accepted", "missing"))
    return any(client in names_ for names_ in listed)


def _round_at(line: Line, lines: Sequence[Line]) -> int | None:
    """Return the round that a process was in when it wrote a line without one."""
    before = [other.round_id for other in lines if other.process == line.process and other.index < line.index]
    return next((number for number in reversed(before) if number is not None), None)


def _agreements(mine: Sequence[Name]) -> Iterator[Agreement]:
    labels = dict.fromkeys(_label(name) for name in mine if name.what in (SEALED, FRAME))
    for label in labels:
        seen = dict.fromkeys((n.line.process, n.digest) for n in mine if _label(n) == label)
        yield Agreement(what=label, seen=tuple(seen))


def _eve(run: RunDirectory, slot: Slot) -> Iterator[Json]:
    """Yield what the tap made of each part of the update, and, in a testbed, how much of its guess was right."""
    evidence = read_json(run.state("eavesdropper") / "evidence.json")
    link = cast(Json, read_json(run.path / "referee.json").get("link") or {})
    judged = [c for c in link.get("clients", ()) if c["client"] == slot.client] if link.get("round_id") == slot.round_id else []
    kept = ("part", "blocks_sent", "blocks_heard", "bytes_known", "bytes_total", "crc_passes", "snr_mean_db", "snr_bound_db")
    for update in evidence.get("updates") or ():
        if (update.get("client"), update.get("round_id")) == (slot.client, slot.round_id):
            about: Json = {key: update.get(key) for key in (*kept, "assumption_held", "bound_void", "log2_delta_total")}
            bits = (judged[0].get("tap_bits") if judged else None) or {}
            yield {**about, "bit_error_rate": bits.get("bit_error_rate") if update.get("part") == "payload" else None}


def _verdict(steps: Sequence[Step], slot: Slot) -> str:
    """Return the last word on the adapter, whoever said it."""
    said: dict[str, Line] = {step.line.event: step.line for step in steps}
    if (refused := said.get("update_refused")) is not None:
        return f"refused by the owner: {refused.record.get('reason')}"
    if (left := said.get("update_left_out")) is not None:
        return f"accepted, and left out of the mean: {left.record.get('reason')}"
    kept = said.get("plugin_kept")
    if kept is not None:
        part = slot.client in cast(Sequence[object], kept.record.get("clients") or ())
        return "accepted and kept: it is part of the mean that the model holds" if part else "accepted, not part of the mean"
    if (back := said.get("plugin_rolled_back")) is not None:
        return f"accepted, but the mean was rolled back: {back.record.get('reason') or 'it did harm on public text'}"
    if "update_accepted" in said:
        return "accepted; the round's mean has not been decided on"
    if (failed := said.get("round_failed") or said.get("gate_refused")) is not None:
        why = next(
            (failed.record[key] for key in ("problem", "reason", "failed_reason") if failed.record.get(key)), "nobody said why"
        )
        return f"{'arrived, and was not judged' if 'update_received' in said else 'did not arrive'}: {why}"
    return "still on its way, as far as these logs go"
