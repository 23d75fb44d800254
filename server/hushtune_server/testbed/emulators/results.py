"""The results of a comparison as a document for people: how it was measured, the tables, the figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from hushtune_server.testbed.emulators.report import loss_of, score_text

Json = Mapping[str, Any]

_SCORES = {
    "language": "Scores are perplexities on held-out private windows that trained nothing and, here, chose nothing; "
    "differences are in nats per token.",
    "classify": "Scores are accuracies on held-out texts that trained nothing and, here, chose nothing, with a "
    "linear head beside the blocks; differences are shares of texts. ZS is the linear probe on the frozen model, the plug-in has "
    "the client's head.",
}
_READING = """\
**ZS**: as it is; **FT**: after training on the clients' text; **plug-in**: the full model with adapter blocks that were trained
on the emulator; **bound**: the same blocks trained in the full model. **Shown** is the share of the model that the emulator
gives away. **Delta** is the loss of emulator FT minus that of the plug-in, what the owner keeps from whoever trains the adapter
blocks only; a **gap** is the same against an attack that trains more. **Recovery** is the share of full fine-tuning's gain in
loss that the plug-in has. Brackets are 95 % intervals: a paired bootstrap over test items and training seeds. Few seeds make the
seeds' part of an interval too narrow.
"""


def document_text(document: Json, *, figures: Mapping[str, str], cost: Sequence[Json] = ()) -> str:
    """Return the document in Markdown; ``figures`` are files by what they show, relative to it."""
    parts = [
        f"# Emulators compared: {document['name']}",
        f"Made by `{document['command']}` on {document['date'][:10]} with "
        + ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))
        + ".",
        _setting(document),
        _SCORES[document["task"]],
        _READING,
        "## Without an emulator",
        _settings(document["settings"]),
        "## Emulators",
        _emulators(document["emulators"]),
        _claims(document["claims"]),
        _costs(cost),
        *(f"![{what.replace('_', ' ')}]({path})" for what, path in sorted(figures.items())),
        "## What identifies them",
        _digests(document["emulators"]),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _setting(document: Json) -> str:
    data, model, windows = document["data"], document["model"], document["data"]["windows"]
    items = "texts of at most" if document["task"] == "classify" else "windows of"
    blocks = ", ".join(map(str, model["adapter"]))
    selection: Json = document["selection"]
    rates = ", ".join(f"{rate:g}" for rate in selection["learning_rates"])
    return "\n".join(
        [
            f"- model `{model['source']}`, digest `{model['digest'][:16]}`, adapter blocks {blocks}",
            f"- private text `{data['private']}`: {windows['train']} {items} {data['window_tokens']} tokens train, "
            f"{windows['select']} {_use(selection)}, {windows['test']} score; digest `{data['digest'][:16]}`",
            f"- public text `{data['public']}`, all that plans and training of emulators see; "
            f"digest `{data['public_digest'][:16]}`",
            f"- learning rates {rates}; full fine-tuning and attacks that train everything take "
            f"{selection['full_rate_share']:.2f} of each" + ("; the first seed chooses" if _chooses(selection) else ""),
            *([f"- how these were found: {selection['note']}"] if selection.get("note") else []),
            f"- seed of split and plans {document['seed']}, training seeds {', '.join(map(str, document['seeds']))}; "
            f"{document['resamples']:,} resamples; arithmetic {document['compute']['precision']}",
        ]
    )


def _chooses(selection: Json) -> bool:
    return len(selection["learning_rates"]) * max(1, len(selection["epochs"])) > 1


def _use(selection: Json) -> str:
    return "choose learning rates" if _chooses(selection) else "are left out, since there is nothing to choose"


def _settings(settings: Json) -> str:
    names = {"full_zero_shot": "full ZS", "bound": "bound", "full_fine_tuned": "full FT"}
    rows = [[label, score_text(settings[name])] for name, label in names.items() if name in settings]
    return _table(["setting", "score"], rows)


def _emulators(rows: Sequence[Json]) -> str:
    attacks = sorted({name for row in rows for name in row.get("attacks", {})})
    heads = ["emulator", "MB", "shown", "owner CPU s", "emulator ZS", "emulator FT", "plug-in", "delta"]
    heads += [f"gap to {name}" for name in attacks] + ["recovery"]
    lines = [_emulator(row, attacks) for row in sorted(rows, key=_order)]
    failed = [f"- {row['name']}: {why}" for row in rows for why in row["failed"]]
    return "\n\n".join(filter(None, [_table(heads, lines), "\n".join(failed)]))


def _order(row: Json) -> tuple[float, str]:
    plug_in = row.get("settings", {}).get("plug_in")
    return (float("inf") if plug_in is None else loss_of(plug_in)[0], str(row["name"]))


def _emulator(row: Json, attacks: Sequence[str]) -> list[str]:
    settings = row.get("settings", {})
    shown = row.get("shown_share")
    return [
        f"`{row['name']}`",
        f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "",
        "" if shown is None else f"{100 * shown:.0f} %",
        f"{row['owner_cpu_s']:.0f}" if "owner_cpu_s" in row else "",
        *(score_text(settings.get(s), missing="") for s in ("emulator_zero_shot", "emulator_fine_tuned", "plug_in")),
        _number(row.get("delta")),
        *(_number(row.get("attacks", {}).get(name, {}).get("gap")) for name in attacks),
        _number(row.get("recovery")),
    ]


def _claims(claims: Sequence[Json]) -> str:
    if not claims:
        return ""
    head = ["claim", "held against each other", "difference", "holds"]
    answers = {True: "yes", False: "**no**", None: "not measured"}
    lines = [[c["text"], f"`{c['first']}`, `{c['second']}`", _number(c["difference"]), answers[c["holds"]]] for c in claims]
    return "## What is claimed\n\n" + _table(head, lines) + "\n\n" + _CLAIMS


_CLAIMS = """\
A claim holds when the whole interval of the difference is above zero. The difference is how much lower the first one's plug-in
loss is; where hiding is claimed, how much more the first one's own loss rises than its plug-in's.
"""


def _costs(cost: Sequence[Json]) -> str:
    if not cost:
        return ""
    head = ["training", "tokens/s", "times the blocks in the full model", "peak MB", "full is times larger", "above idle"]
    lines = [_cost(row) for row in cost]
    return "## What training costs a client\n\n" + _table(head, lines) + "\n\n" + _COST


def _cost(row: Json) -> list[str]:
    speed = [f"{row['tokens_per_s']:.0f}", f"{row['speed_ratio']:.2f}"]
    memory = [f"{row['peak_bytes'] / 1e6:.0f}", f"{row['memory_ratio']:.2f}", f"{row['training_memory_ratio']:.2f}"]
    return [str(row["what"]), *speed, *memory]


_COST = """\
Peak resident memory of a fresh process that loads the file and takes some steps: interpreter, libraries and weights included.
*Above idle* leaves out what the process had before it opened the file.
"""


def _digests(rows: Sequence[Json]) -> str:
    head = ["emulator", "options", "plan", "training on public text"]
    lines = [[f"`{r['name']}`", _options(r), f"`{r['plan_digest'][:16]}`", _refinements(r)] for r in rows if "plan_digest" in r]
    return _table(head, sorted(lines))


def _refinements(row: Json) -> str:
    return ", ".join("none" if digest is None else f"`{digest[:12]}`" for digest in row["refinement_digests"])


def _options(row: Json) -> str:
    return ", ".join(f"{k} = {v}" for k, v in row["options"].items() if k != "plan")


def _number(number: Json | None) -> str:
    if number is None or number["value"] is None:
        return ""
    return f"{number['value']:.3f}" + ("" if number["low"] is None else f" [{number['low']:.3f}, {number['high']:.3f}]")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
