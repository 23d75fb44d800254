"""Who has what of the bits on air? What was sent, received and guessed, compared as only a testbed can."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np

from hushtune_common.config import Scenario
from hushtune_common.link.fidelity import Fidelity
from hushtune_common.link.frame import flags_of
from hushtune_common.link.leakage import information_density, total_log2_delta
from hushtune_common.link.mcs import CODING_POINTS
from hushtune_common.messages import Part, SecrecyDesign
from hushtune_server.testbed.rundir import RunDirectory, read_json, read_log

Json = dict[str, Any]

Z_99: Final = 2.5758293035489004
_READ_BLOCKS: Final = 1024
_CRC_BYTES: Final = 4

ROUNDS_MAX: Final = 100
"""Rounds that are judged one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BitErrors:
    """Bits of a guess that differ from the truth, over the blocks that were guessed bit by bit."""

    wrong: int
    of: int

    @property
    def rate(self) -> float:
        """The bit error rate."""
        return self.wrong / self.of

    @property
    def interval_99(self) -> tuple[float, float]:
        """Interval around one half in which the rate of pure guessing lies with 99 % probability (normal, bits independent)."""
        half = Z_99 * sqrt(0.25 / self.of)
        return 0.5 - half, 0.5 + half

    def to_json(self) -> Json:
        """Return plain values."""
        low, high = self.interval_99
        return {
            "bits_wrong": self.wrong,
            "bits_compared": self.of,
            "bit_error_rate": self.rate,
            "guessing_interval_99": [low, high],
            "like_guessing": low <= self.rate <= high,
        }


def judge(run: RunDirectory, scenario: Scenario) -> Json:
    """Return what became of every client's update on air: at the owner, at the tap, and in the channel between them.

    That is the update of the last round; what has leaked at most adds up over all of them. ``earlier`` has the same of the
    rounds before, of the latest `ROUNDS_MAX`.
    A low bit error rate at the tap proves a leak; one of a half proves nothing, which the result says.
    """
    seen, rounds = _Seen.of(run, scenario), _rounds(run)
    earlier = range(max(0, len(rounds) - ROUNDS_MAX), len(rounds) - 1)
    return {
        "round_id": rounds[-1].get("round_id", 1),
        "rounds": len(rounds),
        "fidelity": scenario.air.fidelity,
        "claim": Fidelity(scenario.air.fidelity).claim,
        "randomness": "operating system" if scenario.secrecy.randomness == "os" else "reproducible, not secret",
        "caveat": "a bit error rate of one half and failed attacks are checks of the machinery, not evidence of secrecy",
        "clients": [_client(seen, c.id, rounds) for c in scenario.clients],
        "earlier": [_earlier(seen, rounds[: k + 1]) for k in earlier],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What both sides left: what the tap tried, what the air carried, and digests by (client, round) at both ends."""

    run: RunDirectory
    scenario: Scenario
    evidence: Sequence[Json]
    carried: Sequence[Json]
    sealed: Mapping[tuple[str, Any], str]
    received: Mapping[tuple[str, Any], str]

    @staticmethod
    def of(run: RunDirectory, scenario: Scenario) -> "_Seen":
        sealed = {
            (c.id, e.get("round_id")): str(e.get("digest")) for c in scenario.clients for e in _said(run, c.id, "update_sealed")
        }
        received = {
            (str(e.get("client")), e.get("round_id")): str(e.get("digest")) for e in _said(run, "owner", "update_received")
        }
        return _Seen(
            run=run,
            scenario=scenario,
            evidence=read_json(run.state("eavesdropper") / "evidence.json").get("updates") or [],
            carried=read_json(run.state("air") / "air.json").get("transmissions") or [],
            sealed=sealed,
            received=received,
        )

    def exact(self, client: str, round_id: object) -> bool | None:
        """Whether the digest of what the owner put together is that of what the client sealed; None when either is missing."""
        sent, got = self.sealed.get((client, round_id)), self.received.get((client, round_id))
        return None if sent is None or got is None else sent == got


def _said(run: RunDirectory, process: str, event: str) -> Iterator[Json]:
    return (e for e in read_log(run.log(process)) if e.get("event") == event)


def _earlier(seen: _Seen, rounds: Sequence[Json]) -> Json:
    """Return the same of the last of ``rounds``, without what only figures need."""
    found = [_client(seen, c.id, rounds) for c in seen.scenario.clients]
    brief = [{**c, "density": _brief(c["density"]), "constellation": None} for c in found]
    return {"round_id": rounds[-1].get("round_id"), "clients": brief}


def _brief(density: Json | None) -> Json | None:
    return None if density is None else {**density, "values_bits": []}


def _client(seen: _Seen, client: str, rounds: Sequence[Json]) -> Json:
    run, scenario = seen.run, seen.scenario
    last, mine = rounds[-1], [t for t in seen.carried if t["client"] == client]
    round_id = last.get("round_id", 1)
    assignment = _about(last.get("assignments"), client, {})
    transmissions = [t for t in mine if t["round_id"] == round_id]
    heard = [e for e in seen.evidence if e["client"] == client and e["round_id"] == round_id]
    secret = [e for e in heard if e["secret"]]
    over_code = _over_code(transmissions, assignment)
    held = _all_held([e["assumption_held"] for e in secret])
    return {
        "client": client,
        "protection": assignment.get("protection"),
        "owner_has_every_byte": seen.exact(client, round_id),
        "design": assignment.get("design"),
        "snr_main_db": transmissions[0]["snr_main_db"] if transmissions else None,
        "snr_tap_true_db": transmissions[0]["snr_tap_db"] if transmissions else None,
        "transmissions": len(transmissions),
        "blocks_sent": sum(t["blocks"] for t in transmissions),
        "blocks_sent_bit_exact": sum(t["blocks_coded"] for t in transmissions),
        "tap_bits": _bits(run, client, round_id, assignment),
        "tap_crc_passes": sum(e["crc_passes"] for e in secret) if secret else None,
        "tap_bits_protected": assignment.get("protection") == "payload",
        "tap_assumption_held": held,
        "log2_delta_total": _log2_delta(assignment, over_code),
        "log2_delta_all_rounds": _over_rounds(rounds, client, mine),
        "bound_void": _void(scenario, held, secret),
        "outage": max(e["outage"] for e in secret) if secret else None,
        "density": _density(over_code, assignment, scenario),
        "constellation": next((t["constellation"] for t in transmissions if t.get("constellation")), None),
    }


def _all_held(held: Sequence[bool | None]) -> bool | None:
    """Return False if one failed, else None unless all were seen to hold."""
    return False if False in held else None if None in held or not held else True


def _over_code(transmissions: Sequence[Json], assignment: Mapping[str, Any]) -> list[Json]:
    """Return what of it went over the wiretap code."""
    protected = Part.KEY if assignment.get("protection") == "key" else Part.PAYLOAD
    return [t for t in transmissions if t["part"] == protected.value]


def _over_rounds(rounds: Sequence[Json], client: str, mine: Sequence[Json]) -> float | None:
    """Return the bound over every round of a run: the rounds' own add up (union bound)."""
    found: list[float] = []
    for entry in rounds:
        assignment = _about(entry.get("assignments"), client, {})
        sent = _over_code([t for t in mine if t["round_id"] == entry.get("round_id")], assignment)
        bound = _log2_delta(assignment, sent)
        found += [] if bound is None else [bound]
    return min(0.0, float(np.logaddexp2.reduce(found))) if found else None


def _log2_delta(assignment: Mapping[str, Any], transmissions: Sequence[Json]) -> float | None:
    """Return the bound over every block that went on air over the wiretap code, whether or not the tap has come to hear it."""
    design = cast(Json | None, assignment.get("design"))
    if design is None or not design["random_bits"] or not transmissions:
        return None
    return total_log2_delta(msgspec.convert(design, SecrecyDesign), sum(t["blocks"] for t in transmissions))


def _void(scenario: Scenario, held: bool | None, secret: Sequence[Json]) -> str | None:
    """Return why no bound may be claimed, as the tap says or as the scenario does."""
    if scenario.secrecy.randomness == "seeded":
        return "the random bits are reproducible, not secret"
    if held is False:
        return "the tap's SNR was above what the design assumed"
    return next((e["bound_void"] for e in secret if e.get("bound_void") is not None), None)


def _bits(run: RunDirectory, client: str, round_id: int, assignment: Mapping[str, Any]) -> Json | None:
    """Compare the tap's guess of the sealed update with the sealed update, block by block, where it guessed."""
    stem = run.state("eavesdropper") / "guesses" / f"{client}-{round_id}-{Part.PAYLOAD.value}"
    truth = run.state(client) / "rounds" / str(round_id) / "sealed.bin"
    guess, decoded = stem.with_name(stem.name + ".bin"), stem.with_name(stem.name + ".decoded")
    design = cast(Json | None, assignment.get("carrier") or assignment.get("design"))
    if design is None or not (truth.exists() and guess.exists() and decoded.exists()):
        return None
    found = compare(truth, guess, decoded, design=design)
    return None if found is None else found.to_json()


def compare(
    truth: Path, guess: Path, decoded: Path, *, design: Mapping[str, Any], blocks_max: int | None = None
) -> BitErrors | None:
    """Compare a guess of a sealed update with the update over the hash blocks that ``decoded`` flags as guessed.

    ``blocks_max`` ends after so many blocks. `None` when the sizes differ, so that it is a guess at something else, or nothing
    was guessed; `OSError` and `ValueError` where a file is missing or was caught in the middle of being written.
    """
    if truth.stat().st_size != guess.stat().st_size:
        return None
    block_bytes = design["message_bits"] // 8 - _CRC_BYTES
    flags = flags_of(decoded.read_bytes(), count=-(-truth.stat().st_size // block_bytes))[:blocks_max]
    wrong = of = 0
    for mine, theirs in _blocks(guess, truth, flags, block_bytes):
        wrong += int(np.bitwise_count(mine ^ theirs).sum())
        of += 8 * mine.size
    return BitErrors(wrong=wrong, of=of) if of else None


def _blocks(guess: Path, truth: Path, flags: np.ndarray[Any, np.dtype[np.bool_]], block_bytes: int) -> Iterator[tuple[Any, Any]]:
    with guess.open("rb") as one, truth.open("rb") as other:
        for first in range(0, flags.size, _READ_BLOCKS):
            wanted = flags[first : first + _READ_BLOCKS]
            mine, theirs = (np.frombuffer(f.read(wanted.size * block_bytes), dtype=np.uint8) for f in (one, other))
            chosen = np.repeat(wanted, block_bytes)[: mine.size]
            yield mine[chosen], theirs[chosen]


def _density(transmissions: Sequence[Json], assignment: Mapping[str, Any], scenario: Scenario) -> Json | None:
    """Return what the tap's channel passed per hash block, beside theory (white noise) and the budget of random bits."""
    values = [v for t in transmissions if t.get("meter") for v in t["meter"]["values_bits"]]
    design = cast(Json | None, assignment.get("design"))
    if not values or design is None:
        return None
    found: Json = {
        "blocks": len(values),
        "mean_bits": float(np.mean(values)),
        "sd_bits": float(np.std(values)),
        "max_bits": float(np.max(values)),
        "budget_bits": design["random_bits"],
        "values_bits": values,
    }
    if scenario.air.fading == "none":
        mean, sd = _theory(design, transmissions[0]["snr_tap_db"])
        found |= {"theory_mean_bits": mean, "theory_sd_bits": sd}
    return found


def _theory(design: Json, snr_tap_db: float) -> tuple[float, float]:
    point = next(p for p in CODING_POINTS if (p.modulation, p.code_bits) == (design["modulation"], design["code_bits"]))
    dimensions = design["codewords"] * point.dimensions
    law = information_density(point.modulation, snr_tap_db)
    return dimensions * law.mean, sqrt(dimensions * law.variance)


def _rounds(run: RunDirectory) -> Sequence[Json]:
    """Return what the coordinator left of each round, at least one entry."""
    files = sorted(run.state("coordinator").glob("round-*.json"), key=lambda f: int(f.stem.partition("-")[2]))
    return [read_json(f) for f in files] or [{}]


def _about(entries: object, client: str, default: Json) -> Json:
    found = [e for e in cast(list[Json], entries or []) if e.get("client") == client]
    return found[-1] if found else default
