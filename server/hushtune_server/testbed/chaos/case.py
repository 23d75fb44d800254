"""What is a fault of the suite, and what is said about it afterwards?"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hushtune_common.wire.transfer import part_bytes
from hushtune_server.testbed.chaos.proxy import Way
from hushtune_server.testbed.chaos.stage import Stage

OVERHEAD = 1.02
"""Framing and encryption are not bytes of the payload sent twice."""
HANDSHAKE_BYTES = 8192
"""Nor is the handshake of another connection."""
LATE_S = 2.0
"""What a loaded machine takes to come to what is due, and to say what it has noticed: 0.7 s with ten jobs per core."""
_TRICKLE_BPS = 20_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim that the pass rule makes, whether it held, and what was found."""

    claim: str
    held: bool
    found: str = ""


@dataclass(slots=True, kw_only=True)
class Finding:
    """What came of one fault. ``recovery_s`` is from the fault to the first sign that work went on, if it ever stood."""

    number: int
    title: str
    rule: str
    done: str = ""
    happened: str = ""
    lost: str = "nothing"
    recovery_s: float | None = None
    wall_s: float = 0.0
    checks: list[Check] = field(default_factory=list[Check])

    @property
    def passed(self) -> bool:
        """Whether every claim held, and there was one."""
        return bool(self.checks) and all(check.held for check in self.checks)

    def check(self, claim: str, held: object, found: object = "") -> None:
        """Note whether a claim held, and what was ``found``."""
        self.checks.append(Check(claim=claim, held=bool(held), found=str(found)))

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain values."""
        return {
            "fault": self.number,
            "title": self.title,
            "rule": self.rule,
            "passed": self.passed,
            "done": self.done,
            "happened": self.happened,
            "lost": self.lost,
            "recovery_s": None if self.recovery_s is None else round(self.recovery_s, 2),
            "wall_s": round(self.wall_s, 1),
            "checks": [{"claim": c.claim, "held": c.held, "found": c.found} for c in self.checks],
        }


Play = Callable[[Stage, Sequence[str], Finding], Awaitable[None]]
"""Does one fault to a run in progress: the stage, the clients that are this fault's own, and the finding to fill in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One of the ten faults: its pass rule, how many clients it needs for itself, and what it does.

    ``rows`` are the first cells of its rows in the table of faults of docs/OPERATIONS.md.
    """

    number: int
    title: str
    rule: str
    rows: tuple[str, ...]
    clients: int
    play: Play

    def finding(self) -> Finding:
        """Return a finding to be filled in."""
        return Finding(number=self.number, title=self.title, rule=self.rule)


async def over(stage: Stage, *clients: str) -> None:
    """Wait until coordinator, owner and ``clients`` have ended by themselves."""
    await stage.ended("coordinator", "owner", *clients)


def require_counted_once(stage: Stage, finding: Finding, *clients: str, round_id: int = 1) -> None:
    """Check that the round is closed, and that each of the clients' updates was accepted in it, and judged once."""
    record = stage.record(round_id)
    finding.check("the round closed", record.get("state") == "closed", record.get("failed_reason") or record.get("state"))
    accepted = record.get("accepted") or []
    finding.check(f"accepted: {', '.join(clients)}", set(clients) <= set(accepted), record.get("reasons") or accepted)
    for client in clients:
        judged = sum((j["client"], j["round_id"]) == (client, round_id) for j in stage.judged())
        finding.check(f"the update of {client} was judged once", judged == 1, judged)
        words = sum(c["client"] == client for c in record.get("completions") or [])
        finding.check(f"the completion of {client} was counted once", words == 1, words)


def require_codes(stage: Stage, finding: Finding, code: int, *names: str) -> None:
    """Check that the processes ended with this exit code."""
    for name in names:
        found = stage.children[name].code
        finding.check(f"{name} ended with code {code}", found == code, found)


def hold_frame(stage: Stage, client: str) -> None:
    """Let the client's way to the air be a trickle, so that its frame is still all to come when `frame_held` returns."""
    stage.proxy(client, "air").weather[Way.UP].rate_bps = _TRICKLE_BPS


async def frame_held(stage: Stage, client: str) -> tuple[int, int]:
    """Wait until the client has a frame to upload; return its size in bytes, and what its way had carried up before.

    The way stays a trickle: whoever held it says how it is to be from now on.
    """
    size = int((await stage.heard(client, "frame_encoded"))["bytes_frame"])
    return size, stage.proxy(client, "air").carried(Way.UP)


def left_at_most(size: int, *, arrived: int) -> int:
    """Return how many bytes may follow on another connection when ``arrived`` bytes of an upload of ``size`` had come through.

    The part that had come in half comes again.
    """
    return round((size - arrived / OVERHEAD) * OVERHEAD) + part_bytes(size) + HANDSHAKE_BYTES
