"""What has been on air, and who still has to hear of it?

Folded over the journal: every fact is an event first, so a restart tells the same story to the same listeners.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hushtune_common.errors import Replayed, StaleRound
from hushtune_common.messages import ClientId, Digest, Listener, Receipt, ReceptionNotice, RunId, Transmission, UpdateKey
from hushtune_common.units import Decibel, Second

TRANSMITTED = "transmitted"
ACKNOWLEDGED = "acknowledged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What one receiver got of a transmission: a reception blob, and the true mean SNR, which no listener is told."""

    digest: Digest
    size: int
    snr_db: Decibel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One transmission that is over."""

    transmission: Transmission
    main: Heard
    tap: Heard
    blocks: int
    airtime: Second
    fidelity: str

    def notice(self, seq: int, listener: Listener) -> ReceptionNotice:
        """Return what ``listener`` is told about it."""
        heard = self.main if listener is Listener.MAIN else self.tap
        return ReceptionNotice(
            seq=seq,
            listener=listener,
            transmission=self.transmission,
            reception=heard.digest,
            reception_bytes=heard.size,
            fidelity=self.fidelity,
            airtime=self.airtime,
        )

    def to_body(self) -> dict[str, Any]:
        """Return the journal's form."""
        return msgspec.to_builtins(self)

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> "Sent":
        """Read the journal's form."""
        return msgspec.convert(body, Sent, strict=False)


class Ledger:
    """All transmissions in order, and the owner's receipts.

    Laws: both listeners get the same numbers, 1, 2, 3 and so on; a key means one frame for ever; applying the journal's events
    in order gives an equal ledger, and an event that comes twice counts once.
    """

    def __init__(self) -> None:
        """Start with nothing on air."""
        self._sent: list[Sent] = []
        self._by_key: dict[UpdateKey, Sent] = {}
        self._missing: dict[UpdateKey, str] = {}

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Fold one event of the journal; kinds of other concern change nothing."""
        if kind == TRANSMITTED:
            sent = Sent.from_body(body)
            if sent.transmission.key in self._by_key:
                return
            self._sent.append(sent)
            self._by_key[sent.transmission.key] = sent
        elif kind == ACKNOWLEDGED:
            self._missing[msgspec.convert(body["key"], UpdateKey)] = body["missing"]

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

    def require_sent(self, key: UpdateKey) -> None:
        """Raise `StaleRound` unless this key was on air."""
        if key not in self._by_key:
            raise StaleRound(f"{key.text} was never on air")

    def unanswered(self, client: ClientId) -> tuple[UpdateKey, ...]:
        """Return the client's transmissions that the owner has not acknowledged, in order."""
        mine = (sent.transmission.key for sent in self._sent if sent.transmission.key.client == client)
        return tuple(key for key in mine if key not in self._missing)

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
        return [sent.notice(first + k + 1, listener) for k, sent in enumerate(self._sent[first:])]

    def report(self) -> list[dict[str, Any]]:
        """Return one line per transmission with the true SNRs; for the referee, never for a listener."""
        return [
            {
                "client": s.transmission.key.client,
                "round_id": s.transmission.key.round_id,
                "attempt": s.transmission.key.attempt,
                "blocks": s.blocks,
                "airtime_s": s.airtime,
                "snr_main_db": s.main.snr_db,
                "snr_tap_db": s.tap.snr_db,
                "power_w": s.transmission.power,
                "bandwidth_hz": s.transmission.bandwidth,
                "frame_bytes": s.transmission.frame_bytes,
                "fidelity": s.fidelity,
            }
            for s in self._sent
        ]


def receipt_body(receipt: Receipt) -> dict[str, Any]:
    """Return the journal's form of a receipt. Its blocks are one bit each: listed, a million would not fit into an event."""
    return {"key": msgspec.to_builtins(receipt.key), "missing": _packed(receipt.missing)}


def _packed(indices: Sequence[int]) -> str:
    flags = np.zeros(indices[-1] + 1 if indices else 0, dtype=np.bool_)
    flags[list(indices)] = True
    return np.packbits(flags, bitorder="little").tobytes().hex()


def _unpacked(text: str) -> tuple[int, ...]:
    flags = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), bitorder="little")
    return tuple(int(i) for i in np.flatnonzero(flags))
