"""The node pack for ComfyUI, run against a small stand-in of the part of its V3 schema that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.comfy_stand_in import open_nodes, run_node
from videogen.sampling.known import Known
from videogen.sampling.pipeline import VideoPipeline


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, type]]:
    """The nodes, by id."""
    with open_nodes(tmp_path) as found:
        yield found


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
