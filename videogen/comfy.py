"""Nodes for ComfyUI, by its V3 schema: load a checkpoint or a Wan folder, and make clips of prompts and known frames.

folder  ->  pipeline;  pipeline, prompts, pictures (b, h, w, 3) in [0, 1]  ->  a batch of frames (t, h, w, 3) a prompt

ComfyUI finds them by a file custom_nodes/videogen/__init__.py of two lines:

    from videogen.comfy import comfy_entrypoint
    __all__ = ["comfy_entrypoint"]
"""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import ComfyExtension, io  # type: ignore[import-not-found]
from torch import Tensor

from videogen.config.sample import MINI, SampleConfig
from videogen.sampling.known import Known
from videogen.sampling.pipeline import VideoPipeline

PIPELINE = io.Custom("VIDEOGEN_PIPELINE")
CATEGORY = "videogen"
MAX_SIDE, MAX_FRAMES = 8192, 100_000


class LoadPipeline(io.ComfyNode):
    """Load a checkpoint folder of videogen, or of Wan in diffusers' layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="VideogenLoad",
            display_name="Load videogen checkpoint",
            category=CATEGORY,
            inputs=[
                io.String.Input("folder", default="", tooltip="checkpoint or Wan folder; empty: the shipped one"),
                io.Combo.Input("device", options=["cpu", "cuda", "mps", "xpu"], default="cpu"),
                io.Combo.Input("dtype", options=["float32", "bfloat16", "float16"], default="float32"),
                io.String.Input("lora", default="", tooltip="files as FILE=SCALE, one a line", multiline=True),
            ],
            outputs=[PIPELINE.Output(display_name="pipeline")],
        )

    @classmethod
    def execute(cls, folder: str, device: str, dtype: str, lora: str = "") -> io.NodeOutput:
        """Load it, checked: a ValueError names what is missing."""
        import torch

        pipeline = VideoPipeline.load(folder.strip() or MINI, dtype=getattr(torch, dtype))
        if names := split_lines(lora):
            pipeline.add_loras(names)
        return io.NodeOutput(pipeline.to(device))


class SampleClips(io.ComfyNode):
    """Make a clip of each prompt, side by side in one pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        own = "0: the checkpoint's own"
        return io.Schema(
            node_id="VideogenSample",
            display_name="Sample videogen clips",
            category=CATEGORY,
            inputs=[
                PIPELINE.Input("pipeline"),
                io.String.Input("prompts", multiline=True, tooltip="one a line; each gives a clip"),
                io.String.Input("negative", multiline=True, default=""),
                io.Int.Input("seed", default=0, min=0, max=2**62, control_after_generate=True),
                io.Int.Input("width", default=0, min=0, max=MAX_SIDE, tooltip=own),
                io.Int.Input("height", default=0, min=0, max=MAX_SIDE, tooltip=own),
                io.Int.Input("frames", default=0, min=0, max=MAX_FRAMES, tooltip=own),
                io.Int.Input("steps", default=0, min=0, max=1000, tooltip=own),
                io.Float.Input("guidance", default=0.0, min=0.0, max=100.0, step=0.1, tooltip=own),
                io.Image.Input("first", optional=True, tooltip="the first frame, or frames to go on from"),
                io.Image.Input("last", optional=True, tooltip="the last frame"),
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
        negative: str,
        seed: int,
        width: int,
        height: int,
        frames: int,
        steps: int,
        guidance: float,
        first: Tensor | None = None,
        last: Tensor | None = None,
    ) -> io.NodeOutput:
        """Make the clips; prompt i has seed + i. A ValueError says what the checkpoint cannot do."""
        lines = split_lines(prompts)
        if not lines:
            raise ValueError("no prompt was given; write one a line")
        config = configure(pipeline.defaults, width, height, frames, steps, guidance)
        config = replace(config, negative=negative.strip() or config.negative)
        known = [] if first is None else [give(first)]
        known += [] if last is None else [Known.last(to_bytes(last)[-1])]
        clips = pipeline(lines, config, seeds=[seed + i for i in range(len(lines))], known=known)
        return io.NodeOutput([clip.as_subclass(Tensor).float() / 255 for clip in clips], float(config.fps))


class Extension(ComfyExtension):
    """The nodes of videogen."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List them."""
        return [LoadPipeline, SampleClips]


async def comfy_entrypoint() -> Extension:
    """Give ComfyUI the nodes."""
    return Extension()


def split_lines(text: str) -> list[str]:
    """Return the lines that hold something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def configure(own: SampleConfig, width: int, height: int, frames: int, steps: int, guidance: float) -> SampleConfig:
    """Change the checkpoint's own settings where a number is given."""
    if width or height:
        own = replace(own, size=f"{width or own.width}x{height or own.height}")
    if frames:
        own = replace(own, frames=frames, seconds=None)
    return replace(own, steps=steps or own.steps, guidance=guidance or own.guidance)


def to_bytes(pictures: Tensor) -> Tensor:
    """Return pictures (b, h, w, c) in [0, 1] as uint8 without an alpha channel."""
    return (pictures[..., :3].clamp(0, 1) * 255).round().byte().cpu()


def give(pictures: Tensor) -> Known:
    """Give one picture as the first frame, or several as the frames that a clip begins with."""
    frames = to_bytes(pictures)
    return Known.first(frames[0]) if len(frames) == 1 else Known.clip(frames)
