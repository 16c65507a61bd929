"""The words command: what a checkpoint knows, as the words of the captions that it was trained on.

argv  ->  WordsArgs  ->  a line a kind
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from videogen.cli.arguments import parse
from videogen.config.sample import MINI
from videogen.data.words import Word, read_words, unknown_words
from videogen.models.hub import find_checkpoint

KINDS = ("thing", "colour", "size", "motion", "place", "camera", "sentence", "word")
NAMED = 8  # unknown words in one sentence; the others are counted


@dataclass(frozen=True, kw_only=True)
class WordsArgs:
    """List the words that a checkpoint met in training, by kind, the most frequent first."""

    model: Path = MINI
    """Checkpoint folder, or owner/name[@revision] of one on the Hugging Face Hub."""
    json: bool = False
    """Print a JSON object a word."""


def run_words(argv: Sequence[str]) -> int:
    """List the words of a checkpoint."""
    args = parse(WordsArgs, argv, prog="videogen words", description=WordsArgs.__doc__)
    folder = find_checkpoint(args.model)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"no checkpoint folder {folder}; give one with model_index.json")
    if not (words := read_words(folder)):
        raise ValueError(f"{folder} keeps no list of its training captions' words; those trained here by now do")
    for line in map(json.dumps, (word._asdict() for word in words)) if args.json else describe_words(words):
        print(line)
    return 0


def describe_words(words: Iterable[Word]) -> list[str]:
    """Describe words in a line a kind."""
    by_kind = groupby(sorted(words, key=lambda word: KINDS.index(word.kind)), key=lambda word: word.kind)
    return [f"{kind}: {', '.join(word.text for word in some)}" for kind, some in by_kind]


def note_unknown_words(prompts: Iterable[str], folder: Path) -> None:
    """Say on stderr which words of the prompts a checkpoint never met; nothing where it met all or keeps no list."""
    words = read_words(folder)
    if unknown := list(dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt, words))):
        print(f"note: {describe_unknown(unknown)}; what it knows: videogen words{model_flag(folder)}", file=sys.stderr)


def describe_unknown(unknown: Sequence[str]) -> str:
    """Describe words that a checkpoint never met."""
    more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
    return f"this checkpoint has never seen: {', '.join(unknown[:NAMED])}{more}"


def model_flag(folder: Path) -> str:
    """Name a checkpoint for a command, nothing for the default one."""
    return "" if folder == MINI else f" --model {folder}"
