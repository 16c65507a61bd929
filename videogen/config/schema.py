"""Describe the recipes as a JSON schema, by which editors complete and check them.

    TrainConfig  ->  configs/recipe.schema.json        python -m videogen.config.schema > configs/recipe.schema.json

A recipe names it in its first line, `#:schema ./recipe.schema.json`, as Taplo and Even Better TOML read it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import typing
from itertools import pairwise
from pathlib import Path
from typing import Literal

from videogen.config.parsing import to_mapping
from videogen.config.sample import MINI
from videogen.config.train import TrainConfig

Schema = dict[str, object]
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def format_schema() -> str:
    """Return the schema of a recipe as JSON."""
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "videogen recipe"}
    return json.dumps(head | of_config(TrainConfig), indent=2, ensure_ascii=False) + "\n"


def of_config(cls: type) -> Schema:
    """Describe a config dataclass as a table: its keys with their types, their meaning and their defaults."""
    hints, meanings, properties = typing.get_type_hints(cls), read_meanings(cls), dict[str, Schema]()
    fields = dataclasses.fields(cls)
    needed = [item.name for item in fields if item.default is item.default_factory is dataclasses.MISSING]
    defaults = to_mapping(cls()) if not needed else {}
    for item in fields:
        properties[item.name] = {**of_hint(hints[item.name]), "description": meanings[item.name]}
        default = defaults.get(item.name)
        # The shipped checkpoint's folder is where the program is installed, and a table's defaults are its keys' own.
        if default not in (None, str(MINI)) and not dataclasses.is_dataclass(hints[item.name]):
            properties[item.name]["default"] = default
    table: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return table | ({"required": needed} if needed else {})


def of_hint(hint: object) -> Schema:
    """Describe the type of a field; None is left out, for TOML has no word for it."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return of_config(hint)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in options:
        (hint,) = (option for option in options if option is not type(None))
        return of_hint(hint)
    if origin is Literal:
        return {"enum": list(options)}
    if origin is dict:
        return {"type": "object", "additionalProperties": of_hint(options[1])}
    if origin is tuple:
        fixed = {} if options[-1] is Ellipsis else {"minItems": len(options), "maxItems": len(options)}
        return {"type": "array", "items": of_hint(options[0]), **fixed}
    assert isinstance(hint, type), hint
    return {"type": NAMES[hint]}


def read_meanings(cls: type) -> dict[str, str]:
    """Read what stands under each field of a dataclass, in one line."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef))
    meanings: dict[str, str] = {}
    for item, below in pairwise(body):
        if isinstance(item, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            meanings[ast.unparse(item.target)] = " ".join(str(below.value.value).split())
    return meanings


if __name__ == "__main__":
    sys.stdout.write(format_schema())
