"""How do adapters that came in files become one? The mean of a round's returns, judged and kept as that of a live round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune_common.clock import Clock
from hushtune_common.errors import ConfigError
from hushtune_common.messages import ClientId, RunId
from hushtune_common.release.acceptance import release_in
from hushtune_server.owner.offline_bench import OfflineBench, Place, emulator_at
from hushtune_server.owner.plugin import finite
from hushtune_server.owner.releases import Released, Telling, released
from hushtune_server.owner.returns import ADAPTERS, Taken, taken
from hushtune_server.owner.versions import AGGREGATE, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """Which round's returns to average; none where only one round has any.

    ``emulator`` is where the released emulator lies, if it is not where it was when it was exported.
    """

    at: Place
    run: str | None = None
    round_id: int | None = None
    emulator: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """The mean of a round as a ``version``, whose adapters are in it, and who was left out and why.

    Perplexities are on public text, of the model as it sat and with the mean; absent when not finite.
    """

    version: Version
    adapter: Path
    clients: tuple[ClientId, ...]
    left_out: Mapping[ClientId, str]
    kept: bool
    reason: str
    perplexity_before: float | None
    perplexity_after: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        about = self.version.about
        return {
            "version": self.version.id,
            "run": about.run,
            "round_id": about.round_id,
            "adapter": str(self.adapter),
            "clients": list(self.clients),
            "left_out": dict(self.left_out),
            "kept": self.kept,
            "reason": self.reason,
            "perplexity_before": self.perplexity_before,
            "perplexity_after": self.perplexity_after,
        }

    def to_pairs(self) -> dict[str, str]:
        """Return it for people."""
        before, after = ("not finite" if p is None else f"{p:.3f}" for p in (self.perplexity_before, self.perplexity_after))
        return {
            "mean of": f"{', '.join(self.clients)}, {self.version.about.run}, round {self.version.about.round_id}",
            **{f"without {client}": reason for client, reason in self.left_out.items()},
            "version": self.version.id,
            "adapter": str(self.adapter),
            "perplexity on public text": f"{before} before, {after} with it",
            "kept": "sits in the model from the owner's next start on" if self.kept else f"no: {self.reason}",
        }


def average_returns(order: Averaging, *, clock: Clock, telling: Telling) -> Averaged:
    """Average what a round's returns brought, judge the mean on public text, and keep it in the model or not.

    The same screens as in a run: who does no good alone, or does not go with the others, is left out. Again with the same returns
    it gives the same version; once more came home, another. Raises `ConfigError` naming the option when there is nothing to
    average, when several rounds could be meant, when a round's returns are of different emulators, or while an owner runs on the
    same state; `DigestMismatch` for another emulator or model than those released.
    """
    versions = order.at.versions(clock=clock)
    chosen = _of_one_round(order, taken(order.at.state))
    release = _release(order, chosen)
    given = {t.key.client: versions.find(t.verdict.version) for t in chosen if t.verdict.kept}
    refused = {t.key.client: t.verdict.reason for t in chosen if not t.verdict.kept}
    if not given:
        reasons = "; ".join(f"{client}: {reason}" for client, reason in refused.items())
        raise ConfigError("--round", f"no return of it may enter a mean ({reasons}); take others in first")
    telling.phase("checking the emulator that was released")
    statement = release_in(release.container)
    bundle = emulator_at(order.emulator or release.emulator, lineage=statement.lineage, by="the release", telling=telling)
    telling.phase("loading the model")
    bench = OfflineBench(order.at, bundle=bundle, release=statement, versions=versions, clock=clock)
    telling.phase(f"averaging {len(given)} adapters and trying the mean on public text")
    found = bench.average(given)
    place = order.at.state / ADAPTERS / f"{AGGREGATE}.safetensors"
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    versions.copy(found.version, place)
    return Averaged(
        version=found.version,
        adapter=place,
        clients=tuple(client for client in given if client not in found.left_out),
        left_out=refused | {client: finding.text for client, finding in found.left_out.items()},
        kept=found.trial.kept,
        reason=found.trial.reason,
        perplexity_before=finite(found.trial.perplexity_before),
        perplexity_after=finite(found.trial.perplexity_after),
    )


def _of_one_round(order: Averaging, known: Sequence[Taken]) -> Sequence[Taken]:
    """Return the returns of the round that is meant."""
    rounds: dict[tuple[RunId, int], list[Taken]] = {}
    for each in known:
        if order.run in (None, each.key.run) and order.round_id in (None, each.key.round_id):
            rounds.setdefault((each.key.run, each.key.round_id), []).append(each)
    if not known:
        raise ConfigError("--state", "no return was taken in here; `hushtune bundle import-return` does that")
    if not rounds:
        others = _named([(t.key.run, t.key.round_id) for t in known])
        raise ConfigError("--run", f"has no returns here; there are those of {others}")
    if len(rounds) > 1:
        raise ConfigError("--run", f"say which round, with --round: there are returns of {_named(rounds)}")
    return next(iter(rounds.values()))


def _release(order: Averaging, chosen: Sequence[Taken]) -> Released:
    """Return the release that all of the returns answer, in any of its copies."""
    key, emulators = chosen[0].key, {t.emulator for t in chosen if t.emulator}
    statements = [(r, release_in(r.container)) for r in released(order.at.state)]
    fitting = [(r, s) for r, s in statements if (s.run, s.round_id) == (key.run, key.round_id)]
    found = {s.lineage.emulator: r for r, s in fitting if not emulators or s.lineage.emulator in emulators}
    if len(found) > 1:
        several = ", ".join(digest[:12] for digest in sorted(found))
        raise ConfigError("--round", f"its returns are of different emulators ({several}), whose adapters have no mean")
    if not found:
        problem = f"the release of {key.run}, round {key.round_id}, is not written down there any more"
        raise ConfigError("--state", f"{problem}; restore it from a backup")
    return next(iter(found.values()))


def _named(rounds: Sequence[tuple[RunId, int]] | Mapping[tuple[RunId, int], object]) -> str:
    return ", ".join(f"{run} round {round_id}" for run, round_id in sorted(set(rounds)))
