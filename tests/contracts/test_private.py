"""Does each client take its own text only, and is what it takes enough to train on?"""

from pathlib import Path

import pytest

from hushtune_client.private import own_records, own_windows
from hushtune_common import config
from hushtune_common.config import Scenario
from hushtune_common.errors import ConfigError
from hushtune_common.seeding import SeedTree
from tests.models import tiny_source

TEXT = [
    f"message {word} from {name}" for word in ("alpha", "beta", "gamma", "delta") for name in ("ann", "bob", "eve", "joe", "sue")
]


def scenario_of(folder: Path, split: str) -> Scenario:
    (folder / "all.txt").write_text("\n".join(TEXT), encoding="utf-8")
    clients = [{"id": f"c{k}", "position": {"x_m": 10.0 * k, "y_m": 0.0}} for k in (1, 2, 3)]
    data = {
        "private": f"txt:{folder / 'all.txt'}",
        "public": "txt:p.txt",
        "split": split,
        "window_tokens": 16,
        "train_windows": 4,
    }
    return config.parse({"name": "shares", "seed": 5, "model": {"source": "random:"}, "data": data, "clients": clients})


@pytest.mark.parametrize("split", ["iid", "by_topic", "by_size"])
def test_every_client_derives_the_same_split_and_the_shares_are_disjoint(tmp_path: Path, split: str) -> None:
    scenario, seeds = scenario_of(tmp_path, split), SeedTree(5)
    shares = [own_records(scenario, client_id=c.id, sources=(), seeds=seeds) for c in scenario.clients]
    again = [own_records(scenario, client_id=c.id, sources=(), seeds=seeds) for c in scenario.clients]
    assert shares == again
    taken = [record for share in shares for record in share]
    assert len(taken) == len(set(taken))
    assert set(taken) < set(TEXT), "some records are nobody's: they are the test"


def test_a_file_of_ones_own_is_used_whole(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("first of mine\nsecond of mine\n", encoding="utf-8")
    scenario = scenario_of(tmp_path, "iid")
    assert own_records(scenario, client_id="c1", sources=[f"txt:{own}"], seeds=SeedTree(5)) == ("first of mine", "second of mine")


def test_windows_have_the_scenarios_length_and_number(tmp_path: Path) -> None:
    windows = own_windows(TEXT, tokens=tiny_source().tokens, scenario=scenario_of(tmp_path, "iid"))
    assert windows.shape == (4, 16)


def test_text_that_fills_no_window_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give more text"):
        own_windows(["short"], tokens=tiny_source().tokens, scenario=scenario_of(tmp_path, "iid"))
