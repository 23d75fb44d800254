"""How is a directive numbered and put where its receiver finds it?"""

from dataclasses import replace

from hushtune_common.messages import Assignment, ClientId, Directive, DirectiveKind, SumWord
from hushtune_server.coordinator.events import Member
from hushtune_server.coordinator.phases import Post, State


def post(
    state: State,
    kind: DirectiveKind,
    *,
    to: Member | None = None,
    assignment: Assignment | None = None,
    accepted: tuple[ClientId, ...] = (),
    failed_reason: str = "",
    last: bool = False,
    word: SumWord | None = None,
) -> State:
    """Return the state with one more directive, to one member or to all."""
    directive = Directive(
        seq=state.next_seq,
        kind=kind,
        round_id=state.round_id,
        assignment=assignment,
        accepted=accepted,
        failed_reason=failed_reason,
        last=last,
        sum=word,
    )
    return replace(state, next_seq=state.next_seq + 1, outbox=(*state.outbox, Post(to=to, directive=directive)))
