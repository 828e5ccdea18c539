"""Verbs and nouns of own captions: words or class numbers in cells, and the numbers that words get."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from preprocessing.annotations.values import text_problem
from shards.schema import NOUNS, VERBS

CLASSES = {"verbs": VERBS, "nouns": NOUNS}
_SEPARATOR = re.compile(r"[;,|]")
_MAX_WORD = 200  # bytes


def split_words(cell: str) -> list[str] | None:
    """Return the distinct words, or numbers, in a cell in lower case; None where it cannot be read.

    >>> split_words("Cut; take "), split_words('["cut", 3]'), split_words("")
    (['cut', 'take'], ['cut', '3'], [])
    """
    parts: list[str] = _SEPARATOR.split(cell)
    if cell.strip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return None
        if not all(isinstance(item, (str, int)) and not isinstance(item, bool) for item in value):
            return None
        parts = [str(item) for item in value]
    words = [" ".join(part.split()).lower() for part in parts]
    if any(text_problem(word, _MAX_WORD) for word in words):
        return None
    return list(dict.fromkeys(word for word in words if word))


class Vocabulary:
    """The class numbers of a kind of tags: those in the cells, where all of them are numbers, else numbers of words."""

    def __init__(self, kind: str, cells: Iterable[Sequence[str]], before: Sequence[str]) -> None:
        """Number the words of all `cells`; those of `before` keep their numbers, new ones follow in alphabetical order.

        Where there are more words than classes (118 verbs, 582 nouns), the rarest are left out, and a message says so.
        """
        self.messages: list[str] = []
        self.names: list[str] = []  # of each class; empty where the cells have numbers
        classes = CLASSES[kind]
        counts = Counter(word for words in cells for word in words)
        if counts and not before and all(word.isdecimal() and word.isascii() for word in counts):
            self._numbers = {word: int(word) for word in counts if len(word) < 9 and int(word) < classes}
        else:
            new = sorted(counts.keys() - set(before), key=lambda word: (-counts[word], word))[: classes - len(before)]
            self.names = [*before, *sorted(new)]
            self._numbers = {word: number for number, word in enumerate(self.names)}
        lost = {word: count for word, count in counts.items() if word not in self._numbers}
        if lost:
            self.messages.append(
                f"{kind}: {len(lost)} of {len(counts)} are left out in {sum(lost.values())} places, such as "
                f"{min(lost)!r}: there are {classes} classes"
            )

    def numbers(self, words: Iterable[str]) -> list[int]:
        """Return the class numbers of words, sorted; words without one are left out."""
        return sorted({self._numbers[word] for word in words if word in self._numbers})
