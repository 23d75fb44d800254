"""Tiny models for tests: sources, bundles and model directories without any package."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hushtune_common.model.bundle import write_bundle
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Drop, Keep
from hushtune_common.model.sources import ModelSource, open_source
from hushtune_common.model.weights import write_tensors
from hushtune_common.seeding import SeedTree

torch.set_num_threads(1)  # tiny matrices gain nothing from threads, and threads that wait for busy cores cost seconds

SPEC = "random:blocks=6,hidden=32,heads=4,seed=1"
ADAPTER = (0, 1, 5)


def tiny_source(spec: str = SPEC) -> ModelSource:
    return open_source(spec, cache=Path("unused"))


def plan_dropping(source: ModelSource, *dropped: int) -> Plan:
    slots = tuple(Drop(b) if b in dropped else Keep(b) for b in range(source.block_count))
    return Plan(base=source.base_digest, adapter=ADAPTER, slots=slots, method="by_hand")


def tiny_bundle(folder: Path, *dropped: int, source: ModelSource | None = None) -> Path:
    source = tiny_source() if source is None else source
    path = folder / "bundle.safetensors"
    write_bundle(path, source=source, plan=plan_dropping(source, *dropped))
    return path


def some_windows(count: int = 6, *, length: int = 17, vocabulary: int = 256, seed: int = 5) -> NDArray[np.int64]:
    return SeedTree(seed).child("windows").generator().integers(0, vocabulary, (count, length))


def model_directory(folder: Path, *, source: ModelSource | None = None, **changed: Any) -> Path:
    """Write a directory as model hubs lay it out; ``changed`` replaces entries of its ``config.json``."""
    source = tiny_source() if source is None else source
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**source.config, **changed}))
    (folder / "tokenizer.json").write_text(source.tokenizer_json)
    shapes = {name: source.weights.shape(name) for name in source.names()}
    write_tensors(folder / "model.safetensors", shapes=shapes, tensor=source.tensor, metadata={"format": "pt"})
    return folder
