"""The results of a codec curve as a document for people: how it was measured, the table, the figure, who lies below whom."""

from collections.abc import Mapping, Sequence
from typing import Any

from hushtune_server.testbed.codec.report import HEADINGS, cells, duel_text, in_order, perplexity_text

Json = Mapping[str, Any]

_READING = """\
Every way writes the same change of the same adapter blocks, returned minus shipped, to a file, reads it back, plugs it into the
full model and scores held-out private windows. **MB** is the length of the file, **x fp16** how many times smaller it is than
two bytes per number, **increase** by how much perplexity exceeds that of the plug-in with the adapter as it was trained, **SNR**
the squared change over the squared error. Speeds are in MB of float32 adapter per second on one thread, read off a clock while
the curve was made. Brackets are 95 % intervals: a paired bootstrap over test windows and training seeds. Few seeds make the
seeds' part of an interval too narrow. The last column gives ours exactly the bytes that the peer took: the difference of losses,
ours minus the peer's, in nats per token; below zero ours is better.
"""


def document_text(document: Json, *, figures: Mapping[str, str]) -> str:
    """Return the document in Markdown; ``figures`` are files by what they show, relative to it."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))
    parts = [
        f"# What a plug-in loses for the bytes its adapter has: {document['name']}",
        f"Made by `{document['command']}` on {document['date'][:10]} with {versions}.",
        _setting(document),
        _READING,
        "## Without a codec",
        _table(["setting", "perplexity"], _scores(document["settings"])),
        "## With one",
        document["statement"],
        _rows(document),
        *(f"![{what.replace('_', ' ')}]({path})" for what, path in sorted(figures.items())),
        "## What the ways are",
        "\n".join(f"- `{row['name']}`: {row['says']}" for row in [*document["peers"], *document["ours"]]),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _setting(document: Json) -> str:
    data, model, windows, training = document["data"], document["model"], document["data"]["windows"], document["training"]
    blocks, seeds = (", ".join(map(str, numbers)) for numbers in (model["adapter"], document["seeds"]))
    options = ", ".join(f"{k} = {v}" for k, v in document["emulator"]["options"].items() if k != "plan")
    codec = ", ".join(f"{k} = {v}" for k, v in document["codec"].items() if k != "id" and v is not None)
    return "\n".join(
        [
            f"- model `{model['source']}`, digest `{model['digest'][:16]}`, adapter blocks {blocks}: "
            f"{document['numbers']:,} numbers",
            f"- emulator: {options}; plan {', '.join(f'`{d[:16]}`' for d in document['emulator']['plans'])}",
            f"- private text `{data['private']}`: {windows['train']} windows of {data['window_tokens']} tokens train, "
            f"{windows['left_out']} are left out, {windows['test']} score; digest `{data['digest'][:16]}`",
            f"- public text `{data['public']}`, all that the owner sees; digest `{data['public_digest'][:16]}`",
            f"- training: learning rate {training['learning_rate']:g}, {training['epochs']} epochs, "
            f"{training['batch_windows']} windows a step; seeds {seeds}, of the split of the text "
            f"{document['seed']}; arithmetic {document['compute']['precision']}, scores "
            f"{document['curve']['precision']}",
            "- adapters as returned: " + ", ".join(f"`{a['returned'][:16]}`" for a in document["adapters"]),
            f"- our codec `{document['codec']['id']}`: {codec}; {document['resamples']:,} resamples",
        ]
    )


def _scores(settings: Json) -> list[list[str]]:
    names = {"full_zero_shot": "full model, zero-shot", "uncompressed": "plug-in, nothing written"}
    return [[label, perplexity_text(settings[name])] for name, label in names.items()]


def _rows(document: Json) -> str:
    rows = [[_name(row), *cells(row), duel_text(document, row)] for row in in_order(document)]
    failed = [f"- {row['name']}: {row['failed']}" for row in in_order(document) if "failed" in row]
    return "\n\n".join(filter(None, [_table(["way", *HEADINGS, "ours at its bytes, nats"], rows), "\n".join(failed)]))


def _name(row: Json) -> str:
    return f"**{row['name']}**" if row["kind"] == "ours" else f"`{row['name']}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
