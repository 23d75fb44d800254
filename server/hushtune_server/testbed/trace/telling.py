"""How is each step of an adapter's way told? A title, and its numbers in words."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.logbook.lines import Line

TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gate_decided": "secrecy gate",
        "gate_refused": "told to send nothing",
        "assignment_received": "assignment",
        "training_finished": "trained",
        "adapter_imported": "brought along",
        "update_encoded": "encoded",
        "update_sealed": "sealed",
        "frame_encoded": "frame coded",
        "frame_reused": "frame found again",
        "transfer_finished": "frame uploaded",
        "frame_carried": "on air",
        "frame_transmitted": "answered",
        "reception_streamed": "heard",
        "reception_decoded": "decoded",
        "reception_failed": "not heard",
        "reception_gone": "gone",
        "reception_attacked": "attacked",
        "reception_unreadable": "unreadable to the tap",
        "abstraction_contradicted": "tables contradicted",
        "update_received": "all of it there",
        "adapter_stored": "opened, stored",
        "update_accepted": "accepted",
        "update_refused": "refused",
        "update_left_out": "left out",
        "plugin_evaluated": "tried in the model",
        "adapters_averaged": "averaged",
        "plugin_kept": "kept",
        "plugin_rolled_back": "rolled back",
        "round_completed": "client through",
        "round_closed": "round closed",
        "round_failed": "failed",
        "round_missed": "too late",
        "verdict_received": "verdict heard",
        "verdict_missed": "verdict missed",
        "privacy_spent": "privacy spent",
    }
)
"""The events that a story has, by what they are called in it."""


class _Words:
    """The fields of a line, each as a person reads it."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def __getitem__(self, name: str) -> str:
        return readable.value(name, self._line.record.get(name))


_Teller = Callable[[_Words], str]
_TELLERS: Final[Mapping[str, _Teller]] = {
    "gate_decided": lambda w: (
        f"{w['decision']}: owner hears {w['snr_main_db']}, tap assumed at most {w['snr_tap_bound_db']}; {w['rate_coded']} secret "
        f"bit per symbol (Gaussian capacities differ by {w['rate_gaussian']})"
    ),
    "assignment_received": lambda w: (
        f"{w['adapter_share']} of full size, {w['bandwidth_hz']}, {w['power_w']}, {w['clock_flops']}, "
        f"secret {w['secrecy_rate_bps']}"
    ),
    "training_finished": lambda w: (
        f"{w['steps']} steps, {w['tokens']} tokens, loss {w['loss_first']} to {w['loss_last']}, {w['energy_j']} (modelled)"
    ),
    "update_encoded": lambda w: (
        f"{w['bytes_raw']} to {w['bytes_encoded']} of {w['budget_bytes']} granted, {w['bits_per_weight']} per weight; "
        f"trained file {w['digest_trained']}"
    ),
    "update_sealed": lambda w: f"{w['bytes_sealed']}, digest {w['digest']}; the code hides: {w['protection']}",
    "frame_encoded": lambda w: f"attempt {w['attempt']} ({w['part']}): {w['blocks']} hash blocks, {w['bytes_frame']}",
    "frame_reused": lambda w: f"attempt {w['attempt']} ({w['part']}): {w['blocks']} hash blocks, {w['bytes_frame']}",
    "transfer_finished": lambda w: f"{w['bytes_total']} to the air's process",
    "frame_carried": lambda w: f"attempt {w['attempt']} ({w['part']}): {w['blocks']} blocks, {w['fidelity']} (airtime modelled)",
    "frame_transmitted": lambda w: f"attempt {w['attempt']}: {w['missing']} blocks to repeat, {w['energy_j']} (modelled)",
    "reception_streamed": lambda w: (
        f"attempt {w['attempt']} by {w['listener']}: {w['blocks']} blocks as {w['bytes_total']} soft values"
    ),
    "reception_decoded": lambda w: (
        f"attempt {w['attempt']}: {w['blocks_sound']} of {w['blocks']} blocks sound, {w['iterations_mean']} iterations"
    ),
    "reception_attacked": lambda w: (
        f"attempt {w['attempt']}: got {w['blocks_heard']} of {w['blocks']} blocks, {w['crc_passes']} check sums held; at "
        f"{w['snr_mean_db']}, assumed at most {w['snr_bound_db']} (assumption held: {w['valid']})"
    ),
    "update_received": lambda w: f"{w['bytes_sealed']} after {w['attempts']} transmissions, digest {w['digest']}",
    "adapter_stored": lambda w: f"version {w['version']}, {w['bytes_adapter']}",
    "update_accepted": lambda w: f"digest {w['digest']}",
    "plugin_evaluated": lambda w: (
        f"public perplexity {w['perplexity_public_before']} to {w['perplexity_public']}, kept: {w['kept']}"
    ),
    "adapters_averaged": lambda w: f"of {w['clients']}: {w['version']}",
    "plugin_kept": lambda w: f"the model holds the mean of {w['clients']}",
    "round_completed": lambda w: (
        f"sent {w['bytes_uploaded']} for {w['bytes_raw']}, {w['airtime_s']} on air, {w['energy_j']} in all (modelled)"
    ),
    "round_closed": lambda w: f"accepted {w['accepted']}; missing {w['missing']}",
    "verdict_received": lambda w: f"accepted: {w['accepted']}, kept: {w['kept']}, perplexity with it {w['score']}",
}
_ABOUT: Final = frozenset({"time", "level", "event", "role", "name", "client", "round_id", "exception"})


def tell(line: Line) -> str:
    """Return the numbers of a step in words; of one that has none of its own, its fields."""
    teller = _TELLERS.get(line.event)
    if teller is not None:
        return teller(_Words(line))
    return ", ".join(f"{readable.label(n)} {readable.value(n, v)}" for n, v in line.record.items() if n not in _ABOUT)
