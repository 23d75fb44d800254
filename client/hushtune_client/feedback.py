"""What did encoding take off the updates that the model kept? It is added to the next one, so that nothing is lost for good.

Error feedback: what is encoded is the change by training plus the residual, and the residual becomes what the decoder does not
get back of that (Seide et al. 2014; Karimireddy et al. 2019). An update that the model did not keep, for whatever reason, took
nothing with it: the residual from before it stays. So after any number of rounds the decoded changes that were kept add up to the
true ones of these rounds, less the newest residual.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hushtune_common.adapter import AdapterState
from hushtune_common.messages import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """Which residual goes into the next update, folded over what happened to the ones before.

    ``files`` are the residuals by the round whose update they are of, ``kept`` says of a round whether its update stayed in the
    model, as far as that is known.
    """

    files: Mapping[int, Digest] = field(default_factory=dict[int, Digest])
    kept: Mapping[int, bool] = field(default_factory=dict[int, bool])

    def sealed(self, round_id: int, residual: Digest) -> "Residuals":
        """Return what holds when an update was sealed that leaves this residual, if it is kept."""
        return replace(self, files={**self.files, round_id: residual})

    def judged(self, round_id: int, *, kept: bool) -> "Residuals":
        """Return what holds when it is known what became of an update. The first word counts."""
        return self if round_id in self.kept else replace(self, kept={**self.kept, round_id: kept})

    def unanswered(self, *, before: int) -> tuple[int, ...]:
        """Return the rounds whose updates may or may not have been kept: nothing may be sealed before that is known."""
        return tuple(sorted(r for r in self.files if r < before and r not in self.kept))

    def current(self, *, before: int) -> int | None:
        """Return the round whose residual goes into the update of round ``before``; none when nothing is owed.

        ``ValueError`` while rounds are unanswered.
        """
        if unanswered := self.unanswered(before=before):
            raise ValueError(f"nobody knows yet what became of the update of round {unanswered[0]}")
        return max((r for r in self.files if r < before and self.kept[r]), default=None)

    @property
    def needed(self) -> frozenset[int]:
        """The rounds whose residuals may still be asked for."""
        newest = max((r for r in self.files if self.kept.get(r)), default=None)
        return frozenset(r for r in self.files if r == newest or r not in self.kept)


def corrected(trained: AdapterState, residual: AdapterState | None) -> AdapterState:
    """Return what is to be encoded in place of ``trained``."""
    if residual is None:
        return trained
    return AdapterState({name: tensor + residual.tensors[name] for name, tensor in trained.tensors.items()})


def left_over(wanted: AdapterState, decoded: AdapterState) -> AdapterState:
    """Return the residual: what was to be encoded, less what the decoder makes of it."""
    return AdapterState({name: tensor - decoded.tensors[name] for name, tensor in wanted.tensors.items()})
