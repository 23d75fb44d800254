"""What is a patch: the whole tensors that training changed, in one safetensors file with the model that they belong to.

For changes of high rank, where factors would be larger. Names are those of transformers' own class, so that it loads without
anything of ours: ``model.load_state_dict(safetensors.torch.load_file("patch.safetensors"), strict=False)``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushtune_common.adapter import FORMAT as ADAPTER_FORMAT
from hushtune_common.adapter import Float32
from hushtune_common.errors import ConfigError, MalformedUpdate
from hushtune_common.messages import Digest
from hushtune_common.model.sources import ModelSource
from hushtune_common.model.weights import TensorFile, Weights, write_tensors

PATCH_FILE = "patch.safetensors"
FORMAT = "hushtune-patch/1"
HOW = f'model.load_state_dict(safetensors.torch.load_file("{PATCH_FILE}"), strict=False)'
"""How transformers loads a patch; stands in the file, too."""


def write_patch(path: Path, *, tensors: Mapping[str, Float32], base: Digest, plan: Digest | None) -> None:
    """Write the tensors that replace those of the model ``base``; ``plan`` is that of the emulator, where it is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "base": base.hex, "load": HOW} | ({} if plan is None else {"plan": plan.hex})
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(path, shapes=shapes, tensor=lambda name: tensors[name], metadata=metadata)


def read_patch(path: Path) -> TensorFile:
    """Open a patch; `ConfigError` for a file that cannot be read or is none."""
    file = _opened(path)
    if file.metadata.get("format") != FORMAT:
        raise ConfigError(str(path), "is no patch; `hushtune peft export --patch` writes one")
    return file


def read_replacements(path: Path) -> TensorFile:
    """Open a patch, or a file of adapter blocks; `ConfigError` for a file that cannot be read or is neither."""
    file = _opened(path)
    if file.metadata.get("format") not in (FORMAT, ADAPTER_FORMAT):
        formats = f"say format={FORMAT} in its metadata if it holds whole tensors under the full model's names"
        raise ConfigError(str(path), f"is neither a patch nor a file of adapter blocks; {formats}")
    return file


def patched(source: ModelSource, patch: TensorFile) -> "Patched":
    """Return the model's weights with those of the patch in their place.

    `ConfigError` when the patch is of another model, or names a tensor that the model has not.
    """
    if patch.metadata.get("base") != source.base_digest.hex:
        made_for = patch.metadata.get("base", "")[:12]
        raise ConfigError("--model", f"is {source.base_digest.short}, the patch was made for {made_for}; give that model")
    known = {*source.names()}
    for name in patch.names():
        if name not in known or source.weights.shape(name) != patch.shape(name):
            raise ConfigError(name, f"the model has no such tensor of shape {patch.shape(name)}")
    return Patched(source.weights, patch)


def _opened(path: Path) -> TensorFile:
    try:
        return TensorFile.open(path)
    except (OSError, MalformedUpdate) as error:
        raise ConfigError(str(path), f"cannot be read ({error})") from error


@dataclass(frozen=True, slots=True)
class Patched:
    """A model's weights with some of them replaced."""

    base: Weights
    patch: TensorFile

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        return self.base.shape(name)

    def tensor(self, name: str) -> Float32:
        """Return one tensor as float32, the caller's own."""
        return (self.patch if name in self.patch.entries else self.base).tensor(name)


_conforms: type[Weights] = Patched
