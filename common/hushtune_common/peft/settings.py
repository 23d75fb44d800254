"""What does an ``adapter_config.json`` say of how factors change a matrix, and which of its settings cannot be honoured?

PEFT adds ``scale * U D`` to a matrix, with ``scale = alpha / rank`` (Hu et al. 2021, arXiv:2106.09685) or ``alpha / sqrt(rank)``
(rank-stabilised, Kalajdzievski 2023, arXiv:2312.03732). Rank and alpha may differ by module: patterns name those that do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any

import msgspec

from hushtune_common.errors import ConfigError

SETTINGS_FILE = "adapter_config.json"

_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""Ways to start factors that leave the model's own weights as they are; every other one moves a part of them into the factors."""

_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "use_dora"}
_WITHOUT_EFFECT = {
    # What was trained, and with which bias and whole modules, is told by the tensors themselves.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "lora_bias"),
    # How a matrix is stored is known from the model; the library corrects this setting, too.
    "fan_in_fan_out",
    # Of training and of loading only.
    *("lora_dropout", "inference_mode", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    # Mean nothing until another setting, which is refused, is there as well; the last only concerns embeddings.
    *("megatron_core", "qalora_group_size", "eva_config", "ensure_weight_tying"),
}


class _Body(msgspec.Struct, frozen=True):
    r: int
    lora_alpha: float
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    base_model_name_or_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """What decides the scale of factors. Patterns are regular expressions of module paths; the first that fits counts."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    rank_stabilised: bool = False
    base_model: str | None = None
    """What the factors were trained on, as the library noted it: a folder or the name of a model."""

    def __post_init__(self) -> None:
        """Check values and patterns; `ConfigError` names the field."""
        for what, rank in {"r": self.rank, **self.rank_pattern}.items():
            if rank < 1:
                raise ConfigError(f"{SETTINGS_FILE}: {what}", f"a rank is at least 1, got {rank}")
        for what, alpha in {"lora_alpha": self.alpha, **self.alpha_pattern}.items():
            if not isfinite(alpha):
                raise ConfigError(f"{SETTINGS_FILE}: {what}", f"is finite, got {alpha}")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{SETTINGS_FILE}: {pattern}", f"is no regular expression ({error})") from error

    def rank_at(self, module: str) -> int:
        """Return the rank of the factors at a module path."""
        return next((r for pattern, r in self.rank_pattern.items() if _fits(pattern, module)), self.rank)

    def scale_at(self, module: str) -> float:
        """Return what the product of the factors at a module path is multiplied with."""
        alpha = next((a for pattern, a in self.alpha_pattern.items() if _fits(pattern, module)), self.alpha)
        rank = self.rank_at(module)
        return alpha / sqrt(rank) if self.rank_stabilised else alpha / rank

    @staticmethod
    def from_json(text: bytes) -> "LoraSettings":
        """Read what the library wrote. `ConfigError` names the field of whatever makes it other than plain LoRA.

        A field that is not known is refused if it is set: what it does to the factors cannot be known either.
        """
        try:
            found = msgspec.json.decode(text, type=dict[str, Any])
            _require_plain(found)
            body = msgspec.convert(found, _Body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(SETTINGS_FILE, f"is not the configuration of a LoRA adapter ({error})") from error
        return LoraSettings(
            rank=body.r,
            alpha=body.lora_alpha,
            rank_pattern=body.rank_pattern or {},
            alpha_pattern=body.alpha_pattern or {},
            rank_stabilised=body.use_rslora,
            base_model=body.base_model_name_or_path,
        )


def _fits(pattern: str, module: str) -> bool:
    # A pattern stands for the end of a path, from a dot or from the beginning.
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module) is not None


def _require_plain(found: Mapping[str, Any]) -> None:
    """Raise `ConfigError` naming the first setting that changes what a merged matrix would be."""
    kind, start = found.get("peft_type"), found.get("init_lora_weights", True)
    if kind != "LORA":
        raise ConfigError(f"{SETTINGS_FILE}: peft_type", f"is {kind!r}; only LORA can be merged into adapter blocks")
    if found.get("use_dora"):
        problem = "DoRA rescales every row of a matrix, which is no change of low rank; train with use_dora=False"
        raise ConfigError(f"{SETTINGS_FILE}: use_dora", problem)
    if start not in _PLAIN_STARTS:
        problem = (
            f"{start!r} takes a part of the model's weights into the factors, which are then no change of the weights that the "
            "owner has; train with init_lora_weights=True, or convert with save_pretrained's "
            "path_initial_model_for_weight_conversion"
        )
        raise ConfigError(f"{SETTINGS_FILE}: init_lora_weights", problem)
    for name, value in found.items():
        if name not in _READ and name not in _WITHOUT_EFFECT and value:
            problem = f"is set ({value!r}), and not known to leave factors that alone change a matrix; train without it"
            raise ConfigError(f"{SETTINGS_FILE}: {name}", problem)
