"""Which run do the faults happen to? A small one, with short timeouts, that any machine can play in seconds."""

from itertools import product
from pathlib import Path

from hushtune_common import config
from hushtune_common.config import Scenario, TimingConfig

CLIENTS = ("c1", "c2", "c3", "c4")
TIMING = TimingConfig(connect_s=10.0, idle_s=8.0, round_s=120.0)
"""Shortened, so that what is noticed after ``idle_s`` is noticed in seconds; a deployment has 30 s there."""
PATIENT_IDLE_S = 20.0
"""Where processes are killed and started again: a loaded machine takes seconds for that, and who is back later lost its place."""

_TEXT = """
name = "chaos"
seed = 5
[model]
source = "random:blocks=6,hidden=384,heads=6,vocab=256,seed=1"
adapter_bottom = 1
adapter_top = 1
[data]
private = "txt:private.txt"
public = "txt:public.txt"
window_tokens = 33
train_windows = 8
test_windows = 8
public_windows = 4
[owner]
emulator = { method = "uniform", drop = 2 }
gate = { norm_max = 10.0, public_loss_increase_max_nats = 5.0 }
[training]
learning_rate = 1e-3
batch_windows = 4
epochs = 8
[codec]
bits = 8
[air]
fidelity = "abstract"
shadowing_db = 0.0
[coordinator]
allocator = { clock_share = 1.0 }
stragglers = { kind = "quorum", share = 0.25, wait_after_s = 60.0 }
"""
_PLACES = {"c1": (-60.0, 40.0), "c2": (-80.0, -40.0), "c3": (-50.0, 60.0), "c4": (-70.0, 10.0)}
_WHO = ("the river", "my brother", "a small dog", "our teacher", "the captain")
_DOES = ("forgets", "carries", "hides", "paints", "repairs")
_WHAT = ("a green letter", "the last train", "some warm bread", "an empty boat")


def write_small(folder: Path, *, clients: int, rounds: int = 1, idle_s: float = TIMING.idle_s) -> tuple[Path, Scenario]:
    """Write the scenario and its texts into ``folder``, made when missing; return the file and what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{who} {does} {what} before the evening comes" for who, does, what in product(_WHO, _DOES, _WHAT)]
    (folder / "private.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "public.txt").write_text("\n".join(line.replace("the", "any") for line in lines[::5]) + "\n", encoding="utf-8")
    file = folder / "chaos.toml"
    file.write_text(_TEXT + f"rounds = {rounds}\n" + _timing(idle_s) + "".join(map(_client, CLIENTS[:clients])), encoding="utf-8")
    return file, config.load(file)


def _timing(idle_s: float) -> str:
    return f"[timing]\nconnect_s = {TIMING.connect_s}\nidle_s = {idle_s}\nround_s = {TIMING.round_s}\n"


def _client(name: str) -> str:
    x_m, y_m = _PLACES[name]
    return f'[[clients]]\nid = "{name}"\nposition = {{ x_m = {x_m}, y_m = {y_m} }}\n'
