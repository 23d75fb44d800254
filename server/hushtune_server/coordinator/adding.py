"""How does a round go on whose updates are only added? What members say of the sum, and what they and the owner are told of it.

Laws: the roster is fixed once it was told; survivors are among those whose update was accepted; each stage is told once.
"""

from dataclasses import replace

from hushtune_common.errors import ProtocolFault, QuorumMissed
from hushtune_common.messages import DirectiveKind
from hushtune_common.units import Second
from hushtune_server.coordinator.events import OWNER, Announced, Dealt, Member, Vowed
from hushtune_server.coordinator.outbox import post
from hushtune_server.coordinator.phases import Assigned, Concluding, Gathering, Phase, Rules, Settling, State, is_over
from hushtune_server.coordinator.sums import Sum


def on_sum(state: State, event: Dealt | Vowed | Announced, *, at: Second) -> State:
    """Take a word on a round's sum; one that is refused is not taken, and whoever said it was told before."""
    phase = state.phase
    if isinstance(phase, Gathering) or phase.round is None or event.round_id != state.round_id or is_over(state):
        return state
    try:
        after = sum_after(phase, event, at=at)
    except ProtocolFault:
        return state
    if after is None or after is phase.round.sum:
        return state
    changed = _with_sum(state, after)
    return _spread(changed, after) if isinstance(event, Announced) else changed


def sum_after(phase: Phase, event: Dealt | Vowed | Announced, *, at: Second) -> Sum | None:
    """Return a round's sum after a word on it, none when the word comes too early or too late.

    Raises the `ProtocolFault` of a word that contradicts what was said before, or is not its author's to say.
    """
    known = None if isinstance(phase, Gathering) or phase.round is None else phase.round.sum
    if known is None:
        return None
    match event:
        case Dealt() if isinstance(phase, Assigned | Settling):
            return known.dealt(event.deal)
        case Announced() if isinstance(phase, Concluding):
            return known.announced(event.survivors, accepted=phase.accepted, at=at)
        case Vowed() if isinstance(phase, Concluding):
            return known.vowed(event.vow)
        case _:
            return None


def met(state: State, *, at: Second, rules: Rules) -> State:
    """Close the roster of a round that was just assigned, and tell it; ``QuorumMissed`` when it has too few members."""
    phase = state.phase
    if not isinstance(phase, Assigned) or phase.round.sum is None:
        return state
    granted = [c for c in rules.clients if phase.round.granted(c)]
    after = phase.round.sum.met(granted, at=at)
    return _spread(_with_sum(state, after), after)


def deals_closed(state: State, *, at: Second, rules: Rules) -> State:
    """Deliver the parcels once nobody who can still deal is waited for; ``QuorumMissed`` when too few have dealt."""
    phase = state.phase
    if not isinstance(phase, Assigned | Settling) or phase.round.sum is None or rules.sums is None:
        return state
    expected = [c for c in rules.clients if state.roster.alive(c) and c not in phase.round.completions]
    after = phase.round.sum.deals_closed(expected, at=at, within_s=rules.sums.deal_s)
    return state if after is phase.round.sum else _spread(_with_sum(state, after), after)


def vows_closed(state: State, *, at: Second, rules: Rules) -> State:
    """Pass the vows on once nobody who can still vow is waited for. Too few: the owner's own patience ends the round."""
    phase = state.phase
    if not isinstance(phase, Concluding) or phase.round.sum is None or rules.sums is None:
        return state
    expected = [c for c in rules.clients if state.roster.alive(c)]
    try:
        after = phase.round.sum.vows_closed(expected, at=at, within_s=rules.sums.vow_s)
    except QuorumMissed:
        return state
    return state if after is phase.round.sum else _spread(_with_sum(state, after), after)


def _with_sum(state: State, after: Sum) -> State:
    phase = state.phase
    if not isinstance(phase, Assigned | Settling | Concluding):
        return state
    return replace(state, phase=replace(phase, round=replace(phase.round, sum=after)))


def _spread(state: State, after: Sum) -> State:
    """Tell the members and the owner what a stage has come to."""
    word = after.word_for_owner
    if word is not None:
        state = post(state, DirectiveKind.SUM, to=OWNER, word=word)
    for client in () if after.relay.roster is None else after.relay.roster.members:
        word = after.word_for(client)
        if word is not None:
            state = post(state, DirectiveKind.SUM, to=Member(client), word=word)
    return state
