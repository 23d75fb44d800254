"""Is an emulator that was written as a plain model the emulator, to transformers, token for token?"""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoTokenizer

from hushtune_client.own_training import export_model
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import Bundle
from hushtune_common.model.slots import Compress, Drop, Harmonize, Quant, Share, Slot
from tests.models import tiny_source
from tests.own_lora import FAMILIES, MATRICES, TOKENS, assert_same, emulator, logits, plain, source_of


def own(bundle: Bundle) -> torch.Tensor:
    with torch.no_grad():
        return bundle.load().logits(TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_of_kept_dropped_and_shared_blocks_is_the_emulator_bit_for_bit(family: str, tmp_path: Path) -> None:
    path, bundle = emulator(tmp_path, source_of(family), Drop(1), Share(3, 2))
    export_model(path, tmp_path / "short")
    model: Any = plain(tmp_path / "short")
    assert model.config.num_hidden_layers == 5
    assert torch.equal(logits(model), own(bundle))


def slots_of(family: str) -> list[Slot]:
    """One slot of every way to make a block smaller, and a copy of the smallest."""
    wide, narrow = MATRICES[family][0], MATRICES[family][2]
    ranks = {wide: (0, 1, 2), narrow: tuple(range(14))}
    channels = tuple(range(0, 32, 3))
    return [
        Compress(index=1, ranks=ranks, quant=Quant(bits=8, block=16)),
        Compress(index=2, ranks={wide: (1, 4)}, channels=channels, quant=Quant(bits=4, block=16)),
        Share(3, 2),
        Compress(index=4, ranks=ranks),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_compressed_is_written_out_and_computes_the_same(family: str, tmp_path: Path) -> None:
    path, bundle = emulator(tmp_path, source_of(family), *slots_of(family))
    export_model(path, tmp_path / "short")
    assert_same(logits(plain(tmp_path / "short")), own(bundle))


def test_a_block_that_no_plain_model_has_is_refused_by_its_index(tmp_path: Path) -> None:
    path, _ = emulator(tmp_path, source_of(), Harmonize(1, 4), Drop(2), Harmonize(3, 4), Harmonize(4, 4))
    with pytest.raises(ConfigError, match=r"blocks 1,3-4: .* Ask the owner"):
        export_model(path, tmp_path / "short")
    assert not (tmp_path / "short").exists()


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    path, _ = emulator(tmp_path, tiny_source("random:family=bert,blocks=6,hidden=16,heads=2,seed=3"))
    with pytest.raises(ConfigError, match="is an encoder"):
        export_model(path, tmp_path / "short")


def test_the_note_says_which_blocks_there_are_and_which_may_be_trained(tmp_path: Path) -> None:
    path, bundle = emulator(tmp_path, source_of(), Drop(1), Share(3, 2), Drop(4))
    export_model(path, tmp_path / "short")
    note = json.loads((tmp_path / "short" / "hushtune.json").read_text())
    assert (note["indices"], note["blocks"], note["adapter"]) == ("short", [0, 2, 3, 5], [0, 5])
    assert note["layers_to_transform"] == [0, 3]
    assert (note["base"], note["plan"]) == (bundle.base_digest.hex, bundle.plan.digest.hex)


def test_the_tokenizer_is_the_emulators(tmp_path: Path) -> None:
    path, bundle = emulator(tmp_path, source_of())
    export_model(path, tmp_path / "short")
    tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(tmp_path / "short")
    assert tokenizer("no text is lost").input_ids == bundle.tokens.encode("no text is lost")
    assert tokenizer.eos_token_id == bundle.config["eos_token_id"]
