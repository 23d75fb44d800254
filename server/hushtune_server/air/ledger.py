"""What has been on air, and who still has to hear of it?

Folded over the journal: every fact is an event first, so a restart tells the same story to the same listeners.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from hushtune_common.errors import Replayed, StaleRound
from hushtune_common.messages import ClientId, Listener, Receipt, ReceptionNotice, RunId, Transmission, UpdateKey
from hushtune_common.units import Decibel, Second
from hushtune_server.air.meter import Constellation, Meter

TRANSMITTED = "transmitted"
ACKNOWLEDGED = "acknowledged"
OVERHEARD = "overheard"
MARKED = "marked"
"""A moment of the air's time, where its channels change."""
_START: Final = Second(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One transmission that is over, with the true mean SNRs and the tap's figures, which no listener is told.

    ``at`` is when it was on air, in the air's time: it is heard over the channel of that moment.
    """

    transmission: Transmission
    blocks: int
    blocks_coded: int
    update_bytes: int
    airtime: Second
    fidelity: str
    snr_main_db: Decibel
    snr_tap_db: Decibel
    meter: Meter | None = None
    constellation: Constellation | None = None
    at: Second = _START

    def notice(self, seq: int, listener: Listener, *, acknowledged: bool) -> ReceptionNotice:
        """Return what ``listener`` is told about it."""
        return ReceptionNotice(
            seq=seq,
            listener=listener,
            transmission=self.transmission,
            blocks=self.blocks,
            update_bytes=self.update_bytes,
            fidelity=self.fidelity,
            airtime=self.airtime,
            acknowledged=acknowledged,
        )

    def report(self) -> dict[str, Any]:
        """Return what the referee is told about it."""
        key, design = self.transmission.key, self.transmission.design
        return {
            "client": key.client,
            "round_id": key.round_id,
            "attempt": key.attempt,
            "part": self.transmission.part.value,
            "blocks": self.blocks,
            "blocks_coded": self.blocks_coded,
            "random_bits": design.random_bits,
            "airtime_s": self.airtime,
            "snr_main_db": self.snr_main_db,
            "snr_tap_db": self.snr_tap_db,
            "power_w": self.transmission.power,
            "bandwidth_hz": self.transmission.bandwidth,
            "frame_bytes": self.transmission.frame_bytes,
            "fidelity": self.fidelity,
            "meter": None if self.meter is None else self.meter.report(),
            "constellation": msgspec.to_builtins(self.constellation),
        }

    def to_body(self) -> dict[str, Any]:
        """Return the journal's form."""
        return msgspec.to_builtins(self)

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> "Sent":
        """Read the journal's form."""
        return msgspec.convert(body, Sent, strict=False)


class Ledger:
    """All transmissions in order, the owner's receipts, and what the tap has heard to the end.

    Laws: both listeners get the same numbers, 1, 2, 3 and so on; a key means one frame for ever; applying the journal's events
    in order gives an equal ledger, and an event that comes twice counts once.
    """

    def __init__(self) -> None:
        """Start with nothing on air."""
        self._sent: list[Sent] = []
        self._by_key: dict[UpdateKey, Sent] = {}
        self._latest: dict[ClientId, UpdateKey] = {}
        self._missing: dict[UpdateKey, str] = {}
        self._overheard: set[UpdateKey] = set()
        self.marked: Second | None = None
        """The latest known moment of the air's time; none before it began."""

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Fold one event of the journal; kinds of other concern change nothing."""
        if kind == TRANSMITTED:
            sent = Sent.from_body(body)
            key = sent.transmission.key
            if key in self._by_key:
                return
            self._sent.append(sent)
            self._by_key[key] = sent
            self._latest[key.client] = key
        elif kind == ACKNOWLEDGED:
            self._missing[msgspec.convert(body["key"], UpdateKey)] = body["missing"]
        elif kind == OVERHEARD:
            self._overheard.add(msgspec.convert(body["key"], UpdateKey))
        elif kind == MARKED:
            self.marked = Second(max(body["at"], self.marked or 0.0))

    @property
    def sent(self) -> tuple[Sent, ...]:
        """Every transmission, in the order of its end."""
        return tuple(self._sent)

    def find(self, transmission: Transmission) -> Sent | None:
        """Return the outcome of this very transmission if it was sent before; `Replayed` if its key stands for another one."""
        known = self._by_key.get(transmission.key)
        if known is not None and known.transmission != transmission:
            raise Replayed(f"{transmission.key.text} was sent before with another frame or design; count the attempt up")
        return known

    def sent_as(self, key: UpdateKey) -> Sent | None:
        """Return what was sent under a key, if anything was."""
        return self._by_key.get(key)

    def require_sent(self, key: UpdateKey) -> Sent:
        """Return what was sent under a key; `StaleRound` unless it was on air."""
        sent = self._by_key.get(key)
        if sent is None:
            raise StaleRound(f"{key.text} was never on air")
        return sent

    def awaited(self, key: UpdateKey) -> frozenset[Listener]:
        """Return who may still want to hear a transmission.

        The owner, until it has acknowledged, or the client has given up on that and sent another; the tap, until it has heard
        it to the end.
        """
        owner = key not in self._missing and self._latest.get(key.client) == key
        wanted = {Listener.MAIN: owner, Listener.TAP: key in self._by_key and key not in self._overheard}
        return frozenset(listener for listener, waits in wanted.items() if waits)

    def waiting_count(self, listener: Listener) -> int:
        """Return how many transmissions ``listener`` is not through with."""
        return sum(listener in self.awaited(sent.transmission.key) for sent in list(self._sent))

    def runs(self, client: ClientId) -> frozenset[RunId]:
        """Return the runs in which the client has transmitted."""
        return frozenset(key.run for key in self._by_key if key.client == client)

    def receipt(self, key: UpdateKey) -> Receipt | None:
        """Return the owner's answer, once there is one."""
        missing = self._missing.get(key)
        return None if missing is None else Receipt(key=key, missing=_unpacked(missing))

    def notices_after(self, seq: int, listener: Listener) -> list[ReceptionNotice]:
        """Return what ``listener`` has not seen when ``seq`` is the last it has."""
        first = max(seq, 0)
        return [
            sent.notice(first + k + 1, listener, acknowledged=self._is_over(sent.transmission.key, listener))
            for k, sent in enumerate(self._sent[first:])
        ]

    def report(self) -> list[dict[str, Any]]:
        """Return one entry per transmission with the true SNRs; for the referee, never for a listener."""
        return [sent.report() for sent in self._sent]

    def _is_over(self, key: UpdateKey, listener: Listener) -> bool:
        return key in self._missing and listener not in self.awaited(key)


def receipt_body(receipt: Receipt) -> dict[str, Any]:
    """Return the journal's form of a receipt. Its blocks are one bit each: listed, a million would not fit into an event."""
    return {**key_body(receipt.key), "missing": _packed(receipt.missing)}


def key_body(key: UpdateKey) -> dict[str, Any]:
    """Return the journal's form of a fact about one transmission."""
    return {"key": msgspec.to_builtins(key)}


def _packed(indices: Sequence[int]) -> str:
    flags = np.zeros(indices[-1] + 1 if indices else 0, dtype=np.bool_)
    flags[list(indices)] = True
    return np.packbits(flags, bitorder="little").tobytes().hex()


def _unpacked(text: str) -> tuple[int, ...]:
    flags = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), bitorder="little")
    return tuple(int(i) for i in np.flatnonzero(flags))
