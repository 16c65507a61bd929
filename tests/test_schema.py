"""The JSON schema of the recipes says what their dataclasses say, and knows every key of every recipe."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import cast

import pytest

from videogen.config.parsing import from_mapping
from videogen.config.schema import format_schema
from videogen.config.train import TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.toml"))
KINDS: dict[object, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "integer": (int,),
    "number": (int, float),
}  # fmt: skip
Schema = dict[str, object]


def list_mistakes(value: object, schema: Schema, name: str = "recipe") -> list[str]:
    """List where a value differs from a schema, by the few words that ours has."""
    if "enum" in schema:
        return [] if value in cast("list[object]", schema["enum"]) else [f"{name} is not allowed"]
    kinds = KINDS[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return [f"{name} is no {schema['type']}"]
    if isinstance(value, list):
        if not int(str(schema.get("minItems", 0))) <= len(value) <= int(str(schema.get("maxItems", len(value)))):
            return [f"{name} has {len(value)} values"]
        return [wrong for item in value for wrong in list_mistakes(item, cast("Schema", schema["items"]), name)]
    if not isinstance(value, dict):
        return []
    known, others = cast("dict[str, Schema]", schema.get("properties", {})), schema["additionalProperties"]
    mistakes = [f"{name} lacks {key}" for key in cast("list[str]", schema.get("required", [])) if key not in value]
    for key, item in value.items():
        if key in known or others:
            mistakes += list_mistakes(item, known.get(key) or cast("Schema", others), key)
        else:
            mistakes.append(f"{name} has no {key}")
    return mistakes


@pytest.fixture
def schema() -> Schema:
    return json.loads((CONFIGS / "recipe.schema.json").read_text(encoding="utf-8"))


def test_the_written_schema_is_that_of_the_dataclasses() -> None:
    written = (CONFIGS / "recipe.schema.json").read_text(encoding="utf-8")
    assert written == format_schema(), "run python -m videogen.config.schema > configs/recipe.schema.json"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_the_schema_and_follows_it(recipe: Path, schema: Schema) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert text.startswith("#:schema ./recipe.schema.json\n")  # only the first line is read
    assert list_mistakes(tomllib.loads(text), schema) == []


@pytest.mark.parametrize(
    ("recipe", "mistake"),
    [
        ({"stage": "text"}, "stage is not allowed"),
        ({"run": {"stepz": 3}}, "run has no stepz"),
        ({"run": {"steps": "3"}}, "steps is no integer"),
        ({"run": {"steps": True}}, "steps is no integer"),
        ({"dit": {"patch_size": [1, 2]}}, "patch_size has 2 values"),
        ({"dit": {"known": {"box": "all"}}}, "box is no number"),
        ({"data": {"sets": [{"repeats": 2}]}}, "sets lacks folder"),
    ],
)
def test_what_the_program_refuses_the_schema_refuses(recipe: dict[str, object], mistake: str, schema: Schema) -> None:
    assert list_mistakes(recipe, schema) == [mistake]
    with pytest.raises((ValueError, TypeError)):
        from_mapping(TrainConfig, recipe)


def test_every_key_has_a_meaning_and_every_default_is_one_that_the_program_takes(schema: Schema) -> None:
    def collect(table: Schema) -> dict[str, object]:
        values: dict[str, object] = {}
        for name, key in cast("dict[str, Schema]", table["properties"]).items():
            assert key["description"], name
            if "properties" in key:
                values[name] = collect(key)
            elif "default" in key:
                values[name] = key["default"]
        return values

    defaults = collect(schema)
    assert list_mistakes(defaults, schema) == []
    assert from_mapping(TrainConfig, defaults) == TrainConfig()
