"""What do members say that is refused to their face, before anything is remembered? A check raises what they are told."""

from hushtune_common.errors import LimitExceeded, MalformedUpdate, NotYours, Replayed, StaleRound
from hushtune_common.messages import Channel, ClientId, ClientReport, UpdateKey
from hushtune_common.secagg.messages import Advertisement
from hushtune_common.secagg.terms import Layout
from hushtune_server.coordinator.adding import sum_after
from hushtune_server.coordinator.events import Announced, Dealt, Member, Vowed
from hushtune_server.coordinator.phases import Gathering, Rules, State


def require_entry(state: State, member: Member, layout: Layout | None, *, rules: Rules) -> None:
    """Refuse an owner with another layout than before (``Replayed``), and who enters all the time (``LimitExceeded``)."""
    if layout is not None and state.layout not in {None, layout}:
        raise Replayed("sum_layout: another one than the owner told before in this run; go on with the state that it had")
    if not state.roster.alive(member) and state.roster.joins.get(member, 0) >= rules.joins_max:
        raise LimitExceeded(f"{member} has entered this run {rules.joins_max} times, which is limits.joins_max")


def require_report(state: State, report: ClientReport, advertisement: Advertisement | None, *, rules: Rules) -> None:
    """Refuse a report for another round, keys that are missing or not asked for, and others than before."""
    if report.round_id != state.round_id or isinstance(state.phase, Gathering):
        raise StaleRound(f"round {report.round_id} takes no reports; round {state.round_id} is {state.name}")
    if (advertisement is None) != (rules.sums is None):
        problem = "are missing" if advertisement is None else "came"
        raise MalformedUpdate(f"advertisement: keys for a sum {problem}, owner.aggregation.kind says otherwise")
    known = None if state.phase.round is None else state.phase.round.sum
    if advertisement is not None and known is not None:
        known.advertised(advertisement)


def require_word(state: State, word: Dealt | Announced | Vowed, *, rules: Rules) -> None:
    """Refuse a word on a sum that contradicts what was said before, or is about no sum that there was."""
    if rules.sums is None or word.round_id > state.round_id:
        raise StaleRound(f"round {word.round_id} adds nothing up, or has not begun")
    if word.round_id == state.round_id:
        sum_after(state.phase, word, at=word.at)


def require_channel(state: State, client: ClientId, round_id: int, channel: Channel, *, rules: Rules) -> None:
    """Refuse a channel for another round, and one change too many; what was told before is no change."""
    if round_id != state.round_id or isinstance(state.phase, Gathering):
        raise StaleRound(f"round {round_id} takes no channels; round {state.round_id} is {state.name}")
    round_ = state.phase.round
    known = None if round_ is None else round_.reports.get(client)
    is_new = known is not None and channel.at > known.sounded_at
    if round_ is not None and is_new and round_.changes.get(client, 0) >= rules.changes_max:
        raise LimitExceeded(
            f"the channel of {client} changed {rules.changes_max} times in round {round_id}, which is "
            f"limits.channel_changes_max: raise air.sounding_s or coordinator.allocator.reallocate_db"
        )


def is_current(state: State, round_id: int, *, run: str, rules: Rules) -> bool:
    """Whether a word is about the round in progress, and not one before it; ``StaleRound`` for one that was never opened."""
    if run != rules.run or round_id > state.round_id:
        raise StaleRound(f"round {round_id} of {run} is unknown; this is round {state.round_id} of {rules.run}")
    return round_id == state.round_id


def require_grant(state: State, key: UpdateKey) -> None:
    """Refuse a word on the update of a client that was granted none in the round in progress."""
    round_ = None if isinstance(state.phase, Gathering) else state.phase.round
    if round_ is None or not round_.granted(key.client):
        raise NotYours(f"{key.client} was not granted an upload in round {key.round_id}")
