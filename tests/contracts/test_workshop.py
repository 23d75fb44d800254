"""Does the owner's bench judge without a trace, and is what it merges the mean of what it was sent?"""

import math
from pathlib import Path

import pytest

from hushtune_common.messages import ClientId, RunId, UpdateKey
from tests.bench import DESIGN, EXACT, NAMES, equal, owner, seated


def test_judging_stores_what_arrived_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    at = owner(tmp_path)
    arrived = at.send("c1", by=0.1)
    assert equal(at.adapter("c1"), arrived)
    assert equal(seated(at), at.shipped)


def test_an_update_whose_links_its_sender_did_not_announce_leaves_nothing_behind(tmp_path: Path) -> None:
    at = owner(tmp_path)
    key = UpdateKey(run=RunId("run-1"), round_id=1, client=ClientId("c1"), attempt=1)
    judgement = at.judge(at.codec.encode(at.shipped, budget_bytes=at.codec.bytes_max), key=key, dither=bytes(DESIGN.coded_bytes))
    assert (judgement.accepted, judgement.reason) == (False, "UPDATE_REFUSED")
    assert not list((tmp_path / "adapters").iterdir())


def test_the_aggregate_is_the_plain_mean_of_the_named_clients_and_sits_in_the_model(tmp_path: Path) -> None:
    at = owner(tmp_path)
    arrived = [at.send(name, by=0.1) for name in NAMES]
    trial = at.bench.merge([ClientId("c1"), ClientId("c3")])
    merged = at.adapter("aggregate")
    for name, tensor in merged.tensors.items():
        assert tensor == pytest.approx((arrived[0].tensors[name] + arrived[2].tensors[name]) / 2, abs=1e-6)
    assert trial.kept
    assert equal(seated(at), merged)
    assert trial.loss_after == at.prepared.model.loss(at.prepared.windows)


def test_an_aggregate_that_hurts_public_text_is_rolled_back(tmp_path: Path) -> None:
    at = owner(tmp_path, increase_max=0.01, written=EXACT)
    at.send("c1", by=2.0)
    trial = at.bench.merge([ClientId("c1")])
    assert not trial.kept
    assert math.isfinite(trial.loss_after)
    assert equal(seated(at), at.shipped)
