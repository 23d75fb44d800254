"""What has the owner decided? Judgements, closed rounds, and the emulator of each round, folded over the journal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hushtune_common.errors import AbstractionContradicted, InvalidEnvelope, ProtocolFault
from hushtune_common.messages import ClientId, Digest, EmulatorManifest, Revision, RunId, UpdateKey, Verdict

JUDGED = "judged"
CLOSED = "closed"
PUBLISHED = "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The owner's decision about one client's update in one round.

    ``accepted``: it opened, decoded and passed the gate's bounds. ``kept``: its own plug-in did not hurt on public text, so it
    may enter the mean. Perplexities are on public text, absent for a refused update or when they are not finite.
    """

    key: UpdateKey
    accepted: bool
    kept: bool
    reason: str
    digest: Digest | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The end of one round: whose blocks were averaged, and whether the model kept the mean.

    ``left_out`` were accepted and kept out of the mean all the same, with the reason. ``stopped`` is why no further round is
    wanted, empty when one is, or when this was the last by number.
    """

    run: RunId
    round_id: int
    accepted: tuple[ClientId, ...]
    merged: tuple[ClientId, ...]
    kept: bool
    reason: str
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    left_out: Mapping[ClientId, str] = field(default_factory=dict[ClientId, str])
    stopped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A client's own copy of an emulator: what its manifest says otherwise."""

    emulator: Digest
    size_bytes: int
    revision: Revision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The emulator of one round, which its manifest names, and the copies of clients that have one of their own."""

    run: RunId
    manifest: EmulatorManifest
    copies: Mapping[ClientId, Copy] = field(default_factory=dict[ClientId, Copy])


class Book:
    """Judgements, closings and publications of every round.

    Laws: a client has at most one judgement per round and a round at most one closing and one emulator, the first; what comes
    after the closing changes no judgement, so a verdict, once given, stays; folding the journal again gives an equal book.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._judged: dict[tuple[RunId, int, ClientId], Judgement] = {}
        self._closed: dict[tuple[RunId, int], Closing] = {}
        self._published: dict[tuple[RunId, int], Publication] = {}

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Fold one event of the journal; kinds of other concern change nothing."""
        if kind == JUDGED:
            judgement = msgspec.convert(body, Judgement)
            key = judgement.key
            if (key.run, key.round_id) in self._closed:
                return  # too late: its client may already have been told that nothing arrived
            self._judged.setdefault((key.run, key.round_id, key.client), judgement)
        elif kind == CLOSED:
            closing = msgspec.convert(body, Closing)
            self._closed.setdefault((closing.run, closing.round_id), closing)
        elif kind == PUBLISHED:
            published = msgspec.convert(body, Publication)
            self._published.setdefault((published.run, published.manifest.round_id), published)

    @property
    def judgements(self) -> Sequence[Judgement]:
        """Every judgement, in the order they were made."""
        return tuple(self._judged.values())

    @property
    def closings(self) -> Sequence[Closing]:
        """Every closed round, in order."""
        return tuple(self._closed.values())

    def judgement(self, run: RunId, round_id: int, client: ClientId) -> Judgement | None:
        """Return what was decided about a client's update of that round."""
        return self._judged.get((run, round_id, client))

    def closing(self, run: RunId, round_id: int) -> Closing | None:
        """Return how that round ended."""
        return self._closed.get((run, round_id))

    def closings_of(self, run: RunId) -> Sequence[Closing]:
        """Return how the rounds of a run ended, in order."""
        return sorted((c for c in self._closed.values() if c.run == run), key=lambda c: c.round_id)

    def manifest(self, run: RunId, round_id: int) -> EmulatorManifest | None:
        """Return what is published for that round, without anybody's mark."""
        published = self._published.get((run, round_id))
        return None if published is None else published.manifest

    def copies(self, run: RunId, round_id: int) -> Mapping[ClientId, Copy]:
        """Return which clients have a copy of their own of that round's emulator."""
        published = self._published.get((run, round_id))
        return {} if published is None else published.copies

    def publications(self, run: RunId) -> Sequence[Publication]:
        """Return what was published in a run, round by round."""
        return sorted((p for (whose, _), p in self._published.items() if whose == run), key=lambda p: p.manifest.round_id)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever published from this folder."""
        return not self._published

    def mergeable(self, run: RunId, round_id: int, accepted: Sequence[ClientId]) -> tuple[ClientId, ...]:
        """Return which of the round's ``accepted`` clients may enter the mean, in the given order."""
        found = [(client, self.judgement(run, round_id, client)) for client in accepted]
        return tuple(client for client, judgement in found if judgement is not None and judgement.accepted and judgement.kept)

    def contradicted(self, run: RunId, round_id: int) -> tuple[ClientId, ...]:
        """Return the clients whose transmissions of that round disagreed with the block error tables."""
        mine = (j for j in self._judged.values() if (j.key.run, j.key.round_id) == (run, round_id))
        return tuple(j.key.client for j in mine if j.reason.startswith(AbstractionContradicted.reason))

    def verdict(self, run: RunId, round_id: int, client: ClientId) -> Verdict | None:
        """Return the client's verdict, or `None` while it is open: a refusal at once, anything else when the round is closed."""
        judgement, closing = self.judgement(run, round_id, client), self.closing(run, round_id)
        if judgement is None:
            key = UpdateKey(run=run, round_id=round_id, client=client, attempt=1)
            return None if closing is None else _refused(key, "no update of yours arrived in this round")
        if not judgement.accepted:
            return _refused(judgement.key, judgement.reason)
        if closing is None:
            return None
        kept, reason = _outcome(judgement, closing)
        return Verdict(key=judgement.key, accepted=True, kept=kept, reason=reason, score=judgement.perplexity_after)


def refusal(key: UpdateKey, fault: ProtocolFault | AbstractionContradicted, *, digest: Digest | None = None) -> Judgement:
    """Return the judgement that a fault means. A seal that does not open says nothing more, on purpose."""
    reason = fault.reason if isinstance(fault, InvalidEnvelope) else f"{fault.reason}: {fault}"
    return Judgement(key=key, accepted=False, kept=False, reason=reason, digest=digest)


def report(book: Book) -> dict[str, Any]:
    """Return the book for people and for the referee; ``aggregate`` is the last round that averaged anything.

    A round lists under ``contradicted`` whose transmissions disagreed with the block error tables: nothing of it may be believed.
    """
    rounds = [
        _closing_line(c, contradicted=book.contradicted(c.run, c.round_id))
        | _published_line(book.manifest(c.run, c.round_id), copies=book.copies(c.run, c.round_id))
        for c in book.closings
    ]
    averaged = [line for line in rounds if line["clients"]]
    return {
        "clients": [_judgement_line(j) for j in book.judgements],
        "aggregate": averaged[-1] if averaged else None,
        "rounds": rounds,
    }


def _judgement_line(judgement: Judgement) -> dict[str, Any]:
    return {
        "client": judgement.key.client,
        "round_id": judgement.key.round_id,
        "attempt": judgement.key.attempt,
        "accepted": judgement.accepted,
        "kept": judgement.kept,
        "reason": judgement.reason,
        "digest": None if judgement.digest is None else judgement.digest.hex,
        "perplexity_public_before": judgement.perplexity_before,
        "perplexity_public": judgement.perplexity_after,
    }


def _closing_line(closing: Closing, *, contradicted: Sequence[ClientId]) -> dict[str, Any]:
    return {
        "round_id": closing.round_id,
        "accepted": list(closing.accepted),
        "clients": list(closing.merged),
        "kept": closing.kept,
        "reason": closing.reason,
        "left_out": dict(closing.left_out),
        "stopped": closing.stopped,
        "contradicted": list(contradicted),
        "perplexity_public_before": closing.perplexity_before,
        "perplexity_public": closing.perplexity_after,
    }


def _published_line(manifest: EmulatorManifest | None, *, copies: Mapping[ClientId, Copy]) -> dict[str, Any]:
    """Return what a round's clients trained on, and what those fetch that hold the emulator before it."""
    if manifest is None:
        return {}
    revision = manifest.revision
    return {
        "emulator": manifest.emulator.hex,
        "emulator_bytes": manifest.size_bytes,
        "revision_bytes": None if revision is None else revision.size_bytes,
        **({"copies": {client: copy.emulator.hex for client, copy in copies.items()}} if copies else {}),
    }


def to_body(value: Judgement | Closing | Publication) -> dict[str, Any]:
    """Return the journal's form."""
    return msgspec.to_builtins(value)


def _refused(key: UpdateKey, reason: str) -> Verdict:
    return Verdict(key=key, accepted=False, kept=False, reason=reason, score=None)


def _outcome(judgement: Judgement, closing: Closing) -> tuple[bool, str]:
    client = judgement.key.client
    if not judgement.kept:
        return False, judgement.reason
    if client not in closing.accepted:
        return False, closing.reason or "the round closed without this update"
    if client in closing.left_out:
        return False, closing.left_out[client]
    return closing.kept and client in closing.merged, closing.reason
