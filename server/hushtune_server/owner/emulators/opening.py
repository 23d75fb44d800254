"""What does making an emulator start from? The scenario's model in memory and its public text, for the commands of an owner."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hushtune_common.config import Scenario
from hushtune_common.model.data import load_records
from hushtune_common.model.sources import open_source
from hushtune_common.seeding import SeedTree
from hushtune_server.owner.emulators.engine import Telling, Workplace
from hushtune_server.owner.emulators.method import EmulatorRequest
from hushtune_server.owner.emulators.planning import request_of
from hushtune_server.owner.emulators.text import public_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A scenario's model and public text, and what it asks of an emulator."""

    place: Workplace
    request: EmulatorRequest


def plan_seeds(scenario: Scenario) -> SeedTree:
    """Return the seeds with which the owner of a scenario plans."""
    return SeedTree(scenario.seed).child("owner", "plan")


def opened(scenario: Scenario, *, cache: Path, telling: Telling) -> Opened:
    """Load what the owner of a scenario has; seeds are the owner's, so that plans made here are those it would make."""
    torch.set_num_threads(scenario.compute.threads)
    telling.phase("loading the model")
    source = open_source(scenario.model.source, cache=cache)
    request = request_of(scenario.model, source=source)
    records = load_records(scenario.data.public)
    place = Workplace(
        source=source,
        model=source.load(scenario.compute),
        text=public_text(records, tokens=source.tokens, length=scenario.data.window_tokens),
        compute=scenario.compute,
        seeds=plan_seeds(scenario),
        work=cache / "emulators",
        telling=telling,
    )
    return Opened(place=place, request=request)
