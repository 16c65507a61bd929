"""Many clips at once: the rows of a prompts file, and the seeds of each.

prompts.txt, .jsonl or .csv, settings of the command  ->  (prompt, seed, SampleConfig) a row
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from videogen.config.parsing import from_mapping, nearest, read_values, to_mapping
from videogen.config.sample import SampleConfig

Row = tuple[str, int, SampleConfig]


def read_seeds(text: str) -> list[int]:
    """The seeds of --seeds."""
    seeds = [seed for seed in read_values(text) if isinstance(seed, int) and not isinstance(seed, bool)]
    if not seeds or len(set(seeds)) < len(read_values(text)):
        raise ValueError(f"--seeds must be different whole numbers, such as 0,1,2 or 0:9:10, got {text!r}")
    return seeds


def read_prompts(path: Path, settings: SampleConfig, seed: int) -> Iterator[Row]:
    """The rows of a prompts file, over the settings of the command; a bad one is named by its number."""
    if not path.is_file():
        raise ValueError(f"no prompts file {path}")
    text = path.read_text(encoding="utf-8-sig")
    kind = path.suffix.lower()
    if kind == ".jsonl":
        rows = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    elif kind == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [(reader.line_num, row) for row in reader]
    else:
        rows = [(i, {"prompt": line.strip()}) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, row in rows:
        try:
            values = json.loads(row) if isinstance(row, str) else {k: v for k, v in row.items() if v not in (None, "")}
            yield one_row(values, settings, seed)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} row {number}: {error}") from None


def one_row(values: Mapping[str, object], settings: SampleConfig, seed: int) -> Row:
    """A row's prompt, seed and settings over those of the command."""
    if isinstance(values, dict) and None in values:
        surplus = values[None]  # type: ignore[index]  # where csv puts them
        raise ValueError(f"it has more cells than the table has columns: {surplus}")
    if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
        raise ValueError(f"every row needs a prompt, got {values!r}")
    allowed = {item.name for item in fields(SampleConfig)}
    extra = {key.replace("-", "_"): value for key, value in values.items() if key not in ("prompt", "seed")}
    if "frames" in extra:
        extra.setdefault("seconds", None)
    for key in extra:
        if key not in allowed:
            raise ValueError(f"unknown column {key!r}{nearest(key, allowed | {'prompt', 'seed'})}")
    texts = {item.name for item in fields(SampleConfig) if item.type == "str"}  # their cells are not numbers
    own = to_mapping(settings) | {k: v if k in texts else literal(v) for k, v in extra.items()}
    return str(values["prompt"]), int(str(values.get("seed", seed))), from_mapping(SampleConfig, own)


def literal(value: object) -> object:
    """A CSV cell as the number or list that it spells, if it spells one."""
    with contextlib.suppress(json.JSONDecodeError, TypeError):
        return json.loads(value) if isinstance(value, str) else value
    return value
