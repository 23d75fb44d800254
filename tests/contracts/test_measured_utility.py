"""Does a run wait for what the owner measures, plan with its newest word, and remember it?"""

import json
from dataclasses import replace

import pytest

from hushtune_common.clock import SystemClock
from hushtune_common.config import parse
from hushtune_common.errors import ConfigError
from hushtune_common.messages import ClientId, RunId, UtilityCurve
from hushtune_common.seeding import SeedTree
from hushtune_common.units import Hertz, PowerRatio, Second
from hushtune_server.coordinator.app import AllocatorSolver
from hushtune_server.coordinator.events import (
    OWNER,
    Event,
    Joined,
    Left,
    Member,
    Reported,
    Solution,
    Solved,
    Ticked,
    from_body,
    kind_of,
    to_body,
)
from hushtune_server.coordinator.phases import Failed, Rules, Solve, State
from hushtune_server.coordinator.record import record
from hushtune_server.coordinator.rounds import advance, fold, unsolved
from hushtune_server.coordinator.stragglers import Deadline
from tests.fakes import CURVE, assignment_of, report_of
from tests.radio import scenario

CLIENTS = tuple(ClientId(f"c{k}") for k in range(1, 4))
RULES = Rules(
    run=RunId("run-1"),
    clients=CLIENTS,
    rounds=1,
    policy=Deadline(),
    round_s=Second(900.0),
    report_s=Second(300.0),
    start_wait_s=Second(30.0),
    tick_s=Second(45.0),
    band=Hertz(1e6),
    measured=True,
)
OTHER = replace(CURVE, offset=0.75)
SOME = [Joined(at=Second(0.0), member=Member(c)) for c in CLIENTS]


def owner(curve: UtilityCurve | None, *, at: float = 1.0) -> Joined:
    return Joined(at=Second(at), member=OWNER, curve=curve)


def after(*events: Event, rules: Rules = RULES) -> State:
    return fold(events, rules=rules)


def reported() -> list[Event]:
    return [Reported(at=Second(2.0), report=report_of(c, 1)) for c in CLIENTS]


def test_no_round_opens_before_the_owner_has_told_what_updates_are_worth() -> None:
    silent = after(*SOME, owner(None))
    assert silent.name == "gathering"
    assert after(*SOME, owner(None), rules=replace(RULES, measured=False)).name == "open"
    told, _ = advance(silent, owner(CURVE), rules=RULES)
    assert (told.name, told.curve) == ("open", CURVE)


def test_a_run_whose_owner_never_tells_fails_and_says_why() -> None:
    late = after(*SOME, owner(None), Ticked(at=Second(901.0)))
    assert isinstance(late.phase, Failed)
    assert "no measured utility" in late.phase.reason


def test_the_solver_is_asked_with_the_newest_word_of_the_owner_and_of_nobody_else() -> None:
    by_a_client = replace(SOME[0], curve=OTHER)
    state = after(*SOME, owner(CURVE), owner(None), by_a_client)
    assert state.curve == CURVE
    _, effects = advance(after(*SOME, owner(CURVE), owner(OTHER), *reported()[:2]), reported()[2], rules=RULES)
    (solve,) = [e for e in effects if isinstance(e, Solve)]
    assert solve.curve == OTHER


def test_the_same_word_again_changes_nothing() -> None:
    state = after(*SOME, owner(CURVE))
    for event in (owner(CURVE), owner(None)):
        assert advance(state, event, rules=RULES) == (state, ())


def test_a_journal_brings_the_curve_back_and_one_without_it_still_folds() -> None:
    events = [*SOME, owner(CURVE), *reported()]
    stored = [(kind_of(e), json.loads(json.dumps(to_body(e), allow_nan=False))) for e in events]
    again = fold([from_body(kind, body) for kind, body in stored], rules=RULES)
    assert again == after(*events)
    pending = unsolved(again, rules=RULES)
    assert pending is not None
    assert pending.curve == CURVE
    for _, body in stored:
        body.pop("curve", None)
    old = fold([from_body(kind, body) for kind, body in stored], rules=replace(RULES, measured=False))
    assert (old.name, old.curve) == ("solving", None)


def test_the_record_of_a_round_names_the_curve_with_its_measurements() -> None:
    body = record(after(*SOME, owner(CURVE), Left(at=Second(3.0), member=OWNER, reason="bye")), rules=RULES)
    assert body is not None
    told = json.loads(json.dumps(body, allow_nan=False))["utility"]
    assert (told["offset"], told["shape"], told["points"][0]) == (0.5, 1.25, [0.1, 0.15, 0.1, 0.2])


def test_the_record_of_a_round_names_what_it_was_planned_with_though_the_owner_has_told_what_comes_next() -> None:
    given = tuple(assignment_of(c, 1, granted=True) for c in CLIENTS)
    solution = Solution(assignments=given, method="by hand", violation=0.0, gap=None, solve_s=Second(0.0))
    solved = Solved(at=Second(3.0), round_id=1, solution=solution)
    left = Left(at=Second(5.0), member=OWNER, reason="bye")
    state = after(*SOME, owner(CURVE), *reported(), solved, owner(OTHER, at=4.0), left)
    body = record(state, rules=RULES)
    assert body is not None
    told = json.loads(json.dumps(body, allow_nan=False))["utility"]
    assert (state.curve, told["offset"]) == (OTHER, CURVE.offset)


def test_a_scenario_says_whether_utilities_are_measured_and_does_not_assume_them_as_well() -> None:
    tree = {
        "name": "m",
        "seed": 1,
        "model": {"source": "random:blocks=6"},
        "data": {"private": "txt:a", "public": "txt:b"},
        "clients": [{"id": "c1", "position": {"x_m": 50.0, "y_m": 0.0}}],
    }
    measured = parse({**tree, "coordinator": {"allocator": {"utility": {"kind": "measured"}}}})
    assert Rules.of(measured, run=RunId("r")).measured
    assert not Rules.of(parse(tree), run=RunId("r")).measured
    again = {"allocator": {"utility": {"kind": "measured", "every_round": True}}, "rounds": 2}
    assert parse({**tree, "coordinator": again}).coordinator.allocator.utility.every_round
    with pytest.raises(ConfigError, match=r"coordinator.*every_round: there is one round"):
        parse({**tree, "coordinator": {**again, "rounds": 1}})
    with pytest.raises(ConfigError, match=r"every_round: log is assumed"):
        parse({**tree, "coordinator": {"allocator": {"utility": {"every_round": True}}, "rounds": 2}})
    with pytest.raises(ConfigError, match="leave them out"):
        parse({**tree, "coordinator": {"allocator": {"utility": {"kind": "measured", "shape": 3.0}}}})


@pytest.mark.slow
def test_steeper_curves_make_the_coordinator_grant_larger_shares() -> None:
    base = scenario()
    tree = {"coordinator": {"allocator": {"share_min": 0.1, "utility": {"kind": "measured"}}}}
    settings = parse(
        {
            "name": "m",
            "seed": 1,
            "model": {"source": "random:blocks=6"},
            "data": {"private": "txt:a", "public": "txt:b"},
            "clients": [{"id": c.id, "position": {"x_m": c.position.x_m, "y_m": c.position.y_m}} for c in base.clients],
            **tree,
        }
    )
    solver = AllocatorSolver(settings, clock=SystemClock(), seeds=SeedTree(1))
    reports = [replace(report_of(c, 1), gain_main=PowerRatio(1e-9), update_bits=200_000_000) for c in CLIENTS]

    def shares(weight: float) -> float:
        solution = solver.solve(1, reports, curve=replace(CURVE, weight=weight))
        assert all(a.protection is not None for a in solution.assignments)
        return sum(a.adapter_share for a in solution.assignments)

    flat, steep = shares(1e-4), shares(0.05)
    assert flat < steep
