"""What can the file of a codec curve say?

The tables that a comparison of emulators has too are read by its rules; there is one emulator, since a curve is about what
travels home from it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from hushtune_common import tables
from hushtune_common.config import CodecConfig, ComputeConfig, ModelConfig, TrainingConfig
from hushtune_common.errors import ConfigError
from hushtune_common.schema import Count, Name, Positive, Section, Share
from hushtune_server.testbed.emulators import schema as comparisons
from hushtune_server.testbed.emulators.schema import Comparison, Entry, TextConfig


class PeersConfig(Section, frozen=True):
    """With whom ours is compared. Each writes the same change of the same adapters."""

    lossless: bool = True
    """Every bit of every float32."""
    half: bool = True
    """float16 with zstandard."""
    integers: tuple[Annotated[int, Meta(ge=2, le=8)], ...] = (8, 4, 2)
    """Integers of 2, 4 or 8 bits with a scale for every 64; with and without zstandard."""
    normal_float: bool = True
    """4-bit normal floats as bitsandbytes lays them out; with and without zstandard."""
    signs: bool = True
    """One bit per number."""
    top_k: tuple[Share, ...] = (0.3, 0.1, 0.03, 0.01)
    """Shares of numbers, those with the largest changes."""
    ranks: tuple[Count, ...] = (128, 32, 8)
    """Ranks of factors of matrices."""

    def __post_init__(self) -> None:
        """Refuse widths that no byte holds whole."""
        if odd := [bits for bits in self.integers if bits not in (2, 4, 8)]:
            raise ValueError(f"integers has {odd[0]}; peers' integers have 2, 4 or 8 bits")


class CurveConfig(Section, frozen=True):
    """Where ours is measured."""

    budgets: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (16.0, 8.0, 4.0, 3.2, 2.0, 1.5, 1.0, 0.8, 0.5, 0.25)
    """Bits per weight that ours may spend; one that it cannot meet is reported as such."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What scores: bf16 is faster, and blurs losses by about 0.002 nats whenever any weight differs in its last bits, as much as
    several bits per weight make a difference; training is at `compute.precision` either way."""
    same_bytes: bool = True
    """Give ours also exactly the bytes that each peer took, so that who is better needs no drawing of lines between points."""


class _Document(Section, frozen=True):
    name: Name
    model: ModelConfig
    data: TextConfig
    emulator: dict[str, Any]
    seed: int = 0
    seeds: Annotated[tuple[int, ...], Meta(min_length=1)] = (1, 2, 3)
    compute: ComputeConfig = ComputeConfig()
    training: TrainingConfig = TrainingConfig()
    codec: CodecConfig = CodecConfig()
    also: tuple[CodecConfig, ...] = ()
    """Further codecs of ours at every budget, such as ``{rank = 32}`` or ``{kind = "jopeq", noise = {}}``."""
    curve: CurveConfig = CurveConfig()
    peers: PeersConfig = PeersConfig()
    resamples: Annotated[int, Meta(ge=100, le=1_000_000)] = 10_000


class CurveScenario(msgspec.Struct, frozen=True, kw_only=True):
    """One curve, checked: ``comparison`` has the model, the text, the training, the seeds and the one emulator."""

    comparison: Comparison
    codec: CodecConfig
    also: tuple[CodecConfig, ...]
    curve: CurveConfig
    peers: PeersConfig

    @property
    def name(self) -> str:
        """What results are called."""
        return self.comparison.name

    @property
    def emulator(self) -> Entry:
        """The emulator that clients train on."""
        return self.comparison.emulators[0]


def load(path: Path, *, overrides: Sequence[str] = ()) -> CurveScenario:
    """Read and check a curve; ``overrides`` as in `config.load`. Paths inside are resolved against the file's folder."""
    return parse(tables.read_tree(path, overrides=overrides), base=path.resolve().parent)


def parse(tree: Mapping[str, Any], *, base: Path) -> CurveScenario:
    """Turn a decoded TOML document into a `CurveScenario`; ``ConfigError`` names the full path of what is wrong."""
    document = tables.parse_section(tree, _Document)
    if document.training.dp is not None:
        raise ConfigError(
            "training.dp", "draws other noise every time, so no two codecs would see the same adapter; leave it out"
        )
    for field, values in (("seeds", document.seeds), ("curve.budgets", document.curve.budgets)):
        if len(set(values)) < len(values):
            raise ConfigError(field, f"names a value twice: {list(values)}")
    return CurveScenario(
        comparison=_comparison(tree, document, base=base),
        codec=document.codec,
        also=document.also,
        curve=document.curve,
        peers=document.peers,
    )


def _comparison(tree: Mapping[str, Any], document: _Document, *, base: Path) -> Comparison:
    """Return the comparison of one emulator that says the same; the text is divided as there."""
    tables.parse_method(document.emulator, where="emulator")  # so that its errors name the table of this file
    shared = {key: value for key, value in tree.items() if key not in ("codec", "also", "curve", "peers", "emulator")}
    shared["data"] = {**shared["data"], **{k: _resolved(shared["data"][k], base=base) for k in ("private", "public")}}
    shared["model"] = {**shared["model"], "source": _resolved(shared["model"]["source"], base=base)}
    shared |= {"attacks": [], "selection": {"learning_rates": [document.training.learning_rate]}}
    return comparisons.parse({**shared, "emulators": [{"name": "emulator", **document.emulator}]})


def _resolved(source: str, *, base: Path) -> str:
    kind, colon, rest = source.partition(":")
    return f"{kind}:{(base / rest).resolve()}" if colon and kind in {"txt", "jsonl", "csv", "dir", "gguf"} else source
