"""What does each way of writing an adapter cost and lose? One cell for every way and seed, in a folder that outlives the run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor

import msgspec
import numpy as np

from hushtune_common.adapter import AdapterState, Float32
from hushtune_common.clock import Clock
from hushtune_common.codec.codec import AdapterCodec
from hushtune_common.codec.pipeline import make_codec, weighs_errors
from hushtune_common.codec.shipped import state_digest
from hushtune_common.config import CodecConfig
from hushtune_common.errors import BudgetTooSmall, ConfigError
from hushtune_common.model.language import LanguageModel
from hushtune_server.owner.emulators.checkpoint import digest_of_arrays
from hushtune_server.owner.emulators.sensitivity import known_to_both
from hushtune_server.testbed.codec.adapters import Adapters, Journey
from hushtune_server.testbed.codec.peers import peers_of
from hushtune_server.testbed.codec.schema import CurveScenario
from hushtune_server.testbed.codec.ways import Way, our_way, peers_way, plain
from hushtune_server.testbed.emulators.cells import Cell, Cells, Json
from hushtune_server.testbed.emulators.forge import Forge
from hushtune_server.testbed.emulators.tasks import Texts, scores, with_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One way of writing, for all seeds: a cell each, in the order of the seeds."""

    name: str
    says: str
    cells: Sequence[Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that a curve consists of: the model as it is, the adapters as they are, ours, peers, and ours at each peer's bytes."""

    full: Json
    uncompressed: Sequence[Json]
    journeys: Sequence[Json]
    numbers: int
    codec: str
    ours: Sequence[Measured]
    peers: Sequence[Measured]
    duels: Mapping[str, Measured]


class CurveBench:
    """Writes, reads, plugs in and scores.

    Laws: every way gets the same adapters, and is scored on the same windows in the same order; bytes are those of what was
    written; what is scored is what was read back from them; a cell is computed once, unless ``again``.
    """

    def __init__(
        self,
        scenario: CurveScenario,
        *,
        forge: Forge,
        texts: Texts,
        adapters: Adapters,
        cells: Cells,
        clock: Clock,
        again: bool = False,
    ) -> None:
        """Take what makes emulators and adapters; with ``again`` everything is written and scored anew."""
        self.scenario, self.texts = scenario, texts
        self.forge, self.adapters, self._cells, self._clock = forge, adapters, cells, clock
        self._again = again
        self._codecs: dict[int, AdapterCodec] = {}

    def run(self) -> Results:
        """Compute every cell that is not there yet."""
        full = self._cells.settle(
            self._score_cell("full model, zero-shot", state=None),
            lambda: {"losses": {"full": scores(self._model, self.texts.test)}},
        )
        journeys = [self.adapters.journey(seed) for seed in self.scenario.comparison.seeds]
        uncompressed = [self._uncompressed(journey) for journey in journeys]
        ours = [
            self._measured(says, [self._our_way(j, budget) for j in journeys], journeys)
            for budget, says in self._budgets(journeys)
        ]
        peers = [
            self._measured(p.says, [peers_way(p, journey=j) for j in journeys], journeys) for p in peers_of(self.scenario.peers)
        ]
        peers += [
            self._measured(says, [self._other_way(config, j, budget) for j in journeys], journeys)
            for config in self.scenario.also
            for budget, says in self._budgets(journeys)
        ]
        written = [p for p in peers if all("bytes" in cell for cell in p.cells)]
        duels = {p.name: self._duel(p, journeys) for p in written} if self.scenario.curve.same_bytes else {}
        return Results(
            full=full,
            uncompressed=uncompressed,
            journeys=[journey.key for journey in journeys],
            numbers=journeys[0].shipped.count,
            codec=self._codec(journeys[0]).id,
            ours=ours,
            peers=peers,
            duels=duels,
        )

    def _budgets(self, journeys: Sequence[Journey]) -> Iterator[tuple[int, str]]:
        for bits in sorted(self.scenario.curve.budgets, reverse=True):
            yield floor(bits * journeys[0].shipped.count / 8), f"at most {bits:g} bits per weight"

    def _duel(self, peer: Measured, journeys: Sequence[Journey]) -> Measured:
        """Return ours with exactly as many bytes as a peer took, seed by seed."""
        ways = [
            self._our_way(j, cell["bytes"], name=f"ours at the bytes of {peer.name}")
            for j, cell in zip(journeys, peer.cells, strict=True)
        ]
        return self._measured("", ways, journeys)

    def _our_way(self, journey: Journey, budget: int, *, name: str | None = None) -> Way:
        known = None if self._known is None else digest_of_arrays(self._known)
        settings: Json = plain(self._config) | {"sensitivity": known}
        bits = 8.0 * budget / journey.shipped.count
        return our_way(
            self._codec(journey),
            settings=settings,
            journey=journey,
            budget_bytes=budget,
            name=f"ours {bits:.4g}" if name is None else name,
        )

    def _other_way(self, config: CodecConfig, journey: Journey, budget: int) -> Way:
        """Return how another codec of ours writes an adapter; it stands in tables like a peer, and ours against it."""
        wide = self._widened(config)
        codec = make_codec(wide, shipped=journey.shipped, sensitivity=self._known if weighs_errors(wide) else None)
        known = None if self._known is None else digest_of_arrays(self._known)
        name = f"{codec.id} {8.0 * budget / journey.shipped.count:.4g}"
        settings: Json = plain(wide) | {"sensitivity": known}
        return our_way(codec, settings=settings, journey=journey, budget_bytes=budget, name=name)

    @cached_property
    def _config(self) -> CodecConfig:
        """The scenario's codec."""
        return self._widened(self.scenario.codec)

    def _widened(self, config: CodecConfig) -> CodecConfig:
        """Return a codec that may spend what the largest budget asks for."""
        return msgspec.structs.replace(config, bits=max(float(config.bits), *self.scenario.curve.budgets))

    @cached_property
    def _known(self) -> Mapping[str, Float32] | None:
        """What the emulator brings along for our codec: the same for all seeds, since it is about the full model."""
        plan = self.adapters.emulator(self.scenario.comparison.seeds[0]).plan
        return known_to_both(self._config, plan, at=self.forge.place)

    def _codec(self, journey: Journey) -> AdapterCodec:
        if journey.seed not in self._codecs:
            made = make_codec(self._config, shipped=journey.shipped, sensitivity=self._known)
            self._codecs[journey.seed] = made
        return self._codecs[journey.seed]

    def _measured(self, says: str, ways: Sequence[Way], journeys: Sequence[Journey]) -> Measured:
        cells = [self._sent(way, journey) for way, journey in zip(ways, journeys, strict=True)]
        return Measured(name=ways[0].name, says=says, cells=cells)

    def _uncompressed(self, journey: Journey) -> Json:
        cell = self._score_cell(f"plug-in as trained, seed {journey.seed}", state=journey.returned_digest)
        return self._cells.settle(cell, lambda: self._plugged_in(journey.returned))

    def _sent(self, way: Way, journey: Journey) -> Json:
        """Settle one way for one adapter: bytes, seconds and error, then losses of what was read, once for equal readings."""
        title, key = f"{way.name}, seed {journey.seed}", {**self._base, **journey.key, **way.key}
        cell, read = Cell(kind="sent", title=f"writing {title}", key=key), list[AdapterState]()
        known = self._cells.known(cell)
        unscored = (
            known is not None and "state" in known and self._cells.known(self._score_cell(title, state=known["state"])) is None
        )
        sent = self._cells.settle(cell, lambda: self._write(way, journey, read=read), again=self._again or unscored)
        if "failed" in sent:
            return sent
        return sent | self._cells.settle(self._score_cell(title, state=sent["state"]), lambda: self._plugged_in(read[0]))

    def _write(self, way: Way, journey: Journey, *, read: list[AdapterState]) -> Json:
        """Write an adapter and read it again, into ``read``."""
        began = self._clock.monotonic()
        try:
            blob = way.encode()
        except BudgetTooSmall as error:
            return {"failed": str(error)}
        written = self._clock.monotonic()
        read[:] = [way.decode(blob)]
        seconds = {"encode_s": written - began, "decode_s": self._clock.monotonic() - written}
        return {
            "bytes": len(blob),
            **seconds,
            "error_share": _error_share(read[0], journey),
            "state": state_digest(read[0]).hex,
        }

    def _plugged_in(self, state: AdapterState) -> Json:
        return {"losses": {"full": with_state(self._model, state.tensors, then=lambda: scores(self._model, self.texts.test))}}

    @cached_property
    def _model(self) -> LanguageModel:
        """The full model, at the precision that scores."""
        compute = self.scenario.comparison.compute
        if compute.precision == self.scenario.curve.precision:
            model = self.forge.model
        else:
            model = self.forge.source.load(msgspec.structs.replace(compute, precision=self.scenario.curve.precision))
        if not isinstance(model, LanguageModel):
            raise ConfigError("model.source", "is not a causal language model, so that there is no next token to score")
        return model

    def _score_cell(self, title: str, *, state: str | None) -> Cell:
        key = {**self._base, "precision": self.scenario.curve.precision, "state": state}
        return Cell(kind="score", title=title, key=key)

    @property
    def _base(self) -> Json:
        return {"base": self.forge.request.base.hex, "texts": self.texts.digest.hex}


def _error_share(state: AdapterState, journey: Journey) -> float:
    """Return the squared error over the squared change, of the whole adapter."""
    error, change = 0.0, 0.0
    for name, returned in journey.returned.tensors.items():
        error += float(np.square(state.tensors[name] - returned, dtype=np.float64).sum())
        change += float(np.square(returned - journey.shipped.tensors[name], dtype=np.float64).sum())
    return error / change if change > 0.0 else 0.0
