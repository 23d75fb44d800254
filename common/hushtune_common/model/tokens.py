"""Text to windows of token ids."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hushtune_common.errors import ConfigError
from hushtune_common.messages import Digest

Tokens64 = NDArray[np.int64]


class Tokens:
    """A tokenizer. Nothing is put around running text; single texts get what the tokenizer itself puts around them."""

    def __init__(self, tokenizer: Tokenizer, *, text: str) -> None:
        """Use `from_json`."""
        self._tokenizer = tokenizer
        self._text = text

    @staticmethod
    def from_json(text: str) -> "Tokens":
        """Parse a ``tokenizer.json``; `ConfigError` when it is not a tokenizer."""
        try:
            return Tokens(Tokenizer.from_str(text), text=text)
        except Exception as error:  # the library raises nothing more specific
            raise ConfigError("model.source", f"tokenizer.json is not readable ({error})") from error

    @property
    def json(self) -> str:
        """The ``tokenizer.json`` it was made from."""
        return self._text

    @property
    def digest(self) -> Digest:
        """Digest of the JSON text."""
        return Digest.of(self._text.encode())

    @property
    def vocabulary(self) -> int:
        """Number of ids, special tokens included; one more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, record: str) -> list[int]:
        """Return the ids of one record."""
        return self._tokenizer.encode(record, add_special_tokens=False).ids

    def sequences(self, texts: Iterable[str], *, length_max: int) -> list[list[int]]:
        """Return the ids of single texts with the special ids around them, as encoders are fed; longer texts lose their end."""
        room = length_max - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if room < 1:
            raise ValueError(f"{length_max} tokens leave no room for a text")
        found: list[list[int]] = []
        for text in texts:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            encoding.truncate(room)
            found.append(self._tokenizer.post_process(encoding, add_special_tokens=True).ids)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def windows(self, records: Iterable[str], *, length: int, limit: int | None = None) -> Tokens64:
        """Return the records, a line each, packed into windows (N, length); a rest that fills none is left out.

        Lines rather than end-of-text tokens: a model that was tuned on chats expects a new turn after those, and half of what
        fine-tuning seemed to gain would be getting used to them. Reads no more records than ``limit`` windows need.
        """
        wanted = None if limit is None else limit * length
        line_end = self.encode("\n")
        ids: list[int] = []
        for record in records:
            if wanted is not None and len(ids) >= wanted:
                break
            ids.extend(self.encode(record))
            ids.extend(line_end)
        count = len(ids) // length if limit is None else min(limit, len(ids) // length)
        return np.array(ids[: count * length], dtype=np.int64).reshape(count, length)

    def spread_windows(self, records: Sequence[str], *, length: int, count: int) -> Tokens64:
        """Return ``count`` windows (count, length) at even distances over all of the text, the same every time.

        The start of a file is seldom like the rest of it (title, contents), so a prefix would be a poor sample. Returns all
        windows when there are fewer than ``count``.
        """
        everything = self.windows(records, length=length)
        if len(everything) <= count:
            return everything
        return everything[[(2 * k + 1) * len(everything) // (2 * count) for k in range(count)]]


def require_fitting(tokens: Tokens, *, embedding_rows: int) -> None:
    """Raise `ConfigError` when the tokenizer has ids that the embedding has no row for."""
    if tokens.vocabulary > embedding_rows:
        raise ConfigError(
            "model.source",
            f"wrong tokenizer: it has {tokens.vocabulary} ids, the model's embedding only {embedding_rows} rows",
        )
