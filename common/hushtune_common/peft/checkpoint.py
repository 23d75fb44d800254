"""Which factors and which whole tensors does a PEFT checkpoint hold, and under which names?

Module paths are those of the model that was trained; what the library puts around them (``base_model.model.`` in front,
``lora_A`` and ``lora_B`` behind) is taken off. Letters in shapes: R outputs, C inputs, r rank.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.model.weights import TensorFile, write_tensors
from hushtune_common.peft.settings import SETTINGS_FILE, LoraSettings

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<kind>weight|bias)")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """What was trained beside one matrix: ``down`` (r, C), ``up`` (R, r), perhaps a ``bias`` (R); errors name the ``key``."""

    key: str
    down: Float32
    up: Float32
    bias: Float32 | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit each other; `ConfigError` names the key."""
        if self.down.ndim != 2 or self.up.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise ConfigError(self.key, f"factors of shapes {self.down.shape} and {self.up.shape} have no product")
        if self.bias is not None and self.bias.shape != self.up.shape[:1]:
            raise ConfigError(self.key, f"a bias of shape {self.bias.shape} beside {self.up.shape[0]} outputs")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A LoRA checkpoint: factors by the path of their module, and tensors that replace the model's, by name."""

    settings: LoraSettings
    factors: Mapping[str, Factors]
    whole: Mapping[str, Float32]

    def scale_at(self, module: str) -> float:
        """Return the scale of a module's factors; `ConfigError` when they have another rank than the settings say."""
        found = self.factors[module]
        rank = self.settings.rank_at(module)
        if found.down.shape[0] != rank:
            raise ConfigError(found.key, f"has rank {len(found.down)}, but {SETTINGS_FILE} says {rank}: these are two adapters")
        return self.settings.scale_at(module)


def key_of_tensor(name: str) -> str:
    """Return the key of a tensor that replaces the model's."""
    return PREFIX + name


def key_of_factor(module: str, side: str) -> str:
    """Return the key of a factor, ``side`` A for the one that the input meets and B for the other."""
    return f"{PREFIX}{module}.lora_{side}.weight"


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what ``save_pretrained`` of the library wrote.

    `ConfigError` names the file that is missing, the setting that cannot be honoured, or the key that is unknown, alone or there
    twice. Nothing is executed; pickled checkpoints are refused.
    """
    try:
        settings = LoraSettings.from_json((folder / SETTINGS_FILE).read_bytes())
        file = TensorFile.open(folder / WEIGHTS_FILE)
    except OSError as error:
        raise ConfigError(str(folder), _what_to_give(folder, error)) from error
    except MalformedUpdate as error:
        raise ConfigError(str(folder / WEIGHTS_FILE), f"cannot be read ({error})") from error
    sides, whole = _sorted(file)
    return Checkpoint(settings=settings, factors={m: _factors(m, found) for m, found in sides.items()}, whole=whole)


def write_checkpoint(folder: Path, *, settings: Mapping[str, Any], tensors: Mapping[str, Float32]) -> None:
    """Write a checkpoint that the library loads; ``tensors`` by their whole keys. The folder is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS_FILE, shapes=shapes, tensor=lambda key: tensors[key], metadata={"format": "pt"})
    text = msgspec.json.format(msgspec.json.encode(dict(sorted(settings.items()))), indent=2)
    (folder / SETTINGS_FILE).write_bytes(text + b"\n")


def _what_to_give(folder: Path, error: OSError) -> str:
    if (folder / "adapter_model.bin").is_file():
        return "holds pickled weights, which can run code when opened; save again with safe_serialization=True"
    return f"{SETTINGS_FILE} and {WEIGHTS_FILE} cannot be read ({error.strerror}); give the folder that save_pretrained wrote"


_Sides = dict[tuple[str, str], tuple[str, Float32]]
"""By side and kind, such as ("A", "weight"): the key, and what it holds."""


def _sorted(file: TensorFile) -> tuple[dict[str, _Sides], dict[str, Float32]]:
    """Return the file's factors by module, and its other tensors by name."""
    sides: dict[str, _Sides] = {}
    whole: dict[str, Float32] = {}
    for key in file.names():
        if not key.startswith(PREFIX):
            raise ConfigError(key, f"does not begin with {PREFIX!r}, as every key of a PEFT checkpoint does")
        path = key.removeprefix(PREFIX)
        match = _FACTOR.fullmatch(path)
        if match is not None:
            side = (match["side"], match["kind"])
            if side in (found := sides.setdefault(match["module"], {})):
                raise ConfigError(key, f"says the same as {found[side][0]}; save one adapter alone")
            found[side] = (key, file.tensor(key))
        elif ".lora_" in path:
            raise ConfigError(key, "is no factor of plain LoRA, so it cannot be merged into a matrix")
        else:
            # A module with factors keeps its own bias in a layer inside.
            name = path.replace(".base_layer.", ".")
            if name in whole:
                raise ConfigError(key, f"says the same as {key_of_tensor(name)}")
            whole[name] = file.tensor(key)
    return sides, whole


def _factors(module: str, found: _Sides) -> Factors:
    for side in ("A", "B"):
        if (side, "weight") not in found:
            raise ConfigError(key_of_factor(module, side), "is missing; factors come in pairs")
    if ("A", "bias") in found:
        raise ConfigError(found["A", "bias"][0], "a bias between the factors is not LoRA")
    key, down = found["A", "weight"]
    bias = found.get(("B", "bias"))
    return Factors(key=key, down=down, up=found["B", "weight"][1], bias=None if bias is None else bias[1])
