"""What is an event? A name, who logs it, what it means, and fields whose names carry their units."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OWNER: Final = "owner"
COORDINATOR: Final = "coordinator"
AIR: Final = "air"
EAVESDROPPER: Final = "eavesdropper"
CLIENT: Final = "client"
REFEREE: Final = "referee"
"""Exists in a testbed only; so do the tools that a testbed runs before a round, which log under this role too."""
ROLES: Final = (CLIENT, OWNER, COORDINATOR, AIR, EAVESDROPPER, REFEREE)
PROXY: Final = "proxy"
"""No part of a run: it stands between two of them and makes the network bad."""

_UNITS: Final = (
    (r"(.*_)?digest(_.*)?|emulator|frame|plan", "SHA-256"),
    (r".*_per_s", "1/s"),
    (r".*_s|seconds", "s"),
    (r".*_j", "J"),
    (r".*_db", "dB"),
    (r".*_hz", "Hz"),
    (r".*_w", "W"),
    (r".*_bps", "bit/s"),
    (r".*_flops", "FLOP/s"),
    (r"flops", "FLOP"),
    (r".*_nats|loss(_.*)?", "nats per token"),
    (r"bytes(_.*)?|.*_bytes", "bytes"),
    (r".*_bits", "bits"),
    (r"bits_per_weight", "bits"),
    (r"gain_(main|tap)(_.*)?", "power ratio"),
    (r"(.*_)?share(_.*)?", "share of 1"),
    (r"rate_.*", "bit per complex symbol"),
    (r".*_rate|.*_cosine|.*_cka|p_.*", "0 to 1"),
    (r"perplexity.*", "perplexity"),
)


def unit_of(name: str) -> str:
    """Return the unit that a field's name carries; empty for what has none."""
    return next((unit for pattern, unit in _UNITS if re.fullmatch(pattern, name)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a process writes down when it has happened: a past participle, and what is to know about it.

    ``by`` are the roles that log it; ``fields`` has the meaning of every field by its name, and an entry may lack some of them.
    """

    name: str
    by: tuple[str, ...]
    meaning: str
    fields: Mapping[str, str]

    def __post_init__(self) -> None:
        """Refuse names that nobody could type and roles that there are not."""
        for name in (self.name, *self.fields):
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"{self.name}: {name!r} is no name for an event or a field: small letters, digits, underscores")
        if not self.by or not {*self.by} <= {*ROLES, PROXY}:
            raise ValueError(f"{self.name}: logged by {self.by}, the roles are {', '.join((*ROLES, PROXY))}")
        if not self.meaning.endswith("."):
            raise ValueError(f"{self.name}: its meaning is a sentence, with a full stop")


_SHARED: Final = {
    "airtime_s": "how long it was on air, by bandwidth and symbols (modelled)",
    "attempt": "which transmission of the update it is, counted from 1",
    "blocks": "hash blocks in it",
    "blocks_coded": "hash blocks of it that travelled bit by bit; the rest was drawn from tables",
    "bytes_total": "size of all of it",
    "client": "the data owner that it is about",
    "digest_frame": "of the frame as it went on air: client, air, owner and tap name it alike",
    "duty": "what the client was doing: measure, train, send …",
    "energy_kind": "says that the energy is modelled",
    "exit_code": "the exit code, as in the README's table",
    "fidelity": "how the bits travelled: bit_exact, hybrid or abstract",
    "gain_main": "the client's own channel gain to the owner's receiver",
    "gain_tap_bound": "assumed bound on its gain to the eavesdropper",
    "part": "key or payload",
    "problem": "what went wrong, in words",
    "protection": "what the wiretap code hides: the payload, the key of the seal, or nothing (crypto_only)",
    "reason": "the stable name of the fault, or why it was decided so",
    "round_id": "the round, counted from 1",
    "run": "the run's name",
    "rounds": "how many rounds the scenario has",
    "seconds": "how long it took on this machine",
}
"""Fields that mean the same wherever they occur."""


def event(name: str, by: tuple[str, ...], meaning: str, /, *shared: str, **own: str) -> Event:
    """Make an entry of the catalogue: ``shared`` fields have their usual meaning, ``own`` ones are explained here."""
    return Event(name=name, by=by, meaning=meaning, fields={**{field: _SHARED[field] for field in shared}, **own})
