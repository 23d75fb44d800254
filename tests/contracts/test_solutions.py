"""Does a round's record say how often it was shared out, because of whom, and how good each solution is?"""

import io
import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from hushtune_common.messages import Channel, ClientId, RunId
from hushtune_common.units import Hertz, PowerRatio, Second
from hushtune_server.coordinator.events import (
    OWNER,
    ChannelChanged,
    Died,
    Event,
    Joined,
    Left,
    Member,
    Reported,
    Solution,
    Solved,
    SolvingFailed,
)
from hushtune_server.coordinator.phases import Rules
from hushtune_server.coordinator.record import record
from hushtune_server.coordinator.rounds import fold
from hushtune_server.coordinator.stragglers import Deadline
from hushtune_server.testbed.tables import print_report
from tests.fakes import BAND, assignment_of, report_of

C1, C2, C3 = CLIENTS = tuple(ClientId(f"c{k}") for k in range(1, 4))
RULES = Rules(
    run=RunId("run-1"),
    clients=CLIENTS,
    rounds=1,
    policy=Deadline(),
    round_s=Second(900.0),
    report_s=Second(300.0),
    start_wait_s=Second(30.0),
    tick_s=Second(45.0),
    band=Hertz(3 * BAND),
)


def at(seconds: float) -> Second:
    return Second(seconds)


def solved(seconds: float, *clients: ClientId, order: int, gap: float) -> Solved:
    given = tuple(replace(assignment_of(c, 1, granted=True), bandwidth=BAND) for c in clients)
    solution = Solution(assignments=given, method="global", violation=0.0, gap=gap, solve_s=at(0.0), claim="certificate")
    return Solved(at=at(seconds), round_id=1, solution=solution, order=order)


def story() -> dict[str, Any]:
    channel = Channel(at=at(9.0), gain_main=PowerRatio(1e-11), gain_tap=PowerRatio(0.0))
    events: list[Event] = [
        *(Joined(at=at(0.0), member=m) for m in (OWNER, *map(Member, CLIENTS))),
        *(Reported(at=at(1.0), report=report_of(c, 1)) for c in CLIENTS),
        solved(2.0, *CLIENTS, order=0, gap=1e-7),
        ChannelChanged(at=at(9.0), round_id=1, client=C2, channel=channel),
        solved(10.0, *CLIENTS, order=1, gap=1e-8),
        Died(at=at(20.0), member=Member(C3), silent_s=at(5.0)),
        SolvingFailed(at=at(21.0), round_id=1, reason="numbers", order=2),
        Left(at=at(30.0), member=OWNER, reason="bye"),
    ]
    body = record(fold(events, rules=RULES), rules=RULES)
    return json.loads(json.dumps(body, allow_nan=False))


def test_every_solution_is_recorded_with_its_occasion_and_its_own_certificate() -> None:
    solutions = story()["solutions"]
    assert [(s["order"], s["at_s"], s["occasion"]) for s in solutions] == [
        (0, 2.0, "first"),
        (1, 10.0, "after channel change of c2"),
        (2, 21.0, "after departure of c3"),
    ]
    assert [s["allocation"] and s["allocation"]["gap"] for s in solutions] == [1e-7, 1e-8, None]
    assert [s["failed"] for s in solutions] == ["", "", "numbers"]


def test_people_read_how_often_a_round_was_shared_out_and_why() -> None:
    out = io.StringIO()
    rounds = [{"round_id": 1, "solutions": story()["solutions"]}]
    body = {"seed": 1, "fidelity": "abstract", "clients": [], "rounds": rounds}
    print_report(body, console=Console(file=out, width=300))
    (line,) = (line for line in out.getvalue().splitlines() if "shared out" in line)
    assert "3 times: first at 2.0 s (global for 3 clients, gap 1.0e-07); after channel change of c2" in line
    assert "after departure of c3 at 21.0 s (nothing found: numbers)" in line


def test_of_very_many_solutions_people_read_the_first_few_and_how_many_there_are() -> None:
    out = io.StringIO()
    body = {"seed": 1, "fidelity": "abstract", "clients": [], "rounds": [{"round_id": 1, "solutions": story()["solutions"] * 3}]}
    print_report(body, console=Console(file=out, width=1000))
    (line,) = (line for line in out.getvalue().splitlines() if "shared out" in line)
    assert line.startswith("Round 1 was shared out 9 times: first at")
    assert line.endswith("; 5 more in the report")
