"""The referee: scores every setting on held-out private text. Exists in a testbed only, because it sees both sides."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from hushtune_common.adapter import AdapterState, load_adapter
from hushtune_common.clock import Clock, SystemClock
from hushtune_common.config import Scenario
from hushtune_common.logs import log_event
from hushtune_common.model.bundle import read_bundle, write_bundle
from hushtune_common.model.data import load_records, share_out
from hushtune_common.model.finetune import Progress, Unpaced, finetune
from hushtune_common.model.language import LanguageModel
from hushtune_common.model.plan import Plan
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.versions import AGGREGATE, Versions
from hushtune_server.owner.versions import FOLDER as VERSIONS
from hushtune_server.testbed import link_referee, plots
from hushtune_server.testbed.emulators.tasks import scores
from hushtune_server.testbed.rundir import RunDirectory, read_json, write_json

_logger = logging.getLogger(__name__)

Windows = NDArray[np.int64]

FULL_RATE_SHARE = 1 / 3
"""Learning rate of full fine-tuning as a share of the adapter blocks': all blocks at once tolerate less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the referee looks at: both sides' results and the text nobody trained on.

    ``bundle`` is the emulator that the run began with, ``newest`` the one that its last round was trained on; ``averages`` are
    the averaged adapter blocks of every round that has any.
    """

    source: ModelSource
    bundle: Path
    newest: Path
    adapters: Mapping[str, Path]
    averages: Mapping[int, Path]
    test: Windows
    train: Windows
    scenario: Scenario


def judge(run: RunDirectory, scenario: Scenario, *, cache: Path, bound: bool, clock: Clock) -> dict[str, Any]:
    """Score all settings of a finished run, write ``referee.json`` and return it.

    Perplexities are on the held-out test windows, the same for every setting; nobody has trained on them. Emulator and plug-in
    are scored with the mean of the returned adapters, the plug-in with each client's as well. ``bound`` adds the adapter blocks
    trained in the full model and full fine-tuning, both on the training text of all clients together (slow). Beside every score
    stand the losses of the windows, in their order, so that differences can be given with intervals.
    """
    evidence = gather(run, scenario, cache=cache)
    result: dict[str, Any] = {"test_windows": len(evidence.test), "settings": {}, "clients": {}}
    log_event(_logger, "phase_changed", phase="scoring on held-out text")

    def record(setting: str, losses: Sequence[float], *, client: str | None = None) -> None:
        score = score_of(losses)
        if client is None:
            result["settings"][setting] = score
        else:
            result["clients"].setdefault(client, {})[setting] = score
        name = setting if client is None else f"{setting} of {client}"
        log_event(_logger, "setting_evaluated", setting=name, perplexity=score["perplexity"])

    _score_emulator(evidence, record)
    result["rounds"] = _score_full(evidence, record)
    log_event(_logger, "phase_changed", phase="comparing what was sent, received and guessed")
    result["link"] = link_referee.judge(run, scenario)
    result["figures"] = plots.draw(result["link"], run.path / "plots")
    if bound:
        _score_bounds(evidence, record, work=run.state("referee"), clock=clock)
    write_json(run.path / "referee.json", result)
    return result


def score_of(losses: Sequence[float]) -> dict[str, Any]:
    """Return the perplexity over windows of equal length from the loss of each, in nats per token."""
    loss = fmean(losses)
    return {"perplexity": exp(loss), "loss_nats": loss, "windows_nats": [round(each, _DIGITS) for each in losses]}


_DIGITS = 6


def gather(run: RunDirectory, scenario: Scenario, *, cache: Path) -> Evidence:
    """Return what a finished run left to judge; the split of the text is the one that the clients derived."""
    owner = run.state("owner")
    left = read_json(owner / "owner.json")
    bundle = Path(left["bundle"])
    tokens = read_bundle(bundle).tokens
    clients = [c.id for c in scenario.clients]
    shares = share_out(
        load_records(scenario.data.private), clients=clients, how=scenario.data.split, seeds=SeedTree(scenario.seed).child("data")
    )
    length, per_client = scenario.data.window_tokens, scenario.data.train_windows
    return Evidence(
        source=open_source(scenario.model.source, cache=cache),
        bundle=bundle,
        newest=Path(left.get("bundle_newest", bundle)),
        averages=_averages(owner / VERSIONS, run=run.id) if scenario.coordinator.rounds > 1 else {},
        adapters={p.stem: p for p in sorted((owner / "adapters").glob("*.safetensors"))},
        test=tokens.windows(shares.test, length=length, limit=scenario.data.test_windows),
        train=np.concatenate([tokens.windows(shares.train[c], length=length, limit=per_client) for c in clients]),
        scenario=scenario,
    )


Record = Callable[..., None]


def _score_emulator(evidence: Evidence, record: Record) -> None:
    bundle = read_bundle(evidence.bundle)
    emulator = bundle.load(evidence.scenario.compute)
    record("emulator_zero_shot", scores(emulator, evidence.test))
    if "aggregate" in evidence.adapters:
        if evidence.newest != evidence.bundle:  # its middle may be another one by now
            emulator = read_bundle(evidence.newest).load(evidence.scenario.compute)
        emulator.set_adapter(load_adapter(evidence.adapters["aggregate"], bundle.schema).tensors)
        record("emulator_fine_tuned", scores(emulator, evidence.test))


def _score_full(evidence: Evidence, record: Record) -> dict[str, Any]:
    """Score the full model with nothing and with each adapter in it; return its scores after every round of several."""
    schema = read_bundle(evidence.bundle).schema
    model = evidence.source.load(evidence.scenario.compute)
    record("full_zero_shot", scores(model, evidence.test))
    for name, path in evidence.adapters.items():
        record(
            "plug_in", _plugged(model, load_adapter(path, schema), evidence.test), client=None if name == "aggregate" else name
        )
    found: dict[str, Any] = {}
    for round_id, path in sorted(evidence.averages.items()):
        score = score_of(_plugged(model, load_adapter(path, schema), evidence.test))
        found[str(round_id)] = {"plug_in": score}
        log_event(_logger, "setting_evaluated", setting=f"plug_in of round {round_id}", perplexity=score["perplexity"])
    return found


def _averages(folder: Path, *, run: str) -> dict[int, Path]:
    versions = Versions(folder, count_max=1, bytes_max=1, clock=SystemClock())
    averaged = [v for v in versions.all() if v.about.who == AGGREGATE and v.about.run == run]
    return {v.about.round_id: versions.file(v) for v in averaged}


def _plugged(model: LanguageModel, adapter: AdapterState, windows: Windows) -> Sequence[float]:
    model.set_adapter(adapter.tensors)
    return scores(model, windows)


def _score_bounds(evidence: Evidence, record: Record, *, work: Path, clock: Clock) -> None:
    # The bounds are what is lost by nothing: neither low rank nor privacy, nor a pull towards the start.
    training = msgspec.structs.replace(evidence.scenario.training, lora=None, dp=None, proximal=0.0)
    compute = evidence.scenario.compute
    gentle = msgspec.structs.replace(training, learning_rate=training.learning_rate * FULL_RATE_SHARE)
    blocks = tuple(range(evidence.source.block_count))
    adapter = read_bundle(evidence.bundle).plan.adapter
    for setting, trained, config in (("bound", adapter, training), ("full_fine_tuned", blocks, gentle)):
        log_event(_logger, "phase_changed", phase=f"training {setting}")
        work.mkdir(parents=True, exist_ok=True)
        path = work / f"{setting}.safetensors"
        write_bundle(path, source=evidence.source, plan=Plan.keep_all(evidence.source, adapter=trained))
        state = finetune(
            path,
            evidence.train,
            config=config,
            compute=compute,
            seeds=SeedTree(evidence.scenario.seed).child("referee", setting),
            governor=Unpaced(clock=clock),
            report=_tell,
        )
        model = evidence.source.load(compute)
        record(setting, _plugged(model, state, evidence.test))
        path.unlink()


def _tell(progress: Progress) -> None:
    log_event(
        _logger,
        "training_progressed",
        step=progress.step,
        steps=progress.steps,
        loss=progress.loss,
        tokens_per_s=progress.tokens / max(progress.wall_s, 1e-9),
    )
