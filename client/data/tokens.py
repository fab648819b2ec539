"""Texts to token ids: letters of a public alphabet, or words hashed into public buckets."""

import hashlib
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from client.data.cells import texts
from client.data.table import Table
from shared_models.contract import LettersColumn, WordsColumn
from shared_models.inputs import PADDING

Ids = npt.NDArray[np.int64]

_WORD = re.compile(r"\w+")


def letter_ids(table: Table, name: str, column: LettersColumn) -> Ids:
    """Return (N, L) ids: 1 + the letter's place in the alphabet, then padding.

    Raises:
        DataError: a text is missing, too long, or holds a letter outside the alphabet.
    """
    ids = np.full((table.length, column.length), PADDING, dtype=np.int64)
    id_of = {letter: 1 + place for place, letter in enumerate(column.alphabet)}
    broken: dict[int, tuple[str, str]] = {}  # what was expected of a row, and what found
    for row, text in enumerate(texts(table, name)):
        if len(text) > column.length:
            broken[row] = f"at most {column.length} letters", "more"
            continue
        try:
            ids[row, : len(text)] = [id_of[letter] for letter in text]
        except KeyError:
            broken[row] = f"letters of {column.alphabet!r}", "another letter"
    rows = np.array([*broken], dtype=np.int64)
    table.leave(rows, lambda row: table.fault(row, name, *broken[row]))
    return ids


def word_ids(table: Table, name: str, column: WordsColumn) -> Ids:
    """Return (N, L) ids: 1 + the word's bucket, cut at L words, then padding.

    Words are lower-case runs of letters, digits and underscores. No vocabulary is learnt: the
    bucket is the first 8 bytes of BLAKE2b, little-endian, modulo the number of buckets.

    Raises:
        DataError: a text is missing.
    """
    ids = np.full((table.length, column.length), PADDING, dtype=np.int64)
    bucket_of: dict[str, int] = {}
    for row, text in enumerate(texts(table, name)):
        for place, word in zip(range(column.length), words(text), strict=False):
            if word not in bucket_of:
                bucket_of[word] = bucket(word, column.buckets)
            ids[row, place] = 1 + bucket_of[word]
    return ids


def words(text: str) -> Iterator[str]:
    """Yield the lower-case runs of letters, digits and underscores of a text."""
    return (match.group() for match in _WORD.finditer(text.lower()))


def bucket(word: str, buckets: int) -> int:
    """Return the public bucket of a text, 0 to buckets - 1."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % buckets
