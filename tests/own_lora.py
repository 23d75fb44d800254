"""LoRA as clients and users of the result train and load it: with transformers and PEFT alone, nothing of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from hushtune_common.adapter import AdapterState
from hushtune_common.model.bundle import Bundle, read_bundle, write_bundle
from hushtune_common.model.plan import Plan
from hushtune_common.model.slots import Drop, Keep, Share, Slot
from hushtune_common.model.sources import ModelSource
from tests.models import model_directory, some_windows, tiny_source

FAMILIES = ("llama", "qwen2", "gpt2", "opt", "gpt_neox")
BLOCKS = 6
ADAPTER = (0, 5)
OUTDATED = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
"""PEFT asks transformers an old question; the tests that meet it say so."""
MATRICES: Mapping[str, tuple[str, ...]] = {
    "llama": ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    "qwen2": ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "opt": ("self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"),
    "gpt_neox": ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
}
NORMS: Mapping[str, str] = {
    "llama": "input_layernorm",
    "qwen2": "input_layernorm",
    "gpt2": "ln_1",
    "opt": "self_attn_layer_norm",
    "gpt_neox": "input_layernorm",
}
TOKENS = torch.from_numpy(some_windows(3, length=9))

logging.disable_progress_bar()


def source_of(family: str = "llama") -> ModelSource:
    return tiny_source(f"random:family={family},blocks={BLOCKS},hidden=16,heads=2,seed=3")


def emulator(folder: Path, source: ModelSource, *middle: Slot) -> tuple[Path, Bundle]:
    """Return the emulator that runs the given slots in the middle, by default without block 1 and with block 2 in place of 3."""
    at = {slot.index: slot for slot in middle or (Drop(1), Share(3, 2))}
    slots = tuple(at.get(b, Keep(b)) for b in range(BLOCKS))
    path = folder / "emulator.safetensors"
    write_bundle(path, source=source, plan=Plan(base=source.base_digest, adapter=ADAPTER, slots=slots, method="by_hand"))
    return path, read_bundle(path)


def plain(folder: Path) -> nn.Module:
    """Return what transformers makes of a folder."""
    return cast(nn.Module, AutoModelForCausalLM.from_pretrained(folder)).eval()


def plain_base(folder: Path, source: ModelSource) -> nn.Module:
    """Return the full model as transformers opens it."""
    return plain(model_directory(folder / "base", source=source))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Hold logits against others to 1e-5, absolutely."""
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def plugged(source: ModelSource, state: AdapterState) -> Tensor:
    """Return the scores of the full model with the adapter blocks plugged in."""
    model = source.load()
    model.set_adapter(state.tensors)
    with torch.no_grad():
        return model.logits(TOKENS)


def with_lora(model: nn.Module, **settings: Any) -> Any:
    """Hang PEFT's factors on a model and fill everything that is trained with noise, as if it had been."""
    found = cast(Any, get_peft_model)(model, cast(Any, LoraConfig)(**{"r": 3, "lora_alpha": 5, **settings})).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return found


def loaded(model: nn.Module, folder: Path) -> Any:
    """Return a model with a checkpoint on it, as PEFT loads it."""
    return PeftModel.from_pretrained(cast(Any, model), folder).eval()


def changed(bundle: Bundle, *, rank: int = 2, norms: bool = True, only: str = "") -> AdapterState:
    """Return adapter blocks after a change of low rank to every matrix, and some change to vectors, where names hold ``only``."""
    generator = np.random.default_rng(5)
    tensors = bundle.adapter_numpy()
    for name, tensor in tensors.items():
        if only not in name or (tensor.ndim == 1 and not norms):
            continue
        shape = tensor.shape
        factors = (shape[0], rank), (rank, shape[-1])
        low = np.multiply(0.03, generator.normal(size=factors[0]) @ generator.normal(size=factors[1]))
        tensors[name] = (tensor + (low if tensor.ndim == 2 else 0.1 * generator.normal(size=shape))).astype(np.float32)
    return AdapterState(tensors)
