"""Is this emulator the one of its release, and does this return answer that release? The first field that differs is named."""

from collections.abc import Sequence
from typing import Final

from hushtune_common.errors import DigestMismatch, MalformedUpdate, NotYours, ScenarioMismatch, StaleRound
from hushtune_common.messages import Digest
from hushtune_common.model.bundle import Bundle
from hushtune_common.release.container import Container
from hushtune_common.release.statement import Lineage, ReleaseStatement, ReturnStatement, schema_digest

_ORDER: Final = ("base", "tokenizer", "plan", "schema", "emulator")
"""From cause to consequence: a wrong plan makes another emulator as well, and it is the plan that one wants to hear of."""


def lineage_of(bundle: Bundle, *, emulator: Digest) -> Lineage:
    """Return what an emulator's file with the digest ``emulator`` is and was made of, by what it says itself."""
    return Lineage(
        base=bundle.base_digest.hex,
        tokenizer=bundle.tokens.digest.hex,
        plan=bundle.plan.digest.hex,
        schema=schema_digest(bundle.schema).hex,
        emulator=emulator.hex,
    )


def require_same(found: Lineage, *, said: Lineage, by: str) -> None:
    """Raise `DigestMismatch` naming the first of base, tokenizer, plan, schema and emulator that ``by`` says otherwise."""
    for name in _ORDER:
        ours, theirs = getattr(found, name), getattr(said, name)
        if ours != theirs:
            raise DigestMismatch(f"lineage.{name}: {by} says {theirs[:12]}, here it is {ours[:12]}")


def release_in(container: Container) -> ReleaseStatement:
    """Return the statement of a release; `MalformedUpdate` for a return."""
    if not isinstance(container.statement, ReleaseStatement):
        raise MalformedUpdate(f"kind: {container.path.name} is a return, expected a release")
    return container.statement


def return_in(container: Container) -> ReturnStatement:
    """Return the statement of a return; `MalformedUpdate` for a release."""
    if not isinstance(container.statement, ReturnStatement):
        raise MalformedUpdate(f"kind: {container.path.name} is a release, expected a return")
    return container.statement


def require_recipient(release: ReleaseStatement, client: str) -> None:
    """Raise `NotYours` unless the release was made for ``client``."""
    if client not in release.terms.recipients:
        raise NotYours(f"terms.recipients: the release is for {', '.join(release.terms.recipients)}, not for {client}")


def answered(statement: ReturnStatement, releases: Sequence[Container]) -> Container:
    """Return which of ``releases`` a return answers, after comparing everything that both say.

    Raises `DigestMismatch` naming what of the emulator differs, or ``release`` when it was made for a statement that is not
    among them; `StaleRound` for another run or round, `ScenarioMismatch` for another codec, `NotYours` for a client that it was
    not made for.
    """
    named = [r for r in releases if r.digest.hex == statement.release]
    nearest = named or [r for r in releases if r.statement.lineage.emulator == statement.lineage.emulator] or releases[-1:]
    if not nearest:
        raise DigestMismatch(f"release: {statement.release[:12]} is answered, and nothing was released here")
    release = release_in(nearest[-1])
    require_same(release.lineage, said=statement.lineage, by="the return")
    if not named:
        raise DigestMismatch(
            f"release: {statement.release[:12]} is answered, this emulator was released as {nearest[-1].digest.short}"
        )
    if statement.run != release.run:
        raise StaleRound(f"run: the return is of {statement.run}, its release of {release.run}")
    if statement.round_id != release.round_id:
        raise StaleRound(f"round_id: the return is of round {statement.round_id}, its release of round {release.round_id}")
    if statement.codec != release.codec:
        raise ScenarioMismatch(f"codec: the return is encoded as {statement.codec}, its release says {release.codec}")
    require_recipient(release, statement.client)
    return nearest[-1]
