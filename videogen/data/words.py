"""Keep the words that a checkpoint met in training, with their counts, and find those of a prompt that it never met.

captions  ->  [Word(kind, text, count)]  <->  words.tsv beside the text encoder;  prompt  ->  ["skateboard"]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from videogen.data.files import save_text

FILE = "words.tsv"  # no JSON: the list decides no clip, so it is no part of what identifies a checkpoint
ANY_KIND = "word"  # where the captions are not of a world whose words have kinds
# A letter of a script without spaces stands for itself; elsewhere a word may have marks, and hyphens within.
PATTERN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_](?:[^\W_\u3040-\u30ff\u3400-\u9fff]|[\u0300-\u036f]|['’-](?=\w))*"
)


class Word(NamedTuple):
    """A word of the training captions: what it names, and how often it stood there."""

    kind: str
    text: str
    num: int


def split_words(text: str) -> list[str]:
    """Split a text into its words, in lower case."""
    return PATTERN.findall(text.lower())


def count_words(captions: Iterable[str], kind_of: Callable[[str], str] = lambda word: ANY_KIND) -> list[Word]:
    """Count the words of captions, the most frequent first."""
    counts = Counter(word for caption in captions for word in split_words(caption))
    return [Word(kind_of(word), word, count) for word, count in sorted(counts.items(), key=lambda x: (-x[1], x[0]))]


def add_words(words: Iterable[Word], more: Iterable[Word]) -> list[Word]:
    """Add the counts of two lists; the kinds are those of the first."""
    total: dict[str, Word] = {}
    for word in (*words, *more):
        earlier = total.get(word.text, word._replace(num=0))
        total[word.text] = earlier._replace(num=earlier.num + word.num)
    return sorted(total.values(), key=lambda word: (-word.num, word.text))


def write_words(folder: Path, words: Iterable[Word]) -> None:
    """Write the words of a checkpoint folder."""
    lines = ("\t".join(map(str, row)) for row in (Word._fields, *words))
    save_text(folder / FILE, "\n".join(lines) + "\n")


@cache
def read_words(folder: Path) -> list[Word]:
    """Read the words of a checkpoint folder; none where it keeps no list, as those of Wan."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        return [Word(kind, text, int(num)) for kind, text, num in rows]
    except ValueError as error:
        raise ValueError(f"{path} is no list of words: {error}; remove it, or copy the folder again") from None


def unknown_words(prompt: str, words: Iterable[Word]) -> list[str]:
    """List the words of a prompt that are in no list of words, each once; none where the list is empty."""
    known = {word.text for word in words}
    return [word for word in dict.fromkeys(split_words(prompt)) if word not in known] if known else []
