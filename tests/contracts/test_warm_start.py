"""Does a round start from what the model kept, with everything else of the emulator as it was, or aligned with it?"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hushtune_common.errors import ConfigError, DigestMismatch, ExposureExceeded
from hushtune_common.messages import ClientId, UpdateKey
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.naming import block_of
from hushtune_common.model.revision import apply_revision
from hushtune_server.owner.preparing import reopen
from hushtune_server.owner.workshop import Workshop
from tests.bench import EXACT, PRIVATE, RUN, Owner, equal, owner, seated, went_on

C1, C2 = ClientId("c1"), ClientId("c2")
DISTILL: Mapping[str, object] = {"method": "distill", "drop": 2, "ranking": "uniform", "steps": 8, "batch_windows": 2}
LINEAR: Mapping[str, object] = {"method": "linear", "drop": 2, "ranking": "uniform", "harmonizer_rank": 4, "fit_tokens": 200}


def merged(at: Owner, *, by: float = 0.1) -> Owner:
    for name in (C1, C2):
        at.send(name, by=by)
    assert at.bench.merge([C1, C2]).kept
    return at


def bundle_of(at: Owner) -> Path:
    known = at.folder / f"bundle-{at.manifest.round_id}.safetensors"
    return known if known.exists() else at.folder / "bundle.safetensors"


def test_the_next_emulator_has_the_models_adapter_blocks_and_nothing_else_changed(tmp_path: Path) -> None:
    first = merged(owner(tmp_path, rounds=3))
    second = went_on(first, round_id=2)
    assert equal(second.shipped, seated(first))
    assert not equal(second.shipped, first.shipped)
    old, new = read_bundle(bundle_of(first)), read_bundle(bundle_of(second))
    assert new.file.metadata == old.file.metadata
    for name in set(old.file.names()) - set(first.shipped.tensors):
        assert np.array_equal(new.file.tensor(name), old.file.tensor(name))


def test_the_way_to_the_next_emulator_leads_there_from_the_one_before(tmp_path: Path) -> None:
    at = merged(owner(tmp_path, rounds=3))
    renewal = at.bench.renew(2)
    assert renewal is not None
    apply_revision(renewal.revision, base=bundle_of(at), to=tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == renewal.bundle.read_bytes()
    assert renewal.revision.stat().st_size < renewal.bundle.stat().st_size


def test_after_a_round_that_was_rolled_back_there_is_no_other_emulator(tmp_path: Path) -> None:
    at = owner(tmp_path, rounds=3, increase_max=0.01, written=EXACT)
    at.send(C1, by=2.0)
    assert not at.bench.merge([C1]).kept
    assert at.bench.renew(2) is None


def test_an_update_made_with_the_emulator_of_an_earlier_round_is_refused(tmp_path: Path) -> None:
    first = merged(owner(tmp_path, rounds=3))
    second = went_on(first, round_id=2)
    key = UpdateKey(run=RUN, round_id=2, client=C1, attempt=1)
    stale = first.codec.encode(first.shipped, budget_bytes=first.codec.bytes_max)
    judgement = first.judge(stale, key=key)
    assert (judgement.accepted, judgement.reason.partition(":")[0]) == (False, DigestMismatch.reason)
    assert second.send(C1, by=0.1).tensors


def test_an_update_counts_from_where_its_round_began(tmp_path: Path) -> None:
    second = went_on(merged(owner(tmp_path, rounds=3)), round_id=2)
    arrived = second.send(C1, by=1e-4)
    second.bench.merge([C1])
    assert equal(seated(second), arrived)
    for name, tensor in arrived.tensors.items():
        assert np.abs(tensor - second.shipped.tensors[name]).max() < 1e-3


def test_a_release_that_the_ledger_refuses_is_not_made(tmp_path: Path) -> None:
    seen: list[Path] = []

    def admit(bundle: Path) -> None:
        seen.append(bundle)
        raise ExposureExceeded("too much is shown")

    at = merged(owner(tmp_path, rounds=3, admit=admit))
    with pytest.raises(ExposureExceeded):
        at.bench.renew(2)
    assert len(seen) == 1


def test_a_bench_made_anew_goes_on_with_the_same_emulator(tmp_path: Path) -> None:
    first = merged(owner(tmp_path, rounds=3))
    renewal = first.bench.renew(2)
    assert renewal is not None
    wanted = renewal.bundle.read_bytes()
    bench = reopened(first)
    again = bench.renew(2)
    assert again is not None
    assert again.bundle.read_bytes() == wanted


def reopened(at: Owner) -> Workshop:
    """Return the bench of another life of the owner."""
    place = at.prepared.place
    prepared = reopen(at.scenario, cache=at.folder, bundle=bundle_of(at), seeds=place.seeds, telling=place.telling)
    return Workshop(
        prepared,
        scenario=at.scenario,
        bundle=bundle_of(at),
        manifest=at.manifest,
        private=PRIVATE,
        state_dir=at.folder,
        accepted={},
    )


# --- alignment --------------------------------------------------------------------------------------------------------


def middle_of(path: Path, adapter: tuple[int, ...]) -> dict[str, np.ndarray]:
    file = read_bundle(path).file
    return {n: file.tensor(n) for n in file.names() if (b := block_of(n)) is not None and b not in adapter}


def mismatch(at: Owner, bundle: Path) -> float:
    """Return how far the emulator's predictions lie from the model's, as it is now, on public text."""
    emulator, model = read_bundle(bundle).load(), at.prepared.model
    windows = at.prepared.windows
    return abs(emulator.loss(windows) - model.loss(windows))


@pytest.mark.slow
@pytest.mark.parametrize("options", [LINEAR, DISTILL, {**LINEAR, "quantise_bits": 8}], ids=["fitted", "trained", "quantised"])
def test_an_aligned_middle_is_another_one_and_the_adapter_blocks_are_those_of_the_model(
    tmp_path: Path, options: Mapping[str, object]
) -> None:
    first = merged(owner(tmp_path, rounds=3, emulator=options, realign_steps=4), by=0.3)
    second = went_on(first, round_id=2)
    adapter = first.prepared.plan.adapter
    old, new = (middle_of(bundle_of(at), adapter) for at in (first, second))
    assert equal(second.shipped, seated(first))
    assert any(not np.array_equal(new[name], old[name]) for name in new)
    assert read_bundle(bundle_of(second)).refinement_digest != read_bundle(bundle_of(first)).refinement_digest
    assert read_bundle(bundle_of(second)).plan == first.prepared.plan


@pytest.mark.slow
def test_stand_ins_fitted_again_are_nearer_to_the_model_than_those_fitted_before_it_changed(tmp_path: Path) -> None:
    (tmp_path / "aligned").mkdir()
    (tmp_path / "left").mkdir()
    aligned = merged(owner(tmp_path / "aligned", rounds=2, emulator=LINEAR, realign_steps=1), by=0.5)
    left = merged(owner(tmp_path / "left", rounds=2, emulator=LINEAR), by=0.5)
    after = {name: mismatch(at, bundle_of(went_on(at, round_id=2))) for name, at in (("aligned", aligned), ("left", left))}
    assert after["aligned"] < after["left"]


@pytest.mark.slow
def test_alignment_goes_on_from_round_to_round_and_over_a_restart(tmp_path: Path) -> None:
    second = went_on(merged(owner(tmp_path, rounds=4, emulator=DISTILL, realign_steps=3)), round_id=2)
    second.send(C1, by=0.05)
    assert second.bench.merge([C1]).kept
    again = reopened(second).renew(3)
    assert again is not None
    made = again.bundle.read_bytes()
    renewal = second.bench.renew(3)
    assert renewal is not None
    assert renewal.bundle.read_bytes() == made
    third = middle_of(renewal.bundle, second.prepared.plan.adapter)
    assert any(not np.array_equal(third[n], t) for n, t in middle_of(bundle_of(second), second.prepared.plan.adapter).items())


@pytest.mark.slow
def test_a_middle_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    at = merged(owner(tmp_path, rounds=2, emulator=DISTILL, realign_steps=3))
    for file in (tmp_path / "middles").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match="the middle of emulator"):
        at.bench.renew(2)
