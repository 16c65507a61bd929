"""Nodes for ComfyUI by its V3 schema: load a checkpoint, and sample one clip for each line of a prompt.

    checkpoint folder  ->  pipeline;  pipeline, lines of prompts, IMAGE  ->  a list of IMAGE, frames a second

An IMAGE is a batch of frames (b, h, w, c) float32 in [0, 1]. A folder in ComfyUI's custom_nodes imports this file:

    # custom_nodes/videogen/__init__.py
    from videogen.comfy import comfy_entrypoint
    __all__ = ["comfy_entrypoint"]
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from comfy_api.latest import ComfyExtension, io  # type: ignore[import-not-found]
from torch import Tensor

from videogen.config.sample import MINI, SAMPLER_NAMES, SampleConfig
from videogen.sampling.clips import as_fractions
from videogen.sampling.known import Known

if TYPE_CHECKING:
    from videogen.sampling.pipeline import VideoPipeline

CATEGORY, OWN = "videogen", "the checkpoint's own"
Pipeline = io.Custom("VIDEOGEN_PIPELINE")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGEST_SEED = 2**53 - 1  # The browser's numbers are exact up to here.


class LoadCheckpoint(io.ComfyNode):
    """Load a checkpoint of videogen or a diffusers folder of Wan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node's inputs and outputs."""
        return io.Schema(
            node_id="VideogenLoadCheckpoint",
            display_name="Load videogen or Wan checkpoint",
            category=CATEGORY,
            description="Opens a checkpoint folder of videogen, or Wan's in diffusers' format.",
            inputs=[
                io.String.Input("folder", default=str(MINI), tooltip="A folder with a model_index.json."),
                io.String.Input("loras", multiline=True, default="", tooltip="One file a line, or FILE=SCALE."),
                io.Combo.Input("device", options=["auto", "cpu", "cuda", "mps", "xpu"], default="auto"),
                io.Combo.Input("dtype", options=[*DTYPES], default="float32"),
            ],
            outputs=[Pipeline.Output(display_name="pipeline")],
        )

    @classmethod
    def execute(cls, folder: str, loras: str, device: str, dtype: str) -> io.NodeOutput:
        """Load the pipeline on its device; raises a ValueError for what is no checkpoint."""
        from videogen.sampling.pipeline import VideoPipeline  # diffusers takes seconds to import

        if device == "auto":
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            device = accelerator.type if accelerator else "cpu"
        pipeline = VideoPipeline.load(folder.strip(), dtype=DTYPES[dtype])
        pipeline.add_loras(lines_of(loras))
        return io.NodeOutput(pipeline.to(device))


class SampleClips(io.ComfyNode):
    """Make one clip for each line of a prompt, all in one pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node's inputs and outputs."""
        return io.Schema(
            node_id="VideogenSampleClips",
            display_name="Sample clips",
            category=CATEGORY,
            description=f"Makes one clip for each line. 0, and a guidance of -1, is {OWN} setting.",
            inputs=[
                Pipeline.Input("pipeline"),
                io.String.Input("prompts", multiline=True, default="", tooltip="One prompt a line."),
                io.String.Input("negative", multiline=True, default="", tooltip="What the clips should not show."),
                io.Int.Input(
                    "seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True,
                    tooltip="Of the first clip; the next has the next.",
                ),
                io.Int.Input("width", default=0, min=0, max=8192),
                io.Int.Input("height", default=0, min=0, max=8192),
                io.Int.Input("frames", default=0, min=0, max=100_000),
                io.Int.Input("steps", default=0, min=0, max=1000),
                io.Float.Input("guidance", default=-1.0, min=-1.0, max=100.0, step=0.1),
                io.Combo.Input("sampler", options=[OWN, *SAMPLER_NAMES], default=OWN),
                io.Image.Input("first", optional=True, tooltip="A picture or frames that the clips begin with."),
                io.Image.Input("last", optional=True, tooltip="A picture that the clips end with."),
            ],
            outputs=[
                io.Image.Output(display_name="clips", is_output_list=True),
                io.Float.Output(display_name="fps"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        pipeline: VideoPipeline,
        prompts: str,
        first: Tensor | None = None,
        last: Tensor | None = None,
        *,
        seed: int,
        **widgets: str | float,
    ) -> io.NodeOutput:
        """Sample the clips (b, h, w, c) in [0, 1]; raises a ValueError for settings that the checkpoint cannot."""
        texts = lines_of(prompts)
        if not texts:
            raise ValueError("prompts is empty; write one prompt a line")
        config = settings_of_widgets(pipeline.defaults, widgets)
        known = [] if first is None else [Known.clip(first)]
        known += [] if last is None else [Known.last(last)]
        clips = pipeline(texts, config, seeds=[seed + i for i in range(len(texts))], known=known)
        return io.NodeOutput([as_fractions(clip) for clip in clips], config.fps)


class VideogenExtension(ComfyExtension):
    """The nodes of videogen."""

    nodes: ClassVar = [LoadCheckpoint, SampleClips]

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List the nodes."""
        return self.nodes


async def comfy_entrypoint() -> VideogenExtension:
    """Return the extension, as ComfyUI asks of a node pack."""
    return VideogenExtension()


def lines_of(text: str) -> list[str]:
    """Split a text into its lines that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def settings_of_widgets(defaults: SampleConfig, widgets: dict[str, str | float]) -> SampleConfig:
    """Replace a checkpoint's settings by those of the widgets that do not stand for its own."""
    width, height = int(widgets.pop("width")) or defaults.width, int(widgets.pop("height")) or defaults.height
    unset = {"guidance": -1, "sampler": OWN, "frames": 0, "steps": 0, "negative": ""}
    changes: dict[str, object] = {name: value for name, value in widgets.items() if value != unset[name]}
    if "frames" in changes:
        changes["seconds"] = None  # The checkpoint's seconds would override them.
    return replace(defaults, size=f"{width}x{height}", **changes)  # type: ignore[arg-type]
