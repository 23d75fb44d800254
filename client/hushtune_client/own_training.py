"""How does a client that trains with tools of its own take part: what does it train on, and how does the result come back?

The emulator leaves as a plain transformers model. What comes back is a LoRA checkpoint of the PEFT library, or a file of whole
tensors; merged into the adapter blocks as they were shipped, it is what a training of ours would have returned. Nothing here
trains, so nothing here says how long training took, what it cost or how well it went: nobody knows but the client.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hushtune_common.adapter import FORMAT as ADAPTER_FORMAT
from hushtune_common.adapter import AdapterState, require_matches
from hushtune_common.aggregation import SecureConfig
from hushtune_common.config import Scenario, TrainingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.model.slots import ranges_text
from hushtune_common.model.weights import write_tensors
from hushtune_common.peft.checkpoint import read_checkpoint
from hushtune_common.peft.convert import merged
from hushtune_common.peft.indices import Counting, Meaning, Note, meaning, state_digest
from hushtune_common.peft.patch import read_replacements
from hushtune_common.peft.plain import export_emulator
from hushtune_common.secagg.layout import grid_for


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTraining:
    """Where a client's own training lies, and how its names count blocks if nothing beside it says so.

    ``path`` is the folder of a LoRA checkpoint, or a safetensors file of whole tensors (a patch, or what `write_result` wrote).
    """

    path: Path
    indices: Counting | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imported:
    """Adapter blocks made of a checkpoint, and what may be told of it: sizes, and no figure of a training that was not ours."""

    state: AdapterState
    ranks: tuple[int, ...]
    """Of every matrix that a product of factors joined."""
    whole: int
    """Tensors that were replaced."""
    meaning: Meaning

    @property
    def facts(self) -> dict[str, Any]:
        """The fields of the event ``adapter_imported``; no path of this machine is among them."""
        ranks = [min(self.ranks), max(self.ranks)] if self.ranks else []
        return {"matrices": len(self.ranks), "ranks": ranks, "whole_tensors": self.whole, "indices": self.meaning.counting}

    @property
    def summary(self) -> str:
        """The same for people."""
        factors = f"{len(self.ranks)} matrices with factors of rank {min(self.ranks, default=0)} to {max(self.ranks, default=0)}"
        return f"{factors}, {self.whole} tensors replaced; blocks counted as {self.meaning.counting} ({self.meaning.why})"


def require_allowed(own: OwnTraining, *, training: TrainingConfig) -> None:
    """Raise `ConfigError` when nothing is there, or when the scenario promises privacy of a training that is not ours."""
    if training.dp is not None:
        problem = "promises differential privacy, and nobody here can vouch for a training that was done elsewhere"
        raise ConfigError("--adapter-from", f"training.dp {problem}; leave it out, or agree on a scenario without training.dp")
    if not own.path.exists():
        problem = "give the folder that save_pretrained wrote, or a patch or adapter in a safetensors file"
        raise ConfigError("--adapter-from", f"{own.path} is not there; {problem}")


def export_model(bundle: Path, folder: Path) -> Note:
    """Write the emulator in the file ``bundle`` as a plain model; return the note that says what its blocks are."""
    with _readable(bundle):
        emulator = read_bundle(bundle)
    with _writable(folder):
        return export_emulator(emulator, folder)


def import_adapter(own: OwnTraining, *, bundle: Bundle, round_id: int = 1) -> Imported:
    """Return all tensors of the emulator's adapter blocks, with the checkpoint or the patch merged into them.

    `ConfigError` names the setting that cannot be honoured, or the key that is outside the adapter blocks, unknown, or there
    twice; and asks how blocks are counted when nothing says it. After the first round what is shipped may hold the updates of
    earlier ones, this client's among them, and the same change would be added once more: then only a training is taken whose
    note says that it started from these very blocks.
    """
    shipped = AdapterState(bundle.adapter_numpy())
    imported = _replaced(own, bundle, shipped) if own.path.is_file() else _merged(own, bundle, shipped)
    require_matches(imported.state, bundle.schema)
    if round_id > 1 and not imported.meaning.started_here:
        problem = f"nothing says that it was trained on the emulator of round {round_id}; export that one"
        raise ConfigError("--adapter-from", f"{problem} ({bundle.file.path}) and train on it, with its hushtune.json in place")
    return imported


def require_addable(imported: Imported, *, bundle: Bundle, scenario: Scenario) -> None:
    """Raise `ConfigError` when updates are only added, and this one changes a number by more than can be added."""
    if not isinstance(scenario.owner.aggregation, SecureConfig):
        return
    shipped = bundle.adapter_numpy()
    for tensor in grid_for(scenario, bundle.schema).tensors:
        moved = float(np.abs(imported.state.tensors[tensor.name] - shipped[tensor.name]).max())
        if moved > tensor.clip:
            problem = f"{tensor.name} changed by up to {moved:.3g}, and owner.aggregation.kind = secure adds no more"
            remedy = f"than {tensor.clip:.3g}, what training here can change; train with the scenario's learning rate and epochs"
            raise ConfigError("--adapter-from", f"{problem} {remedy}")


def write_result(own: OwnTraining, *, bundle: Path, result: Path, round_id: int = 1) -> Imported:
    """Write to ``result`` what a training of a round would have left there, for its user's eyes only, whole or not at all.

    ``bundle`` is the emulator of that round. The file says of which emulator it is, so that it can be imported in its turn.
    Errors as `import_adapter`, and `ConfigError` naming a path that cannot be used.
    """
    with _readable(bundle):
        emulator = read_bundle(bundle)
        imported = import_adapter(own, bundle=emulator, round_id=round_id)
    tensors = imported.state.tensors
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    partial = result.with_name(result.name + ".partial")
    with _writable(result):
        try:
            partial.touch(mode=0o600)
            write_tensors(partial, shapes=shapes, tensor=tensors.__getitem__, metadata=_origin(emulator))
            partial.chmod(0o600)
            partial.replace(result)
        finally:
            partial.unlink(missing_ok=True)
    return imported


def _merged(own: OwnTraining, bundle: Bundle, shipped: AdapterState) -> Imported:
    checkpoint = read_checkpoint(own.path)
    trained_on = checkpoint.settings.base_model
    known = meaning(own.path, trained_on=trained_on, plan=bundle.plan, shipped=shipped, counting=own.indices)
    state = merged(checkpoint, shipped=shipped, config=bundle.config, originals=known.originals)
    ranks = tuple(len(factors.down) for factors in checkpoint.factors.values())
    return Imported(state=state, ranks=ranks, whole=len(checkpoint.whole), meaning=known)


def _replaced(own: OwnTraining, bundle: Bundle, shipped: AdapterState) -> Imported:
    if own.indices == "short":
        raise ConfigError("--indices", f"is short, but {own.path} is a file, and names in files count the full model's blocks")
    file = read_replacements(own.path)
    started_here = _require_origin(own.path, file.metadata, expected=_origin(bundle))
    tensors = dict(shipped.tensors)
    for name in file.names():
        if name not in tensors:
            allowed = f"adapter blocks are {ranges_text(bundle.plan.adapter)}"
            raise ConfigError(f"{own.path} {name}", f"is no tensor of the adapter blocks, and nothing else may change; {allowed}")
        if file.shape(name) != tensors[name].shape:
            raise ConfigError(f"{own.path} {name}", f"has shape {file.shape(name)}, {tensors[name].shape} was shipped")
        tensors[name] = np.ascontiguousarray(file.tensor(name), dtype=np.float32)
        if not np.isfinite(tensors[name]).all():
            raise ConfigError(f"{own.path} {name}", "holds values that are not finite")
    originals = tuple(range(len(bundle.plan.slots)))
    known = Meaning(originals=originals, counting="original", why="names in files do", started_here=started_here)
    return Imported(state=AdapterState(tensors), ranks=(), whole=len(file.names()), meaning=known)


def _origin(bundle: Bundle) -> dict[str, str]:
    """Return what a file of adapter blocks says of the emulator that it was trained on."""
    shipped = state_digest(AdapterState(bundle.adapter_numpy())).hex
    return {"format": ADAPTER_FORMAT, "base": bundle.base_digest.hex, "plan": bundle.plan.digest.hex, "shipped": shipped}


def _require_origin(path: Path, said: Mapping[str, str], *, expected: Mapping[str, str]) -> bool:
    """Refuse what is of another model, plan or start; return whether the file vouches for the start."""
    if "base" not in said:
        raise ConfigError(f"{path} base", "is not in the file's metadata; copy base, plan and shipped there from hushtune.json")
    for field, what in (("base", "model"), ("plan", "plan"), ("shipped", "emulator, whose adapter blocks started elsewhere")):
        if said.get(field, expected[field]) != expected[field]:
            raise ConfigError(
                f"{path} {field}",
                f"is of another {what} ({said[field][:12]}, here {expected[field][:12]}); train on this emulator",
            )
    return "shipped" in said


@contextmanager
def _readable(path: Path) -> Generator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})") from error


@contextmanager
def _writable(path: Path) -> Generator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
        raise ConfigError(str(path), f"cannot be written ({error.strerror})") from error
