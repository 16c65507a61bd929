"""The nodes follow ComfyUI's V3 protocol, of which this file holds as much as they use."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from videogen.sampling.pipeline import VideoPipeline


class Slot(SimpleNamespace):
    """An input or an output of a node."""


def kind(name: str) -> SimpleNamespace:
    """Make a type of ComfyUI: its inputs have an id and options, its outputs options."""
    return SimpleNamespace(
        Input=lambda id, **options: Slot(type=name, id=id, **options),
        Output=lambda **options: Slot(type=name, **options),
    )


class NodeOutput(SimpleNamespace):
    """What a node returns."""

    def __init__(self, *args: object) -> None:
        super().__init__(args=args)


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the nodes beside a stand-in for comfy_api."""
    names = {name: kind(name.upper()) for name in ("String", "Combo", "Int", "Float", "Image")}
    io = SimpleNamespace(
        **names, Custom=kind, Schema=SimpleNamespace, NodeOutput=NodeOutput, ComfyNode=type("ComfyNode", (), {})
    )
    latest = ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = io, type("ComfyExtension", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.delitem(sys.modules, "videogen.comfy", raising=False)
    yield importlib.import_module("videogen.comfy")
    sys.modules.pop("videogen.comfy", None)


def nodes_of(comfy: ModuleType) -> dict[str, type]:
    extension = asyncio.run(comfy.comfy_entrypoint())
    return {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


def defaults_of(node: type) -> dict[str, object]:
    """Collect what the widgets of a node hold before anybody touches them, as ComfyUI passes them."""
    slots = node.define_schema().inputs  # type: ignore[attr-defined]
    return {slot.id: slot.default for slot in slots if hasattr(slot, "default")}


def test_every_input_is_an_argument_and_every_node_has_a_name(comfy: ModuleType) -> None:
    for name, node in nodes_of(comfy).items():
        schema = node.define_schema()  # type: ignore[attr-defined]
        assert name.startswith("Videogen")
        arguments = node.execute.__func__.__code__.co_varnames[1 : node.execute.__func__.__code__.co_argcount]
        assert [slot.id for slot in schema.inputs] == list(arguments)
        assert schema.outputs


def test_a_workflow_loads_a_checkpoint_and_makes_a_clip_of_each_prompt(comfy: ModuleType, checkpoint: Path) -> None:
    nodes = nodes_of(comfy)
    load, sample = nodes["VideogenLoad"], nodes["VideogenSample"]
    (pipeline,) = load.execute(**defaults_of(load) | {"folder": str(checkpoint)}).args  # type: ignore[attr-defined]
    assert isinstance(pipeline, VideoPipeline)
    options = defaults_of(sample) | {"pipeline": pipeline, "prompts": "a cat\n\na dog", "seed": 5}
    clips, fps = sample.execute(**options).args  # type: ignore[attr-defined]
    assert fps == pipeline.defaults.fps
    expected = pipeline(["a cat", "a dog"], pipeline.defaults, seeds=[5, 6])
    for clip, frames in zip(clips, expected, strict=True):
        assert type(clip) is Tensor
        assert torch.equal((clip * 255).round().byte(), frames)
    small = options | {"width": 32, "height": 16, "frames": 5, "steps": 1, "guidance": 1.5, "prompts": "a cat"}
    assert sample.execute(**small).args[0][0].shape == (5, 16, 32, 3)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="write one a line"):
        sample.execute(**options | {"prompts": " \n"})  # type: ignore[attr-defined]


def test_pictures_are_known_frames(comfy: ModuleType, checkpoint: Path) -> None:
    nodes = nodes_of(comfy)
    pipeline = VideoPipeline.load(checkpoint)
    sample, picture = nodes["VideogenSample"], torch.rand(1, 32, 48, 4)
    options = defaults_of(sample) | {"pipeline": pipeline, "prompts": "a cat", "width": 48, "height": 32, "frames": 9}
    (with_first,), _ = sample.execute(**options, first=picture).args  # type: ignore[attr-defined]
    (with_both,), _ = sample.execute(**options, first=picture, last=picture).args  # type: ignore[attr-defined]
    (goes_on,), _ = sample.execute(**options, first=torch.rand(5, 32, 48, 3)).args  # type: ignore[attr-defined]
    assert with_first.shape == with_both.shape == goes_on.shape == (9, 32, 48, 3)
    assert not torch.equal(with_first, with_both)
    assert not torch.equal(with_first, goes_on)
