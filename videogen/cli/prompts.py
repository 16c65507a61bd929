"""Read prompts files, whose rows may have settings of their own, and lists of seeds.

prompts.txt, .jsonl or .csv, settings of the command  ->  PromptRow(prompt, seed, SampleConfig) a row
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from videogen.config.parsing import from_mapping, nearest, read_values, to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.captions import read_rows


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


def read_prompts(path: Path, settings: SampleConfig, seed: int) -> Iterator[PromptRow]:
    """Read the rows of a prompts file over the settings of the command; an error names the row by its number."""
    if not path.is_file():
        raise ValueError(f"no prompts file {path}")
    for number, row in read_rows(path):
        if path.suffix.lower() == ".csv" and isinstance(row, dict):  # an empty cell is one left out
            row = {key: value for key, value in row.items() if value not in (None, "")}
        try:
            yield parse_row({"prompt": row} if isinstance(row, str) else row, settings, seed)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} row {number}: {error}") from None


def parse_row(row: object, settings: SampleConfig, seed: int) -> PromptRow:
    """Parse a row's prompt, seed and settings, those of the command where it has none."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f"every row needs a prompt, got {row!r}")
    values = {str(key).replace("-", "_"): value for key, value in row.items() if key not in ("prompt", "seed")}
    if "frames" in values:
        values.setdefault("seconds", None)
    allowed = {item.name for item in fields(SampleConfig)}
    for key in values:
        if key not in allowed:
            raise ValueError(f"unknown column {key!r}{nearest(key, allowed | {'prompt', 'seed'})}")
    texts = {item.name for item in fields(SampleConfig) if item.type == "str"}  # whose cells are not numbers
    own = to_mapping(settings) | {key: value if key in texts else parse_cell(value) for key, value in values.items()}
    return PromptRow(str(row["prompt"]), int(str(row.get("seed", seed))), from_mapping(SampleConfig, own))


def parse_cell(value: object) -> object:
    """Parse a CSV cell as the number or list that it spells, if it spells one."""
    with contextlib.suppress(json.JSONDecodeError, TypeError):
        return json.loads(value) if isinstance(value, str) else value
    return value
