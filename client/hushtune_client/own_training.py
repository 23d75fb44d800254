"""How does a client that trains with tools of its own take part: what does it train on, and how does the result come back?

The emulator leaves as a plain transformers model. What comes back is a LoRA checkpoint of the PEFT library; merged into the
adapter blocks as they were shipped, it is what a training of ours would have returned. Nothing here trains, so nothing here says
how long training took, what it cost or how well it went: nobody knows but the client.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune_common.adapter import AdapterState, require_matches, save_adapter
from hushtune_common.config import TrainingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import Bundle, read_bundle
from hushtune_common.peft.checkpoint import read_checkpoint
from hushtune_common.peft.convert import merged
from hushtune_common.peft.indices import Counting, Meaning, Note, meaning
from hushtune_common.peft.plain import export_emulator


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTraining:
    """Where a client's own LoRA checkpoint lies, and how its names count blocks if nothing beside it says so."""

    folder: Path
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


def require_allowed(training: TrainingConfig) -> None:
    """Raise `ConfigError` when the scenario promises privacy of a training that is not ours to vouch for."""
    if training.dp is not None:
        problem = "promises differential privacy, and nobody here can vouch for a training that was done elsewhere"
        raise ConfigError("--adapter-from", f"training.dp {problem}; leave it out, or agree on a scenario without training.dp")


def export_model(bundle: Path, folder: Path) -> Note:
    """Write the emulator in the file ``bundle`` as a plain model; return the note that says what its blocks are."""
    with _readable(bundle):
        emulator = read_bundle(bundle)
    with _writable(folder):
        return export_emulator(emulator, folder)


def import_adapter(own: OwnTraining, *, bundle: Bundle) -> Imported:
    """Return all tensors of the emulator's adapter blocks, with the checkpoint merged into them.

    `ConfigError` names the setting that cannot be honoured, or the key that is outside the adapter blocks, unknown, or there
    twice; and asks how blocks are counted when nothing says it.
    """
    checkpoint = read_checkpoint(own.folder)
    shipped = AdapterState(bundle.adapter_numpy())
    trained_on = checkpoint.settings.base_model
    known = meaning(own.folder, trained_on=trained_on, plan=bundle.plan, shipped=shipped, counting=own.indices)
    state = merged(checkpoint, shipped=shipped, config=bundle.config, originals=known.originals)
    require_matches(state, bundle.schema)
    ranks = tuple(len(factors.down) for factors in checkpoint.factors.values())
    return Imported(state=state, ranks=ranks, whole=len(checkpoint.whole), meaning=known)


def write_result(own: OwnTraining, *, bundle: Path, result: Path, round_id: int = 1) -> Imported:
    """Write to ``result`` what a training of a round would have left there, for its user's eyes only, whole or not at all.

    ``bundle`` is the emulator of that round. Errors as `import_adapter`, and `ConfigError` naming a path that cannot be used.
    After the first round what is shipped may hold the updates of earlier ones, this client's among them, and the same change
    would be added once more: then only a checkpoint is taken whose note says that it started from these very blocks.
    """
    with _readable(bundle):
        imported = import_adapter(own, bundle=read_bundle(bundle))
    if round_id > 1 and not imported.meaning.started_here:
        problem = f"nothing says that it was trained on the emulator of round {round_id}; export that one and train on it"
        raise ConfigError("--adapter-from", f"{problem}, with its hushtune.json in place")
    partial = result.with_name(result.name + ".partial")
    with _writable(result):
        try:
            partial.touch(mode=0o600)
            save_adapter(partial, imported.state)
            partial.chmod(0o600)
            partial.replace(result)
        finally:
            partial.unlink(missing_ok=True)
    return imported


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
