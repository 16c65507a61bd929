"""Stand in for the part of ComfyUI's V3 schema that the node pack uses, and run its nodes as ComfyUI does."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace


class Slot:
    """An input or an output of a node."""

    def __init__(self, kind: str, args: tuple[object, ...], options: dict[str, object]) -> None:
        self.kind, self.args, self.options = kind, args, options


def kind_of_value(name: str) -> SimpleNamespace:
    """Stand in for io.Int, io.Image, ...: Input(id, ...) and Output(display_name=...)."""
    return SimpleNamespace(
        Input=lambda *args, **options: Slot(name, args, options),
        Output=lambda *args, **options: Slot(name, args, options),
    )


class Schema(SimpleNamespace):
    """Stand in for io.Schema."""

    inputs: list[Slot]
    outputs: list[Slot]


class NodeOutput:
    """Stand in for io.NodeOutput."""

    def __init__(self, *args: object) -> None:
        self.args = args


def run_node(node: type, **given: object) -> tuple[object, ...]:
    """Run a node as ComfyUI does: a widget that is not set has its default, optional inputs are left out."""
    schema = node.define_schema()  # type: ignore[attr-defined]
    names = {slot.args[0]: slot for slot in schema.inputs}
    assert set(given) <= set(names)
    values = {name: slot.options["default"] for name, slot in names.items() if "default" in slot.options} | given
    assert [name for name, slot in names.items() if name not in values and not slot.options.get("optional")] == []
    result = node.execute(**values).args  # type: ignore[attr-defined]
    assert len(result) == len(schema.outputs)
    return result


@contextmanager
def open_nodes(place: Path) -> Iterator[dict[str, type]]:
    """Open the nodes, by id, as ComfyUI finds them: through the two lines of custom_nodes/videogen/__init__.py."""
    latest = ModuleType("comfy_api.latest")
    values = {name: kind_of_value(name) for name in ("String", "Int", "Float", "Combo", "Image")}
    latest.io = SimpleNamespace(  # type: ignore[attr-defined]
        **values, Custom=kind_of_value, ComfyNode=type("ComfyNode", (), {}), Schema=Schema, NodeOutput=NodeOutput
    )
    latest.ComfyExtension = type("ComfyExtension", (), {})  # type: ignore[attr-defined]
    pack = place / "custom_nodes" / "videogen_pack" / "__init__.py"
    pack.parent.mkdir(parents=True)
    pack.write_text('from videogen.comfy import comfy_entrypoint\n__all__ = ["comfy_entrypoint"]\n')
    modules = {"comfy_api": ModuleType("comfy_api"), "comfy_api.latest": latest}
    sys.modules |= modules
    sys.path.insert(0, str(pack.parent.parent))
    try:
        extension = asyncio.run(importlib.import_module("videogen_pack").comfy_entrypoint())
        found = asyncio.run(extension.get_node_list())
        yield {node.define_schema().node_id: node for node in found}
    finally:
        sys.path.remove(str(pack.parent.parent))
        for name in (*modules, "videogen.comfy", "videogen_pack"):
            sys.modules.pop(name, None)
