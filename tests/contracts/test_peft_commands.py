"""Do the commands do what they say, print what was lost, and refuse by naming the option?"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hushtune_client.cli import main as client
from hushtune_common.adapter import AdapterState, load_adapter, save_adapter
from hushtune_common.errors import ConfigError
from hushtune_common.model.bundle import Bundle
from hushtune_common.model.sources import ModelSource
from hushtune_server.cli import main as hushtune
from tests.models import model_directory
from tests.own_lora import (
    OUTDATED,
    assert_same,
    changed,
    emulator,
    loaded,
    logits,
    plain,
    plugged,
    source_of,
    with_lora,
)

pytestmark = pytest.mark.filterwarnings(OUTDATED)
SPEC = "random:family=llama,blocks=6,hidden=16,heads=2,seed=3"
Run = Callable[..., int]


@pytest.fixture
def parts(tmp_path: Path) -> tuple[ModelSource, Bundle, AdapterState]:
    """A model, its emulator, and adapter blocks that came back, all of them as files as well."""
    source = source_of()
    _, bundle = emulator(tmp_path, source)
    state = changed(bundle)
    save_adapter(tmp_path / "returned.safetensors", state)
    (tmp_path / "plan.json").write_text(bundle.plan.to_readable_json())
    model_directory(tmp_path / "base", source=source)
    return source, bundle, state


@pytest.fixture
def export(tmp_path: Path) -> Run:
    def run(*options: str, adapter: str = "returned.safetensors", model: str = SPEC, out: str = "out") -> int:
        files = ["--adapter", str(tmp_path / adapter), "--model", model, "--out", str(tmp_path / out)]
        return hushtune(["peft", "export", *files, *options, "--cache", str(tmp_path / "cache")])

    return run


def test_a_client_trains_elsewhere_and_the_owner_serves_it_elsewhere(
    parts: tuple[ModelSource, Bundle, AdapterState], export: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, bundle, _ = parts
    path, short, lora = (str(tmp_path / name) for name in ("emulator.safetensors", "short", "lora"))
    assert client(["export-emulator", path, "--out", short]) == 0
    assert "layers_to_transform=[0, 4]" in capsys.readouterr().out
    with_lora(plain(Path(short)), target_modules=["up_proj"], layers_to_transform=[0, 4]).save_pretrained(lora)
    assert client(["import-adapter", lora, "--bundle", path, "--out", str(tmp_path / "own.safetensors")]) == 0
    assert "2 matrices with factors of rank 3 to 3" in capsys.readouterr().out
    assert export("--bundle", path, adapter="own.safetensors", model=f"dir:{tmp_path / 'base'}") == 0
    state = load_adapter(tmp_path / "own.safetensors", bundle.schema)
    assert_same(logits(loaded(plain(tmp_path / "base"), tmp_path / "out")), plugged(source, state))


def test_an_export_says_of_every_matrix_what_it_lost_and_of_all_together(
    parts: tuple[ModelSource, Bundle, AdapterState], export: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--plan", str(tmp_path / "plan.json"), "--rank", "1") == 0
    shown = capsys.readouterr().out
    assert shown.count("rank 1 of ") == 14
    assert "14 with factors of rank 1 to 1" in shown
    (total,) = [line for line in shown.splitlines() if line.startswith("residual ")]
    assert 0.01 < float(total.split()[1]) < 0.5


def test_what_factors_do_not_pay_for_becomes_a_patch_which_is_applied_to_the_model(
    parts: tuple[ModelSource, Bundle, AdapterState], export: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, bundle, _ = parts
    state = changed(bundle, rank=16)
    save_adapter(tmp_path / "full.safetensors", state)
    assert export(adapter="full.safetensors") == 0
    assert "a patch" in capsys.readouterr().out
    patch, out = str(tmp_path / "out" / "patch.safetensors"), tmp_path / "applied"
    assert hushtune(["peft", "apply", patch, "--model", SPEC, "--out", str(out)]) == 0
    assert torch.equal(logits(plain(out)), plugged(source, state))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rank", "2", "--energy", "0.9"], "--rank: and --energy"),
        (["--rank", "0"], "--rank: is at least 1"),
        (["--energy", "1.5"], "--energy: is a share"),
        (["--patch", "--rank", "2"], "--patch: leaves nothing out"),
        (["--plan", "PLAN", "--bundle", "PLAN"], "--plan: and --bundle"),
        (["--plan", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(
    options: list[str],
    says: str,
    parts: tuple[ModelSource, Bundle, AdapterState],
    export: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export(*[str(tmp_path / "plan.json") if o == "PLAN" else o for o in options]) == ConfigError.exit_code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_blocks_that_the_plan_does_not_train_are_refused_by_the_tensors_name(
    parts: tuple[ModelSource, Bundle, AdapterState], export: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, state = parts
    strange = "model.layers.2.input_layernorm.weight"
    save_adapter(tmp_path / "strange.safetensors", AdapterState({**state.tensors, strange: source.tensor(strange)}))
    assert export("--plan", str(tmp_path / "plan.json"), adapter="strange.safetensors") == ConfigError.exit_code
    assert f"{strange}: is not of the blocks that are trained, which are 0,5" in capsys.readouterr().err


def test_another_model_than_the_plans_is_refused(
    parts: tuple[ModelSource, Bundle, AdapterState], export: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SPEC.replace("seed=3", "seed=4")
    assert export("--plan", str(tmp_path / "plan.json"), model=other) == ConfigError.exit_code
    assert "--model: is " in capsys.readouterr().err


def test_norms_alone_become_a_patch_whatever_is_asked_of_factors(
    parts: tuple[ModelSource, Bundle, AdapterState], export: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(tmp_path / "norms.safetensors", changed(parts[1], only="layernorm"))
    assert export("--rank", "2", adapter="norms.safetensors") == 0
    assert "no matrix changed" in capsys.readouterr().out
    assert (tmp_path / "out" / "patch.safetensors").is_file()


def test_a_folder_that_holds_a_model_is_not_written_over(
    parts: tuple[ModelSource, Bundle, AdapterState], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "base" / "config.json").read_bytes()
    assert client(["export-emulator", str(tmp_path / "emulator.safetensors"), "--out", str(tmp_path / "base")]) == 3
    assert "holds a model already" in capsys.readouterr().err
    assert (tmp_path / "base" / "config.json").read_bytes() == before


def test_a_file_that_is_no_patch_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a patch")
    assert hushtune(["peft", "apply", str(tmp_path / "x.safetensors"), "--model", SPEC, "--out", str(tmp_path)]) == 3
    assert "x.safetensors: cannot be read" in capsys.readouterr().err


def test_a_client_is_asked_how_blocks_are_counted(
    parts: tuple[ModelSource, Bundle, AdapterState], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_lora(plain(tmp_path / "base"), target_modules=["up_proj"], layers_to_transform=[0, 5])
    model.save_pretrained(tmp_path / "lora")
    asked = ["import-adapter", str(tmp_path / "lora"), "--bundle", str(tmp_path / "emulator.safetensors")]
    asked += ["--out", str(tmp_path / "own.safetensors")]
    assert client(asked) == ConfigError.exit_code
    assert "--indices: say `short`" in capsys.readouterr().err
    assert client([*asked, "--indices", "original"]) == 0
    assert "blocks counted as original (--indices says so)" in capsys.readouterr().out


def test_an_emulator_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert client(["export-emulator", str(tmp_path / "none"), "--out", str(tmp_path / "short")]) == ConfigError.exit_code
    assert f"{tmp_path / 'none'}: cannot be read" in capsys.readouterr().err
