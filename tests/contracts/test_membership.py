"""Does the membership attack find what was learnt by heart, nothing where nothing was learnt, and less where it was hidden?"""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hushtune_client.private import own_records
from hushtune_client.private import own_windows as clients_own
from hushtune_common.adapter import save_adapter
from hushtune_common.config import DpConfig, Scenario, TrainingConfig, parse
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import read_bundle
from hushtune_common.model.finetune import finetune
from hushtune_common.model.governor import Unpaced
from hushtune_common.model.language import EXACT, LanguageModel
from hushtune_common.seeding import SeedTree
from hushtune_server.testbed import rundir
from hushtune_server.testbed.membership import attack
from hushtune_server.testbed.membership.attack import CONTROLS, area, guessed, hit_share, membership, scores
from hushtune_server.testbed.membership.commands import attacked, own_windows
from tests.fakes import FakeClock
from tests.models import SPEC, some_windows, tiny_bundle, tiny_source

MEMBERS, OTHERS = some_windows(40, seed=11), some_windows(40, seed=12)


def tuned(folder: Path, *, epochs: int, dp: DpConfig | None = None) -> LanguageModel:
    """Return the full model with adapter blocks that were trained on the members in an emulator."""
    path = tiny_bundle(folder, 2)
    state = finetune(
        path,
        MEMBERS,
        config=TrainingConfig(learning_rate=5e-3, batch_windows=40 if dp else 8, epochs=epochs, dp=dp),
        compute=EXACT,
        seeds=SeedTree(1),
        governor=Unpaced(clock=FakeClock()),
        report=lambda _: None,
        noise=SeedTree(2).generator(),
    )
    model = tiny_source().load()
    model.set_adapter(state.tensors)
    return model


def attack_on(model: LanguageModel) -> attack.MembershipReport:
    return membership(model, tiny_source().load(), members=MEMBERS, nonmembers=OTHERS, seeds=SeedTree(3))


@pytest.mark.slow
def test_windows_learnt_by_heart_are_found(tmp_path: Path) -> None:
    report = attack_on(tuned(tmp_path, epochs=20))
    for score in ("loss against base", "min-k against base"):
        guess = report.guess(score)
        assert guess.auc > 0.95
        assert guess.tells
        assert guess.hits > 0.5
    assert not any(report.guess(control).tells for control in CONTROLS)


def test_an_untrained_adapter_tells_nothing() -> None:
    report = attack_on(tiny_source().load())
    assert report.guess("loss against base").auc == 0.5
    for guess in report.guesses:
        assert guess.auc_low <= 0.5 <= guess.auc_high
    assert (report.members, report.nonmembers) == (40, 40)


@pytest.mark.slow
def test_differential_privacy_hides_what_plain_training_shows(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    plain = attack_on(tuned(tmp_path, epochs=8)).guess("loss against base")
    private = attack_on(tuned(tmp_path, epochs=20, dp=DpConfig(epsilon=1.0))).guess("loss against base")
    assert plain.auc_low > private.auc_high + 0.1
    assert private.auc_low < 0.5


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_the_area_is_that_of_the_curve(member: list[int], other: list[int]) -> None:
    labels = [1] * len(member) + [0] * len(other)
    expected = float(roc_auc_score(labels, np.array([*member, *other], dtype=float)))
    assert area(np.array(member, dtype=float), np.array(other, dtype=float)) == pytest.approx(expected)


def test_at_most_one_of_a_hundred_others_passes_the_threshold() -> None:
    others = np.arange(100.0)
    assert hit_share(np.array([97.5, 98.5, 99.5, 200.0]), others) == 0.75  # 99 alone passes 98
    assert hit_share(np.array([97.5, 98.5, 99.5, 200.0]), others[:99]) == 0.75  # fewer than 100: none may pass
    assert hit_share(np.array([50.0]), others) == 0.0


@pytest.mark.slow
def test_the_interval_of_the_area_covers_as_often_as_it_says() -> None:
    # Members shifted by one deviation: the area is the normal distribution at 1 / sqrt 2, about 0.7602.
    covered = 0
    for trial in range(60):
        rng = SeedTree(trial).generator()
        member, other = 1.0 + rng.standard_normal(30), rng.standard_normal(30)
        guess = guessed("any", member, other, seeds=SeedTree(trial))
        covered += guess.auc_low <= 0.7602 <= guess.auc_high
    assert covered >= 50  # 57 expected; fewer than 50 has a chance of 1 in 1,000


def test_scores_are_losses_turned_round_and_calibrated_by_the_base() -> None:
    tuned_losses, base = np.array([[1.0, 2, 3, 4, 10]]), np.array([[2.0, 2, 2, 2, 22]])
    found = {name: float(value[0]) for name, value in scores(tuned_losses, base).items()}
    assert found == {
        "loss against base": 2.0,
        "min-k against base": 12.0,
        "loss": -4.0,
        "min-k": -10.0,
        CONTROLS[0]: -6.0,
        CONTROLS[1]: -22.0,
    }


def scenario_of(folder: Path) -> Scenario:
    (folder / "all.txt").write_text("\n".join(f"{k} {k * k} {k**3}" for k in range(400)), encoding="utf-8")
    data = {
        "private": f"txt:{folder / 'all.txt'}",
        "public": "txt:p.txt",
        "window_tokens": 17,
        "train_windows": 8,
        "test_windows": 6,
    }
    clients = [{"id": f"c{k}", "position": {"x_m": 10.0 * k, "y_m": 0.0}} for k in (1, 2)]
    return parse({"name": "asked", "seed": 5, "model": {"source": SPEC}, "data": data, "clients": clients})


@pytest.mark.slow
def test_each_clients_adapter_is_asked_about_its_own_windows(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path)
    bundle = tiny_bundle(tmp_path, 2)
    theirs = own_windows(scenario, bundle=bundle)
    for client, windows in theirs.items():
        records = own_records(scenario, client_id=client, sources=(), seeds=SeedTree(5))
        assert np.array_equal(windows, clients_own(records, tokens=read_bundle(bundle).tokens, scenario=scenario))
    run = rundir.create(tmp_path / "runs", scenario, now=datetime(2026, 1, 2, tzinfo=UTC))
    with pytest.raises(ConfigError, match="--keep-state"):
        next(attacked(run, scenario, cache=tmp_path))
    adapters = run.state("owner") / "adapters"
    adapters.mkdir(parents=True)
    rundir.write_json(run.state("owner") / "owner.json", {"bundle": str(bundle)})
    state = finetune(
        bundle,
        theirs["c1"],
        config=TrainingConfig(learning_rate=5e-3, batch_windows=4, epochs=10),
        compute=EXACT,
        seeds=SeedTree(1),
        governor=Unpaced(clock=FakeClock()),
        report=lambda _: None,
    )
    for name in ("c1", "c2"):  # the blocks of c1 stand in for those of c2, who never trained
        save_adapter(adapters / f"{name}.safetensors", state)
    found = dict(attacked(run, scenario, cache=tmp_path))
    assert {n: (r.members, r.nonmembers) for n, r in found.items()} == {"c1": (8, 6), "c2": (8, 6)}
    assert found["c1"].guess("loss against base").auc > found["c2"].guess("loss against base").auc + 0.1
