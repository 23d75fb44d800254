"""What is claimed about secrecy and privacy, what does each claim rest on, and what does everybody still learn?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from scipy.special import ndtr

from hushtune_server.testbed.logbook import readable
from hushtune_server.testbed.page.gathering import Json, Material

HOLDS: Final = "holds"
VOID: Final = "void"
OPEN: Final = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim: whether it ``stands`` in this run (holds, void, open: nothing is claimed), and what it rests on."""

    title: str
    stands: str
    says: str
    rests_on: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learns:
    """What one party still learns."""

    who: str
    what: str


def claims(material: Material) -> list[Claim]:
    """Return the claims of a run, the wiretap code's first."""
    sums = [_sums(material)] if _adds(material) else []
    noise = [_noise(material)] if isinstance(material.setting("codec", "noise"), dict) else []
    return [_wiretap(material), _seal(material), *sums, _privacy(material), *noise, _model(material)]


def _wiretap(material: Material) -> Claim:
    every = material.coded
    coded = [c for c in every if c["round_id"] == material.link.get("round_id")] or every
    void = [f"{_named(c, material)}: {c['bound_void']}" for c in every if c.get("bound_void")][:_NAMED_MAX]
    if not material.link and (told := (material.report.get("eavesdropper") or {}).get("summary")):
        said = f"The run ended before anybody compared both sides, so nothing is claimed here. Eve's own record says: {told}."
        return Claim(title="The wiretap code", stands=OPEN, says=said, rests_on=())
    if not coded:
        said = "Nothing went over the wiretap code, or the run did not get that far: nothing is claimed of it."
        return Claim(title="The wiretap code", stands=OPEN, says=said, rests_on=())
    worst = max(float(c["log2_delta_total"]) for c in every)
    over = max(float(c.get("log2_delta_all_rounds") or c["log2_delta_total"]) for c in every)
    said = (
        f"What Eve hears changes what she knows of any one update by at most 2^{worst:.1f} in total variation, repeats included"
        + (f"; over all rounds of this run by at most 2^{over:.1f} per client." if material.link.get("rounds", 1) > 1 else ".")
    )
    if void:
        said = f"VOID in this run. {'; '.join(void)}. {said}"
    return Claim(title="The wiretap code", stands=VOID if void else HOLDS, says=said, rests_on=_wiretap_rests(material, coded))


def _wiretap_rests(material: Material, coded: Sequence[Json]) -> tuple[str, ...]:
    bounds = "; ".join(_tap_of(c) for c in coded[:_NAMED_MAX]) + (
        f"; and {len(coded) - _NAMED_MAX} more" if len(coded) > _NAMED_MAX else ""
    )
    margin, delta = material.setting("secrecy", "tap_margin_db"), material.setting("secrecy", "log2_delta")
    randomness = material.link.get("randomness", "not said")
    blocks = ", ".join(f"{c['blocks_sent']} of {c['client']}" for c in coded[:_NAMED_MAX] if c.get("blocks_sent"))
    return (
        f"Eve's SNR stays at or below the bound of the design ({bounds}): {_db(margin)} above the path gain at her place in "
        f"the scenario, an assumption, not a measurement.{_exceeded(material)}",
        "In a testbed her true SNR is known, and is shown beside it." + _judged(material),
        f"Each hash block leaks at most 2^{'?' if delta is None else delta} (delta); blocks and repeats add up"
        + (f" ({blocks} went on air)." if blocks else "."),
        "Eve stands where the scenario says or farther away, is passive, has one antenna, and works with nobody.",
        f"Random bits, hash seeds and dither come from: {randomness}.",
        "The bound follows published lines, is not peer reviewed, and holds on average over the public hash seed.",
        str(material.link.get("claim") or f"Fidelity {material.report.get('fidelity')}") + ".",
    )


def _judged(material: Material) -> str:
    """Say of which rounds that was looked at, where it was not of all."""
    rounds, judged = material.link.get("rounds", 1), 1 + len(material.link.get("earlier") or ())
    return f" Of this run's {rounds} rounds the latest {judged} were judged so." if judged < rounds else ""


def _named(entry: Json, material: Material) -> str:
    """Return whose update an entry is about, with its round where there are several."""
    return f"{entry['client']}, round {entry['round_id']}" if material.link.get("rounds", 1) > 1 else str(entry["client"])


def _exceeded(material: Material) -> str:
    """Say how likely the scenario's own shadowing exceeds the margin, where that is all that varies."""
    margin, deviation = material.setting("secrecy", "tap_margin_db"), material.setting("air", "shadowing_db")
    if not isinstance(margin, int | float) or not isinstance(deviation, int | float) or deviation <= 0.0:
        return ""
    beyond = float(ndtr(-margin / deviation))
    return (
        f" The scenario's shadowing (standard deviation {deviation:g} dB) exceeds the margin with a probability of "
        f"{readable.number(beyond, 'share of 1')} for each client; where it does, no bound holds."
    )


_NAMED_MAX: Final = 8


def _tap_of(entry: Json) -> str:
    design: Json = entry.get("design") or {}
    true_db, bound = entry.get("snr_tap_true_db"), design.get("snr_tap_design_db")
    return f"{entry['client']}: at most {_db(bound)}, true {_db(true_db)}"


def _db(value: Any) -> str:
    return f"{value:.1f} dB" if isinstance(value, int | float) else "not known"


def _seal(material: Material) -> Claim:
    return Claim(
        title="The seal",
        stands=HOLDS,
        says="Every update is encrypted to the owner's key, whatever the air carries and whoever hears it.",
        rests_on=(
            "X25519 or ML-KEM-768 is secure (either suffices), and so are HKDF-SHA256 and AES-256-GCM.",
            "The owner's key is authentic: it comes with the manifest over mutual TLS; the authority has issued nothing false.",
            "The devices at both ends are not broken into.",
        ),
    )


def _adds(material: Material) -> bool:
    """Whether the owner of the run only added updates."""
    told = material.setting("owner", "aggregation")
    return isinstance(told, dict) and told.get("kind") == "secure"


def _sums(material: Material) -> Claim:
    told: Json = material.report.get("aggregation") or {}
    title, lost = "Secure aggregation", " ".join(str(line) for line in told.get("checks_lost") or ())
    if not told.get("unseen"):
        said = "Not every round came to a sum; where none did, nothing was opened, and nothing is in the model."
        return Claim(title=title, stands=OPEN, says=said, rests_on=())
    colluders = told.get("colluders_withstood")
    return Claim(
        title=title,
        stands=HOLDS,
        says=f"The owner saw the sum of the updates of each round and none of them. What that took from it: {lost}",
        rests_on=(
            f"At most {colluders} clients work with coordinator and owner, which may both lie.",
            "X25519, SHAKE256, AES-256 and Shamir's sharing; a recording of the keys falls to a quantum computer.",
            "Certificates are of the clients that they name.",
            "A sum of few says much about each; sums of rounds with other members can be subtracted.",
        ),
    )


def _privacy(material: Material) -> Claim:
    dp = material.setting("training", "dp")
    title = "Privacy of a client's text towards the owner"
    if not isinstance(dp, dict):
        seen = "the sum of the updates" if _adds(material) else "each client's adapter in the clear"
        said = f"None is claimed: the owner sees {seen}; nothing in training bounds what it may learn from that."
        return Claim(title=title, stands=OPEN, says=said, rests_on=("training.dp in the scenario would bound it.",))
    window = material.setting("data", "window_tokens")
    return Claim(
        title=title,
        stands=HOLDS,
        says=f"Epsilon at most {dp.get('epsilon')} at delta {dp.get('delta')} for adding or removing {window} tokens of text.",
        rests_on=(
            f"DP-SGD: each window's gradient is clipped at norm {dp.get('clip_norm')}; noise is from the operating system.",
            "Spending is found by a PRV accountant over all rounds.",
            *_told_by_clients(material, "privacy"),
            "A person with several windows, the number of windows and the time of training are not covered.",
        ),
    )


def _told_by_clients(material: Material, key: str) -> list[str]:
    """Return what each client's own accountant said, as far as there is room."""
    return [f"{c['id']} says: {c[key]}." for c in material.clients[:_NAMED_MAX] if c.get(key)]


def _noise(material: Material) -> Claim:
    """What the noise promises that clients add to their own updates."""
    noise: Json = material.setting("codec", "noise")
    return Claim(
        title="Noise in every update",
        stands=HOLDS,
        says=f"Local differential privacy with epsilon {noise.get('epsilon')} for each block of {noise.get('block')} numbers of "
        "one update, against whoever has all its bytes, the owner included.",
        rests_on=(
            f"Changes of a block are clipped at {noise.get('clip')} in sum of magnitudes, a number set without looking at data.",
            "Noise comes from the operating system, and an update is encoded once.",
            *_told_by_clients(material, "noise"),
            "Epsilons of all blocks and rounds add up; for a whole update the sum is large and says nothing about it as a whole.",
        ),
    )


def _model(material: Material) -> Claim:
    shown = next((line.record for line in reversed(material.lines) if line.event == "exposure_measured"), {})
    share = shown.get("share")
    said = (
        "What clients are shown of the model was not measured."
        if share is None
        else f"Clients are shown {readable.number(float(share), 'share of 1')} of the model's weights, "
        f"{readable.number(float(shown.get('verbatim_share', 0.0)), 'share of 1')} word for word; the rest is hidden."
    )
    return Claim(
        title="The owner's model",
        stands=OPEN,
        says=said,
        rests_on=("Nothing bounds what clients can make of the part that they hold: it is measured, not proved.",),
    )


def learns(material: Material) -> list[Learns]:
    """Return what each party still learns, although all goes as it should."""
    marked = " Each copy of the emulator carries a mark of who got it." if material.setting("owner", "fingerprint") else ""
    told = [(who, _OF_A_SUM if who == "Owner" and _adds(material) else what) for who, what in _LEARNS]
    return [Learns(who=who, what=what + (marked if who == "Owner" else "")) for who, what in told]


_OF_A_SUM: Final = (
    "the sum of the updates of each round and of their weights, hence whatever can be inferred from that; who took part and when."
)


_LEARNS: Final = (
    (
        "Owner",
        "every client's adapter in the clear, hence whatever can be inferred from it about the text; who took part and when.",
    ),
    (
        "Coordinator",
        "each device's channel gains, power, clock, energy and number of text windows; sizes, times and outcomes. No weights, "
        "no keys, no scores.",
    ),
    ("Air", "who sends when, how much, with which power; what it carries is sealed."),
    ("Eavesdropper", "who sends when and how much, the scenario without its seed, and every public parameter of the codes."),
    (
        "Each client",
        "the emulator: embeddings, head, adapter blocks and the kept blocks; from round to round the average of all adapters.",
    ),
)
