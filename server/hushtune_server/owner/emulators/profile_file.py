"""How does a profile stand in a file? Arrays as tensors, everything else as JSON beside them."""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.weights import TensorFile, write_tensors
from hushtune_server.owner.emulators.method import Profile, Scores

FORMAT = "hushtune-profile/1"


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    base: str | None
    corpus: str | None
    tokens: int
    loss: float
    cpu_s: float
    ablation_losses: dict[int, float]
    influences: dict[int, float]
    greedy_order: tuple[int, ...]
    greedy_losses: tuple[float, ...]
    replacement_scores: dict[int, float]


class _Purpose(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Beside the body, since files of before have none."""

    adapter: tuple[int, ...] | None = None
    settings: dict[str, Any] = {}


def write_profile(path: Path, profile: Profile) -> None:
    """Write one safetensors file; equal profiles give equal bytes up to ``cpu_s``. Law: `read_profile` gives the same back.

    ``ValueError`` when a number is not finite.
    """
    tensors = _tensors(profile)
    broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{broken[0]} has a value that is not finite")
    body = _Body(
        base=None if profile.base is None else profile.base.hex,
        corpus=None if profile.corpus is None else profile.corpus.hex,
        tokens=profile.tokens,
        loss=profile.loss,
        cpu_s=profile.cpu_s,
        ablation_losses=dict(sorted(profile.ablation_losses.items())),
        influences=dict(sorted(profile.influences.items())),
        greedy_order=profile.greedy_order,
        greedy_losses=profile.greedy_losses,
        replacement_scores=dict(sorted(profile.replacement_scores.items())),
    )
    _require_finite(body)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(
        path,
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        tensor=lambda name: tensors[name],
        metadata={"format": FORMAT, "profile": msgspec.json.encode(body).decode(), **_measured_for(profile)},
    )


def read_profile(path: Path, *, base: Digest | None = None) -> Profile:
    """Read a profile; it has to be of the model ``base``, if given.

    `MalformedUpdate` on anything that is not a profile of ours, `ConfigError` for another model, ``OSError`` for a missing file.
    """
    file = TensorFile.open(path)
    if file.metadata.get("format") != FORMAT:
        raise MalformedUpdate(f"{path.name}: not a profile of format {FORMAT}")
    try:
        body = msgspec.json.decode(file.metadata["profile"], type=_Body)
        _require_finite(body)
        purpose = msgspec.json.decode(file.metadata.get("measured_for", "{}"), type=_Purpose)
        profile = replace(_profile(body, file), adapter=purpose.adapter, settings=purpose.settings)
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise MalformedUpdate(f"{path.name}: not a profile ({error})") from error
    if base is not None and profile.base != base:
        measured = "no model" if profile.base is None else f"model {profile.base.short}"
        raise ConfigError("profile", f"{path.name} was measured on {measured}, this is {base.short}; profile this one")
    return profile


def _measured_for(profile: Profile) -> dict[str, str]:
    if profile.adapter is None:
        return {}
    purpose = _Purpose(adapter=profile.adapter, settings=dict(profile.settings))
    return {"measured_for": msgspec.json.encode(purpose, order="deterministic").decode()}


def _tensors(profile: Profile) -> dict[str, Float32]:
    found: dict[str, Float32] = {} if profile.similarity is None else {"similarity": profile.similarity}
    found |= {f"neurons/{block}": norms for block, norms in profile.neuron_norms.items()}
    found |= {f"trained/{name}": tensor for name, tensor in profile.trained.items()}
    for block, scores in profile.channel_scores.items():
        found |= _both(f"channels/{block}", scores)
    for (block, matrix), scores in profile.component_scores.items():
        found |= _both(f"components/{block}/{matrix}", scores)
    return found


def _both(name: str, scores: Scores) -> dict[str, Float32]:
    return {f"{name}/preserve": scores.preserve, f"{name}/private": scores.private}


def _profile(body: _Body, file: TensorFile) -> Profile:
    """Put a profile together; ``KeyError`` and ``ValueError`` when its parts do not fit."""
    tensors = {name: _finite(name, file) for name in file.names()}
    similarity = tensors.pop("similarity", None)
    if similarity is not None and (similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]):
        raise ValueError(f"similarities of shape {similarity.shape}")
    norms: dict[int, Float32] = {}
    trained: dict[str, Float32] = {}
    channels: dict[int, Scores] = {}
    components: dict[tuple[int, str], Scores] = {}
    for name, tensor in tensors.items():
        match name.split("/"):
            case ["neurons", block] if tensor.ndim == 1:
                norms[int(block)] = tensor
            case ["trained", inner]:
                trained[inner] = tensor
            case ["channels", block, "preserve"]:
                channels[int(block)] = _scores(tensors, name)
            case ["components", block, matrix, "preserve"]:
                components[int(block), matrix] = _scores(tensors, name)
            case ["channels", _, "private"] | ["components", _, _, "private"] if _partner(name) in tensors:
                pass
            case _:
                raise ValueError(f"unknown tensor {name[:80]}")
    return Profile(
        base=None if body.base is None else Digest.from_hex(body.base),
        corpus=None if body.corpus is None else Digest.from_hex(body.corpus),
        tokens=body.tokens,
        loss=body.loss,
        cpu_s=body.cpu_s,
        ablation_losses=body.ablation_losses,
        influences=body.influences,
        greedy_order=body.greedy_order,
        greedy_losses=body.greedy_losses,
        similarity=similarity,
        neuron_norms=norms,
        channel_scores=channels,
        component_scores=components,
        replacement_scores=body.replacement_scores,
        trained=trained,
    )


def _scores(tensors: Mapping[str, Float32], name: str) -> Scores:
    return Scores(preserve=tensors[name], private=tensors[name.removesuffix("preserve") + "private"])


def _partner(name: str) -> str:
    return name.removesuffix("private") + "preserve"


def _finite(name: str, file: TensorFile) -> Float32:
    tensor = file.tensor(name)
    if file.dtype(name) != "F32" or not np.isfinite(tensor).all():
        raise ValueError(f"{name[:80]} is not of finite float32 numbers")
    return tensor


def _require_finite(body: _Body) -> None:
    values: list[Any] = [body.loss, body.cpu_s, *body.greedy_losses]
    for by_block in (body.ablation_losses, body.influences, body.replacement_scores):
        values.extend(by_block.values())
    if not all(isfinite(value) for value in values):
        raise ValueError("a number is not finite")
