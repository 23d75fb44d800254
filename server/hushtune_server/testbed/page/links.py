"""What did the gate decide in each round, who was assigned what, and what did both ears make of it? Tables about one round."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hushtune_server.eavesdropper.proportion import Proportion
from hushtune_server.testbed.page.figures import planned
from hushtune_server.testbed.page.gathering import Json, Material, Round
from hushtune_server.testbed.page.tables import NOTHING, Column, Table, number, pair, shown, table, with_range

_ATTACKS_MAX: Final = 60


def gate(told: Round, *, caption: str = "Link quality and secrecy gate") -> Table:
    """The secrecy gate's decisions with the numbers that decided them."""
    columns = [
        Column(heading="client", cell=lambda c: c["id"], numeric=False),
        Column(heading="decision", cell=lambda c: c.get("gate") or NOTHING, numeric=False),
        Column(heading="owner hears, dB", cell=lambda c: number(c["gate_numbers"].get("snr_main_db"), 1)),
        Column(heading="tap, assumed at most, dB", cell=lambda c: number(c["gate_numbers"].get("snr_tap_bound_db"), 1)),
        Column(heading="tap, true, dB", cell=lambda c: number(told.on_air(c["id"]).get("snr_tap_true_db"), 1)),
        Column(heading="secret bit/symbol", cell=lambda c: number(c["gate_numbers"].get("rate_coded"), 2)),
        Column(heading="Gaussian baseline", cell=lambda c: number(c["gate_numbers"].get("rate_gaussian"), 2)),
        Column(heading="block errors expected", cell=lambda c: shown("adapter_share", c["gate_numbers"].get("block_error_rate"))),
    ]
    bad = frozenset(k for k, c in enumerate(told.clients) if c.get("gate") not in ("granted", None))
    note = (
        "The tap's true SNR is known in a testbed only. The baseline, a difference of Gaussian capacities, is reached by no code."
    )
    return table(caption, columns, told.clients, note=note, bad=bad)


def reasons(told: Round) -> list[tuple[str, str]]:
    """Return by client why the gate decided as it did, in its own words, and why a client is missing."""
    found = [(c["id"], "; ".join(str(w) for w in (c.get("gate_reason"), c.get("missing_because")) if w)) for c in told.clients]
    return [(client, why) for client, why in found if why]


def ears(material: Material, told: Round) -> Table:
    """What the owner (Bob) and the eavesdropper (Eve) made of the same transmissions."""
    entries = [c for c in told.heard if c.get("transmissions")]
    failed = _failed_blocks(material, told.round_id)
    columns = [
        Column(heading="client", cell=lambda c: c["client"], numeric=False),
        Column(
            heading="code hides",
            cell=lambda c: {"crypto_only": "nothing"}.get(c["protection"], c["protection"] or NOTHING),
            numeric=False,
        ),
        Column(heading="Bob: bits wrong", cell=lambda c: {True: "0", False: "some", None: NOTHING}[c["owner_has_every_byte"]]),
        Column(heading="Bob: blocks lost (95 %)", cell=lambda c: failed.get(c["client"], NOTHING)),
        Column(heading="Eve: bit error rate (guessing, 99 %)", cell=_guess),
        Column(heading="bits compared", cell=lambda c: shown("n", (c["tap_bits"] or {}).get("bits_compared"))),
        Column(
            heading="Eve: check sums held", cell=lambda c: NOTHING if c["tap_crc_passes"] is None else str(c["tap_crc_passes"])
        ),
        Column(heading="most bits passed", cell=lambda c: number((c["density"] or {}).get("max_bits"), 0)),
        Column(heading="budget, bits", cell=lambda c: number((c["density"] or {}).get("budget_bits"), 0)),
        Column(
            heading="leakage at most",
            cell=lambda c: NOTHING if c["log2_delta_total"] is None else f"2^{c['log2_delta_total']:.1f}",
        ),
        Column(
            heading="assumption held",
            cell=lambda c: {True: "yes", False: "NO", None: "not known"}[c["tap_assumption_held"]],
            numeric=False,
        ),
    ]
    bad = frozenset(k for k, c in enumerate(entries) if c.get("bound_void") or c["owner_has_every_byte"] is False)
    void = {c["bound_void"]: None for c in entries if c.get("bound_void")}
    caveat = str(material.link.get("caveat", ""))
    note = "; ".join([*([caveat] if caveat else []), *(f"VOID: {why}" for why in void)])
    return table(
        "What Bob (the owner) and Eve made of the same transmissions",
        columns,
        entries,
        note=_sentence(note),
        bad=bad,
        empty=_UNHEARD,
    )


_UNHEARD: Final = (
    "What both ears made of it was not compared: nothing went on air, or the run ended before the referee came to it."
)


def _guess(entry: Json) -> str:
    """Return Eve's bit error rate, and between which rates 99 % of pure guesses lie."""
    bits: Json = entry["tap_bits"] or {}
    low, high = bits.get("guessing_interval_99") or (None, None)
    rate = number(bits.get("bit_error_rate"), 5)
    return rate if low is None else with_range(rate, number(low, 5), number(high, 5))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("." if text and not text.endswith(".") else "")


def _failed_blocks(material: Material, round_id: object) -> Mapping[str, str]:
    """Return by client how many blocks the owner could not decode of how many were sent, and the rates that this speaks for."""
    found: dict[str, dict[object, tuple[int, int]]] = {}
    for line in material.lines:
        if line.event == "reception_decoded" and line.client is not None and line.round_id == round_id:
            blocks, sound = line.record.get("blocks"), line.record.get("blocks_sound")
            if isinstance(blocks, int) and isinstance(sound, int):
                key = (line.record.get("part"), line.record.get("attempt"))
                found.setdefault(line.client, {})[key] = (blocks - sound, blocks)
    return {client: _lost(each.values()) for client, each in found.items()}


def _lost(each: Any) -> str:
    wrong, of = (sum(pair[k] for pair in each) for k in (0, 1))
    if not 0 <= wrong <= of or not of:
        return f"{wrong} of {of}"
    low, high = (f"{100.0 * end:.2g}" for end in Proportion(count=wrong, of=of).interval)
    return with_range(f"{wrong} of {of}", low, f"{high} %")


def allocation(told: Round) -> Table:
    """What each client was assigned, beside an equal share of the same round."""
    equal: Mapping[str, Json] = told.equal_share.get("clients") or {}
    granted = [c for c in told.clients if (c.get("assignment") or {}).get("planned")]

    def both(key: str) -> Callable[[Json], str]:
        def cell(client: Json) -> str:
            other = equal.get(client["id"], {}).get(key)
            return pair(key, planned(client, key), other) if equal else shown(key, planned(client, key))

        return cell

    columns = [
        Column(heading="client", cell=lambda c: c["id"], numeric=False),
        Column(heading="band", cell=both("bandwidth_hz")),
        Column(heading="power", cell=both("power_w")),
        Column(heading="clock", cell=both("clock_flops")),
        Column(heading="share of the update", cell=both("adapter_share")),
        Column(heading="secret rate", cell=both("secrecy_rate_bps")),
        Column(heading="airtime", cell=both("airtime_s")),
        Column(heading="energy", cell=both("energy_j")),
    ]
    note = "In brackets: what an equal share of the same round would have planned. " if equal else ""
    note += "Power, clock and energy are modelled."
    return table("Allocation, as planned", columns, granted, note=note, empty="Nothing was shared out.")


def solution(told: Round) -> str:
    """Say how good the allocation is, by its certificate and beside the equal share."""
    found, equal = told.allocation, told.equal_share
    said = [f"Method {found.get('method', NOTHING)}"]
    if isinstance(found.get("objective"), int | float):
        said.append(f"utility over cost {found['objective']:.4g}")
    if isinstance(equal.get("objective"), int | float):
        said.append(f"an equal share reaches {equal['objective']:.4g}")
    if isinstance(found.get("gap"), int | float):
        said.append(f"at most {100 * found['gap']:.2g} % below the best, by its own certificate")
    if equal.get("problem"):
        said.append(f"an equal share cannot be had: {equal['problem']}")
    return "; ".join([*said, *(str(note) for note in found.get("notes") or ())]) + "."


def attacks(material: Material) -> Table:
    """How well Eve tells two messages of her choice apart, beside controls that must succeed."""
    found = [
        (update, result) for update in _updates(material) for result in (update.get("distinguish") or {}).get("results") or ()
    ]
    columns = [
        Column(heading="update of", cell=lambda e: f"{e[0].get('client')}, round {e[0].get('round_id')}", numeric=False),
        Column(heading="attack", cell=lambda e: str(e[1].get("name")), numeric=False),
        Column(
            heading="on",
            cell=lambda e: "control, must succeed" if e[1].get("control") else "the design in use",
            numeric=False,
        ),
        Column(heading="at", cell=lambda e: number(e[1].get("snr_db"), 1, unit="dB")),
        Column(heading="right answers (95 %)", cell=lambda e: _right(e[1])),
        Column(heading="trials", cell=lambda e: shown("n", e[1].get("trials"))),
        Column(heading="verdict", cell=lambda e: str(e[1].get("verdict")), numeric=False),
    ]
    bad = frozenset(k for k, (_, r) in enumerate(found) if bool(r.get("control")) != (r.get("verdict") == "told apart"))
    more = f" The first {_ATTACKS_MAX} of {len(found)}." if len(found) > _ATTACKS_MAX else ""
    return table(
        "Can Eve tell two messages apart, at the SNR that she is assumed to have at most?",
        columns,
        found[:_ATTACKS_MAX],
        note="Guessing is right in 50 %. An attack that fails says something only where its controls succeed; what secrecy rests "
        f"on is the bound, not these trials.{more}",
        bad=bad,
        empty="Eve had nothing to attack.",
    )


def attacks_in_a_line(material: Material) -> str:
    """Return what came of the attacks, and of their controls."""
    results: list[Json] = [r for update in _updates(material) for r in (update.get("distinguish") or {}).get("results") or ()]
    controls = [r.get("verdict") == "told apart" for r in results if r.get("control")]
    tried = [r.get("verdict") == "told apart" for r in results if not r.get("control")]
    return (
        f"Can Eve tell two messages apart? In {sum(tried)} of {len(tried)} attacks on the designs in use; "
        f"{sum(controls)} of {len(controls)} controls worked, as they must"
    )


def _updates(material: Material) -> Sequence[Json]:
    return (material.report.get("eavesdropper") or {}).get("updates") or ()


def _right(result: Json) -> str:
    rate = result.get("accuracy")
    if not isinstance(rate, int | float):
        return NOTHING
    low, high = result.get("interval_95") or (None, None)
    said = f"{100.0 * rate:.1f} %"
    return said if low is None or high is None else with_range(said, f"{100.0 * low:.1f}", f"{100.0 * high:.1f}")
