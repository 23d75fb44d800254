"""What do the numbers of a run say in words: captions, and findings counted from the rows."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hushtune_server.testbed.experiments.contenders import OPTIMUM, ORACLE, START_SHARE, Contender
from hushtune_server.testbed.experiments.mobihoc24 import Plan
from hushtune_server.testbed.experiments.problems import SWEEPS, Sweep

Lines = Sequence[Mapping[str, Any]]
_SINGLE: Final = ("resources_only", "shares_only")
_ROUNDING: Final = 2e-5
"""Relative; the files keep six digits."""
_SETTING: Final = """\
The published text gives the structure: an offsite-tuning uplink over FDMA with an eavesdropper, the ratio of utility to weighted
delay and energy, and the alternation of {share, y} with {bands, powers, clocks, time} by Dinkelbach, fractional programming and
successive convex approximation. **Reconstructed in every figure**: utilities u = q ln(1 + alpha phi), training work
c (s0 + (1 - s0) phi) with s0 = 0.3, uploads and plug-ins in proportion to phi, all constants (drawn per client: 32 to 160 Mbit,
10 to 60 TFLOP of training, 20 to 100 TFLOP of plugging in, 1 to 5 TFLOP/s), the cell (radius 0.5 km, path loss
128.1 + 37.6 log10 d dB, 8 dB shadowing, -174 dBm/Hz) and the eavesdropper's place in it. Cost S = T/s + 0.01 E/J unless said.
The secrecy rate is the Gaussian formula, which no finite code reaches. Absolute values are therefore not the paper's; signs and
order can be compared.

Clients that the eavesdropper hears better than the owner are drawn again, so that everyone takes part. All methods answer the
same problems. Nothing here is a time measurement: runs are reproducible to the digits shown.
"""


def readme(*, plan: Plan, command: str, methods: Sequence[Contender], tables: Mapping[str, Lines]) -> str:
    """Return the whole document; ``tables`` holds the lines of every experiment by name."""
    sweeps = [line for sweep in SWEEPS for line in tables[sweep.name]]
    parts = [
        "# The experiments of arXiv 2407.00347, rebuilt",
        f"Made by `{command}`; every CSV file and figure here, and this text, comes from that one command.",
        _SETTING,
        _methods(methods, plan),
        "## Findings",
        _quality(methods, sweeps),
        _order(sweeps),
        _ends(tables["convergence"]),
        _signs(tables),
        _price_signs(tables["prices"]),
        "## Figures",
        *(_sweep_caption(sweep, plan, command) for sweep in SWEEPS),
        _study_captions(plan, command),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _methods(methods: Sequence[Contender], plan: Plan) -> str:
    head = (
        f"## Methods\n\nThe average allocation gives equal bands, top power, 0.7 of the top clock, an equal part of the owner's "
        f"machine and the share {START_SHARE:g}; the alternation and both single blocks start there.\n\n| method | what it does |"
    )
    rows = [f"| `{m.name}` | {m.says} |" for m in methods]
    tail = (
        f"\nEvery method runs on {plan.seeds} seeds with {plan.clients} clients, the slow `{ORACLE}` on the first "
        f"{plan.oracle_seeds} only: it is in the CSV files and not in the figures, where it would lie under `{OPTIMUM}`."
    )
    return "\n".join([head, "|---|---|", *rows, tail])


def _quality(methods: Sequence[Contender], lines: Lines) -> str:
    worst_gap = max(line["gap"] for line in lines if line["gap"] is not None)
    head = (
        f"U/S relative to `{OPTIMUM}` on the same problem, over all points of all sweeps. Its own dual bound is never more than "
        f"{worst_gap:.1g} above it, relatively, so it is the optimum to that accuracy.\n\n"
        "| method | mean | median | worst | problems | no answer |\n|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(_quality_row(m.name, lines) for m in methods)])


def _quality_row(name: str, lines: Lines) -> str:
    mine = [line for line in lines if line["method"] == name]
    found = np.array([line["relative_to_optimum"] for line in mine if line["relative_to_optimum"] is not None])
    digits = 6 if name == ORACLE else 3
    numbers = " | ".join(f"{float(x):.{digits}f}" for x in (found.mean(), np.median(found), found.min()))
    return f"| `{name}` | {numbers} | {len(mine)} | {len(mine) - found.size} |"


def _order(lines: Lines) -> str:
    best = _by_problem(lines)
    claims = [(OPTIMUM, "alternating_free"), ("alternating_free", "alternating_strict")]
    claims += [("alternating_free", single) for single in (*_SINGLE, "computation_only", "communication_only")]
    claims += [(single, "average") for single in _SINGLE]
    rows = [_order_row(better, worse, best) for better, worse in claims]
    return "\n".join(
        [
            "Is the expected order kept? The share of problems in which the left method is at least as good as the right one.",
            "",
            "| expected | kept | where not, the left one loses up to |",
            "|---|---|---|",
            *rows,
            "",
            "The alternation improves block by block from its start and ends where neither block alone helps, which is not an "
            "optimum. It is never below the shares-only answer, its own first block; everything else in this table is an "
            "observation and no law. `computation_only` chooses shares and clocks *jointly* and so can beat the alternation.",
        ]
    )


def _by_problem(lines: Lines) -> dict[str, dict[tuple[str, float, int], float]]:
    found: dict[str, dict[tuple[str, float, int], float]] = {}
    for line in lines:
        if line["ratio"] is not None:
            column = next(iter(line))
            found.setdefault(line["method"], {})[column, line[column], line["seed"]] = line["ratio"]
    return found


def _order_row(better: str, worse: str, best: Mapping[str, Mapping[tuple[str, float, int], float]]) -> str:
    both = best[better].keys() & best[worse].keys()
    behind = np.array([1.0 - best[better][k] / best[worse][k] for k in both])
    kept = int((behind <= _ROUNDING).sum())
    lost = "" if kept == len(both) else f"{100.0 * behind.max():.1f} %"
    return f"| `{better}` ≥ `{worse}` | {kept} of {len(both)} | {lost} |"


def _ends(lines: Lines) -> str:
    ends: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["status"] == "ok":
            ends.setdefault((line["method"], line["rate"]), {})[line["seed"]] = line  # the last block stays
    rows: list[str] = []
    for (method, rate), last in ends.items():
        found = [line["relative"] for line in last.values()]
        blocks = [line["block"] for line in last.values()]
        rows.append(f"| `{method}` | {rate} | {np.mean(found):.3f} | {min(found):.3f} | {np.mean(blocks):.1f} |")
    return "\n".join(
        [
            "Where does the alternation end, with the secrecy rate as it is (`exact`) or successively approximated (`tangent`)?",
            "U/S relative to the optimum on the default problem.",
            "",
            "| method | rate | mean | worst | blocks |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _signs(tables: Mapping[str, Lines]) -> str:
    rows = [_sign_row(sweep, tables[sweep.name]) for sweep in SWEEPS if sweep.rises]
    return "\n".join(
        [
            "Does the best U/S rise with the quantity and level off? Steps between neighbouring points, all seeds; growth of the",
            "mean per doubling of the quantity, over the first and the last step.",
            "",
            "| quantity | steps that rise | growth per doubling, first step | last step |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _sign_row(sweep: Sweep, lines: Lines) -> str:
    table = optimum_over(sweep, lines)
    steps = np.diff(table, axis=1)
    rising = int((steps >= -_ROUNDING * table[:, :-1]).sum())
    x = np.array(sorted({line[sweep.column] for line in lines}))
    growth = (table.mean(axis=0)[1:] / table.mean(axis=0)[:-1]) ** (1.0 / np.log2(x[1:] / x[:-1])) - 1.0
    return f"| {sweep.label} | {rising} of {steps.size} | {100.0 * growth[0]:.2g} % | {100.0 * growth[-1]:.2g} % |"


def optimum_over(sweep: Sweep, lines: Lines) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the best ratio (seeds, points)."""
    mine = [line for line in lines if line["method"] == OPTIMUM]
    points, seeds = sorted({line[sweep.column] for line in mine}), sorted({line["seed"] for line in mine})
    known = {(line["seed"], line[sweep.column]): line["ratio"] for line in mine}
    return np.array([[known[seed, x] for x in points] for seed in seeds], dtype=np.float64)


def _price_signs(lines: Lines) -> str:
    rows: list[str] = []
    for kind, label in (("difference", "U - y S, y held"), ("ratio", "U/S")):
        for weight, quantity in (("time_weight_per_s", "time"), ("energy_weight_per_j", "energy")):
            chosen = [line for line in lines if (line["objective"], line["weight"]) == (kind, weight)]
            factors = sorted({line["factor"] for line in chosen})
            known = {(line["seed"], line["factor"]): line["share_mean"] for line in chosen}
            steps = np.diff([[known[s, f] for f in factors] for s in sorted({line["seed"] for line in chosen})], axis=1)
            rows.append(f"| {label} | {quantity} | {int((steps <= _ROUNDING).sum())} of {steps.size} |")
    return "\n".join(
        [
            "Does the mean best share fall when a weight of the cost grows? Expected with y held, as in the alternation's first",
            "block. For the ratio itself nothing is: multiplying both weights changes no share, only their proportion does.",
            "",
            "| objective | weight of | steps that fall |",
            "|---|---|---|",
            *rows,
        ]
    )


def _sweep_caption(sweep: Sweep, plan: Plan, command: str) -> str:
    clients = "" if sweep.name == "owners" else f", {plan.clients} clients"
    return (
        f"### {sweep.name}\n\n![{sweep.label}]({sweep.name}.svg)\n\n{sweep.says} Mean over {plan.seeds} seeds{clients}; bands "
        f"(of `{OPTIMUM}`, `alternating_free` and `average`) are one standard deviation, on logarithmic axes both geometric; "
        f"most of it is between problems, not between methods. Reconstructed: utilities, workloads, constants, geometry and the "
        f"alternation's details. "
        f"Numbers: [{sweep.name}.csv]({sweep.name}.csv). Command: `{command} --only {sweep.name}`."
    )


def _study_captions(plan: Plan, command: str) -> str:
    def caption(name: str, alt: str, text: str) -> str:
        said = f"Reconstructed as above. Numbers: [{name}.csv]({name}.csv). Command: `{command} --only {name}`."
        return f"### {name}\n\n![{alt}]({name}.svg)\n\n{text} {said}"

    return "\n\n".join(
        (
            caption(
                "convergence",
                "the alternation block by block",
                f"Dinkelbach's y after every block over the joint optimum's U/S, {plan.seeds} seeds, one standard deviation. "
                "With the time in the second block only, every client is exactly in time after it and no share can grow again. "
                "Left the secrecy rate as it is (it is jointly concave), right its successive approximation, as published. The "
                "limits are the same, but the approximation's steps are short where the eavesdropper hears almost as well as the "
                "owner, so that it stops earlier.",
            ),
            caption(
                "shares",
                "distribution of the shares",
                f"Which shares clients get: the joint optimum on {plan.share_seeds} seeds, the alternation, being slower, on "
                f"{plan.share_seeds_slow}.",
            ),
            caption(
                "prices",
                "shares over the weights of the cost",
                f"The mean best share when one weight of the cost is multiplied, {plan.share_seeds} seeds, one standard "
                "deviation; y is the best ratio at the weights as drawn.",
            ),
        )
    )
