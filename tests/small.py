"""What do the small runs of the system tests have in common? A random model, short windows, and clients near the owner."""

MODEL_AND_TEXTS = """
[model]
source = "random:blocks=6,hidden=32,heads=4,vocab=256,seed=1"
adapter_bottom = 1
adapter_top = 1
[data]
private = "txt:private.txt"
public = "txt:public.txt"
window_tokens = 33
train_windows = 16
test_windows = 8
public_windows = 4
"""
WIDE_GATE = "gate = { norm_max = 10.0, public_loss_increase_max_nats = 5.0 }\n"
"""Lets through what little training of a random model makes of it; belongs to the table ``owner``."""

_PLACES = {"c1": (-60.0, 40.0), "c2": (-80.0, -40.0), "c3": (-50.0, 60.0)}


def clients(*names: str) -> str:
    """Return the clients' entries of a scenario, each at a place of its own."""
    entries = [
        f'[[clients]]\nid = "{name}"\nposition = {{ x_m = {x}, y_m = {y} }}\n' for name in names for x, y in [_PLACES[name]]
    ]
    return "".join(entries)
