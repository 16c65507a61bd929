"""Read JSON that others may have written: an object in a file of sensible size, or a sentence that names the file.

path  ->  {key: value}, or a ValueError;  values, type hints  ->  a ValueError that names the first of a wrong type
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from videogen.config.parsing import convert

MAX_JSON_BYTES = 2**24
"""Larger than any config or index of a model: what is larger is something else, and reading it may take minutes."""


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, object]:
    """Read a JSON object; a ValueError where the file is no such thing. One that is missing is the caller's to tell."""
    if not path.is_file():  # a fifo would let its reader wait, and a device has no end
        raise ValueError(f"{path} is no regular file")
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path} has {size:,} bytes and is read up to {max_bytes:,}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, a number of too many digits
        raise ValueError(f"{path} is not whole: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def check_types(values: Mapping[str, object], hints: Mapping[str, object], where: object) -> None:
    """Raise a ValueError that names file and key of the first value whose type is not that of its hint."""
    for name in values.keys() & hints.keys():
        try:
            convert(hints[name], values[name], name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
