"""``hushtune peft …``: adapter blocks that came back, as a checkpoint for other tools, and a patch put into a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.words import extra, print_pairs

if TYPE_CHECKING:
    from hushtune_common.adapter import AdapterState
    from hushtune_common.model.plan import Plan
    from hushtune_common.model.sources import ModelSource
    from hushtune_common.peft.convert import Factored

_CACHE = Path.home() / ".cache" / "hushtune"

_Model = Annotated[str, Parameter(help="The full model that the emulator was made of, as `model.source` in a scenario.")]
_Cache = Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")]


def register(app: App) -> None:
    """Add the ``peft`` commands to the command line."""
    peft = App(name="peft", help="Trained adapter blocks for other tools: PEFT checkpoints and patches of the full model.")
    peft.command(export)
    peft.command(apply)
    app.command(peft)


def export(
    *,
    adapter: Annotated[Path, Parameter(help="Adapter blocks as the owner keeps them (`adapters/` in its state folder).")],
    model: _Model,
    out: Annotated[Path, Parameter(help="Folder to write to; made if missing.")],
    plan: Annotated[Path | None, Parameter(help="The emulator's plan: blocks that it does not train are then refused.")] = None,
    bundle: Annotated[Path | None, Parameter(help="The emulator itself, in place of its plan.")] = None,
    rank: Annotated[int | None, Parameter(help="Keep at most so many components of every matrix.")] = None,
    energy: Annotated[float | None, Parameter(help="Keep the fewest components that hold this share, such as 0.999.")] = None,
    patch: Annotated[bool, Parameter(help="Write the changed tensors as they are.")] = False,
    cache: _Cache = _CACHE,
) -> None:
    """Write adapter blocks as a PEFT checkpoint of the full model, which gives the logits of the plug-in.

    Each matrix's change is taken apart by singular values, exactly unless --rank or --energy cut it; norms travel whole. Where
    factors would be larger than the matrices, as after training whole blocks, the changed tensors are written as a patch.

    Example: `hushtune peft export --adapter state/owner/adapters/c1.safetensors --model dir:models/base --plan plan.json
    --out c1-lora`
    """
    with extra("owner"):
        from hushtune_common.model.sources import open_source
        from hushtune_common.peft.convert import change_of, factored, write_lora, write_whole
        from hushtune_common.peft.lowrank import Limit
        from hushtune_common.peft.patch import HOW, PATCH_FILE
        from hushtune_common.peft.plain import require_causal
    limit = Limit(rank=rank, energy=energy)
    if patch and not limit.exact:
        raise ConfigError("--patch", "leaves nothing out, so --rank and --energy have no place beside it")
    source = open_source(model, cache=cache)
    require_causal(source.config)
    known = _plan(plan, bundle, source=source)
    change = change_of(source, _adapter(adapter, source=source, plan=known), plan=known)
    found = None if patch else factored(change, limit=limit)
    _make_folder(out)
    if found is None or not found.factors or (limit.exact and not found.pays):
        if found is not None:
            print(_why_patched(found))
        write_whole(out, change)
        print(f"patch of {len(change.tensors)} tensors written to {out / PATCH_FILE}; in transformers: {HOW}")
        return
    write_lora(out, change, found, model=model)
    _report(found)
    print(f'PEFT checkpoint written to {out}; in transformers: PeftModel.from_pretrained(model, "{out}")')


def apply(
    patch: Annotated[Path, Parameter(help="A patch written by `hushtune peft export`.")],
    *,
    model: _Model,
    out: Annotated[Path, Parameter(help="Folder of the patched model; made if missing.")],
    cache: _Cache = _CACHE,
) -> None:
    """Put a patch into the model that it was made for, and write the whole as a folder that transformers opens.

    Example: `hushtune peft apply c1/patch.safetensors --model dir:models/base --out models/c1`
    """
    with extra("owner"):
        from hushtune_common.model.sources import open_source
        from hushtune_common.peft.patch import patched, read_patch
        from hushtune_common.peft.plain import require_causal, write_plain
    found = read_patch(patch)
    source = open_source(model, cache=cache)
    require_causal(source.config)
    weights = patched(source, found)
    _make_folder(out)
    write_plain(out, config=source.config, tokens=source.tokens, weights=weights)
    print(f"model with {len(found.names())} tensors replaced written to {out}")


def _plan(plan: Path | None, bundle: Path | None, *, source: "ModelSource") -> "Plan | None":
    """Return the plan that the adapter belongs to, if one is given; `ConfigError` when it is of another model."""
    from hushtune_common.model.bundle import read_bundle
    from hushtune_common.model.plan import Plan

    if plan is not None and bundle is not None:
        raise ConfigError("--plan", "and --bundle say the same; give one")
    path = plan or bundle
    if path is None:
        return None
    try:
        found = Plan.from_json(path.read_bytes()) if plan is not None else read_bundle(path).plan
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})") from error
    if found.base != source.base_digest:
        raise ConfigError("--model", f"is {source.base_digest.short}, the emulator was made of {found.base.short}")
    return found


def _adapter(path: Path, *, source: "ModelSource", plan: "Plan | None") -> "AdapterState":
    """Return adapter blocks from a file; which blocks they are says the plan, or else the file."""
    from hushtune_common.adapter import load_adapter
    from hushtune_common.errors import MalformedUpdate
    from hushtune_common.model.adapter import adapter_specs
    from hushtune_common.model.naming import block_of
    from hushtune_common.model.slots import ranges_text
    from hushtune_common.model.weights import TensorFile

    try:
        names = TensorFile.open(path).names()
        blocks = sorted({block for name in names if (block := block_of(name)) is not None})
        trained = blocks if plan is None else plan.adapter
        for name in names:
            if block_of(name) not in trained:
                raise ConfigError(name, f"is not of the blocks that are trained, which are {ranges_text(trained)}")
        return load_adapter(path, adapter_specs(source.weights, trained))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})") from error
    except MalformedUpdate as error:
        raise ConfigError("--adapter", f"does not hold adapter blocks of this model ({error})") from error


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--out", f"cannot use the folder {out} ({error.strerror})") from error


def _why_patched(found: "Factored") -> str:
    if not found.factors:
        return "no matrix changed, and factors are of matrices: a patch"
    return "exact factors would be no smaller than the matrices that they change: a patch (--rank or --energy cut them)"


def _report(found: "Factored") -> None:
    """Print what every matrix lost, and all of them together."""
    for module, low in found.factors.items():
        most = min(low.up.shape[0], low.down.shape[1])
        print(f"  {module}  rank {low.rank} of {most}  residual {_share(low.residual, low.energy)}")
    energy = sum(low.energy for low in found.factors.values())
    ranks = sorted(low.rank for low in found.factors.values())
    print_pairs(
        {
            "modules": f"{len(found.factors)} with factors of rank {ranks[0]} to {ranks[-1]}",
            "whole": f"{len(found.whole)} tensors of other modules, {len(found.biases)} biases",
            "numbers": f"{sum(low.count for low in found.factors.values()):,} in factors",
            "residual": f"{_share(sum(low.residual for low in found.factors.values()), energy)} of the change's energy",
        }
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole if whole else 0.0:.2e}"
