"""Read prompts files, whose rows may have settings of their own, and lists of seeds.

prompts.txt, .json, .csv, ..., settings of the command  ->  PromptRow(prompt, seed, SampleConfig) a row
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from videogen.config.parsing import check_text, from_mapping, nearest, read_values, to_mapping
from videogen.config.sample import SampleConfig
from videogen.config.sizes import parse_ratio, parse_size
from videogen.data.captions import FILE_COLUMNS, find_column, read_rows

SEEDS = range(-(2**63), 2**64)  # what torch takes
MAX_DRAWN_SEED = 10**6  # seeds that a person can read off a file's name and type again


PROMPT_COLUMNS = ("prompt", "caption", "text")
LETTERS = {
    "w": "width", "h": "height", "f": "frames", "n": "negative", "s": "steps", "d": "seed", "l": "guidance",
    "fs": "shift",
}  # fmt: skip
"""Settings behind a prompt as kohya's sd-scripts and musubi-tuner write them: --w 832 --h 480 ..."""


class PromptRow(NamedTuple):
    """A prompt with the seed and the settings of its clip."""

    prompt: str
    seed: int
    config: SampleConfig


def read_seeds(text: str) -> list[int]:
    """Read the seeds of --seeds: 0,1,2 or a range 0:9:10."""
    values = read_values(text)
    seeds = [seed for seed in values if isinstance(seed, int) and not isinstance(seed, bool)]
    if not seeds or len(set(seeds)) < len(values):
        raise ValueError(f"--seeds must be different whole numbers, such as 0,1,2 or 0:9:10, got {text!r}")
    return seeds


def read_seed(text: str) -> int:
    """Read a seed: a whole number, or random (or -1) for one that is drawn now, and recorded like any other."""
    if text.strip() in ("random", "-1"):
        return secrets.randbelow(MAX_DRAWN_SEED)
    if re.fullmatch(r"\s*[-+]?\d+\s*", text) is None:
        raise ValueError(f"seed must be a whole number, got {text}; or random, which draws one")
    if (seed := int(text)) not in SEEDS:
        raise ValueError(f"seed must be a whole number from -2^63 to 2^64 - 1, got {seed}")
    return seed


def read_prompts(path: Path, settings: SampleConfig, seed: int) -> Iterator[PromptRow]:
    """Read the rows of a prompts file over the settings of the command; an error names the row by its number."""
    if not path.is_file():
        raise ValueError(f"no prompts file {path}")
    is_empty = True
    for number, row in read_rows(path):
        is_empty = False
        try:
            yield parse_row(read_line(row, settings) if isinstance(row, str) else row, settings, seed)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} row {number}: {error}") from None
    if is_empty:
        raise ValueError(f"{path} holds no prompts; give one a line, or a table with a column prompt")


def read_line(line: str, settings: SampleConfig) -> dict[str, object]:
    """Read a line of prompts: a prompt, and behind it settings of its own as kohya's trainers write them.

    "a cat --w 832 --h 480 --n blurry --s 20 --d 42": the letters of LETTERS, or the names of settings here.
    """
    prompt, *options = re.split(r"(?:^|\s)--(?=[A-Za-z])", line)
    if options and not prompt.strip():
        raise ValueError(f"the line has settings and no prompt: {line!r}; the prompt stands first")
    row: dict[str, object] = {"prompt": prompt.strip()}
    for option in options:
        letter, _, value = option.strip().partition(" ")
        name = LETTERS.get(letter, letter)
        if name in row:
            raise ValueError(f"the line gives --{letter} twice")
        row[name] = value.strip()
    sides = [row.pop(name, None) for name in ("width", "height")]
    if any(sides):
        if parse_ratio(settings.size) is not None and None in sides:
            raise ValueError("the line gives one side of the clip; give both, --w and --h")
        own = parse_size(settings.size) if None in sides else (0, 0)
        row["size"] = "x".join(str(side or default) for side, default in zip(sides, own, strict=True))
    return row


def parse_row(row: object, settings: SampleConfig, seed: int) -> PromptRow:
    """Parse a row's prompt, seed and settings; null, an empty cell or none is the command's."""
    column = find_column(row, PROMPT_COLUMNS)
    if not isinstance(row, dict) or column is None or not isinstance(row[column], str):
        raise ValueError(f"every row needs a prompt, got {row!r}")
    prompt = check_text(row[column], "the prompt")
    # A table of captioned clips is one of prompts, too.
    others = {key: value for key, value in row.items() if key != column and key not in FILE_COLUMNS}
    cells = {str(key).strip().replace("-", "_"): value for key, value in others.items() if value not in (None, "")}
    seed = read_seed(str(cells.pop("seed"))) if "seed" in cells else seed
    if "frames" in cells:
        cells.setdefault("seconds", None)
    allowed = {item.name for item in fields(SampleConfig)}
    for key in cells:
        if key not in allowed:
            raise ValueError(f"unknown column {key!r}{nearest(key, allowed | {'prompt', 'seed'})}")
    texts = {item.name for item in fields(SampleConfig) if item.type == "str"}  # whose cells are not numbers
    own = to_mapping(settings) | {key: value if key in texts else parse_cell(value) for key, value in cells.items()}
    return PromptRow(prompt, seed, from_mapping(SampleConfig, own))


def parse_cell(value: object) -> object:
    """Parse a CSV cell as the number or list that it spells, if it spells one."""
    with contextlib.suppress(json.JSONDecodeError, TypeError):
        return json.loads(value) if isinstance(value, str) else value
    return value
