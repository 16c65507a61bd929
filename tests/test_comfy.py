"""The node pack for ComfyUI, run against a small stand-in of the part of its V3 schema that it uses."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from videogen.sampling.known import Known
from videogen.sampling.pipeline import VideoPipeline


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


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, type]]:
    """The nodes, by id, as ComfyUI finds them: through the two lines of custom_nodes/videogen/__init__.py."""
    latest = ModuleType("comfy_api.latest")
    values = {name: kind_of_value(name) for name in ("String", "Int", "Float", "Combo", "Image")}
    latest.io = SimpleNamespace(  # type: ignore[attr-defined]
        **values, Custom=kind_of_value, ComfyNode=type("ComfyNode", (), {}), Schema=Schema, NodeOutput=NodeOutput
    )
    latest.ComfyExtension = type("ComfyExtension", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.delitem(sys.modules, "videogen.comfy", raising=False)
    pack = tmp_path / "custom_nodes" / "videogen_pack" / "__init__.py"
    pack.parent.mkdir(parents=True)
    pack.write_text('from videogen.comfy import comfy_entrypoint\n__all__ = ["comfy_entrypoint"]\n')
    monkeypatch.syspath_prepend(str(pack.parent.parent))
    extension = asyncio.run(importlib.import_module("videogen_pack").comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    yield {node.define_schema().node_id: node for node in found}
    for name in ("videogen.comfy", "videogen_pack"):
        sys.modules.pop(name, None)


@pytest.fixture
def loaded(nodes: dict[str, type], checkpoint: Path) -> VideoPipeline:
    """The tiny checkpoint, opened by the first node."""
    (pipeline,) = run_node(nodes["VideogenLoadCheckpoint"], folder=f" {checkpoint}\n", device="cpu")
    assert isinstance(pipeline, VideoPipeline)
    return pipeline


def test_a_node_makes_the_clips_of_the_pipeline_one_a_line(nodes: dict[str, type], loaded: VideoPipeline) -> None:
    words = {
        "prompts": "a red circle\n\n a blue star \n",
        "seed": 3,
        "width": 48,
        "height": 32,
        "frames": 5,
        "steps": 2,
    }
    clips, fps = run_node(nodes["VideogenSampleClips"], pipeline=loaded, guidance=2.0, **words)
    config = replace(loaded.defaults, size="48x32", frames=5, steps=2, guidance=2.0)
    wanted = loaded(["a red circle", "a blue star"], config, seeds=[3, 4])
    assert fps == config.fps
    assert isinstance(clips, list)
    for clip, frames in zip(clips, wanted, strict=True):
        assert type(clip) is torch.Tensor
        assert (clip.dtype, clip.shape) == (torch.float32, (5, 32, 48, 3))
        assert torch.equal((clip * 255).round().to(torch.uint8), torch.as_tensor(frames.numpy().copy()))


def test_widgets_left_alone_stand_for_the_checkpoints_own_settings(
    nodes: dict[str, type], loaded: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(VideoPipeline, "__call__", lambda self, texts, config, **_: asked.append(config) or [])
    run_node(nodes["VideogenSampleClips"], pipeline=loaded, prompts="a red circle")
    run_node(nodes["VideogenSampleClips"], pipeline=loaded, prompts="a red circle", guidance=0.0, sampler="euler")
    assert asked == [loaded.defaults, replace(loaded.defaults, guidance=0.0, sampler="euler")]


def test_connected_images_are_what_the_clips_begin_and_end_with(nodes: dict[str, type], loaded: VideoPipeline) -> None:
    first, last = torch.full((1, 32, 48, 3), 0.25), torch.full((1, 32, 48, 3), 0.75)
    words = {"prompts": "a red circle", "width": 48, "height": 32, "frames": 9, "steps": 2}
    (clip,), _ = run_node(nodes["VideogenSampleClips"], pipeline=loaded, first=first, last=last, **words)
    (free,), _ = run_node(nodes["VideogenSampleClips"], pipeline=loaded, **words)
    config = replace(loaded.defaults, size="48x32", frames=9, steps=2)
    (wanted,) = loaded("a red circle", config, seeds=[0], known=[Known.first(first), Known.last(last)])
    assert torch.equal((clip * 255).round(), torch.as_tensor(wanted.numpy().copy()).float())
    assert not torch.equal(clip, free)


def test_what_cannot_be_made_is_refused_in_a_sentence(
    nodes: dict[str, type], loaded: VideoPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="prompts is empty; write one prompt a line"):
        run_node(nodes["VideogenSampleClips"], pipeline=loaded, prompts=" \n")
    with pytest.raises(ValueError, match="frames must be 1"):
        run_node(nodes["VideogenSampleClips"], pipeline=loaded, prompts="a red circle", frames=6)
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        run_node(nodes["VideogenLoadCheckpoint"], folder=str(tmp_path), device="cpu")
