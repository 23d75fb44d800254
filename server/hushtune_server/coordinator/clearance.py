"""Who may begin to transmit now, and when is it certain that nobody begins any more with what a round has granted?

A client asks before every transmission. Told yes, it keeps its band for the rest of the round, whatever becomes of it meanwhile;
told no, it has missed the round. Who cannot ask waits. Whoever was taken for dead, and whose band others have now, is told no.

A yes is of use for so long after its question, by the clock of whoever asked (``Rules.answer_s``). Twice that after the last one
that was written down, by the coordinator's, nobody begins with it: the next round assigns nothing before, unless all that were
told yes are known to be through. Only durations are compared, never two clocks.
"""

from dataclasses import replace

from hushtune_common.messages import ClientId
from hushtune_common.units import Second
from hushtune_server.coordinator.events import Sending
from hushtune_server.coordinator.phases import Assigned, Gathering, Round, Rules, Settling, State
from hushtune_server.coordinator.reallocation import GIVEN_AWAY


def cleared(state: State, event: Sending, *, at: Second, rules: Rules) -> State:
    """Take note that a client is told to begin, or said that it is about to; only what it may, and not all too often."""
    phase = state.phase
    if not isinstance(phase, Assigned | Settling) or refusal(state, event.client, event.round_id):
        return state
    round_, client = phase.round, event.client
    told_at = round_.cleared.get(client)
    news = event.asked and (told_at is None or at - told_at >= rules.answer_s)
    if round_.settled(client) or (client in round_.sending and not news):
        return state
    told = {**round_.cleared, client: at} if news else round_.cleared
    return replace(state, phase=replace(phase, round=replace(round_, sending=round_.sending | {client}, cleared=told)))


def refusal(state: State, client: ClientId, round_id: int) -> str:
    """Return why ``client`` may not begin to transmit in a round; empty if it may.

    Whose update was judged may say again what it has said: nobody hears more of it than before.
    """
    phase = state.phase
    if round_id != state.round_id or isinstance(phase, Gathering) or phase.round is None:
        return f"round {round_id} is over or has not begun"
    round_ = phase.round
    if round_.settled(client):
        return ""
    if not isinstance(phase, Assigned | Settling):
        return f"round {round_id} is {state.name}: nothing more is taken"
    if client in round_.withdrawn:
        return GIVEN_AWAY
    if client in round_.completions:
        return "it has said that it is through with this round"
    return "" if round_.granted(client) else "it was granted no upload"


def quiet_at(round_: Round, *, rules: Rules) -> Second:
    """Return when nobody begins any more who was told yes in this round and is not known to be through."""
    open_ = (at for c, at in round_.cleared.items() if c not in round_.completions and not round_.settled(c))
    return Second(max((at + 2 * rules.answer_s for at in open_), default=0.0))
