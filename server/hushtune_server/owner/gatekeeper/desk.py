"""What does the owner remember about updates while it judges them? Who else is in the round, what was accepted, what lies aside.

One desk serves the updates that are made from one shipped adapter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hushtune_common.adapter import AdapterState
from hushtune_common.clock import Clock
from hushtune_common.errors import LimitExceeded
from hushtune_common.messages import ClientId, Digest, RunId, TensorSpec, UpdateKey
from hushtune_server.owner.gatekeeper.finding import Finding, told
from hushtune_server.owner.gatekeeper.gate import Gatekeeper, Screening
from hushtune_server.owner.gatekeeper.quarantine import Quarantine
from hushtune_server.owner.gatekeeper.sketch import Sketch
from hushtune_server.owner.plugin import Trial, finite
from hushtune_server.owner.versions import AGGREGATE, About, Version, Versions

Trier = Callable[[AdapterState], Sequence[Finding]]
"""Looks at the owner's prompts with an adapter in the model, and leaves the model as it was."""


class Desk:
    """Screens updates, keeps what it refuses aside, and stores what was accepted.

    Laws: what `screen` refuses is in quarantine and nowhere else; a restart forgets nothing that was accepted.
    """

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        *,
        schema: Sequence[TensorSpec],
        base: Digest,
        versions: Versions,
        quarantine: Quarantine,
        canaries: Trier,
        clock: Clock,
    ) -> None:
        """Take the screens, the adapter's ``schema``, the digest of the model it belongs to, and where things are kept."""
        self._gatekeeper = gatekeeper
        self._schema = schema
        self._base = base
        self._versions = versions
        self._quarantine = quarantine
        self._canaries = canaries
        self._clock = clock
        self._sketches: dict[Digest, Sketch] = {}
        self._passed: dict[UpdateKey, Screening] = {}

    def screen(self, state: AdapterState, *, key: UpdateKey, digest: Digest) -> None:
        """Return when an update may be tried; `LimitExceeded` names every limit that it breaks.

        ``digest`` is that of its sealed bytes.
        """
        known = self._versions.of_round(key.run, key.round_id)
        others = {c: self._sketch(version) for c, version in known.items() if c != key.client and version.about.kept}
        screening = self._gatekeeper.screen(state, client=key.client, others=others, earlier=self._profiles_before(key))
        # The prompts cost passes through the model: what numbers alone refuse is not worth them.
        findings = screening.findings or tuple(self._canaries(state))
        if findings:
            date = self._clock.wall().date().isoformat()
            self._quarantine.keep(state, key=key, digest=digest, findings=findings, date=date)
            raise LimitExceeded(told(findings))
        self._passed[replace(key, attempt=1)] = screening

    def accept(self, state: AdapterState, *, key: UpdateKey, trial: Trial) -> Version:
        """Store an update that passed `screen`, with what its ``trial`` on public text said."""
        current, screening = self._versions.current, self._passed.pop(replace(key, attempt=1))
        about = About(
            run=key.run,
            round_id=key.round_id,
            who=key.client,
            base=self._base,
            parents=() if current is None else (current.id,),
            kept=trial.kept,
            reason=trial.reason,
            loss_before=finite(trial.loss_before),
            loss_after=finite(trial.loss_after),
            profile=screening.profile,
        )
        version = self._versions.add(state, about)
        self._sketches[version.digest] = screening.sketch
        return version

    def company(self, parts: Mapping[ClientId, Version]) -> Mapping[ClientId, Finding]:
        """Return which of a round's accepted updates do not go with the others, now that all are there."""
        return self._gatekeeper.misfits({client: self._sketch(version) for client, version in parts.items()})

    def merged(self, state: AdapterState, *, parts: Mapping[ClientId, Version], trial: Trial) -> Version:
        """Store an average of ``parts``, at least one; it sits in the model from now on when the ``trial`` kept it."""
        first = next(iter(parts.values())).about
        parents = tuple(version.id for version in parts.values())
        return self._mean(state, run=first.run, round_id=first.round_id, parents=parents, trial=trial)

    def summed(self, state: AdapterState, *, run: RunId, round_id: int, trial: Trial) -> Version:
        """Store a mean of updates that nobody has seen; it sits in the model from now on when the ``trial`` kept it."""
        current = self._versions.current
        parents = () if current is None else (current.id,)
        return self._mean(state, run=run, round_id=round_id, parents=parents, trial=trial)

    def _mean(self, state: AdapterState, *, run: RunId, round_id: int, parents: tuple[str, ...], trial: Trial) -> Version:
        about = About(
            run=run,
            round_id=round_id,
            who=AGGREGATE,
            base=self._base,
            parents=parents,
            kept=trial.kept,
            reason=trial.reason,
            loss_before=finite(trial.loss_before),
            loss_after=finite(trial.loss_after),
        )
        version = self._versions.add(state, about)
        if trial.kept:
            self._versions.promote(version)
        return version

    def _sketch(self, version: Version) -> Sketch:
        if version.digest not in self._sketches:
            self._sketches[version.digest] = self._gatekeeper.sketch(self._versions.load(version, self._schema))
        return self._sketches[version.digest]

    def _profiles_before(self, key: UpdateKey) -> Sequence[Mapping[str, float]]:
        abouts = (version.about for version in self._versions.all())
        mine = (key.run, key.round_id, key.client)
        return [a.profile for a in abouts if a.profile and a.base == self._base and (a.run, a.round_id, a.who) != mine]
