"""Does a run end when the best loss on public text has stopped falling, and not before?"""

from math import exp

from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.messages import ClientId, RunId
from hushtune_server.owner.book import Closing
from hushtune_server.owner.stopping import rounds_in_vain, why_stop

STEP = 0.01


def closings(losses: list[tuple[float, bool]], *, start: float = 2.0) -> list[Closing]:
    """Rounds that end at these losses, each kept or rolled back."""
    return [
        Closing(
            run=RunId("run-1"),
            round_id=number,
            accepted=(ClientId("c1"),),
            merged=(ClientId("c1"),),
            kept=kept,
            reason="",
            perplexity_before=exp(start),
            perplexity_after=exp(loss),
        )
        for number, (loss, kept) in enumerate(losses, start=1)
    ]


def counted(losses: list[tuple[float, bool]], *, start: float = 2.0) -> int:
    """The count by its definition: walk back from the end for as long as no round set a record."""
    vain = 0
    for last in range(len(losses), 0, -1):
        records = [start]
        for loss, kept in losses[:last]:
            if kept and loss <= records[-1] - STEP:
                records.append(loss)
        loss, kept = losses[last - 1]
        if kept and records[-1] == loss and loss not in records[:-1]:
            break
        vain += 1
    return vain


_loss = st.integers(100, 300).map(lambda n: n / 100 + 0.001)
_losses = st.lists(st.tuples(_loss, st.booleans()), max_size=8, unique_by=lambda drawn: drawn[0])


@given(_losses)
def test_rounds_in_vain_are_those_since_the_last_record(losses: list[tuple[float, bool]]) -> None:
    assert rounds_in_vain(closings(losses), improvement_nats=STEP) == counted(losses)


@given(_losses, st.integers(0, 4))
def test_a_run_is_stopped_exactly_when_patience_is_used_up(losses: list[tuple[float, bool]], patience: int) -> None:
    stopped = why_stop(closings(losses), patience=patience, improvement_nats=STEP)
    assert bool(stopped) == (patience > 0 and counted(losses) >= patience)
    assert not stopped or f"owner.patience = {patience}" in stopped


def test_rounds_that_averaged_nothing_are_in_vain() -> None:
    empty = Closing(run=RunId("run-1"), round_id=1, accepted=(), merged=(), kept=False, reason="no update was left to average")
    assert rounds_in_vain([empty, empty], improvement_nats=STEP) == 2
    assert rounds_in_vain([empty, *closings([(1.5, True)])], improvement_nats=STEP) == 0
