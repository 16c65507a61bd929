"""`--storyboard FILE.toml`: one clip of several scenes, each with its own prompt.

SampleArgs, CheckpointInfo  ->  [Shot], the settings of their windows, their first images
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.config.sample import SampleConfig
from videogen.config.storyboard import Shot, plan_shots, read_storyboard
from videogen.data.pictures import read_image_file
from videogen.models.checkpoint_config import TEXT_ONLY, CheckpointInfo
from videogen.packing.windows import plan_windows

if TYPE_CHECKING:
    from videogen.cli.sample_arguments import SampleArgs
    from videogen.sampling.known import Known


def fit_storyboard(args: SampleArgs, info: CheckpointInfo) -> SampleArgs:
    """Take the prompt of a clip from its storyboard; a ValueError where a flag beside it says something else."""
    assert args.storyboard is not None
    if not info.takes_known:
        raise ValueError(TEXT_ONLY)
    for flag in ("image", "video", "prompts", "save_latents"):
        if getattr(args, flag):
            raise ValueError(f"--storyboard says what the clip shows; leave --{flag.replace('_', '-')} out")
    prompt = " / ".join(scene.prompt for scene in read_storyboard(args.storyboard))
    if args.prompt not in ((), (prompt,)):
        raise ValueError(f"the prompts are those of {args.storyboard}; leave {args.prompt[0]!r} out")
    args = replace(args, prompt=(prompt,))
    for shot in list_shots(args, args.sample, info):
        if shot.scenes[0].image:
            read_image_file(Path(shot.scenes[0].image))
    return args


def list_shots(args: SampleArgs, config: SampleConfig, info: CheckpointInfo) -> list[Shot]:
    """List the shots of the storyboard at the frame rate of the settings."""
    assert args.storyboard is not None
    return plan_shots(read_storyboard(args.storyboard), config.fps, info.time_stride)


def list_shot_windows(shot: Shot, stride: int, length: int) -> list[int]:
    """List the latent frames of each window in which a shot is denoised, scene by scene."""
    is_known = [bool(shot.scenes[0].image)]
    windows = []
    for end in shot.ends:
        is_known += [False] * (1 + (end - 1) // stride - len(is_known))
        windows += [high - low for low, high in plan_windows(is_known, length)]
        is_known = [True] * len(is_known)
    return windows


def load_images(shots: list[Shot], args: SampleArgs) -> list[Known | None]:
    """Read the picture that each shot begins with."""
    from videogen.sampling.known import Known

    fit = "pad" if args.fit == "pad" else "crop"
    images = [shot.scenes[0].image for shot in shots]
    return [Known.first(read_image_file(Path(image), args.background), fit=fit) if image else None for image in images]
